"""Product quantisation: sub-vectors coded by the nearest of 256 or 16 centroids, and OPQ.

Jegou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", PAMI 2011; with 16
centroids the tables of a query fit registers ("fast scan", Andre, Kermarrec and Le Scouarnec,
VLDB 2015). OPQ is the non-parametric method of Ge, He, Ke and Sun, "Optimized Product
Quantization", CVPR 2013, algorithm 1. Knows no storage.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from tarsdb.errors import NotSupportedError
from tarsdb.index.quantization import kmeans
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

SAMPLE_ROWS = 65536
"""Rows that training looks at; more change next to nothing."""
OPQ_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Tables:
    """What distances from one query need.

    ``exact`` float32 (parts, centroids); for 16 centroids also ``small`` uint8 (2 * pairs, 16)
    with ``scale`` and ``bias``: a key is about ``bias + scale * sum``. The sum of the largest
    entries fits 16 bits, and an entry is off by at most half a scale.
    """

    exact: F32
    small: U8
    scale: np.float32
    bias: np.float32


class ProductQuantizer(Quantizer):
    """Codes of ``parts`` sub-vectors, of 8 or 4 bits each.

    Parameters
    ----------
    centroids : float32 (parts, 256 or 16, width)
        ``parts * width >= dim``; vectors are padded with zeros.
    rotation : float32 (dim, parts * width) or None
        Orthonormal rows, applied first (OPQ). Where it pads, distances include the part of a code
        that lies outside the vectors' space, a constant of the code.
    dim, metric : int
    """

    def __init__(self, centroids: F32, rotation: F32 | None, dim: int, metric: int) -> None:
        self.centroids, self.rotation, self.dim, self.metric = centroids, rotation, dim, metric
        self.parts, self.count, self.width = centroids.shape

    @classmethod
    def train(
        cls, sample: F32, metric: int, *, parts: int | None = None, bits: int = 8,
        rotate: bool = False, seed: int = 0,
    ) -> Self:  # fmt: skip
        """Return a quantiser fitted to float32 (n, dim); n may be below the centroids' number.

        ``parts`` of None: four dimensions a part. ``rotate``: find a rotation too (OPQ).
        """
        sample = check_sample(sample, metric)
        dim = sample.shape[1]
        parts = -(-dim // 4) if parts is None else parts
        if bits not in (4, 8) or not 1 <= parts <= dim:
            raise NotSupportedError(
                f"product codes of {parts} parts and {bits} bits for {dim} dimensions",
                hint="4 or 8 bits; from 1 part up to one per dimension",
            )
        rng = np.random.default_rng(seed)
        if len(sample) > SAMPLE_ROWS:
            sample = sample[np.sort(rng.choice(len(sample), SAMPLE_ROWS, replace=False))]
        made = cls(np.zeros((parts, 1 << bits, -(-dim // parts)), np.float32), None, dim, metric)
        if rotate:
            made.rotation = random_rotation(dim, parts * made.width, seed)
            made._optimize(sample, rng)
        else:
            made._fit(made._placed(sample), rng, first=True)
        return made

    def _fit(self, placed: F32, rng: np.random.Generator, first: bool) -> None:
        for part in range(self.parts):
            x = np.ascontiguousarray(placed[:, part * self.width : (part + 1) * self.width])
            start = None if first else self.centroids[part]
            self.centroids[part] = kmeans.train(x, self.count, rng, start)

    def _optimize(self, sample: F32, rng: np.random.Generator) -> None:
        """Alternate between centroids and the rotation that fits them best (Procrustes)."""
        for turn in range(OPQ_ROUNDS):
            placed = self._placed(sample)
            self._fit(placed, rng, first=turn == 0)
            coded = self._looked_up(self._names(placed))
            left, _, right = np.linalg.svd(sample.T @ coded, full_matrices=False)
            self.rotation = np.ascontiguousarray(left @ right, np.float32)
        self._fit(self._placed(sample), rng, first=False)

    @property
    def code_size(self) -> int:
        """Bytes of a row's code."""
        return int(self.parts if self.count == 256 else -(-self.parts // 2))

    def encode(self, x: F32) -> U8:
        """Return codes (n, code_size); of 4 bits two a byte, the even part's low."""
        rows = self.rows(x)
        names = np.zeros((len(rows), self.code_size * (1 if self.count == 256 else 2)), np.uint8)
        for at in range(0, len(rows), CHUNK_ROWS):
            part = rows[at : at + CHUNK_ROWS]
            names[at : at + len(part), : self.parts] = self._names(self._placed(part))
        if self.count == 256:
            return names
        return np.asarray(names[:, ::2] | names[:, 1::2] << 4, np.uint8)

    def decode(self, codes: U8) -> F32:
        """Return float32 (n, dim)."""
        placed = self._looked_up(self._unpacked(codes))
        if self.rotation is None:
            return np.ascontiguousarray(placed[:, : self.dim])
        return np.asarray(placed @ self.rotation.T, np.float32)

    def prepare(self, query: F32) -> Tables:
        """Return the tables of a query (dim,)."""
        placed = self._placed(self.one(query).reshape(1, -1)).reshape(self.parts, 1, self.width)
        if self.metric == reference.L2:
            difference = self.centroids - placed
            table = np.einsum("pcw,pcw->pc", difference, difference)
        else:
            table = -np.einsum("pcw,pw->pc", self.centroids, placed[:, 0])
        always = np.float32(self.metric == reference.COSINE)
        lows = table.min(axis=1)
        reach = np.float32((table.max(axis=1) - lows).max())
        limit = np.float32(min(255, 65535 // self.parts))
        scale = reach / limit if reach > 0 else np.float32(1)
        small = np.zeros((-(-self.parts // 2) * 2, 16), np.uint8)
        if self.count == 16:
            small[: self.parts] = np.rint((table - lows[:, None]) / scale)
        return Tables(
            table, small, np.float32(scale), np.float32(always + lows.sum(dtype=np.float64))
        )

    def distances(self, query: Tables, codes: U8) -> F32:
        """Return keys, float32 (n,): sums of the exact tables' entries.

        Of the distance to the decoded row, but for rounding; under L2 padding adds nothing.
        """
        names = self._unpacked(codes)
        out = np.full(len(names), np.float32(self.metric == reference.COSINE))
        for part in range(self.parts):
            out += query.exact[part][names[:, part]]
        return out

    def pack(self, codes: U8) -> U8:
        """Return 4-bit codes in tiles of 64 rows, uint8 (ceil(n / 64), code_size, 64)."""
        self._four_bits("pack")
        return quantized.tile_nibbles(check_codes(codes, self.code_size))

    def scan(self, query: Tables, tiles: U8) -> F32:
        """Return keys by 8-bit tables, float32 (64 * tiles,), of packed codes.

        They differ from those of :meth:`distances` by at most ``parts * scale / 2`` and rounding.
        """
        self._four_bits("scan")
        sums = quantized.fastscan(tiles, query.small[None])[0]
        return np.asarray(query.bias + query.scale * sums.astype(np.float32), np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all there is to store, by name."""
        found: dict[str, np.ndarray] = {
            "settings": np.array([self.metric, self.dim], np.int64), "centroids": self.centroids
        }  # fmt: skip
        return found if self.rotation is None else {**found, "rotation": self.rotation}

    @classmethod
    def from_arrays(cls, named: Named) -> Self:
        """Return the quantiser of stored arrays; CorruptionError if they make no sense."""
        count = 16 if np.shape(named.get("centroids", ()))[1:2] == (16,) else 256
        centroids = stored(named, "centroids", np.float32, (None, count, None))
        whole = centroids.shape[0] * centroids.shape[2]
        metric, dim = settings(named, [(0, 2), (1, whole)])
        rotation = None
        if "rotation" in named:
            rotation = stored(named, "rotation", np.float32, (dim, whole))
        return cls(centroids, rotation, dim, metric)

    def _four_bits(self, what: str) -> None:
        if self.count != 16:
            raise NotSupportedError(f"{what} of product codes of 8 bits, only of 4 bits")

    def _placed(self, rows: F32) -> F32:
        """Return rows rotated or padded, float32 (n, parts * width)."""
        if self.rotation is not None:
            return np.asarray(rows @ self.rotation, np.float32)
        whole = np.zeros((len(rows), self.parts * self.width), np.float32)
        whole[:, : self.dim] = rows
        return whole

    def _names(self, placed: F32) -> U8:
        split = placed.reshape(len(placed), self.parts, self.width)
        names = np.empty((len(placed), self.parts), np.uint8)
        for part in range(self.parts):
            x = np.ascontiguousarray(split[:, part])
            names[:, part] = kmeans.assign(x, self.centroids[part])
        return names

    def _looked_up(self, names: U8) -> F32:
        found = self.centroids[np.arange(self.parts), names]
        return np.asarray(found.reshape(len(names), self.parts * self.width), np.float32)

    def _unpacked(self, codes: U8) -> U8:
        codes = check_codes(codes, self.code_size)
        if self.count == 256:
            return codes
        both = np.stack([codes & 15, codes >> 4], axis=2)
        return both.reshape(len(codes), 2 * self.code_size)[:, : self.parts]
