"""One text being generated: its tokens, how they are chosen, what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tarsdb.model_ops.generation import scheduler
from tarsdb.model_ops.generation.constraint import Constraint
from tarsdb.model_ops.generation.prompt_lookup import MAX_DRAFTS
from tarsdb.model_ops.generation.sampling import SamplingOptions, choose, new_seed, uniform
from tarsdb.model_ops.generation.text_stream import TextStream
from tarsdb.records import dataclass

_CONTEXT = 6  # prompt tokens that may change how the first ones of the text are decoded


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished text.

    Parameters
    ----------
    text : str
    reason : {'stop', 'length'}
        The model, a stop string or the rule ended it, or the most tokens it may have.
    prompt_tokens : int
    tokens : int
        Tokens generated, the one that ends the text included.
    cached_tokens : int
        Prompt tokens whose keys and values were in the cache.
    """

    text: str
    reason: str
    prompt_tokens: int
    tokens: int
    cached_tokens: int


class Drafter(Protocol):
    """Guesses what comes next in one text."""

    def drafts(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return up to ``most`` tokens that may come next; ``tokens`` only ever grows."""

    def learn(self, proposed: int, accepted: int) -> None:
        """Take in how many drafts of the last guess were right."""


class Request:
    """One text between its prompt and its end. Used by the thread that steps the batch.

    Parameters
    ----------
    sequence : scheduler.Sequence
    sampling : SamplingOptions
    decode : callable
        Tokens to text.
    end_tokens : sequence of int
    constraint : Constraint, optional
    drafter : Drafter, optional

    Attributes
    ----------
    pieces : deque of str
        Text not yet taken by who streams it.
    reason : str
        Why the text ended; empty while it grows.
    error : Exception, optional
        Why it will never end.
    cancelled : bool
        Its caller no longer wants it.
    streamed : bool
        Whether ``pieces`` are kept.
    submitted : float
        When it was queued.
    started : bool
        Whether a step computed any of it.
    """

    def __init__(
        self,
        sequence: scheduler.Sequence,
        sampling: SamplingOptions,
        decode: Callable[[Sequence[int]], str],
        end_tokens: Sequence[int],
        constraint: Constraint | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.sequence = sequence
        self.pieces: deque[str] = deque()
        self.reason = ""
        self.error: Exception | None = None
        self.cancelled = False
        self.streamed = False
        self.submitted = 0.0
        self.started = False
        self._sampling = sampling
        self._seed = new_seed() if sampling.seed is None else sampling.seed
        self._ends = frozenset(end_tokens)
        self._constraint = constraint
        self._stream = TextStream(decode, sequence.tokens[-_CONTEXT:], sampling.stop)
        self.drafter = drafter

    @property
    def finished(self) -> bool:
        """True when nothing more will come."""
        return bool(self.reason) or self.error is not None or self.cancelled

    def take(self, logits: npt.NDArray[np.float32], drafts: Sequence[int]) -> list[int]:
        """Return the next tokens: those drafts that are what is chosen, and one more.

        ``logits`` (1 + drafts, vocabulary) float32 are of the newest token and of each draft.
        """
        new: list[int] = []
        for row in range(len(logits)):
            token = self._choose(logits[row], new)
            new.append(token)
            self._end(token, len(self.sequence.tokens) + len(new))
            if self.reason or row == len(drafts) or token != drafts[row]:
                break
        if self.drafter is not None and drafts:
            self.drafter.learn(len(drafts), len(new) - 1)
        return new

    @property
    def room(self) -> int:
        """Tokens that may be guessed for the next step."""
        left = self.sequence.max_length - len(self.sequence.tokens) - 1
        return 0 if self.drafter is None else max(0, min(MAX_DRAFTS, left))

    def draft(self) -> None:
        """Guess tokens for the next step."""
        if self.drafter is not None and self.room:
            self.sequence.drafts = self.drafter.drafts(self.sequence.tokens, self.room)

    def completion(self) -> Completion:
        """Return the finished text; raises what ended it otherwise."""
        if self.error is not None:
            raise self.error
        tokens, prompt = len(self.sequence.tokens), self.sequence.prompt_length
        return Completion(
            self._stream.text, self.reason, prompt, tokens - prompt, self.sequence.cached
        )

    def _choose(self, logits: npt.NDArray[np.float32], new: list[int]) -> int:
        sampling, tokens = self._sampling, self.sequence.tokens
        allowed = None if self._constraint is None else self._constraint.allowed()
        position = len(tokens) + len(new)
        draw = uniform(self._seed, position) if sampling.temperature else 0.0
        seen = tokens + new if sampling.repetition_penalty != 1 else ()
        return choose(logits, sampling, draw, seen, allowed)

    def _end(self, token: int, length: int) -> None:
        """Take a token into the text, and see whether that ends with it."""
        complete = self._constraint is not None and self._constraint.advance(token)
        if token in self._ends:
            self.reason = "stop"
        else:
            self._give(self._stream.push(token))
            if complete or self._stream.stopped:
                self.reason = "stop"
            elif length >= self.sequence.max_length:
                self.reason = "length"
        if self.reason:
            self._give(self._stream.finish())

    def _give(self, piece: str) -> None:
        if piece and self.streamed:
            self.pieces.append(piece)
