"""Choose how to find the rows a predicate keeps: an ordered scalar index, or a scan.

An index is used when equalities cover its columns (IN counts as several), or a range bounds its
one column, and it finds few rows: reading it stops as soon as a scan would be better. What it
returns is a superset: the executor evaluates what else the predicate asks.
"""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from tarsdb.engine.reading import evaluate
from tarsdb.engine.reading.compare import FLIP
from tarsdb.errors import DataError
from tarsdb.records import dataclass
from tarsdb.schema import IndexDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.storage import TableView
from tarsdb.types import Kind, to_storage

MAX_SELECTIVITY = 0.1
SMALL_TABLE = 1000
MAX_KEYS = 1000
EXACT_BYTES = 190  # of text in a key: escaped it has at most twice as many, and stays whole


@dataclass(frozen=True, slots=True)
class Probe:
    """One index and the keys or the bounds to look up in it.

    ``rest`` is what else the predicate asks; None when what is found needs no check.
    """

    index: IndexDef
    keys: tuple[tuple[Any, ...], ...] = ()
    low: tuple[Any, bool] = (None, True)
    high: tuple[Any, bool] = (None, True)
    rest: ex.Expr | None = None

    @property
    def is_range(self) -> bool:
        """True when the bounds are meant, not the keys."""
        return self.low[0] is not None or self.high[0] is not None

    def rowids(self, view: TableView, most: int | None) -> np.ndarray | None:
        """Return the row ids the index holds there, ascending; None when more than ``most``."""
        if self.is_range:
            low, high = _bound(self.low), _bound(self.high)
            parts = [view.range(self.index, low, high, most)]
        else:
            parts = [view.find(self.index, key) for key in self.keys]
        rows = sum(map(len, parts))
        if most is not None and rows > most:
            return None
        if len(parts) == 1 and not self.is_range:
            return parts[0]
        return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _bound(bound: tuple[Any, bool]) -> tuple[tuple[Any, ...] | None, bool]:
    return (None if bound[0] is None else (bound[0],)), bound[1]


@dataclass(frozen=True, slots=True)
class Found:
    """What an index answered: the rows, and how it was asked."""

    probe: Probe
    rowids: np.ndarray


@dataclass(slots=True)
class Bounds:
    """What the conjuncts of a predicate say about one column, and which conjunct says what."""

    values: list[Any] | None = None
    low: tuple[Any, bool] = (None, True)
    high: tuple[Any, bool] = (None, True)
    equals: ex.Expr | None = None
    above: ex.Expr | None = None
    below: ex.Expr | None = None


class NoKey(Exception):
    """The constant has no exact form in the column's type; the index cannot answer."""


def choose(
    table: TableDef, predicate: ex.Expr | None, view: TableView, calls: evaluate.Calls
) -> Found | None:
    """Return the rows an index finds for a predicate, or None where a scan is better."""
    if predicate is None or not table.indexes:
        return None
    terms = list(conjuncts(predicate))
    bounds = bounds_of(terms, calls)
    best: tuple[int, Probe] | None = None
    for index in table.indexes:
        if index.method == "btree":
            scored = _probe(index, bounds, terms)
            if scored is not None and (best is None or scored[0] > best[0]):
                best = scored
    if best is None:
        return None
    rows = view.count()
    most = None if rows <= SMALL_TABLE else int(rows * MAX_SELECTIVITY)
    rowids = best[1].rowids(view, most)
    return None if rowids is None else Found(best[1], rowids)


def _probe(
    index: IndexDef, bounds: dict[int, Bounds], terms: list[ex.Expr]
) -> tuple[int, Probe] | None:
    """Return the lookup an index offers, with its rank among others."""
    prefix: list[Bounds] = []
    for column_id in index.column_ids:
        known = bounds.get(column_id)
        if known is None or known.values is None:
            break
        prefix.append(known)
    if len(prefix) == len(index.column_ids):
        values = [known.values or () for known in prefix]
        keys = tuple(product(*values))
        if len(keys) <= MAX_KEYS:
            is_whole = all(is_short(key) for each in values for key in each)
            rest = _rest(terms, [known.equals for known in prefix] if is_whole else [])
            rank = (200 if index.unique else 100) + len(prefix)
            return rank, Probe(index, keys, rest=rest)
    first = bounds.get(index.column_ids[0])
    if first is None or len(index.column_ids) > 1:
        return None
    low, high = first.low, first.high
    sides = sum(side is not None for side in (low[0], high[0]))
    if not sides:
        return None
    is_whole = is_short(low[0]) and is_short(high[0])
    rest = _rest(terms, [first.above, first.below] if is_whole else [])
    return 10 * sides, Probe(index, (), low, high, rest)


def _rest(terms: list[ex.Expr], answered: list[ex.Expr | None]) -> ex.Expr | None:
    """Return the terms that an index does not answer, joined by AND; None for none."""
    left = [term for term in terms if not any(term is other for other in answered)]
    return left[0] if len(left) == 1 else ex.And(tuple(left)) if left else None


def is_short(key: Any) -> bool:
    """Return whether an index holds a key whole."""
    raw = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    return not isinstance(raw, bytes) or len(raw) <= EXACT_BYTES


def conjuncts(predicate: ex.Expr) -> Iterator[ex.Expr]:
    """Yield the terms that must all hold."""
    if isinstance(predicate, ex.And):
        for term in predicate.terms:
            yield from conjuncts(term)
    else:
        yield predicate


def bounds_of(terms: list[ex.Expr], calls: evaluate.Calls) -> dict[int, Bounds]:
    """Return what terms that must all hold say about columns, by column id."""
    found: dict[int, Bounds] = {}
    for term in terms:
        try:
            _note(term, found, calls)
        except NoKey:
            continue
    return found


def _note(term: ex.Expr, found: dict[int, Bounds], calls: evaluate.Calls) -> None:
    if isinstance(term, ex.InList) and isinstance(term.operand, ex.ColumnRef):
        column = term.operand.column
        keys = [_key(item, term.operand, calls) for item in term.items]
        if None not in keys:
            known = found.setdefault(column.id, Bounds())
            known.values, known.equals = list(dict.fromkeys(keys)), term
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
    known = found.setdefault(left.column.id, Bounds())
    if op == "=":
        known.values, known.equals = [key], term
    elif op in (">", ">="):
        known.low, known.above = (key, op == ">="), term
    else:
        known.high, known.below = (key, op == "<="), term


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
    if kind is Kind.DATE and isinstance(item, dt.datetime):
        raise NoKey  # compares as a timestamp
    if kind is Kind.DOUBLE and isinstance(item, bool):
        raise NoKey  # has no order with numbers
    if kind not in _CONVERTED and not isinstance(item, _PLAIN.get(kind, ())):
        raise NoKey
    try:
        return to_storage(item, column.column.type, column.column.name)
    except DataError:
        raise NoKey from None
