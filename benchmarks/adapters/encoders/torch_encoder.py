"""transformers on torch, scaled dot product attention, weights in float32 or bfloat16."""

from __future__ import annotations

import pathlib

import numpy as np
import torch
from transformers import AutoModel

from benchmarks.adapters.encoders import Encode
from benchmarks.adapters.encoders.padded import by_batches


def make(folder: pathlib.Path, precision: str, threads: int) -> Encode:
    """Load the model."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AutoModel.from_pretrained(folder, dtype=kind, attn_implementation="sdpa").eval()

    def forward(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            given = {"attention_mask": torch.from_numpy(mask)} if not mask.all() else {}
            hidden = model(input_ids=torch.from_numpy(ids), **given).last_hidden_state
            return hidden.float().numpy()

    return by_batches(folder, forward)
