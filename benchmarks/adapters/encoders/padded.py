"""What libraries that take padded batches of token ids share: tokenising, padding, mean pooling."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import tokenizers

BATCH = 32
MAX_TOKENS = 256  # of sentence_bert_config.json

Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Tokens:
    """The model's tokenizer, without the padding and truncation its file asks for."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Return token ids of each text."""
        return [found.ids for found in self._tokenizer.encode_batch_fast(texts)]


def mean_pooled(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Average token vectors (b, t, dim) where the mask (b, t) is set; scale to length 1."""
    vectors = np.einsum("btd,bt->bd", hidden, mask.astype(np.float32))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def padded(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and mask, int64 (b, longest)."""
    table = np.zeros((len(ids), max(map(len, ids))), np.int64)
    mask = np.zeros_like(table)
    for row, line in enumerate(ids):
        table[row, : len(line)] = line
        mask[row, : len(line)] = 1
    return table, mask


def by_batches(folder: pathlib.Path, forward: Forward) -> Callable[[list[str]], np.ndarray]:
    """Return ``encode`` of a forward pass over (ids, mask), which gives (b, t, dim)."""
    tokens = Tokens(folder)

    def encode(texts: list[str]) -> np.ndarray:
        ids = tokens(texts)
        parts = []
        for at in range(0, len(ids), BATCH):
            table, mask = padded(ids[at : at + BATCH])
            parts.append(mean_pooled(forward(table, mask), mask))
        return np.concatenate(parts)

    return encode
