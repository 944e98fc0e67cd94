"""sentence-transformers: ``encode`` with its defaults (it sorts by length itself)."""

from __future__ import annotations

import pathlib

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.adapters.encoders import Encode


def make(folder: pathlib.Path, precision: str, threads: int) -> Encode:
    """Load the model."""
    torch.set_num_threads(threads)
    model = SentenceTransformer(str(folder), device="cpu")

    def encode(texts: list[str]) -> np.ndarray:
        torch.set_num_threads(threads)
        return np.asarray(model.encode(texts, batch_size=32, show_progress_bar=False))

    return encode
