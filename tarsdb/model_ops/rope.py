"""Rotary position embeddings: how fast each pair of a head's elements turns with the position.

Reads what ``config.json`` says (``rope_theta`` and ``rope_scaling``, or the newer
``rope_parameters``) and computes frequencies as transformers does. Su et al. 2021; "llama3" and
"yarn" (Peng et al. 2023) stretch the frequencies for longer texts. Knows no weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.model_ops.config_values import real, short, whole
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]

_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
_GROWTH = 1024  # positions a table of angles grows by at least


@dataclass(frozen=True)
class Rope:
    """Frequencies of one kind of layer.

    Parameters
    ----------
    theta : float
        Base of the geometric series of wave lengths.
    kind : str
        'default', 'linear', 'llama3' or 'yarn'. 'dynamic' changes nothing up to
        ``max_position_embeddings``, beyond which no text goes, and is read as 'default'.
    factor : float
        How much longer texts may be than in training.
    original : int
        Positions in training ('llama3', 'yarn').
    low, high : float
        'llama3': low_freq_factor and high_freq_factor; 'yarn': beta_slow and beta_fast.
    magnitude : float
        Cosines and sines are multiplied by it ('yarn').
    truncate : bool
        'yarn': round the ends of the ramp to whole dimensions.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original: int = 0
    low: float = 1.0
    high: float = 1.0
    magnitude: float = 1.0
    truncate: bool = True

    def frequencies(self, head_dim: int) -> F32:
        """Return angles per position, float32 (head_dim / 2,)."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        plain = (np.float32(1.0) / np.float32(self.theta) ** exponents).astype(np.float32)
        if self.kind == "linear":
            return plain / np.float32(self.factor)
        if self.kind == "llama3":
            return self._llama3(plain)
        if self.kind == "yarn":
            return self._yarn(plain, head_dim)
        return plain

    def _llama3(self, plain: F32) -> F32:
        """Slow waves turn ``factor`` times slower, fast ones as before, a ramp in between."""
        turns = np.float32(self.original) * plain / np.float32(2.0 * math.pi)
        ramp = (turns - self.low) / (self.high - self.low)
        mixed = (1.0 - ramp) * plain / self.factor + ramp * plain
        slow = np.where(turns < self.low, plain / self.factor, plain)
        between = (turns >= self.low) & (turns <= self.high)
        return np.where(between, mixed, slow).astype(np.float32)

    def _yarn(self, plain: F32, head_dim: int) -> F32:
        """Interpolate the dimensions that turn less than ``low`` times, keep the fast ones."""

        def dimension(turns: float) -> float:
            wave = self.original / (turns * 2.0 * math.pi)
            return head_dim * math.log(wave) / (2.0 * math.log(self.theta))

        first, last = dimension(self.high), dimension(self.low)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        last = last + 0.001 if first == last else last
        ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - first) / (last - first), 0, 1)
        mixed = plain / self.factor * ramp + plain * (1.0 - ramp)
        return np.asarray(mixed, np.float32)


class Angles:
    """Cosines and sines by position, computed as far as they have been asked for.

    Parameters
    ----------
    ropes : sequence of Rope
        One for each kind of layer.
    head_dim : int
        Elements of a head.
    """

    def __init__(self, ropes: tuple[Rope, ...], head_dim: int) -> None:
        self._ropes = ropes
        self._frequencies = [rope.frequencies(head_dim) for rope in ropes]
        self._table = np.zeros((len(ropes), 0, head_dim), np.float32)

    def at(self, positions: npt.NDArray[Any]) -> F32:
        """Return float32 (kinds, n, head_dim): half cosines, half sines, of each position."""
        needed = int(positions.max(initial=-1)) + 1
        table = self._table
        if needed > table.shape[1]:
            table = self._table = self._computed(-(-needed // _GROWTH) * _GROWTH)
        found: F32 = np.ascontiguousarray(table[:, positions])
        return found

    def _computed(self, count: int) -> F32:
        places = np.arange(count, dtype=np.float32)
        tables = []
        for rope, frequencies in zip(self._ropes, self._frequencies, strict=True):
            angles = (places[:, None] * frequencies).astype(np.float64)  # rounded as in training
            table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
            tables.append((table * rope.magnitude).astype(np.float32))
        return np.stack(tables)


def read_rope(config: Mapping[str, Any], layer_type: str, theta: float) -> Rope:
    """Read the rotary embedding of one kind of layer.

    Parameters
    ----------
    config : mapping
        Parsed ``config.json``.
    layer_type : str
        'full_attention' or 'sliding_attention', for families that tell them apart.
    theta : float
        Base where the config names none.

    Raises
    ------
    ModelFormatError
        A number is missing or out of bounds.
    NotSupportedError
        A scaling that is not computed.
    """
    newer = config.get("rope_parameters")
    scaling = newer if newer is not None else config.get("rope_scaling")
    if scaling is None:
        scaling = {}
    if not isinstance(scaling, dict):
        raise ModelFormatError("config.json: the rotary embedding's parameters are no object")
    if isinstance(scaling.get(layer_type), dict):
        scaling = scaling[layer_type]
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _KINDS:
        raise NotSupportedError(
            f"config.json: rotary scaling {short(kind)} is not supported",
            "supported: " + ", ".join(_KINDS),
        )
    base = real(scaling, "rope_theta", real(config, "rope_theta", theta, 2.0), 2.0)
    partial = scaling.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise NotSupportedError(f"config.json: partial_rotary_factor {short(partial)}")
    if kind in ("default", "dynamic"):
        return Rope(base)
    factor = real(scaling, "factor", None, 1.0)
    if kind == "linear":
        return Rope(base, kind, factor)
    original = whole(
        scaling, "original_max_position_embeddings", config.get("max_position_embeddings"), 1 << 30
    )
    if kind == "llama3":
        low = real(scaling, "low_freq_factor", None, 1e-6)
        high = real(scaling, "high_freq_factor", None, 1e-6)
        if high <= low:
            raise ModelFormatError(f"config.json: high_freq_factor {high} is not above {low}")
        return Rope(base, kind, factor, original, low, high)
    return _read_yarn(config, scaling, base, original)


def _read_yarn(
    config: Mapping[str, Any], scaling: Mapping[str, Any], base: float, original: int
) -> Rope:
    factor = real(scaling, "factor", None, 1.0)
    if "original_max_position_embeddings" in scaling and scaling.get("factor") is None:
        factor = max(1.0, real(config, "max_position_embeddings", None, 1.0) / original)
    numerator, denominator = (scaling.get(key) for key in ("mscale", "mscale_all_dim"))
    magnitude = _yarn_magnitude(factor, 1.0)
    if numerator and denominator:
        magnitude = _yarn_magnitude(factor, real(scaling, "mscale", None, 1e-6)) / (
            _yarn_magnitude(factor, real(scaling, "mscale_all_dim", None, 1e-6))
        )
    return Rope(
        base, "yarn", factor, original,
        low=real(scaling, "beta_slow", 1.0, 1e-6), high=real(scaling, "beta_fast", 32.0, 1e-6),
        magnitude=real(scaling, "attention_factor", magnitude, 1e-6),
        truncate=bool(scaling.get("truncate", True)),
    )  # fmt: skip


def _yarn_magnitude(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1.0 else 1.0
