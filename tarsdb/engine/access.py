"""Choose how to find the rows a predicate keeps: an ordered scalar index, or a scan.

An index is used when equalities cover a prefix of its columns (IN counts as several), or a range
bounds its first column, and a look at the first rows says that few rows pass. What an index
returns is a superset: the executor evaluates the whole predicate again.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from tarsdb.engine import evaluate
from tarsdb.engine.compare import FLIP
from tarsdb.errors import DataError
from tarsdb.schema import IndexDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.storage import TableView
from tarsdb.types import Kind, to_storage

SAMPLE_ROWS = 2048
MAX_SELECTIVITY = 0.05
SMALL_TABLE = 256
MAX_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Probe:
    """One index and the keys or the bounds to look up in it."""

    index: IndexDef
    keys: tuple[tuple[Any, ...], ...] = ()
    low: Any = None
    high: Any = None
    low_inclusive: bool = True
    high_inclusive: bool = True

    @property
    def is_range(self) -> bool:
        """True when the bounds are meant, not the keys."""
        return not self.keys and (self.low is not None or self.high is not None)

    def rowids(self, view: TableView) -> np.ndarray:
        """Return the row ids the index holds there, ascending, each once; int64 (n,)."""
        if self.is_range:
            low = None if self.low is None else (self.low,)
            high = None if self.high is None else (self.high,)
            found = view.range(self.index, low, high, self.low_inclusive, self.high_inclusive)
            return np.unique(found)
        found_each = [view.find(self.index, key) for key in self.keys]
        if len(found_each) == 1:
            return found_each[0]
        return np.unique(np.concatenate(found_each)) if found_each else np.empty(0, np.int64)


@dataclass(slots=True)
class _Bounds:
    """What the conjuncts of a predicate say about one column."""

    values: list[Any] | None = None
    low: Any = None
    high: Any = None
    low_inclusive: bool = True
    high_inclusive: bool = True


class NoKey(Exception):
    """The constant has no exact form in the column's type; the index cannot answer."""


def choose(
    table: TableDef, predicate: ex.Expr | None, view: TableView, calls: evaluate.Calls
) -> Probe | None:
    """Return the index probe to use for a predicate, or None for a scan."""
    if predicate is None or not table.indexes:
        return None
    bounds = _bounds(predicate, calls)
    best: tuple[int, Probe] | None = None
    for index in table.indexes:
        if index.method == "btree":
            scored = _probe(index, bounds)
            if scored is not None and (best is None or scored[0] > best[0]):
                best = scored
    if best is None:
        return None
    probe = best[1]
    exact = probe.index.unique and not probe.is_range
    if not exact and not _is_selective(table, predicate, view, calls):
        return None
    return probe


def _probe(index: IndexDef, bounds: dict[int, _Bounds]) -> tuple[int, Probe] | None:
    prefix: list[list[Any]] = []
    for column_id in index.column_ids:
        known = bounds.get(column_id)
        if known is None or known.values is None:
            break
        prefix.append(known.values)
    if len(prefix) == len(index.column_ids):
        keys = tuple(product(*prefix))
        if len(keys) <= MAX_KEYS:
            return (200 if index.unique else 100) + len(prefix), Probe(index, keys)
    first = bounds.get(index.column_ids[0])
    if first is None or len(index.column_ids) > 1:
        return None
    if first.low is None and first.high is None:
        return None
    both = first.low is not None and first.high is not None
    probe = Probe(index, (), first.low, first.high, first.low_inclusive, first.high_inclusive)
    return (20 if both else 10), probe


def conjuncts(predicate: ex.Expr) -> Iterator[ex.Expr]:
    """Yield the terms that must all hold."""
    if isinstance(predicate, ex.And):
        for term in predicate.terms:
            yield from conjuncts(term)
    else:
        yield predicate


def _bounds(predicate: ex.Expr, calls: evaluate.Calls) -> dict[int, _Bounds]:
    found: dict[int, _Bounds] = {}
    for term in conjuncts(predicate):
        try:
            _note(term, found, calls)
        except NoKey:
            continue
    return found


def _note(term: ex.Expr, found: dict[int, _Bounds], calls: evaluate.Calls) -> None:
    if isinstance(term, ex.InList) and isinstance(term.operand, ex.ColumnRef):
        column = term.operand.column
        keys = [_key(item, term.operand, calls) for item in term.items]
        if None not in keys:
            found.setdefault(column.id, _Bounds()).values = list(dict.fromkeys(keys))
        return
    if not isinstance(term, ex.Compare) or term.op == "<>":
        return
    left, right, op = term.left, term.right, term.op
    if not isinstance(left, ex.ColumnRef):
        left, right, op = right, left, FLIP[op]
    if not isinstance(left, ex.ColumnRef):
        return
    key = _key(right, left, calls)
    if key is None:
        return
    known = found.setdefault(left.column.id, _Bounds())
    if op == "=":
        known.values = [key]
    elif op in (">", ">="):
        known.low, known.low_inclusive = key, op == ">="
    else:
        known.high, known.high_inclusive = key, op == "<="


def _key(node: ex.Expr, column: ex.ColumnRef, calls: evaluate.Calls) -> Any:
    """Return a constant as storage value of the column's type (None for NULL)."""
    if not isinstance(node, (ex.Literal, ex.Parameter)):
        raise NoKey
    item = node.value if isinstance(node, ex.Literal) else calls.parameter(node.key)
    return exact_key(item, column)


_PLAIN: dict[Kind, tuple[type, ...]] = {
    Kind.BOOLEAN: (bool,), Kind.TEXT: (str,), Kind.BLOB: (bytes,),
    Kind.SMALLINT: (int,), Kind.INT: (int,), Kind.BIGINT: (int,),
    Kind.DOUBLE: (int, float, decimal.Decimal),
}  # fmt: skip
_CONVERTED = frozenset({Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ, Kind.UUID, Kind.TIME})


def exact_key(item: Any, column: ex.ColumnRef) -> Any:
    """Return the storage value equal to a constant, or raise ``NoKey`` where none is."""
    if item is None:
        return None
    if isinstance(item, np.generic):
        item = item.item()
    kind = column.column.type.kind
    if kind not in _CONVERTED and not isinstance(item, _PLAIN.get(kind, ())):
        raise NoKey
    try:
        return to_storage(item, column.column.type, column.column.name)
    except DataError:
        raise NoKey from None


def _is_selective(
    table: TableDef, predicate: ex.Expr, view: TableView, calls: evaluate.Calls
) -> bool:
    if view.count() <= SMALL_TABLE:
        return True
    needed = evaluate.columns_of(predicate)
    for chunk in view.chunks(list(needed)):
        rows = min(len(chunk.rowids), SAMPLE_ROWS)
        columns = {i: c.slice(0, rows) for i, c in zip(needed, chunk.columns, strict=True)}
        batch = evaluate.Batch(rows, columns, calls, chunk.rowids[:rows])
        mask = evaluate.select(predicate, batch)
        return mask is not None and float(mask.mean()) <= MAX_SELECTIVITY
    return True
