"""Arithmetic of vectors on the lists DuckDB hands over: elements, norms, sums and means.

Vectors of one call have one dimension; NULL gives NULL, and aggregates leave it out. Elements are
computed in float32, as pgvector does, sums, means and norms in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tarsdb.errors import DimensionMismatchError, ValueRangeError
from tarsdb.records import dataclass

LISTS = "FLOAT[]"


@dataclass(frozen=True, slots=True)
class Operation:
    """What DuckDB is told of an operation, and what computes it from its chunked arrays."""

    arguments: tuple[str, ...]
    returns: str
    call: Callable[..., Any]


def vectors_of(array: Any, what: str) -> np.ndarray:
    """Return lists without NULL among them as float32 (rows, dim).

    Raises
    ------
    DimensionMismatchError
        They are not of one length.
    """
    bounds = pc.min_max(pc.list_value_length(array)).as_py()
    if bounds["min"] != bounds["max"]:
        raise DimensionMismatchError(
            f"{what} has vectors of {bounds['min']} and of {bounds['max']} dimensions"
        )
    flat = pa.concat_arrays([chunk.flatten() for chunk in _chunks(array)])
    values = np.asarray(flat.to_numpy(zero_copy_only=False), dtype=np.float32)
    return values.reshape(len(array), -1)


def _chunks(array: Any) -> list[Any]:
    return array.chunks if isinstance(array, pa.ChunkedArray) else [array]


def _lists(values: np.ndarray, valid: np.ndarray, what: str) -> pa.Array:
    """Return float32 vectors of the valid rows as lists, NULL for the others."""
    if not np.isfinite(values).all():
        raise ValueRangeError(f"{what}: an element is NaN or beyond what float32 holds")
    dim = values.shape[1] if len(values) else 0
    offsets = np.concatenate(([0], np.cumsum(valid * dim))).astype(np.int32)
    flat = pa.array(values.astype(np.float32, copy=False).ravel())
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(~valid))


def _elementwise(what: str, compute: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def call(left: Any, right: Any) -> pa.Array:
        valid = np.asarray(left.is_valid()) & np.asarray(right.is_valid())
        if not valid.any():
            return pa.nulls(len(valid), pa.list_(pa.float32()))
        a, b = (vectors_of(side.filter(pa.array(valid)), what) for side in (left, right))
        if a.shape != b.shape:
            raise DimensionMismatchError(
                f"{what}: the left vector has {a.shape[1]} dimensions, the right one {b.shape[1]}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            return _lists(compute(a, b), valid, what)

    return call


def _each(what: str, compute: Callable[[np.ndarray], Any]) -> Callable[..., Any]:
    """Return a function of one vector a row; ``compute`` gives vectors or an Arrow array."""

    def call(vectors: Any) -> pa.Array:
        valid = np.asarray(vectors.is_valid())
        known = vectors.filter(pa.array(valid))
        found = compute(vectors_of(known, what) if valid.any() else np.zeros((0, 0), np.float32))
        if isinstance(found, np.ndarray):
            return _lists(found, valid, what)
        places = pa.array(np.cumsum(valid) - 1, mask=~valid)
        return found.take(places)

    return call


def _norms(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    norms: np.ndarray = np.sqrt((wide * wide).sum(axis=1))
    return norms


def _normalized(vectors: np.ndarray) -> np.ndarray:
    norms = _norms(vectors)[:, None]
    result = np.zeros(vectors.shape)
    np.divide(vectors, norms, out=result, where=norms > 0)
    return result


def _signs(vectors: np.ndarray) -> pa.Array:
    return pa.array(["".join(row) for row in np.where(vectors > 0, "1", "0")], pa.string())


def _total(what: str, *, mean: bool) -> Callable[..., Any]:
    """Return an aggregate over one list of vectors a row (the vectors of a group)."""

    def call(groups: Any) -> pa.Array:
        whole = pa.concat_arrays(_chunks(groups))
        lengths = np.asarray(pc.fill_null(pc.list_value_length(whole), 0))
        vectors = whole.flatten()
        valid = np.asarray(vectors.is_valid())
        group = np.repeat(np.arange(len(lengths)), lengths)[valid]
        known, first, counts = np.unique(group, return_index=True, return_counts=True)
        if not len(known):
            return pa.nulls(len(lengths), pa.list_(pa.float32()))
        values = vectors_of(vectors.filter(pa.array(valid)), what)
        sums = np.add.reduceat(values, first, axis=0, dtype=np.float64)
        found = np.zeros(len(lengths), dtype=bool)
        found[known] = True
        with np.errstate(over="ignore"):
            result = (sums / counts[:, None] if mean else sums).astype(np.float32)
        return _lists(result, found, what)

    return call


OPERATIONS: dict[str, Operation] = {
    "add": Operation((LISTS, LISTS), LISTS, _elementwise("+", np.add)),
    "subtract": Operation((LISTS, LISTS), LISTS, _elementwise("-", np.subtract)),
    "multiply": Operation((LISTS, LISTS), LISTS, _elementwise("*", np.multiply)),
    "norm": Operation((LISTS,), "DOUBLE", _each("l2_norm", lambda v: pa.array(_norms(v)))),
    "normalize": Operation((LISTS,), LISTS, _each("l2_normalize", _normalized)),
    "signs": Operation((LISTS,), "VARCHAR", _each("binary_quantize", _signs)),
    "sum": Operation((f"{LISTS}[]",), LISTS, _total("sum", mean=False)),
    "avg": Operation((f"{LISTS}[]",), LISTS, _total("avg", mean=True)),
}
