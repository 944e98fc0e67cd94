"""CTranslate2's encoder, converted from the directory by its own converter."""

from __future__ import annotations

import pathlib

import ctranslate2
import numpy as np

from benchmarks.adapters.encoders import Encode
from benchmarks.adapters.encoders.onnx_export import FOLDER
from benchmarks.adapters.encoders.padded import BATCH, Tokens, mean_pooled

_TYPES = {"fp32": "float32", "int8": "int8"}


def make(folder: pathlib.Path, precision: str, threads: int) -> Encode:
    """Convert if need be and load."""
    path = FOLDER.with_name("tarsdb-benchmark-ct2")
    if not path.exists():
        converter = ctranslate2.converters.TransformersConverter(str(folder))
        converter.convert(str(path))
    model = ctranslate2.Encoder(str(path), device="cpu", compute_type=_TYPES[precision],
                                inter_threads=1, intra_threads=threads)  # fmt: skip
    tokens = Tokens(folder)

    def encode(texts: list[str]) -> np.ndarray:
        ids = tokens(texts)
        parts = []
        for at in range(0, len(ids), BATCH):
            batch = ids[at : at + BATCH]
            hidden = np.asarray(model.forward_batch(batch).last_hidden_state)
            lengths = np.array([len(line) for line in batch])
            mask = np.arange(hidden.shape[1]) < lengths[:, np.newaxis]
            parts.append(mean_pooled(hidden, mask))
        return np.concatenate(parts)

    return encode
