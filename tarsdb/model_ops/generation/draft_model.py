"""Guess the next tokens of a text with a smaller model of the same tokenizer.

The smaller model writes a few tokens greedily, the larger one checks them all in one step: the text
is what it would be without (speculative decoding, Leviathan et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tarsdb.model_ops.decoder import Decoder
from tarsdb.model_ops.decoder_forward import StepBatch
from tarsdb.model_ops.kv_cache import KVCache

_PROMPT_ROWS = 256  # of a step over tokens the draft model has not seen
_BLOCK = 16
_LONGEST = 8


class DraftModel:
    """What a smaller model thinks comes next in one text.

    The number of drafts grows as they are right and shrinks as they are wrong.

    Parameters
    ----------
    decoder : Decoder
    vocabulary : int
        Tokens of the model that checks the drafts.
    longest : int
        Tokens the text may have in the end.
    """

    def __init__(self, decoder: Decoder, vocabulary: int, longest: int) -> None:
        self._decoder = decoder
        self._vocabulary = min(vocabulary, decoder.spec.vocabulary)
        self._most_tokens = min(longest, decoder.spec.max_positions)
        self._cache: KVCache | None = None
        self._seen: list[int] = []  # tokens whose keys and values lie in the cache
        self._length = 4

    def drafts(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return up to ``most`` tokens that may come next; none where they do not fit the model."""
        count = min(self._length, most, self._most_tokens - len(tokens))
        if count < 1:
            return []
        known = _common(self._seen, tokens)
        self._seen = []  # until the steps below are done
        text = list(tokens)
        for _ in range(count):
            text.append(self._next(text, min(known, len(text) - 1)))
            known = len(text) - 1
        self._seen = text[:-1]
        return text[len(tokens) :]

    def learn(self, proposed: int, accepted: int) -> None:
        """Take in how many drafts of the last guess were right."""
        if accepted == proposed:
            self._length = min(2 * self._length, _LONGEST)
        else:
            self._length = max(accepted + 1, self._length // 2)

    def _next(self, text: list[int], known: int) -> int:
        """Return the most probable token after a text whose first ``known`` tokens are cached."""
        logits = np.zeros((0, 0), np.float32)
        while known < len(text):
            rows = text[known : known + _PROMPT_ROWS]
            logits = self._step(rows, known)
            known += len(rows)
        return int(logits[0, : self._vocabulary].argmax())

    def _step(self, rows: list[int], first: int) -> np.ndarray:
        if self._cache is None:
            self._cache = self._decoder.new_cache(-(-self._most_tokens // _BLOCK))
        return self._decoder.step(
            StepBatch(
                np.array(rows, np.int32), np.array([0, len(rows)], np.int32),
                np.array([first], np.int32), np.arange(self._cache.blocks, dtype=np.int32)[None],
                np.array([len(rows) - 1], np.int32),
            ),
            self._cache,
        )  # fmt: skip


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two texts have in common at their beginning."""
    same = 0
    for ours, theirs in zip(first, second, strict=False):
        if ours != theirs:
            break
        same += 1
    return same
