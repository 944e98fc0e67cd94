"""A decoder whose logits depend on every token of the sequence, read back from the paged cache.

A block that is shared wrongly, written by two sequences, or reused while it is needed changes the
text or raises.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tarsdb.model_ops.decoder_forward import StepBatch

BLOCK = 16


@dataclass
class FakeSpec:
    vocabulary: int = 64
    max_positions: int = 256
    begin_token: int = 1
    end_tokens: tuple[int, ...] = (2,)


class FakeCache:
    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.block_bytes = 1024
        self.tokens = np.full((blocks, BLOCK), -1, np.int64)


@dataclass
class FakeDecoder:
    spec: FakeSpec = field(default_factory=FakeSpec)
    steps: list[StepBatch] = field(default_factory=list)
    repeat: int = 0
    """Period of the text; 0: none."""

    def new_cache(self, blocks: int) -> FakeCache:
        return FakeCache(blocks)

    def step(self, batch: StepBatch, cache: FakeCache) -> Any:
        self.steps.append(batch)
        self._write(batch, cache)
        logits: dict[int, Any] = {}
        for number, start in enumerate(batch.positions.tolist()):
            first, end = batch.offsets[number : number + 2].tolist()
            table = batch.block_tables[number].tolist()
            for row in range(first, end):
                length = start + row - first + 1
                places = [cache.tokens[table[p // BLOCK], p % BLOCK] for p in range(length)]
                logits[row] = self.logits(tuple(map(int, places)))
        return np.array([logits[row] for row in batch.wanted.tolist()], np.float32).reshape(
            len(batch.wanted), self.spec.vocabulary
        )

    def logits(self, tokens: tuple[int, ...]) -> Any:
        """Return the logits after these tokens."""
        assert -1 not in tokens, "a key was read before it was written"
        if self.repeat:
            tokens = tuple(tokens[-1:])
        digest = hashlib.sha256(str(tokens).encode()).digest()
        seed = int.from_bytes(digest[:8], "little")
        return np.random.Generator(np.random.PCG64(seed)).normal(size=self.spec.vocabulary) * 3

    def _write(self, batch: StepBatch, cache: FakeCache) -> None:
        written: set[tuple[int, int]] = set()
        for number, start in enumerate(batch.positions.tolist()):
            first, end = batch.offsets[number : number + 2].tolist()
            assert end > first
            for row in range(first, end):
                position = start + row - first
                assert position < self.spec.max_positions
                block = int(batch.block_tables[number, position // BLOCK])
                place = (block, position % BLOCK)
                assert place not in written, "two sequences write one place"
                written.add(place)
                cache.tokens[place] = batch.tokens[row]


def alone(decoder: FakeDecoder, prompt: list[int], count: int) -> list[int]:
    """Return the greedy continuation of a prompt, computed without any cache."""
    tokens = list(prompt)
    limit = min(len(prompt) + count, decoder.spec.max_positions)
    while len(tokens) < limit:
        token = int(np.argmax(decoder.logits(tuple(tokens)).astype(np.float32)))
        tokens.append(token)
        if token in decoder.spec.end_tokens:
            break
    return tokens[len(prompt) :]
