"""``executemany`` of ``UPDATE t SET a = ?, ... WHERE key = ?``: many rows as one statement.

Serves an equality on an integer key of one column, and new values that are parameters or constants
of columns no unique index covers, so that the order of the rows makes no difference. Parameter sets
are gathered until a key repeats or there are many. Everything else runs one set after the other, in
``session``; both give the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from tarsdb.columns import Column, from_list
from tarsdb.engine.context import Context
from tarsdb.engine.reading import access
from tarsdb.engine.writing import derive, mutate
from tarsdb.engine.writing.changes import changes, write
from tarsdb.errors import Error
from tarsdb.records import dataclass
from tarsdb.schema import IndexDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Update
from tarsdb.types import Kind, to_storage

MOST_ROWS = 1024
"""Parameter sets that become one statement."""
_KEYS = frozenset({Kind.SMALLINT, Kind.INT, Kind.BIGINT})


@dataclass(frozen=True)
class Keyed:
    """How the rows of a plan are found."""

    index: IndexDef
    column: ex.ColumnRef
    key: ex.Parameter


def keyed(plan: Any) -> Keyed | None:
    """Return how this module runs a plan, or None where it does not."""
    if not isinstance(plan, Update) or plan.source is not None:
        return None
    where = plan.predicate
    if plan.returning is not None or plan.returning_sql is not None:
        return None
    if not isinstance(where, ex.Compare) or where.op != "=":
        return None
    column, key = where.left, where.right
    if not isinstance(column, ex.ColumnRef) or not isinstance(key, ex.Parameter):
        return None
    if column.column.type.kind not in _KEYS:
        return None
    if not all(isinstance(node, (ex.Parameter, ex.Literal)) for node in plan.assignments):
        return None
    changed = {each.id for each in plan.columns}
    unique = [index for index in plan.table.indexes if index.unique]
    if any(changed & set(index.column_ids) for index in unique):
        return None
    for index in unique:
        if index.column_ids == (column.column.id,):
            return Keyed(index, column, key)
    return None


def update(context: Context, plan: Update, how: Keyed, many: Iterable[Any]) -> int:
    """Run all parameter sets; return the rows changed.

    Raises
    ------
    DataError, IntegrityError
        A value does not fit its column or constraint.
    """
    changed = 0
    sets = iter(many)
    while block := list(islice(sets, MOST_ROWS)):
        columns = _as_columns(context, plan, how, block)
        if columns is None:
            changed += _gathered(context, plan, how, block)
        else:
            changed += _write(context, plan, how, *columns)
    return changed


def _as_columns(
    context: Context, plan: Update, how: Keyed, block: list[Any]
) -> tuple[Column, list[Column]] | None:
    """Return keys and new values of parameter sets; None unless all keys are distinct integers.

    None also where something does not fit: what it is, is found set by set.
    """
    if not set(map(type, block)) <= {tuple, list}:
        return None
    try:
        found = [each[how.key.key] for each in block]
        if set(map(type, found)) != {int} or len(set(found)) < len(found):
            return None
        given = []
        for node, column in zip(plan.assignments, plan.columns, strict=True):
            if isinstance(node, ex.Parameter):
                items = [each[node.key] for each in block]
            else:
                items = [context.constant(node)] * len(block)
            given.append(derive.convert(items, column))
        return from_list(how.column.column.type, found), given
    except (Error, LookupError, TypeError, OverflowError):
        return None


def _gathered(context: Context, plan: Update, how: Keyed, block: list[Any]) -> int:
    """Run parameter sets, as many together as have different keys."""
    changed = 0
    sets: dict[int, list[Any]] = {}
    for parameters in block:
        context.parameters = parameters
        try:
            key: int | None = access.exact_key(context.parameter(how.key.key), how.column)
        except access.NoKey:  # 7.0 equals 7, other types are compared with every row
            changed += _write_sets(context, plan, how, sets) + _one(context, plan, parameters)
            sets = {}
            continue
        values = [
            to_storage(_value(context, node), column.type, column.name)
            for node, column in zip(plan.assignments, plan.columns, strict=True)
        ]
        if key in sets:
            changed += _write_sets(context, plan, how, sets)
            sets = {}
        if key is not None:
            sets[key] = values
    return changed + _write_sets(context, plan, how, sets)


def _one(context: Context, plan: Update, parameters: Any) -> int:
    context.parameters = parameters
    return mutate.update(context, plan).changed


def _value(context: Context, node: ex.Expr) -> Any:
    return context.parameter(node.key) if isinstance(node, ex.Parameter) else context.constant(node)


def _write_sets(context: Context, plan: Update, how: Keyed, sets: dict[int, list[Any]]) -> int:
    if not sets:
        return 0
    given = [
        from_list(column.type, list(items))
        for column, items in zip(plan.columns, zip(*sets.values(), strict=True), strict=True)
    ]
    return _write(context, plan, how, from_list(how.column.column.type, list(sets)), given)


def _write(context: Context, plan: Update, how: Keyed, key: Column, given: list[Column]) -> int:
    rowids = context.view(plan.table).find_each(how.index, key)
    there = rowids >= 0
    if not there.all():
        rowids, given = rowids[there], [column.take(there) for column in given]
    if not len(rowids):
        return 0
    found = changes(context, plan, rowids, list(given))
    write(context, plan.table, [found])
    return len(rowids)
