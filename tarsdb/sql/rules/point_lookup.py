"""``WHERE`` fixes every column of a unique index: one row at most, found through the index."""

from __future__ import annotations

import decimal
from collections.abc import Sequence

from tarsdb.schema import ColumnDef, IndexDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.core import conjunction
from tarsdb.sql.kinds import type_category
from tarsdb.sql.plan import PointLookup, RowKey
from tarsdb.sql.select import TableSelect


def match(select: TableSelect) -> PointLookup | None:
    """Return the plan, or None."""
    if not select.conjuncts or select.order or select.offset is not None:
        return None
    if select.limit is not None and not _at_least_one(select.limit):
        return None
    if not any(index.unique for index in select.table.indexes):
        return None
    terms = select.predicates()
    outputs = select.outputs() if terms is not None else None
    if terms is None or outputs is None:
        return None
    found = row_key(select.table, terms)
    if found is None:
        return None
    return PointLookup(select.table, found.index, found.key, outputs, found.rest)


def row_key(table: TableDef, terms: Sequence[ex.Expr]) -> RowKey | None:
    """Return the key of one row that terms joined by AND fix, or None."""
    for index in table.indexes:
        found = _fixed_key(table, index, terms) if index.unique else None
        if found is not None:
            return RowKey(index, found[0], conjunction(found[1]))
    return None


def _fixed_key(
    table: TableDef, index: IndexDef, terms: Sequence[ex.Expr]
) -> tuple[tuple[ex.Expr, ...], list[ex.Expr]] | None:
    """Return the key that equalities fix and the terms left over, or None."""
    rest: list[ex.Expr] = []
    for conjunct in terms:
        rest += conjunct.terms if isinstance(conjunct, ex.And) else (conjunct,)
    key: list[ex.Expr] = []
    for column_id in index.column_ids:
        column = table.column_by_id(column_id)
        term = next((t for t in rest if _fixes(t, column)), None)
        if not isinstance(term, ex.Compare):
            return None
        rest.remove(term)
        key.append(term.right)
    return tuple(key), rest


def _fixes(term: ex.Expr, column: ColumnDef) -> bool:
    if not isinstance(term, ex.Compare) or term.op != "=" or term.left != ex.ColumnRef(column):
        return False
    if isinstance(term.right, ex.Parameter):
        return True
    if not isinstance(term.right, ex.Literal) or term.right.value is None:
        return False
    value = term.right.value
    if isinstance(value, decimal.Decimal):  # 1.5 is in no INT, and must not be rounded into one
        return False
    return not isinstance(value, float) or type_category(column.type) != "decimal"


def _at_least_one(limit: ex.Expr) -> bool:
    return isinstance(limit, ex.Literal) and isinstance(limit.value, int) and limit.value >= 1
