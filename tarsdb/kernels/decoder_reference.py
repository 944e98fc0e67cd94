"""Transformer decoder kernels in NumPy: the definition, and the portable path.

Rows are float32. A row's result does not depend on the rows beside it: products are made in blocks
of a fixed number of rows, attention row by row. They know nothing of models, texts or threads.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]

SILU = 0
GELU_TANH = 1

BLOCK_TOKENS = 16
"""Tokens of a block of the KV cache."""
BLOCK_GROUP = 16
"""Blocks whose keys of one head lie one after another. Read in pieces of one block, memory gave
less than half of its bandwidth."""
_ROWS = 8  # of a product: BLAS orders its sums by the shape, so the shape is always the same
# gelu(x) ~ x / (1 + exp(-x (linear + cubic x^2))), 2 sqrt(2/pi) (1 + 0.044715 x^2)
_LINEAR, _CUBIC = np.float32(1.5957691216057308), np.float32(0.07135481282837474)


@dataclass(frozen=True)
class AttentionSpec:
    """How scores are made: ``window`` tokens are seen (0: all), ``cap`` is soft (0: none)."""

    scale: float
    window: int
    cap: float


def product(rows: F32, weight: F32) -> F32:
    """Return rows (n, inputs) times weight (outputs, inputs), float32 (n, outputs)."""
    out = np.empty((len(rows), len(weight)), np.float32)
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS]
        if len(block) < _ROWS:
            block = np.concatenate([block, np.zeros((_ROWS - len(block), rows.shape[1]), "f4")])
        out[start : start + _ROWS] = (block @ weight.T)[: len(rows) - start]
    return out


def rms_norm(rows: F32, scale: F32, epsilon: float) -> F32:
    """Scale each row (over the last axis) to mean square 1, then by ``scale``.

    Zhang and Sennrich 2019. rows (..., width), scale (width,).
    """
    mean = np.square(rows).mean(axis=-1, keepdims=True, dtype=np.float32)
    out: F32 = rows * (np.float32(1.0) / np.sqrt(mean + np.float32(epsilon))) * scale
    return out


def rotate(heads: F32, angles: F32) -> F32:
    """Turn the pairs (i, i + half) of each head by the row's angles (Su et al. 2021).

    heads (n, heads, head_dim); angles (n, head_dim): cosines, then sines.
    """
    half = heads.shape[2] // 2
    cosines, sines = angles[:, None, :half], angles[:, None, half:]
    first, second = heads[..., :half], heads[..., half:]
    return np.concatenate(
        [first * cosines - second * sines, second * cosines + first * sines], axis=2
    )


def gated(gate: F32, up: F32, activation: int) -> F32:
    """Return ``activation(gate) * up`` (Shazeer 2020)."""
    logit = gate * (_LINEAR + _CUBIC * gate * gate) if activation == GELU_TANH else gate
    with np.errstate(over="ignore"):  # exp overflows to infinity where the gate is 0
        return np.asarray(gate / (np.float32(1.0) + np.exp(-logit)) * up, np.float32)


def soft_cap(values: F32, cap: float) -> F32:
    """Return ``cap * tanh(values / cap)``, or the values where there is no cap."""
    if not cap:
        return values
    out: F32 = np.tanh(values / np.float32(cap)) * np.float32(cap)
    return out


def attend(queries: F32, keys: F32, values: F32, first: int, spec: AttentionSpec) -> F32:
    """Causal attention of the rows of one sequence.

    Parameters
    ----------
    queries : (n, heads, head_dim)
        Rows at positions ``first``, ``first + 1``, ...
    keys : (kv_heads, head_dim, m)
        Of positions 0 to ``m``, at least ``first + n`` of them; as many query heads beside each
        other read one head of keys as there are of them for each.
    values : (kv_heads, m, head_dim)

    Returns
    -------
    (n, heads * head_dim) float32
    """
    count, heads, head_dim = queries.shape
    grouped = queries.reshape(count, len(keys), heads // len(keys), head_dim)
    out = np.empty_like(grouped)
    for row in range(count):
        stop = first + row + 1
        start = max(0, stop - spec.window) if spec.window else 0
        scores = (grouped[row] @ keys[:, :, start:stop]) * np.float32(spec.scale)
        scores = soft_cap(scores, spec.cap)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        out[row] = scores @ values[:, start:stop]
    return out.reshape(count, heads * head_dim)
