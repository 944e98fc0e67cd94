"""Encoding and decoding on a CUDA device beside PyTorch on it, in wall time.

Without a device it says so and ends. Weights are random, of the shapes of MiniLM, a 110M Llama and
a 0.5B Qwen2: speed only. Encoding takes texts of mixed lengths, sorted by length; decoding one
token a step for 1 and for 8 sequences after a context of 256, and a prompt of 256 tokens; logits
and vectors come back to the host. Shares are of what a large product and a large copy reach on the
device in the same run. Writes ``results/gpu_models.LEVEL.json``:
``PYTHONPATH=. python -m benchmarks.workloads.gpu_models``
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.on_device import device_or_none, speed
from benchmarks.workloads.decode import CONTEXT, SHAPES, RandomTensors, batch, bytes_a_token
from tarsdb.kernels.gpu.device import Device
from tarsdb.model_ops import Decoder
from tarsdb.model_ops.architecture import EncoderSpec, read_spec, tensor_shapes
from tarsdb.model_ops.on_device import DeviceEncoder, kernels_on
from tarsdb.model_ops.panels import cut_panels
from tarsdb.model_ops.transformer import Panel
from tarsdb.model_ops.weights import load_weights

Calls = dict[str, Callable[[], Any]]

PACKAGES = ("numpy", "numba", "numba-cuda", "cupy-cuda12x", "torch", "transformers")
MINILM = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "vocab_size": 30_522,
          "num_attention_heads": 12, "intermediate_size": 1536, "max_position_embeddings": 512,
          "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12}  # fmt: skip
MODES = {"none": "float32", "bf16": "float16", "int8": "", "int4": ""}
"""Numeric modes, and the number type in which PyTorch stands beside them."""
KINDS = {"none": "f32", "bf16": "bf16"}
BATCH = 256
"""Texts that PyTorch pads together."""


def lengths(texts: int) -> np.ndarray:
    """Return tokens of texts, longest first: 76 on average, as the embedding workload's are."""
    drawn = np.random.default_rng(1).lognormal(np.log(60), 0.7, texts)
    return np.sort(np.clip(drawn, 8, 256).astype(np.int64))[::-1]


def encoder(device: Device, kind: str, counts: np.ndarray) -> Callable[[], Any]:
    """Return a call that encodes texts of so many tokens with ours."""
    spec = read_spec(MINILM)
    weights = load_weights(spec, random_encoder(spec))
    ours = DeviceEncoder(device, kernels_on(device.xp), spec, weights, kind)
    panels = []
    for rows in cut_panels(counts, 1, ours.panel_tokens):
        offsets = np.concatenate([[0], np.cumsum(counts[rows])])
        panels.append(Panel((np.arange(offsets[-1]) % 1000 + 5).astype(np.int32), offsets))
    return lambda: [ours.forward(panel) for panel in panels]


def random_encoder(spec: EncoderSpec) -> Mapping[str, np.ndarray]:
    """Return weights of an encoder."""
    random = np.random.default_rng(1)
    return {
        name: random.standard_normal(shape, np.float32) * np.float32(0.02)
        for name, shape in tensor_shapes(spec).items()
    }


def torch_encoder(dtype: str, counts: np.ndarray) -> Callable[[], Any]:
    """Return the same call of transformers: batches of neighbours in length, padded."""
    import torch
    from transformers import BertConfig, BertModel

    settings = {name: value for name, value in MINILM.items() if name != "model_type"}
    model = BertModel(BertConfig(**settings), add_pooling_layer=False).eval()
    model = model.to("cuda", getattr(torch, dtype))
    batches = []
    for at in range(0, len(counts), BATCH):
        part = counts[at : at + BATCH]
        mask = np.arange(part.max()) < part[:, None]
        ids = torch.from_numpy(np.where(mask, 5, 0)).cuda()
        batches.append({"input_ids": ids, "attention_mask": torch.from_numpy(mask).long().cuda()})

    def run() -> None:
        with torch.inference_mode():
            for each in batches:
                model(**each).last_hidden_state.float().cpu()

    return run


def decoder(device: Device, config: dict[str, Any], mode: str) -> Calls:
    """Return calls of one step each, by what they do."""
    files = {"config.json": json.dumps(config).encode()}
    ours = Decoder.from_files(files, RandomTensors(config), {"quantize": mode}, device)
    cache = ours.new_cache(8 * (CONTEXT // 16 + 1))
    steps = {"b1": batch(1, CONTEXT, 1), "b8": batch(8, CONTEXT, 1),
             "prefill": batch(1, 0, CONTEXT)}  # fmt: skip
    return {name: functools.partial(ours.step, step, cache) for name, step in steps.items()}


def torch_decoder(config: dict[str, Any], dtype: str) -> Calls:
    """Return the same calls of transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

    arguments = {key: value for key, value in config.items() if key != "model_type"}
    settings = AutoConfig.for_model(config["model_type"], **arguments)
    model = AutoModelForCausalLM.from_config(settings).eval().to("cuda", getattr(torch, dtype))

    def prefill(sequences: int) -> Any:
        past = DynamicCache(config=settings)
        prompt = torch.arange(CONTEXT, device="cuda")[None].repeat(sequences, 1) + 3
        with torch.inference_mode():
            model(input_ids=prompt, past_key_values=past, logits_to_keep=1).logits.float().cpu()
        return past

    def decode(past: Any, sequences: int) -> None:
        tokens = torch.full((sequences, 1), 5, device="cuda")
        with torch.inference_mode():
            model(input_ids=tokens, past_key_values=past).logits.float().cpu()
            past.crop(-1)

    return {
        "b1": functools.partial(decode, prefill(1), 1),
        "b8": functools.partial(decode, prefill(8), 8),
        "prefill": functools.partial(prefill, 1),
    }


def run(
    texts: int = 4096, shapes: tuple[str, ...] = ("110M", "0.5B"), repeats: int = 9,
    measured: Callable[[Device], dict[str, float]] = speed,
) -> dict[str, Any] | None:  # fmt: skip
    """Measure, print, and store the result; returns the record, None without a device."""
    device = device_or_none()
    if device is None:
        return None
    reached = measured(device)
    record = harness.environment(PACKAGES)
    record |= {"device": {"name": device.name, **reached}, "random_weights": True}
    record["embed"] = _embedding(device, texts, repeats, reached)
    for shape in shapes:
        record[shape] = _decoding(device, shape, repeats, reached)
    harness.write("gpu_models", record)
    return record


def _embedding(
    device: Device, texts: int, repeats: int, reached: dict[str, float]
) -> dict[str, Any]:
    counts = lengths(texts)
    calls: Calls = {f"tarsdb {mode}": encoder(device, kind, counts) for mode, kind in KINDS.items()}
    if _has_torch():
        calls |= {f"torch {MODES[m]}": torch_encoder(MODES[m], counts) for m in KINDS}
    seconds = _measure(calls, repeats)
    spec = read_spec(MINILM)
    work = 2 * spec.layers * (4 * spec.hidden**2 + 2 * spec.hidden * spec.intermediate)
    speeds = {name: int(counts.sum()) / each["median"] for name, each in seconds.items()}
    limits = {"none": "flop_per_s", "bf16": "half_flop_per_s"}
    shares = {m: speeds[f"tarsdb {m}"] * work / reached[limit] for m, limit in limits.items()}
    _show("MiniLM's shape", speeds, shares, "arithmetic")
    return {"tokens_per_second": speeds, "share_of_arithmetic": shares, "tokens": int(counts.sum())}


def _decoding(
    device: Device, shape: str, repeats: int, reached: dict[str, float]
) -> dict[str, Any]:
    config, calls = SHAPES[shape], {}
    for mode, dtype in MODES.items():
        calls[f"tarsdb {mode}"] = decoder(device, config, mode)
        if dtype and _has_torch():
            calls[f"torch {dtype}"] = torch_decoder(config, dtype)
    found: dict[str, Any] = {}
    for what, tokens in (("b1", 1), ("b8", 8), ("prefill", CONTEXT)):
        seconds = _measure({name: each[what] for name, each in calls.items()}, repeats)
        speeds = {name: tokens / each["median"] for name, each in seconds.items()}
        shares = {
            mode: speeds[f"tarsdb {mode}"] * bytes_a_token(config, mode) / reached["bytes_per_s"]
            for mode in MODES
            if what == "b1"
        }
        _show(f"{shape}, {what}", speeds, shares, "bandwidth")
        found[what] = {"tokens_per_second": speeds, "share_of_bandwidth": shares}
    return found


def _measure(calls: Calls, repeats: int) -> dict[str, dict[str, float]]:
    return harness.measure(calls, repeats=repeats, clock=time.perf_counter)


def _has_torch() -> bool:
    if not importlib.util.find_spec("torch") or not importlib.util.find_spec("transformers"):
        return False
    import torch

    return bool(torch.cuda.is_available())


def _show(what: str, speeds: dict[str, float], shares: dict[str, float], of: str) -> None:
    print(f"{what}: " + ", ".join(f"{name} {value:,.0f} tok/s" for name, value in speeds.items()))
    if shares:
        print(f"  share of {of}: " + ", ".join(f"{m} {share:.2f}" for m, share in shares.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    run(arguments.texts, repeats=arguments.repeats)
