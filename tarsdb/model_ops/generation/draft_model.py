"""Guess the next tokens of texts with a smaller model of the same tokenizer.

The smaller model writes a few tokens greedily, the larger one checks them all in one step: the text
is what it would be without (speculative decoding, Leviathan et al. 2023). Texts that are drafted
for at a time share the steps of the smaller model.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import field

import numpy as np

from tarsdb.metrics import METRICS
from tarsdb.model_ops.decoder import Decoder
from tarsdb.model_ops.decoder_forward import StepBatch
from tarsdb.model_ops.kv_cache import KVCache
from tarsdb.records import dataclass

_PROMPT_ROWS = 256  # of a text in a step, over tokens the draft model has not seen
_BLOCK = 16
_LONGEST = 8
_numbers = itertools.count()


class DraftModel:
    """What a smaller model thinks comes next in one text.

    The number of drafts grows as they are right and shrinks as they are wrong.

    Parameters
    ----------
    batch : DraftBatch
        Of the smaller model.
    vocabulary : int
        Tokens of the model that checks the drafts.
    longest : int
        Tokens the text may have in the end.
    """

    def __init__(self, batch: DraftBatch, vocabulary: int, longest: int) -> None:
        spec = batch.decoder.spec
        self.batch = batch
        self.number = next(_numbers)
        self.vocabulary = min(vocabulary, spec.vocabulary)
        self.most_tokens = min(longest, spec.max_positions)
        self.seen: list[int] = []  # tokens whose keys and values lie in the cache
        self.length = 4

    def drafts(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return up to ``most`` tokens that may come next; none where they do not fit the model."""
        return self.batch.drafts([(self, tokens, most)])[0]

    def learn(self, proposed: int, accepted: int) -> None:
        """Take in how many drafts of the last guess were right."""
        if accepted == proposed:
            self.length = min(2 * self.length, _LONGEST)
        else:
            self.length = max(accepted + 1, self.length // 2)


@dataclass
class _Text:
    """A text while tokens are guessed: ``tokens`` grows until it has ``end`` of them."""

    model: DraftModel
    tokens: list[int]
    end: int
    known: int = 0  # tokens in the cache
    first: int = field(init=False)

    def __post_init__(self) -> None:
        self.first = len(self.tokens)


class DraftBatch:
    """The steps of a smaller model, shared by the texts it drafts for, and their cache.

    Each text has a part of the cache for as long as no others need it. Several threads may ask.

    Parameters
    ----------
    decoder : Decoder
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._lock = threading.Lock()
        self._cache: KVCache | None = None
        self._part = 0  # blocks of a text
        self._parts: dict[int, int] = {}  # number of a text to its part, longest unused first

    def drafts(self, asked: Sequence[tuple[DraftModel, Sequence[int], int]]) -> list[list[int]]:
        """Return drafts for several texts: of each the model, its tokens, and how many at most."""
        texts = []
        for model, tokens, most in asked:
            count = max(0, min(model.length, most, model.most_tokens - len(tokens)))
            texts.append(_Text(model, list(tokens), len(tokens) + count))
        waiting = [text for text in texts if text.end > text.first]
        if waiting:
            with self._lock:
                self._place(waiting)
                self._write(waiting)
        return [text.tokens[text.first :] for text in texts]

    def _place(self, texts: list[_Text]) -> None:
        """Give each text a part of the cache, and see what lies there already."""
        part = max(-(-text.model.most_tokens // _BLOCK) for text in texts)
        count = 0 if self._cache is None else self._cache.blocks // self._part
        if part > self._part or len(texts) > count:
            part, count = max(part, self._part), max(len(texts), count)
            self._cache, self._parts = None, {}
            self._cache, self._part = self.decoder.new_cache(part * count), part
        for text in texts:
            place = self._parts.pop(text.model.number, None)
            if place is None:
                used = set(self._parts.values())
                free = [number for number in range(count) if number not in used]
                place = free[0] if free else self._parts.pop(next(iter(self._parts)))
            else:
                text.known = min(_common(text.model.seen, text.tokens), text.first - 1)
            self._parts[text.model.number] = place
            text.model.seen = []  # until the steps below are done

    def _write(self, texts: list[_Text]) -> None:
        """Step until every text has its drafts."""
        waiting = texts
        while waiting:
            counts = [min(_PROMPT_ROWS, len(text.tokens) - text.known) for text in waiting]
            logits = iter(self._step(waiting, counts))
            for text, count in zip(waiting, counts, strict=True):
                text.known += count
                if text.known == len(text.tokens):
                    text.tokens.append(int(next(logits)[: text.model.vocabulary].argmax()))
            waiting = [text for text in waiting if len(text.tokens) < text.end]
        for text in texts:
            text.model.seen = text.tokens[:-1]

    def _step(self, texts: list[_Text], counts: list[int]) -> np.ndarray:
        """Compute the next rows of texts; returns logits behind those that are complete."""
        assert self._cache is not None
        offsets = np.cumsum([0, *counts]).astype(np.int32)
        rows = [text.tokens[text.known : text.known + count]
                for text, count in zip(texts, counts, strict=True)]  # fmt: skip
        tables = [
            np.arange(self._part, dtype=np.int32) + self._part * self._parts[text.model.number]
            for text in texts
        ]
        wanted = [end - 1 for text, count, end in zip(texts, counts, offsets[1:], strict=True)
                  if text.known + count == len(text.tokens)]  # fmt: skip
        METRICS.add("generate.draft_steps")
        return self.decoder.step(
            StepBatch(
                np.array(list(itertools.chain(*rows)), np.int32), offsets,
                np.array([text.known for text in texts], np.int32), np.stack(tables),
                np.array(wanted, np.int32),
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
