"""Low-rank adapters of the tiny models, as peft saves them, and weights with one merged in."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tarsdb.model_ops.architecture import read_spec
from tarsdb.model_ops.decoder_spec import decoder_tensors, read_decoder_spec
from tarsdb.model_ops.encoder_adapter import adaptable

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 4
_PREFIX = "base_model.model."


def lora_files(targets: tuple[str, ...], **more: Any) -> dict[str, bytes]:
    """Return the small files of an adapter."""
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "bias": "none",
              "target_modules": list(targets), "task_type": "CAUSAL_LM", **more}  # fmt: skip
    return {"adapter_config.json": json.dumps(config).encode()}


def lora_tensors(
    config: dict[str, Any], targets: tuple[str, ...], seed: int
) -> dict[str, np.ndarray]:
    """Return an adapter's weights, large enough to show."""
    random, found = np.random.RandomState(seed), {}
    for name, shape in decoder_tensors(read_decoder_spec(config)).items():
        stem, kind = name.rsplit(".", 1)
        if kind == "weight" and stem.rsplit(".", 1)[-1] in targets:
            down = random.standard_normal((RANK, shape[1])) * 0.2
            up = random.standard_normal((shape[0], RANK)) * 0.2
            found[f"{_PREFIX}{stem}.lora_A.weight"] = down.astype(np.float32)
            found[f"{_PREFIX}{stem}.lora_B.weight"] = up.astype(np.float32)
    return found


def encoder_lora_tensors(
    config: dict[str, Any], prefix: str = "", seed: int = 1, keep: str = ""
) -> dict[str, np.ndarray]:
    """Return an adapter of an encoder's matrices whose names hold ``keep``."""
    random, found = np.random.RandomState(seed), {}
    for stem, (outputs, inputs) in adaptable(read_spec(config)).shapes.items():
        if keep in stem:
            down = random.standard_normal((RANK, inputs)) * 0.2
            up = random.standard_normal((outputs, RANK)) * 0.2
            found[f"{_PREFIX}{prefix}{stem}.lora_A.weight"] = down.astype(np.float32)
            found[f"{_PREFIX}{prefix}{stem}.lora_B.weight"] = up.astype(np.float32)
    return found


def write_lora(
    folder: pathlib.Path, tensors: Mapping[str, np.ndarray], files: Mapping[str, bytes]
) -> str:
    """Write an adapter as peft does; returns its path."""
    import safetensors.numpy

    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    safetensors.numpy.save_file(dict(tensors), folder / "adapter_model.safetensors")
    return str(folder)


def merged(
    base: Mapping[str, np.ndarray], lora: Mapping[str, np.ndarray], files: Mapping[str, bytes]
) -> dict[str, np.ndarray]:
    """Return the weights that base and adapter together stand for."""
    config, found = json.loads(files["adapter_config.json"]), dict(base)
    scale = config["lora_alpha"] / (math.sqrt(RANK) if config.get("use_rslora") else RANK)
    for name in lora:
        stem = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        if name.endswith(".lora_A.weight"):
            up = lora[name.replace("lora_A", "lora_B")].astype(np.float64)
            weight = found[f"{stem}.weight"] + scale * up @ lora[name].astype(np.float64)
            found[f"{stem}.weight"] = weight.astype(np.float32)
    return found


def write_tiny_lora(folder: pathlib.Path, config: dict[str, Any], seed: int) -> None:
    """Write an adapter of every matrix as peft does."""
    write_lora(folder, lora_tensors(config, ALL, seed), lora_files(ALL))
