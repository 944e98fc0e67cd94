"""From logits to the next token: what the options of ``generate`` mean.

Every draw depends on the seed and the position of the token only, not on what else runs: a text
that was preempted or had its drafts rejected goes on as if nothing had happened. Knows no model.
"""

from __future__ import annotations

import decimal
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelError
from tarsdb.records import dataclass

MAX_STOPS = 16
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How the tokens of a text are chosen and when it ends.

    Parameters
    ----------
    max_tokens : int
        Tokens generated at most.
    temperature : float
        0 takes the most probable token (greedy), 1 draws from the model's distribution.
    top_k : int
        Draw among the k most probable tokens only; 0: among all.
    top_p : float
        Draw among the fewest tokens that have this share of the probability (nucleus sampling,
        Holtzman et al. 2020).
    min_p : float
        Leave out tokens less probable than this fraction of the most probable one (Nguyen et al.
        2024).
    repetition_penalty : float
        Divide positive and multiply negative logits of tokens that the prompt or the text has
        already by this (Keskar et al. 2019, CTRL).
    logit_bias : mapping of int to float
        Added to the logits of tokens; a JSON text is read.
    seed : int, optional
        Same seed, same prompt: same text, whatever else runs. None draws a new one.
    stop : tuple of str
        The text ends before the first of these.

    Raises
    ------
    ModelError
        A value is outside its range.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low, high, whole in _RANGES:
            _set(self, name, number(name, getattr(self, name), low, high, whole))
        if self.seed is not None:
            _set(self, "seed", number("seed", self.seed, -(1 << 63), _MASK, True))
        _set(self, "stop", _stops(self.stop))
        _set(self, "logit_bias", _biases(self.logit_bias))

    @property
    def is_plain(self) -> bool:
        """True when the next token is the one with the largest logit, as it is."""
        return not self.temperature and not self.logit_bias and self.repetition_penalty == 1


_RANGES: tuple[tuple[str, float, float, bool], ...] = (
    ("max_tokens", 1, 1 << 24, True), ("temperature", 0, 100, False), ("top_k", 0, 1 << 24, True),
    ("top_p", 0, 1, False), ("min_p", 0, 1, False), ("repetition_penalty", 0.01, 100, False),
)  # fmt: skip

_COLDEST = 1e-200
"""A temperature below is 0: scores divided by it are no numbers, and only the largest counts."""


def choose(
    logits: npt.NDArray[np.float32],
    options: SamplingOptions,
    draw: float,
    seen: Sequence[int],
    allowed: npt.NDArray[np.bool_] | None = None,
) -> int:
    """Return the next token.

    Parameters
    ----------
    logits : (vocabulary,) float32
        Not changed.
    options : SamplingOptions
    draw : float
        A number in [0, 1), see :func:`uniform`; of no effect at temperature 0.
    seen : sequence of int
        Tokens that ``repetition_penalty`` is about.
    allowed : (vocabulary,) bool, optional
        The tokens there is a choice of.

    Raises
    ------
    ModelError
        The logits are not numbers.
    """
    best = int(np.argmax(logits))  # the first NaN, where there is one
    if not np.isfinite(logits[best]):
        raise ModelError(f"the logits of token {best} are {logits[best]}: the weights are damaged")
    if options.is_plain and allowed is None:
        return best
    scores = _adjusted(logits, options, seen)
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    if options.temperature < _COLDEST:
        return int(np.argmax(scores))
    return _drawn(scores / options.temperature, options, draw)


def _drawn(scores: npt.NDArray[np.float64], options: SamplingOptions, draw: float) -> int:
    """Draw among the tokens that ``top_k``, ``top_p`` and ``min_p`` leave, each of all tokens."""
    ranked = np.argsort(-scores, kind="stable")  # ties by number
    weights = np.exp(scores[ranked] - scores[ranked[0]])
    kept = len(ranked)
    if options.top_k:
        kept = min(kept, options.top_k)
    if options.min_p:
        kept = min(kept, int(np.count_nonzero(weights >= options.min_p)))
    cumulated = np.cumsum(weights)
    if options.top_p < 1:
        enough = int(np.searchsorted(cumulated, options.top_p * cumulated[-1], side="left"))
        kept = min(kept, enough + 1)
    place = int(np.searchsorted(cumulated[:kept], draw * cumulated[kept - 1], side="right"))
    return int(ranked[min(place, kept - 1)])


def uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) that belongs to a seed and a position (SplitMix64)."""
    state = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = ((state ^ (state >> shift)) * factor) & _MASK
    return ((state ^ (state >> 31)) >> 11) / (1 << 53)


def new_seed() -> int:
    """Return a seed nobody chose."""
    return secrets.randbits(63)


def _adjusted(
    logits: npt.NDArray[np.float32], options: SamplingOptions, seen: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Return the logits with penalty and bias, in float64."""
    scores = logits.astype(np.float64)
    if options.repetition_penalty != 1:
        places = np.unique(np.asarray(seen, np.int64))
        values = scores[places]
        penalty = options.repetition_penalty
        scores[places] = np.where(values > 0, values / penalty, values * penalty)
    for token, bias in options.logit_bias.items():
        if token >= len(scores):
            raise ModelError(
                f"generate: logit_bias names token {token}, the model has {len(scores)} tokens"
            )
        scores[token] += bias
    return scores


def _set(options: SamplingOptions, name: str, value: Any) -> None:
    object.__setattr__(options, name, value)


def number(name: str, value: Any, low: float, high: float, whole: bool) -> float | int:
    """Return an option's number, an int where ``whole``; ModelError when it is out of range."""
    kinds: tuple[type, ...] = (int, np.integer)
    if not whole:
        kinds = (*kinds, float, np.floating, decimal.Decimal)
    try:
        found = (int if whole else float)(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    usable = isinstance(value, kinds) and not isinstance(value, bool)
    if not usable or (whole and found != value) or not low <= found <= high:
        kind = "a whole number" if whole else "a number"
        raise ModelError(f"generate: {name} {value!r:.60} is not {kind} of {low}..{high}")
    return found


def _stops(value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    try:
        texts = tuple(texts)
    except TypeError:
        texts = (None,)
    if len(texts) > MAX_STOPS or not all(isinstance(text, str) and text for text in texts):
        raise ModelError(
            f"generate: stop {value!r:.60} is not up to {MAX_STOPS} texts, none of them empty"
        )
    return texts


def _biases(value: Any) -> dict[int, float]:
    """Read biases; a text is JSON, whose keys are texts."""
    try:
        pairs = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, Mapping):
        raise ModelError(f"generate: logit_bias {value!r:.60} maps no tokens to numbers")
    found = {}
    for key, bias in pairs.items():
        token = int(key) if isinstance(key, str) and key.isdecimal() else key
        token = int(number("a token of logit_bias", token, 0, 1 << 31, True))
        found[token] = float(number("a value of logit_bias", bias, -1e6, 1e6, False))
    return found
