"""What every quantiser can do, the checks they share, and the report of what they lose.

Distances here are keys that order rows as the metric does: L2 squared, minus the inner product,
or one minus the cosine (1 for a zero vector). Knows no kind of code.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tarsdb.errors import (
    CorruptionError,
    DimensionMismatchError,
    NotSupportedError,
    ValueRangeError,
)
from tarsdb.kernels import reference
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Named = Mapping[str, np.ndarray]

METRICS = {reference.L2: "L2", reference.IP: "inner product", reference.COSINE: "cosine"}
CHUNK_ROWS = 4096
"""Rows worked on at a time where a temporary is larger than the codes."""


@dataclass(frozen=True, slots=True)
class Distortion:
    """What codes lose on some rows."""

    relative_error: float
    """Mean squared error over the rows' variance; 0 where both are 0."""
    recall: float
    """Share of the true ten nearest rows that are among the first ten by codes, in 0..1."""
    bytes_per_vector: int


class Quantizer(abc.ABC):
    """Codes of vectors of one dimension for one metric.

    Attributes
    ----------
    metric : int
        L2, IP or COSINE of ``kernels/reference``. Under COSINE rows are coded, and decoded, as
        unit vectors.
    dim : int
    """

    metric: int
    dim: int

    @classmethod
    @abc.abstractmethod
    def train(cls, sample: F32, metric: int) -> Self:
        """Return a quantiser fitted to float32 (n, dim), n >= 1."""

    @property
    @abc.abstractmethod
    def code_size(self) -> int:
        """Bytes of a row's code, factors included."""

    @abc.abstractmethod
    def encode(self, x: F32) -> U8:
        """Return codes (n, code_size) of float32 (n, dim)."""

    @abc.abstractmethod
    def decode(self, codes: U8) -> F32:
        """Return float32 (n, dim): the vectors the codes stand for."""

    @abc.abstractmethod
    def prepare(self, query: F32) -> Any:
        """Return what distances from float32 (dim,) need."""

    @abc.abstractmethod
    def distances(self, query: Any, codes: U8) -> F32:
        """Return keys, float32 (n,), of codes for what :meth:`prepare` made of a query."""

    @abc.abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Return all there is to store, by name."""

    @classmethod
    @abc.abstractmethod
    def from_arrays(cls, named: Named) -> Self:
        """Return the quantiser of stored arrays; CorruptionError if they make no sense."""

    def distortion(self, x: F32, queries: F32 | None = None, k: int = 10) -> Distortion:
        """Report what codes of float32 (n, dim) lose.

        Recall is that of ``queries``, float32 (q, dim), or of up to 64 rows spread over ``x``.
        """
        rows = self.rows(x)
        codes = self.encode(x)
        lost = float(np.square(rows - self.decode(codes), dtype=np.float64).sum())
        spread = float(np.square(rows - rows.mean(axis=0), dtype=np.float64).sum())
        if queries is None:
            queries = np.asarray(x)[:: -(-len(rows) // 64)]
        found = 0
        k = min(k, len(rows))
        for query in checked(queries, self.dim, "queries"):
            truth = nearest(exact(self.metric, rows, query), k)
            found += len(np.intersect1d(truth, nearest(self.distances(
                self.prepare(query), codes), k)))  # fmt: skip
        return Distortion(
            lost / spread if spread else (0.0 if lost == 0 else float("inf")),
            found / (k * len(queries)), self.code_size,
        )  # fmt: skip

    def rows(self, x: F32) -> F32:
        """Return checked rows, at unit length under COSINE."""
        x = checked(x, self.dim, "rows")
        return unit(x) if self.metric == reference.COSINE else x

    def one(self, query: F32) -> F32:
        """Return a checked query (dim,), at unit length under COSINE."""
        found: F32 = self.rows(np.asarray(query, np.float32).reshape(1, -1))[0]
        return found


def checked(x: F32, dim: int | None, what: str) -> F32:
    """Return float32 (n, dim), C-contiguous.

    Raises
    ------
    DimensionMismatchError
        Another number of dimensions.
    ValueRangeError
        An element is not finite, or a squared norm is beyond float32.
    """
    x = np.ascontiguousarray(x, np.float32)
    if x.ndim != 2 or x.shape[1] < 1 or (dim is not None and x.shape[1] != dim):
        expected = "any" if dim is None else dim
        raise DimensionMismatchError(f"{what} have shape {x.shape}, expected (n, {expected})")
    with np.errstate(all="ignore"):
        squares = np.einsum("ij,ij->i", x, x)
    bad = np.flatnonzero(~(squares < 1e37))  # headroom for sums of a few squared norms
    if len(bad):
        raise ValueRangeError(
            f"row {bad[0]} of the {what} has squared norm {squares[bad[0]]}, the limit is 1e37",
            hint="replace elements that are not finite",
        )
    return x


def check_sample(sample: F32, metric: int) -> F32:
    """Return checked rows to train on, at unit length under COSINE; at least one."""
    if metric not in METRICS:
        known = ", ".join(METRICS.values())
        raise NotSupportedError(f"metric {metric} has no quantisation; known: {known}")
    sample = checked(sample, None, "training rows")
    if not len(sample):
        raise ValueRangeError(f"{len(sample)} training rows, at least 1 is needed")
    return unit(sample) if metric == reference.COSINE else sample


def check_codes(codes: U8, size: int) -> U8:
    """Return codes (n, size), C-contiguous; CorruptionError on another shape or type."""
    if codes.ndim != 2 or codes.shape[1] != size or codes.dtype != np.uint8:
        raise CorruptionError(f"codes are {codes.dtype} {codes.shape}, expected uint8 (n, {size})")
    return np.ascontiguousarray(codes)


def stored(named: Named, name: str, dtype: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return a stored array of this type and shape (None: any size of at least 1), all finite.

    Raises
    ------
    CorruptionError
        It is absent or otherwise.
    """
    array = named.get(name)
    if array is None:
        raise CorruptionError(f"quantiser array {name!r} is absent; there are {sorted(named)}")
    fits = array.ndim == len(shape) and all(
        (have == want) if want is not None else have >= 1
        for have, want in zip(array.shape, shape, strict=True)
    )
    if array.dtype != np.dtype(dtype) or not fits:
        raise CorruptionError(
            f"quantiser array {name!r} is {array.dtype} {array.shape}, "
            f"expected {np.dtype(dtype)} {shape}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CorruptionError(f"quantiser array {name!r} has elements that are not finite")
    return np.ascontiguousarray(array)


def settings(named: Named, ranges: list[tuple[int, int]]) -> list[int]:
    """Return the stored int64 ``settings``, each within its range, ends included."""
    values: list[int] = stored(named, "settings", np.int64, (len(ranges),)).tolist()
    for number, (value, (low, high)) in enumerate(zip(values, ranges, strict=True)):
        if not low <= value <= high:
            raise CorruptionError(f"quantiser setting {number} is {value}, not in {low}..{high}")
    return values


def unit(x: F32) -> F32:
    """Return rows at unit length; zero rows stay zero."""
    norms = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
    return np.asarray(x / np.where(norms == 0, 1.0, norms)[:, None], np.float32)


def exact(metric: int, rows: F32, query: F32) -> F32:
    """Return exact keys of rows (of unit length under COSINE) for a query of any length."""
    if metric == reference.L2:
        difference = rows - query
        return np.asarray(np.einsum("ij,ij->i", difference, difference), np.float32)
    if metric == reference.COSINE:
        query = unit(query.reshape(1, -1))[0]
    return np.asarray((metric == reference.COSINE) - rows @ query, np.float32)


def nearest(keys: F32, k: int) -> npt.NDArray[np.int64]:
    """Return positions of the k smallest keys, ties by position."""
    return reference.smallest(keys, np.arange(len(keys)), k)
