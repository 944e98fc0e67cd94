"""tarsdb's encoder."""

from __future__ import annotations

import pathlib

import numpy as np

from benchmarks.adapters.encoders import Encode
from tarsdb.kernels import encoder as kernels
from tarsdb.model_ops import Encoder, read_model_directory
from tarsdb.model_ops.weights import QUANTIZE


def make(folder: pathlib.Path, precision: str, threads: int) -> Encode:
    """Load the model and wait for its kernels."""
    model = read_model_directory(str(folder))
    mode = "none" if precision == "fp32" else precision
    encoder = Encoder.from_files(model.files, model.tensors, {"quantize": mode})
    kernels.wait(QUANTIZE[mode])

    def encode(texts: list[str]) -> np.ndarray:
        return encoder.encode(texts, threads=threads)

    return encode
