"""Scalar codes: each element by itself, as int8, int4 or float16. Knows no storage.

int8 and int4 scale per row: embeddings have elements of like size within a row, nothing is
trained, so rows that come later and differ from the sample cost no more than the others, and a row
needs only two numbers. (Scales per dimension pay where dimensions have different units; under
them a later row is cut off at the sample's range.) The scales of int4 leave out the row's outermost
elements where that loses less in all.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from tarsdb.errors import ValueRangeError
from tarsdb.index.quantization.base import (
    CHUNK_ROWS,
    F32,
    U8,
    Named,
    Quantizer,
    check_codes,
    check_sample,
    exact,
    settings,
)
from tarsdb.kernels import reference
from tarsdb.records import dataclass

_FACTORS = 8  # bytes: scale and lower end, float32
CUTS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of a row's range that int4 tries to cover."""


class _Untrained(Quantizer):
    """What codes that need no training share."""

    def __init__(self, dim: int, metric: int) -> None:
        self.dim, self.metric = dim, metric

    @classmethod
    def train(cls, sample: F32, metric: int) -> Self:
        """Return a quantiser for the dimension of float32 (n, dim)."""
        return cls(check_sample(sample, metric).shape[1], metric)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all there is to store, by name."""
        return {"settings": np.array([self.metric, self.dim], np.int64)}

    @classmethod
    def from_arrays(cls, named: Named) -> Self:
        """Return the quantiser of stored arrays; CorruptionError if they make no sense."""
        metric, dim = settings(named, [(0, 2), (1, 1 << 20)])
        return cls(dim, metric)


class Float16(_Untrained):
    """Half precision: 11 bits of significand, elements up to 65,504."""

    @property
    def code_size(self) -> int:
        """Bytes of a row's code."""
        return 2 * self.dim

    def encode(self, x: F32) -> U8:
        """Return codes (n, 2 * dim) of float32 (n, dim); ValueRangeError above 65,504."""
        rows = self.rows(x)
        with np.errstate(over="ignore"):
            halves = rows.astype(np.float16)
        bad = np.argwhere(np.isinf(halves))
        if len(bad):
            row, column = bad[0]
            raise ValueRangeError(
                f"element {column} of row {row} is {rows[row, column]}, float16 ends at 65504",
                hint="scale the vectors down, or use int8 codes",
            )
        return halves.view(np.uint8)

    def decode(self, codes: U8) -> F32:
        """Return float32 (n, dim)."""
        return check_codes(codes, self.code_size).view(np.float16).astype(np.float32)

    def prepare(self, query: F32) -> F32:
        """Return the checked query, float32 (dim,)."""
        return self.one(query)

    def distances(self, query: F32, codes: U8) -> F32:
        """Return keys, float32 (n,), computed in float32 from the halves."""
        out = np.empty(len(codes), np.float32)
        for at in range(0, len(codes), CHUNK_ROWS):
            part = self.decode(codes[at : at + CHUNK_ROWS])
            out[at : at + len(part)] = exact(self.metric, part, query)
        return out


@dataclass(frozen=True, slots=True)
class ScalarQuery:
    """A query float32 (dim,), with the sum of its elements."""

    values: F32
    total: np.float32


class _Scaled(_Untrained):
    """Unsigned codes u of a row, standing for ``low + scale * u``."""

    levels: int
    per_byte: int

    @property
    def code_size(self) -> int:
        """Bytes of a row's code, factors included."""
        return -(-self.dim // self.per_byte) + _FACTORS

    def encode(self, x: F32) -> U8:
        """Return codes (n, code_size) of float32 (n, dim): elements, then scale and low."""
        rows = self.rows(x)
        out = np.empty((len(rows), self.code_size), np.uint8)
        for at in range(0, len(rows), CHUNK_ROWS):
            part = rows[at : at + CHUNK_ROWS]
            u, factors = self._fit(part)
            out[at : at + len(part), :-_FACTORS] = self._packed(u)
            out[at : at + len(part), -_FACTORS:] = factors.view(np.uint8)
        return out

    def _fit(self, rows: F32) -> tuple[U8, F32]:
        low, high = rows.min(axis=1), rows.max(axis=1)
        return _coded(rows, low, high, self.levels)

    def decode(self, codes: U8) -> F32:
        """Return float32 (n, dim)."""
        scale, low, u = self._parts(codes)
        return np.asarray(low[:, None] + scale[:, None] * u, np.float32)

    def prepare(self, query: F32) -> ScalarQuery:
        """Return a query (dim,) as distances take it."""
        values = self.one(query)
        return ScalarQuery(values, values.sum(dtype=np.float32))

    def distances(self, query: ScalarQuery, codes: U8) -> F32:
        """Return keys, float32 (n,).

        Inner products are made of the codes, L2 of the differences of decoded elements: the sum
        of squares less twice the product would cancel between near rows.
        """
        out = np.empty(len(codes), np.float32)
        for at in range(0, len(codes), CHUNK_ROWS):
            part = codes[at : at + CHUNK_ROWS]
            if self.metric == reference.L2:
                out[at : at + len(part)] = exact(self.metric, self.decode(part), query.values)
            else:
                scale, low, u = self._parts(part)
                product = low * query.total + scale * (u @ query.values)
                out[at : at + len(part)] = (self.metric == reference.COSINE) - product
        return out

    def _parts(self, codes: U8) -> tuple[F32, F32, F32]:
        codes = check_codes(codes, self.code_size)
        scale, low = np.ascontiguousarray(codes[:, -_FACTORS:]).view(np.float32).T
        u = self._unpacked(codes[:, :-_FACTORS])[:, : self.dim]
        return scale, low, u.astype(np.float32)

    def _packed(self, u: U8) -> U8:
        return u

    def _unpacked(self, codes: U8) -> U8:
        return codes


class Int8(_Scaled):
    """256 levels over each row's range."""

    levels, per_byte = 255, 1


class Int4(_Scaled):
    """16 levels over most of each row's range, two elements a byte, the even one low."""

    levels, per_byte = 15, 2

    def _fit(self, rows: F32) -> tuple[U8, F32]:
        low, high = rows.min(axis=1), rows.max(axis=1)
        middle, reach = (low / 2 + high / 2), (high / 2 - low / 2)
        best = np.full(len(rows), np.inf, np.float32)
        codes = np.zeros(rows.shape, np.uint8)
        factors = np.zeros((len(rows), 2), np.float32)
        for cut in CUTS:
            part = np.float32(cut) * reach
            u, found = _coded(rows, middle - part, middle + part, self.levels)
            rest = rows - (found[:, 1:] + found[:, :1] * u)
            lost = np.einsum("ij,ij->i", rest, rest)
            better = lost < best
            best[better], codes[better], factors[better] = lost[better], u[better], found[better]
        return codes, factors

    def _packed(self, u: U8) -> U8:
        whole = np.zeros((len(u), -(-self.dim // 2) * 2), np.uint8)
        whole[:, : self.dim] = u
        return np.asarray(whole[:, ::2] | whole[:, 1::2] << 4, np.uint8)

    def _unpacked(self, codes: U8) -> U8:
        return np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), 2 * codes.shape[1])


def _coded(rows: F32, low: F32, high: F32, levels: int) -> tuple[U8, F32]:
    """Return codes (n, dim) and (scale, low), float32 (n, 2); scale 0 where there is no range."""
    scale = (high - low) / np.float32(levels)
    with np.errstate(over="ignore", divide="ignore"):
        inverse = np.float32(1) / scale
    usable = np.isfinite(inverse)
    scale, inverse = np.where(usable, scale, 0), np.where(usable, inverse, 0)
    u = np.clip(np.rint((rows - low[:, None]) * inverse[:, None]), 0, levels)
    return u.astype(np.uint8), np.stack([scale, low], axis=1).astype(np.float32)
