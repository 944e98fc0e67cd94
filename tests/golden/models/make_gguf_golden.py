"""Make the GGUF files of this folder with the package gguf, and their logits with transformers.

    pip install torch transformers gguf
    PYTHONPATH=. python tests/golden/models/make_gguf_golden.py

Writes ``tiny_llama.gguf`` (a coding for each of its matrices in turn), ``tiny_gemma2.gguf``,
``gguf.npz`` (the logits transformers computes from these files, all prompts one after another) and
``gguf_blocks.npz`` (blocks of random bytes in every coding, and the floats gguf makes of them).
"""

from __future__ import annotations

import pathlib
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tests.golden.models.tiny_decoders import tiny_decoder_tensors, tiny_prompts

HERE = pathlib.Path(__file__).parent
_SIZES = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 70, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "model_type": "llama", "tie_word_embeddings": False},
    "gemma2": {**_SIZES, "model_type": "gemma2", "tie_word_embeddings": True, "sliding_window": 9,
               "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0,
               "final_logit_softcapping": 3.0, "hidden_activation": "gelu_pytorch_tanh"},
}  # fmt: skip
CODINGS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
BLOCKS = ("Q4_0", "Q8_0", "Q4_K", "Q6_K", "F16", "BF16", "F32", "Q4_1", "Q5_0", "Q5_1", "Q2_K",
          "Q3_K", "Q5_K", "IQ4_NL", "IQ4_XS")  # fmt: skip
SCALES = {"Q4_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_0": (0,),
          "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q5_K": (0, 2), "IQ4_NL": (0,),
          "IQ4_XS": (0,)}  # fmt: skip
"""Where a block holds a float16."""


def in_turns(values: np.ndarray, heads: int) -> np.ndarray:
    """Return rotated halves as llama.cpp keeps them."""
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def write(name: str, config: dict[str, Any]) -> pathlib.Path:
    """Write a model with the package gguf."""
    path = HERE / f"tiny_{name}.gguf"
    writer = gguf.GGUFWriter(path, name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config["vocab_size"])
    if name == "gemma2":
        writer.add_sliding_window(config["sliding_window"])
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    _add_vocabulary(writer, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for number, (key, array) in enumerate(tiny_decoder_tensors(config).items()):
        found, part = names.get_name(key, try_suffixes=(".weight", ".bias")), key.split(".")[-2]
        values = array * np.float32(0.5) if array.ndim == 2 else array
        if name == "llama" and part in heads:
            values = in_turns(values, heads[part])
        if name == "gemma2" and "norm" in part:
            values = values + np.float32(1)
        coding = CODINGS[number % len(CODINGS)] if name == "llama" else "F16"
        kind = gguf.GGMLQuantizationType[coding if values.ndim == 2 else "F32"]
        writer.add_tensor(found, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: Any, size: int) -> None:
    letters = [chr(33 + token) for token in range(3, size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *letters])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([2, 3, 3, *[1] * len(letters)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(False)


def logits(path: pathlib.Path, config: dict[str, Any]) -> np.ndarray:
    """Return transformers' logits of all prompts, from the file itself."""
    unread = ("head_dim", "query_pre_attn_scalar", "attn_logit_softcapping",
              "final_logit_softcapping", "sliding_window", "hidden_activation")  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        str(HERE), gguf_file=path.name, dtype=torch.float32, attn_implementation="eager",
        **{key: config[key] for key in unread if key in config},
    ).eval()  # fmt: skip
    with torch.no_grad():
        found = [model(input_ids=torch.tensor([ids])).logits[0] for ids in tiny_prompts()]
    return torch.cat(found).float().numpy()


def blocks() -> dict[str, np.ndarray]:
    """Return random bytes of each coding, with scales that are numbers, and their floats."""
    random, found = np.random.RandomState(3), {}
    for name in BLOCKS:
        kind = gguf.GGMLQuantizationType[name]
        data = random.randint(0, 256, (6, gguf.GGML_QUANT_SIZES[kind][1])).astype(np.uint8)
        half = np.frombuffer(random.standard_normal(6).astype(np.float16).tobytes(), np.uint8)
        places = SCALES.get(name, ())
        for place in places:
            data[:, place : place + 2] = half.reshape(6, 2)
        if not places:
            data = gguf.quantize(random.standard_normal(6).astype(np.float32), kind).view(np.uint8)
        found[name] = data.reshape(-1)
        found[f"{name}_floats"] = np.asarray(
            gguf.dequantize(data if places else data.reshape(1, -1), kind), np.float32
        ).reshape(-1)
    return found


def main() -> None:
    """Write the golden files."""
    golden = {name: logits(write(name, config), config) for name, config in CONFIGS.items()}
    np.savez_compressed(HERE / "gguf.npz", **golden)  # type: ignore[arg-type]
    np.savez_compressed(HERE / "gguf_blocks.npz", **blocks())  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
