"""RaBitQ: signs (or a few bits) of randomly rotated residuals, with an unbiased estimator.

Gao and Long, "RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound for
Approximate Nearest Neighbor Search", SIGMOD 2024; several bits as in Gao et al., "Practical and
Asymptotically Optimal Quantization", SIGMOD 2025. A residual r of a row to a centroid is rotated
to r' and coded as u, one of 2^bits integers per dimension; y = u - (2^bits - 1) / 2 points nearly
where r' does. Then |r|^2 <y, q'> / <y, r'> estimates <r, q> without bias over rotations, and its
error is within ``epsilon * |q| * |r| * sqrt((1 / a^2 - 1) / (width - 1))``, a the cosine of y and
r', but for a probability that falls as exp(-c epsilon^2). Every metric becomes
``base + offset + slope * <y, q'>``: base, slope and error of a row lie in its code.

Knows no storage and no lists; a centroid may be given with each call.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt

from tarsdb.errors import NotSupportedError
from tarsdb.index.quantization.base import (
    CHUNK_ROWS,
    F32,
    U8,
    Named,
    Quantizer,
    check_codes,
    check_sample,
    settings,
    stored,
)
from tarsdb.index.quantization.rotation import random_rotation
from tarsdb.kernels import quantized, reference
from tarsdb.records import dataclass

EPSILON = 1.9
"""Width of the bound; the paper's value. An estimate lies below its row's bound once in 35."""
WORD = 64
SCALES = 16
"""Scales tried for a row of several bits."""
_FACTORS = 4 * quantized.FACTORS  # bytes: base, slope, error, set bits


@dataclass(frozen=True, slots=True)
class Prepared:
    """Queries, or one query's residuals to some centroids, ready to meet codes.

    ``rotated`` float32 (q, width), ``offset`` float32 (q,); ``planes`` uint64 (q, 4, words) and
    ``numbers`` float32 (q, 6) are what the scan of sign bits takes.
    """

    rotated: F32
    offset: F32
    planes: npt.NDArray[np.uint64]
    numbers: F32


class RaBitQ(Quantizer):
    """Codes of 1 to 8 bits a dimension, and 16 bytes of factors.

    Parameters
    ----------
    rotation : float32 (dim, width)
        Orthonormal rows; width is the next multiple of 64.
    centroid : float32 (dim,)
        Used where a call names none.
    dither : float32 (width,)
        In 0..1, uniform: rounding of queries with it is unbiased, and repeatable.
    metric, bits : int
    """

    def __init__(self, rotation: F32, centroid: F32, dither: F32, metric: int, bits: int) -> None:
        self.rotation, self.centroid, self.dither = rotation, centroid, dither
        self.metric, self.bits = metric, bits
        self.dim, self.width = rotation.shape

    @classmethod
    def train(cls, sample: F32, metric: int, *, bits: int = 1, seed: int = 0) -> Self:
        """Return a quantiser around the mean of float32 (n, dim)."""
        if not 1 <= bits <= 8:
            raise NotSupportedError(f"RaBitQ with {bits} bits; 1 to 8 are supported")
        sample = check_sample(sample, metric)
        dim = sample.shape[1]
        width = -(-dim // WORD) * WORD
        dither = np.random.default_rng([seed, 1]).random(width, np.float32)
        centroid = np.asarray(sample.mean(axis=0, dtype=np.float64), np.float32)
        return cls(random_rotation(dim, width, seed), centroid, dither, metric, bits)

    @property
    def code_size(self) -> int:
        """Bytes of a row's code, factors included."""
        return int(self.width * self.bits // 8 + _FACTORS)

    def encode(self, x: F32, centroid: F32 | None = None) -> U8:
        """Return codes (n, code_size): bit planes, lowest first, then float32 factors.

        Parameters
        ----------
        x : float32 (n, dim)
        centroid : float32 (dim,) or (n, dim), optional
            What residuals are taken to.
        """
        rows = self.rows(x)
        center = self.centroid if centroid is None else np.asarray(centroid, np.float32)
        center = np.broadcast_to(center, rows.shape)
        out = np.empty((len(rows), self.code_size), np.uint8)
        for at in range(0, len(rows), CHUNK_ROWS):
            part = slice(at, at + CHUNK_ROWS)
            out[part] = self._encode(rows[part] - center[part], center[part])
        return out

    def _encode(self, residual: F32, center: F32) -> U8:
        rotated = residual @ self.rotation
        u = (rotated > 0).astype(np.uint8) if self.bits == 1 else _several_bits(rotated, self.bits)
        y = u - np.float32((2**self.bits - 1) / 2)
        squares = np.einsum("ij,ij->i", residual, residual, dtype=np.float64)
        along = np.einsum("ij,ij->i", y, rotated, dtype=np.float64)
        none = along <= 0  # only a zero residual
        ratio = np.where(none, 0.0, squares / np.where(none, 1.0, along))
        lost = ratio**2 * np.einsum("ij,ij->i", y, y, dtype=np.float64) - squares
        error = np.sqrt(np.maximum(lost, 0.0) / (self.width - 1)) * (1 + 1e-6)
        factors = np.empty((len(u), quantized.FACTORS), np.float32)
        times = 2.0 if self.metric == reference.L2 else 1.0
        is_l2 = self.metric == reference.L2
        factors[:, 0] = squares if is_l2 else -np.einsum("ij,ij->i", center, residual)
        factors[:, 1], factors[:, 2] = -times * ratio, times * error
        factors[:, 3] = u.sum(axis=1, dtype=np.int64)
        planes = [np.packbits(u >> bit & 1, axis=1, bitorder="little") for bit in range(self.bits)]
        return np.concatenate([*planes, factors.view(np.uint8)], axis=1)

    def decode(self, codes: U8, centroid: F32 | None = None) -> F32:
        """Return float32 (n, dim): along y at the length that is nearest to the residual."""
        codes = check_codes(codes, self.code_size)
        out = np.empty((len(codes), self.dim), np.float32)
        times = 2.0 if self.metric == reference.L2 else 1.0
        for at in range(0, len(codes), CHUNK_ROWS):
            part = codes[at : at + CHUNK_ROWS]
            y, factors = self._directions(part), self._factors(part).astype(np.float64)
            ratio, error = -factors[:, 1] / times, factors[:, 2] / times
            long = np.einsum("ij,ij->i", y, y, dtype=np.float64)
            square = np.maximum(ratio**2 * long - error**2 * (self.width - 1), 0.0)
            scale = square / np.where(ratio == 0, 1.0, ratio * long)
            out[at : at + len(part)] = (y * scale[:, None].astype(np.float32)) @ self.rotation.T
        out += self.centroid if centroid is None else np.asarray(centroid, np.float32)
        return out

    def rotate(self, x: F32) -> F32:
        """Return float32 (n, width) of float32 (n, dim): residuals may be taken after it."""
        return np.asarray(x, np.float32) @ self.rotation

    def prepare(self, query: F32, centroid: F32 | None = None) -> Prepared:
        """Return a query (dim,) relative to one centroid (dim,) or to several (lists, dim)."""
        center = self.centroid if centroid is None else np.asarray(centroid, np.float32)
        query, center = self.one(query), np.atleast_2d(center)
        return self.prepare_rotated(self.rotate(query - center), center @ query)

    def prepare_rotated(self, rotated: F32, products: F32, epsilon: float = EPSILON) -> Prepared:
        """Return rotated residuals of queries as the scan takes them.

        Parameters
        ----------
        rotated : float32 (q, width)
            Rotated query less rotated centroid, of each pair of these.
        products : float32 (q,)
            Inner product of query and centroid; not used by L2.
        epsilon : float
            Width of the lower bounds.
        """
        squares = np.einsum("ij,ij->i", rotated, rotated)
        if self.metric == reference.L2:
            offset = squares
        else:
            offset = (self.metric == reference.COSINE) - np.asarray(products, np.float32)
        low = rotated.min(axis=1)
        step = (rotated.max(axis=1) - low) / np.float32(15)
        safe = np.where(step > 0, step, np.float32(1))
        u = np.floor((rotated - low[:, None]) / safe[:, None] + self.dither)
        u = np.clip(u, 0, 15).astype(np.uint8)
        planes = np.stack(
            [np.packbits(u >> j & 1, axis=1, bitorder="little") for j in range(4)], axis=1
        )
        numbers = np.empty((len(rotated), quantized.NUMBERS), np.float32)
        numbers[:, 0], numbers[:, 1], numbers[:, 2] = offset, step, low
        numbers[:, 3] = -0.5 * (self.width * low + step * u.sum(axis=1, dtype=np.int64))
        numbers[:, 4] = epsilon * np.sqrt(squares)
        # y is +-1/2, and a rounding with dither varies by at most step^2 / 4
        numbers[:, 5] = epsilon * step * np.sqrt(self.width) / 4
        return Prepared(rotated, np.asarray(offset, np.float32), planes.view(np.uint64), numbers)

    def pack(self, codes: U8) -> U8:
        """Return codes of one bit in tiles of 16 rows, as :meth:`scan` reads them.

        uint8 (ceil(n / 16), 16 * code_size); rows past the last are zero.
        """
        self._one_bit("pack")
        codes = check_codes(codes, self.code_size)
        bits = np.ascontiguousarray(codes[:, :-_FACTORS]).view(np.uint64)
        return quantized.tile_bits(bits, self._factors(codes))

    def scan(self, query: Prepared, tiles: U8) -> tuple[F32, F32]:
        """Return estimates and lower bounds, float32 (q, 16 * tiles) each, of packed codes."""
        self._one_bit("scan")
        return quantized.rabitq(tiles, query.planes, query.numbers)

    def distances(self, query: Prepared, codes: U8) -> F32:
        """Return estimated keys, float32 (n,), of codes for the first prepared query."""
        return self.bounds(query, codes)[0]

    def bounds(self, query: Prepared, codes: U8) -> tuple[F32, F32]:
        """Return estimates and lower bounds, float32 (n,) each, for the first prepared query."""
        if self.bits == 1:
            estimates, lows = self.scan(query, self.pack(codes))
            return estimates[0, : len(codes)], lows[0, : len(codes)]
        codes = check_codes(codes, self.code_size)
        estimates = np.empty(len(codes), np.float32)
        for at in range(0, len(codes), CHUNK_ROWS):
            part = codes[at : at + CHUNK_ROWS]
            base, slope = self._factors(part)[:, :2].T
            product = self._directions(part) @ query.rotated[0]
            estimates[at : at + len(part)] = base + query.offset[0] + slope * product
        return estimates, estimates - query.numbers[0, 4] * self._factors(codes)[:, 2]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all there is to store, by name."""
        return {
            "settings": np.array([self.metric, self.bits], np.int64), "rotation": self.rotation,
            "centroid": self.centroid, "dither": self.dither,
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, named: Named) -> Self:
        """Return the quantiser of stored arrays; CorruptionError if they make no sense."""
        metric, bits = settings(named, [(0, 2), (1, 8)])
        centroid = stored(named, "centroid", np.float32, (None,))
        dim = len(centroid)
        width = -(-dim // WORD) * WORD
        rotation = stored(named, "rotation", np.float32, (dim, width))
        return cls(rotation, centroid, stored(named, "dither", np.float32, (width,)), metric, bits)

    def _one_bit(self, what: str) -> None:
        if self.bits != 1:
            raise NotSupportedError(f"{what} of RaBitQ codes of {self.bits} bits, only of 1 bit")

    def _factors(self, codes: U8) -> F32:
        return np.ascontiguousarray(codes[:, -_FACTORS:]).view(np.float32)

    def _directions(self, codes: U8) -> F32:
        """Return y, float32 (n, width)."""
        planes = codes[:, :-_FACTORS].reshape(len(codes), self.bits, self.width // 8)
        bits = np.unpackbits(np.ascontiguousarray(planes), axis=2, bitorder="little")
        y = np.full((len(codes), self.width), -(2**self.bits - 1) / 2, np.float32)
        for bit in range(self.bits):
            y += bits[:, bit] * np.float32(1 << bit)
        return y


def _several_bits(rotated: F32, bits: int) -> U8:
    """Return unsigned codes (n, width) whose centred values point best along ``rotated``.

    The SIGMOD 2025 paper walks through all scales at which an element's code changes; a grid of
    scales loses next to nothing of the cosine and works on whole arrays.
    """
    half = 1 << bits - 1
    size = np.abs(rotated)
    largest = size.max(axis=1, keepdims=True)
    size /= np.where(largest > 0, largest, np.float32(1))
    best = np.full(len(size), -1.0, np.float32)
    kept = np.zeros(size.shape, np.float32)
    for scale in np.linspace(0.8, 2.0, SCALES, dtype=np.float32) * half:
        level = np.minimum(np.floor(size * scale), np.float32(half - 1)) + np.float32(0.5)
        cosine = np.einsum("ij,ij->i", level, size) / np.sqrt(np.einsum("ij,ij->i", level, level))
        better = cosine > best
        best[better], kept[better] = cosine[better], level[better]
    signed = np.where(rotated > 0, kept, -kept)
    return np.asarray(signed + np.float32(half - 0.5), np.uint8)
