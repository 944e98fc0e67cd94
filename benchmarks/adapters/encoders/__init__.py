"""Text encoders side by side: each runs MiniLM on texts as a user of its library would.

A contender has a name, ``library precision``, and a module with ``make(folder, precision,
threads)`` that returns ``encode(texts)``: float32 (n, dim) of length 1, in batches of 32 in the
order given.
"""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
from collections.abc import Callable, Iterable

import numpy as np

Encode = Callable[[list[str]], np.ndarray]

CONTENDERS = {
    "tarsdb fp32": ("tarsdb", "tarsdb_encoder"),
    "tarsdb bf16": ("tarsdb", "tarsdb_encoder"),
    "tarsdb int8": ("tarsdb", "tarsdb_encoder"),
    "tarsdb int4": ("tarsdb", "tarsdb_encoder"),
    "sentence-transformers fp32": ("sentence_transformers", "sentence_transformers_encoder"),
    "torch fp32": ("transformers", "torch_encoder"),
    "torch bf16": ("transformers", "torch_encoder"),
    "onnxruntime fp32": ("onnxruntime", "onnxruntime_encoder"),
    "onnxruntime int8": ("onnxruntime", "onnxruntime_encoder"),
    "ctranslate2 fp32": ("ctranslate2", "ctranslate2_encoder"),
    "ctranslate2 int8": ("ctranslate2", "ctranslate2_encoder"),
    "openvino fp32": ("openvino", "openvino_encoder"),
    "openvino bf16": ("openvino", "openvino_encoder"),
    "openvino int8": ("nncf", "openvino_encoder"),
}
"""Name -> package it needs, module here."""


def installed(names: Iterable[str]) -> list[str]:
    """Return the contenders whose package is there; the others are named."""
    found = []
    for name in names:
        if importlib.util.find_spec(CONTENDERS[name][0]) is None:
            print(f"  {name}: left out, {CONTENDERS[name][0]} is not installed")
        elif name == "torch bf16" and not has_bfloat16():
            print(f"  {name}: left out, without bfloat16 instructions it takes seven times fp32's")
        else:
            found.append(name)
    return found


def has_bfloat16() -> bool:
    """Return True where the processor multiplies bfloat16 numbers."""
    import llvmlite.binding as llvm

    found = llvm.get_host_cpu_features()
    return bool(found.get("avx512bf16") or found.get("amx-bf16"))


def make(name: str, folder: pathlib.Path, threads: int) -> Encode:
    """Load a contender's model."""
    module = importlib.import_module(f"{__name__}.{CONTENDERS[name][1]}")
    encode: Encode = module.make(folder, name.rpartition(" ")[2], threads)
    return encode
