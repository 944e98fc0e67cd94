"""Decoding with language models of two sizes beside transformers and llama.cpp, in turns.

Weights are random, of the shapes of a 110M Llama and a 0.5B Qwen2: speed only. One token a step
for 1 and for 8 sequences after a context of 256, and a prompt of 256 tokens; beside them the
bandwidth at which this process reads memory, and how often the numeric modes choose the token
float32 chooses on a real tiny model. Rivals that are not installed are left out by name:
``PYTHONPATH=. python -m benchmarks.workloads.decode --shape 110M --threads 1``
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks import harness
from tarsdb.model_ops import Decoder, StepBatch, blas_threads, read_model_directory
from tarsdb.model_ops.decoder_spec import decoder_tensors, read_decoder_spec

PACKAGES = ("numpy", "numba", "torch", "transformers", "llama-cpp-python", "gguf")
CONTEXT = 256
_COMMON = {"max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
           "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "110M": {**_COMMON, "model_type": "llama", "hidden_size": 768, "num_hidden_layers": 12,
             "num_attention_heads": 12, "num_key_value_heads": 12, "intermediate_size": 2048,
             "vocab_size": 32_000},
    "0.5B": {**_COMMON, "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24,
             "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
             "vocab_size": 151_936},
}  # fmt: skip
STORIES = pathlib.Path(__file__).parents[3] / "shared" / "data" / "models" / "stories260K"


class RandomTensors(Mapping[str, np.ndarray]):
    """Weights made when they are asked for, the same ones every time."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._shapes = decoder_tensors(read_decoder_spec(config))

    def __getitem__(self, name: str) -> np.ndarray:
        random = np.random.default_rng(list(self._shapes).index(name))
        values = random.standard_normal(self._shapes[name], np.float32) * np.float32(0.02)
        return values + np.float32(1) if "norm" in name else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def batch(sequences: int, position: int, rows: int) -> StepBatch:
    """Return a step of some sequences, each in blocks of its own."""
    blocks = -(-(position + rows) // 16)
    tables = np.arange(sequences * blocks, dtype=np.int32).reshape(sequences, blocks)
    ends = np.arange(sequences + 1, dtype=np.int32) * rows
    tokens = (np.arange(sequences * rows, dtype=np.int32) % 1000) + 3
    return StepBatch(tokens, ends, np.full(sequences, position, np.int32), tables, ends[1:] - 1)


def ours(config: dict[str, Any], quantize: str, threads: int) -> dict[str, Callable[[], Any]]:
    """Return calls of one step each, by what they do."""
    files = {"config.json": json.dumps(config).encode()}
    decoder = Decoder.from_files(files, RandomTensors(config), {"quantize": quantize})
    decoder.threads = threads
    cache = decoder.new_cache(8 * (CONTEXT // 16 + 1))
    for part in (cache.keys, cache.values):
        part.fill(0)  # memory that was never written may be one page of zeros
    steps = {
        "b1": batch(1, CONTEXT, 1),
        "b8": batch(8, CONTEXT, 1),
        "prefill": batch(1, 0, CONTEXT),
    }
    return {name: functools.partial(decoder.step, step, cache) for name, step in steps.items()}


def with_torch(config: dict[str, Any], dtype: str, threads: int) -> dict[str, Callable[[], Any]]:
    """Return the same calls of transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(threads)
    arguments = {key: value for key, value in config.items() if key != "model_type"}
    settings = AutoConfig.for_model(config["model_type"], **arguments)
    tensors = RandomTensors(config)
    model = AutoModelForCausalLM.from_config(settings).eval()
    model.load_state_dict({n: torch.from_numpy(tensors[n]) for n in tensors}, strict=False)
    model = model.to(getattr(torch, dtype))

    def prefill(sequences: int) -> Any:
        past = DynamicCache(config=settings)
        with torch.inference_mode():
            prompt = torch.arange(CONTEXT)[None].repeat(sequences, 1) + 3
            model(input_ids=prompt, past_key_values=past, logits_to_keep=1)
        return past

    def decode(past: Any, sequences: int) -> None:
        with torch.inference_mode():
            model(input_ids=torch.full((sequences, 1), 5), past_key_values=past)
            past.crop(-1)

    return {
        "b1": functools.partial(decode, prefill(1), 1),
        "b8": functools.partial(decode, prefill(8), 8),
        "prefill": functools.partial(prefill, 1),
    }


def write_gguf(config: dict[str, Any], kind: str, path: str) -> None:
    """Write the weights as llama.cpp reads them, in one coding; norms and biases float32."""
    import gguf

    family = config["model_type"]
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config["num_hidden_layers"])
    chosen = gguf.GGMLQuantizationType[kind]
    tensors = RandomTensors(config)
    for name in tensors:
        values, found = tensors[name], names.get_name(name, try_suffixes=(".weight", ".bias"))
        if values.ndim == 2 and kind != "F32":
            writer.add_tensor(found, gguf.quantize(values, chosen), raw_dtype=chosen)
        else:
            writer.add_tensor(found, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def has_tiles() -> bool:
    """Return True where llama.cpp has to do without its AMX buffers: Q8_0 and Q4_0 crash in them.

    That is ggml-org/llama.cpp#20824; without them it repacks no weights either.
    """
    import llvmlite.binding as llvm

    return bool(llvm.get_host_cpu_features().get("amx-int8"))


def with_llama(config: dict[str, Any], kind: str, threads: int) -> dict[str, Callable[[], Any]]:
    """Return the same calls of llama.cpp."""
    import llama_cpp

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.gguf")
        write_gguf(config, kind, path)
        settings = llama_cpp.llama_model_default_params()
        settings.use_mmap = False
        settings.use_extra_bufts = not has_tiles()
        model = llama_cpp.llama_model_load_from_file(path.encode(), settings)
    context_settings = llama_cpp.llama_context_default_params()
    context_settings.n_ctx, context_settings.n_seq_max = 8 * (CONTEXT + 64), 8
    context_settings.n_threads = context_settings.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, context_settings)
    memory = llama_cpp.llama_get_memory(context)

    def run(sequences: int, position: int, rows: int) -> None:
        """Step, then forget what was added."""
        work = llama_cpp.llama_batch_init(sequences * rows, 0, 1)
        work.n_tokens = sequences * rows
        for i in range(work.n_tokens):
            work.token[i], work.pos[i] = 3 + i % 1000, position + i % rows
            work.n_seq_id[i], work.seq_id[i][0] = 1, i // rows
            work.logits[i] = i % rows == rows - 1
        if llama_cpp.llama_decode(context, work):
            raise SystemExit("llama.cpp refused a batch")
        llama_cpp.llama_synchronize(context)
        llama_cpp.llama_batch_free(work)

    def step(sequences: int) -> None:
        run(sequences, CONTEXT, 1)
        for number in range(sequences):
            llama_cpp.llama_memory_seq_rm(memory, number, CONTEXT, -1)

    def prefill() -> None:
        llama_cpp.llama_memory_seq_rm(memory, 0, 0, -1)
        run(1, 0, CONTEXT)

    for number in range(1, 8):
        prefill()
        llama_cpp.llama_memory_seq_cp(memory, 0, number, 0, -1)
    prefill()
    return {"b1": functools.partial(step, 1), "b8": functools.partial(step, 8), "prefill": prefill}


def bytes_a_token(config: dict[str, Any], mode: str) -> int:
    """Return what one token after the context must read: each matrix once, keys and values."""
    spec = read_decoder_spec(config)
    matrices = sum(int(np.prod(s)) for s in decoder_tensors(spec).values() if len(s) == 2)
    element = 2 if mode == "bf16" else 4
    cache = 2 * len(spec.layers) * CONTEXT * spec.kv_heads * spec.head_dim * element
    bits = {"none": 32, "bf16": 16, "int8": 8, "int4": 4.5}[mode]  # int4 with its scales
    return int(matrices * bits / 8) + cache


def read_bandwidth() -> float:
    """Return bytes a second at which one thread reads 512 MB: the best of a maximum and a sum."""
    words = np.ones(128 << 20, np.float32)
    reads = (words.view(np.uint8).max, functools.partial(np.dot, words, words))
    best = 0.0
    with blas_threads.single_threaded():
        for read in reads * 5:
            start = time.perf_counter()
            read()
            best = max(best, words.nbytes / (time.perf_counter() - start))
    return best


def agreement() -> dict[str, float]:
    """Return how often a mode chooses float32's token, teacher-forced, on the real tiny model."""
    if not STORIES.is_dir():
        return {}
    golden = pathlib.Path(__file__).parents[2] / "tests/golden/models/stories260k.npz"
    tokens = np.load(golden)["tokens"]
    model = read_model_directory(str(STORIES))
    found = {}
    for quantize in ("none", "bf16", "int8", "int4"):
        decoder = Decoder.from_files(model.files, model.tensors, {"quantize": quantize})
        step = batch(1, 0, len(tokens) - 1)
        step = StepBatch(tokens[:-1], step.offsets, step.positions, step.block_tables,
                         np.arange(len(tokens) - 1, dtype=np.int32))  # fmt: skip
        chosen = decoder.step(step, decoder.new_cache(len(tokens) // 16 + 1)).argmax(axis=1)
        found[quantize] = float((chosen == tokens[1:]).mean())
    return found


def contenders(shape: str, modes: list[str], threads: int) -> dict[str, dict[str, Any]]:
    """Return what is measured, by name; each loads its weights."""
    config, found = SHAPES[shape], {}
    rivals = {"none": ("float32", "F32"), "bf16": ("bfloat16", "BF16"), "int8": ("", "Q8_0"),
              "int4": ("", "Q4_0")}  # fmt: skip
    for mode in modes:
        found[f"tarsdb {mode}"] = ours(config, mode, threads)
        dtype, kind = rivals[mode]
        if dtype and importlib.util.find_spec("transformers"):
            found[f"torch {dtype}"] = with_torch(config, dtype, threads)
        if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf"):
            found[f"llama.cpp {kind}"] = with_llama(config, kind, threads)
    return found


def main() -> None:
    """Measure and store."""
    harness.cap_rivals()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="110M")
    parser.add_argument("--modes", nargs="+", default=["none", "bf16", "int8", "int4"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    agreed, bandwidth = agreement(), read_bandwidth()
    print(f"token agreement with float32: {agreed}; reads {bandwidth / 1e9:.1f} GB/s")
    calls = contenders(arguments.shape, arguments.modes, arguments.threads)
    record: dict[str, Any] = {"shape": arguments.shape, "random_weights": True,
                              "threads": arguments.threads, "bandwidth": bandwidth,
                              "bytes_a_token": {
                                  mode: bytes_a_token(SHAPES[arguments.shape], mode)
                                  for mode in arguments.modes
                              },
                              "agreement": agreed,
                              "llama_cpp_without_extra_buffers": has_tiles()}  # fmt: skip
    for what, tokens in (("b1", 1), ("b8", 8), ("prefill", CONTEXT)):
        steps = {name: each[what] for name, each in calls.items()}
        figures = harness.measure(steps, repeats=arguments.repeats, clock=time.perf_counter)
        print(harness.table(f"{arguments.shape} (random weights) {what}, milliseconds", figures))
        speeds = {name: tokens / figure["median"] for name, figure in figures.items()}
        record[what] = {"tokens_per_second": speeds, "seconds": figures}
        print("  ".join(f"{name} {speed:.1f} tok/s" for name, speed in speeds.items()))
    harness.write(f"decode_{arguments.shape}_{arguments.threads}",
                  {**record, **harness.environment(PACKAGES)})  # fmt: skip


if __name__ == "__main__":
    main()
