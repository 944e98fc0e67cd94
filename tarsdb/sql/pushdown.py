"""Vector search inside a larger query: pushed to the engine where LIMIT sits on the one table.

A pushed search becomes a relation with the table's columns that are still needed, ``__distance``
and ``__rowid``; the rest of its SELECT is evaluated by DuckDB on those k rows. Any other search but
one of a joined table (``joined_search``) is computed exactly in DuckDB, and a note says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlglot import exp

from tarsdb.schema import ColumnDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.dialect import OPERATOR_OF
from tarsdb.sql.expressions import Output
from tarsdb.sql.function_calls import has_aggregate
from tarsdb.sql.knn_shape import KnnShape, find, make_knn
from tarsdb.sql.plan import Knn
from tarsdb.sql.scope import DISTANCE, KNN_ROWID, Scope
from tarsdb.sql.select import TableSelect, take_apart
from tarsdb.types import BIGINT, REAL

if TYPE_CHECKING:
    from tarsdb.sql.relational import Rewriter

PER_GROUP = (exp.Window, exp.Unnest, exp.Explode)


def push_search(rewriter: Rewriter, node: Any, parent: Scope | None, ctes: frozenset[str]) -> bool:
    """Rewrite a SELECT over its nearest neighbours; False when it is no such search."""
    if node.args.get("order") is None and node.args.get("where") is None:
        return False
    select = take_apart(rewriter.binding, _bare(node), ctes)
    shape = find(select) if select is not None else None
    if select is None or shape is None:
        return False
    catalog = rewriter.binding.catalog
    if any(item.find(*PER_GROUP) or has_aggregate(item, catalog) for item in node.expressions):
        return False
    if not _closed(select, shape, parent, ctes):
        rewriter.notes["exact: the search depends on the query around it"] = None
        return False
    _replace_source(rewriter, select, shape, node, parent, ctes)
    return True


def _bare(node: Any) -> Any:
    """Return a SELECT without its WITH clause, which was dealt with."""
    if node.args.get("with_") is None:
        return node
    bare = exp.Select()
    bare.args.update({part: value for part, value in node.args.items() if part != "with_"})
    return bare


def _closed(
    select: TableSelect, shape: KnnShape, parent: Scope | None, ctes: frozenset[str]
) -> bool:
    """Conditions left to SQL must mean the same outside the query: no outer columns, no CTEs."""
    if not shape.residue:
        return True
    nested = [query for condition in shape.residue for query in condition.find_all(exp.Query)]
    if any(table.name.lower() in ctes for query in nested for table in query.find_all(exp.Table)):
        return False
    if parent is None or not any(scope.sources for scope in parent.chain()):
        return True  # there are no columns of a query around it
    return not nested and all(
        select.lookup(column) is not None or _is_alias(select, column)
        for condition in shape.residue
        for column in condition.find_all(exp.Column)
    )


def _is_alias(select: TableSelect, column: Any) -> bool:
    return column.args.get("table") is None and column.name.lower() in select.aliases


def _replace_source(
    rewriter: Rewriter,
    select: TableSelect,
    shape: KnnShape,
    node: Any,
    parent: Scope | None,
    ctes: frozenset[str],
) -> None:
    from tarsdb.sql.relational import filter_query

    filter_sql = filter_query(select, shape.residue) if shape.residue else None
    source = rewriter.add_table(select.table, select.alias)
    source.extra = frozenset({DISTANCE, KNN_ROWID})

    def build(columns: tuple[ColumnDef, ...], with_rowid: bool) -> Knn:
        return make_knn(select, shape, outputs_of(columns, with_rowid, shape.distance), filter_sql)

    source.knn = build
    _replace_distances(select, shape, node)
    table = node.args["from_"].this
    rewriter.rename(table, source, select.alias)
    for part in ("where", "limit", "offset"):
        node.set(part, None)
    if node.args.get("order") is not None:
        node.set("order", exp.Order(expressions=[
            exp.Ordered(this=_own(DISTANCE, select), desc=shape.descending, nulls_first=False),
            exp.Ordered(this=_own(KNN_ROWID, select), nulls_first=False),
        ]))  # fmt: skip
    scope = rewriter.new_scope(parent, ctes, node)
    scope.sources.append(source)
    for item in list(node.expressions):
        rewriter.walk(item, scope)


def outputs_of(
    columns: tuple[ColumnDef, ...], with_rowid: bool, distance: ex.Distance
) -> tuple[Output, ...]:
    """Return the outputs of a pushed search: columns, the distance, and the row id."""
    found = [Output(c.name, ex.ColumnRef(c), c.type) for c in columns]
    if with_rowid:
        found.append(Output(ex.ROWID, ex.RowidRef(), BIGINT))
    found.append(Output(DISTANCE, distance, REAL))
    found.append(Output(KNN_ROWID, ex.RowidRef(), BIGINT))
    return tuple(found)


def _replace_distances(select: TableSelect, shape: KnnShape, node: Any) -> None:
    for item in list(node.expressions):
        for call in list(item.find_all(exp.Anonymous)):
            if select.core.expr(call) == shape.distance:
                call.replace(_own(DISTANCE, select))


def _own(name: str, select: TableSelect) -> Any:
    return exp.column(name, table=select.alias)


def only_neighbours(rewriter: Rewriter, node: Any, scope: Scope) -> None:
    """Make DuckDB answer a search by distance like ours: no NULL vectors, ties by row id."""
    order = node.args["order"]
    first = order.expressions[0]
    distances = _made_of(_aliased(node).get(first.this.name.lower(), first.this))
    catalog = rewriter.binding.catalog
    values = (*node.expressions, *order.expressions)
    if not distances or first.args.get("nulls_first"):
        return
    if any(node.args.get(part) for part in ("group", "having", "distinct", "qualify")):
        return
    if any(value.find(exp.Window) or has_aggregate(value, catalog) for value in values):
        return  # other values depend on all rows
    for side in (side for call in distances for side in call.expressions):
        if isinstance(side, (exp.Placeholder, exp.Parameter)) or side.find(exp.Column):
            there = exp.Not(this=exp.Is(this=side.copy(), expression=exp.Null()))
            node.where(there, copy=False)
    source = scope.sources[0] if len(scope.sources) == 1 else None
    if source is not None and source.table is not None and not source.table.column(ex.ROWID):
        key = exp.column(ex.ROWID, table=source.alias)
        order.append("expressions", exp.Ordered(this=key, nulls_first=False))


def _made_of(key: Any) -> list[Any]:
    """Return the distances that a key adds, scales or negates: one NULL makes it NULL."""
    if isinstance(key, (exp.Paren, exp.Neg)):
        return _made_of(key.this)
    if isinstance(key, (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.IntDiv)):
        return _made_of(key.this) + _made_of(key.expression)
    return [key] if isinstance(key, exp.Anonymous) and key.name in OPERATOR_OF else []


def _aliased(node: Any) -> dict[str, Any]:
    return {i.alias.lower(): i.this for i in node.expressions if isinstance(i, exp.Alias)}


def search_note(node: Any, parent: Scope | None) -> str | None:
    """Return why a search by distance that was not pushed is exact, None when it is no search."""
    order = node.args.get("order")
    if order is None or node.args.get("limit") is None:
        return None
    aliases = _aliased(node)
    keys = [aliases.get(key.this.name.lower(), key.this) for key in order.expressions]
    calls = [call for key in keys for call in key.find_all(exp.Anonymous)]
    if not any(call.name in OPERATOR_OF for call in calls):
        return None
    for part, what in (("joins", "a join"), ("laterals", "a join"), ("group", "an aggregate"),
                       ("having", "an aggregate"), ("distinct", "DISTINCT")):  # fmt: skip
        if node.args.get(part):
            return f"exact: LIMIT is above {what}"
    origin = node.args.get("from_")
    if origin is not None and not isinstance(origin.this, exp.Table):
        return "exact: LIMIT is above a subquery"
    if parent is not None and any(call.find(exp.Column) for call in calls):
        return "exact: the search depends on the query around it"
    return "exact: not of the form ORDER BY column <op> query LIMIT k on one table"
