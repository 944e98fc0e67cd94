"""Vector search under joins: the nearest rows of one table, as many as the answer takes.

In the outermost SELECT over joined tables, ordered by a distance of one of them, that table's
nearest rows take its place (``Relation.window``): the engine finds as many as it takes for the
joins and conditions to leave LIMIT rows. See ``pushdown`` for searches of one table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlglot import exp

from tarsdb.schema import ColumnDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.calls import resolve_call
from tarsdb.sql.core import Core
from tarsdb.sql.dialect import OPERATOR_OF, generate
from tarsdb.sql.function_calls import has_aggregate
from tarsdb.sql.joined_keys import padded_sources
from tarsdb.sql.knn_shape import meant, ordered_distance, radius_of
from tarsdb.sql.plan import Knn, Relational
from tarsdb.sql.pushdown import PER_GROUP, outputs_of
from tarsdb.sql.scope import DISTANCE, KNN_ROWID, Scope, Source, owner
from tarsdb.sql.select import window_of

if TYPE_CHECKING:
    from tarsdb.sql.relational import Rewriter

_JOINED_PARTS = frozenset(
    {"expressions", "from_", "joins", "where", "order", "limit", "offset", "with_"}
)


def push_joined_search(rewriter: Rewriter, node: Any, scope: Scope) -> bool:
    """Have a joined table of the outermost SELECT give its nearest rows only; False for others.

    The one key of ORDER BY is a distance of a table whose rows no join pads with NULL, and nothing
    in the SELECT aggregates rows. Functions and models may be called in the SELECT list only: a
    condition would be asked about the rows of more than one search.
    """
    order, joins = node.args.get("order"), node.args.get("joins")
    if order is None or node.args.get("limit") is None or not joins or len(order.expressions) != 1:
        return False
    if any(value and part not in _JOINED_PARTS for part, value in node.args.items()):
        return False
    padded = padded_sources(node, scope)
    if order.args.get("siblings") or padded is None:
        return False
    catalog = rewriter.binding.catalog
    if any(item.find(*PER_GROUP) or has_aggregate(item, catalog) for item in node.expressions):
        return False
    if _asks_functions(rewriter, node):
        return False
    found = _joined_distance(rewriter, node, scope)
    if found is None:
        return False
    core, source, distance, descending = found
    if scope.sources.index(source) in padded:
        return False
    window = window_of(core, node)
    if window is None or window[0] is None or distance.function:
        return False
    condition = node.args.get("where")
    terms = [] if condition is None else core.conjuncts(condition.this)
    _find_nearest(source, distance, descending, radius_of(core, terms, distance))
    source.window = window[0], window[1]
    _replace_joined(node, core, source, distance, descending)
    return True


def _asks_functions(rewriter: Rewriter, node: Any) -> bool:
    """Return whether which rows are in the answer depends on functions or models of ours."""
    items = {i.alias.lower(): i for i in node.expressions if isinstance(i, exp.Alias)}
    parts = [each for part in ("from_", "joins", "where", "with_", "order") for each in
             _listed(node.args.get(part))]  # fmt: skip
    for part in parts:
        for name in part.find_all(exp.Column):
            if name.args.get("table") is None and name.name.lower() in items:
                parts.append(items.pop(name.name.lower()))
        if any(_is_ours(rewriter, call) for call in part.find_all(exp.Anonymous)):
            return True
    return False


def _listed(part: Any) -> list[Any]:
    return part if isinstance(part, list) else [] if part is None else [part]


def _is_ours(rewriter: Rewriter, call: Any) -> bool:
    """Return whether a function or model is called, but for the query of a distance."""
    if call.name in OPERATOR_OF:
        return False
    is_known = call.name.startswith("__") or resolve_call(rewriter.binding, call) is not None
    around = call.find_ancestor(exp.Anonymous, exp.Query)
    return is_known and not (isinstance(around, exp.Anonymous) and around.name in OPERATOR_OF)


def rows_alone(plan: Relational, tree: Any, source: Source) -> Relational:
    """Return the plan that gives the rows of a joined search without calls of ours, in order.

    Its first columns are the searched table's row ids and distances; it has no LIMIT and no OFFSET.
    """
    alone = tree.copy()
    called = {call.name for call in plan.calls}
    items = [
        item for item in alone.expressions
        if not any(n.name in called or n.name.startswith("__udf_")
                   for n in item.find_all(exp.Anonymous))
    ]  # fmt: skip
    own = [exp.column(name, table=source.alias) for name in (KNN_ROWID, DISTANCE)]
    alone.set("expressions", [*own, *items])
    for part in ("limit", "offset"):
        alone.set(part, None)
    named = {node.name for node in alone.find_all(exp.Placeholder)}
    return replace(
        plan, sql=generate(alone), calls=(), functions=(), session_functions=(), windows=(),
        parameters=tuple(
            key for key in plan.parameters if (f"p{key}" if isinstance(key, int) else key) in named
        ),
        constants=tuple(each for each in plan.constants if each[0] in named),
    )  # fmt: skip


def _joined_distance(
    rewriter: Rewriter, node: Any, scope: Scope
) -> tuple[Core, Source, ex.Distance, bool] | None:
    """Return the distance ORDER BY asks for, whose it is, and whether the farthest are wanted."""
    owners: list[Source] = []

    def lookup(column: Any) -> ex.Expr | None:
        source = owner(column, scope)
        found = None if source is None or source.table is None else source.table.column(column.name)
        if source is None or found is None or source.batch:
            return None
        owners.append(source)
        return ex.ColumnRef(found)

    core = Core(rewriter.binding, lookup)
    key = node.args["order"].expressions[0]
    aliases = {i.alias.lower(): i.this for i in node.expressions if isinstance(i, exp.Alias)}
    found = ordered_distance(core, meant(key.this, aliases, node.expressions), key)
    if found is None or not owners or not isinstance(found[0].left, ex.ColumnRef):
        return None
    return core, owners[-1], *found


def _find_nearest(
    source: Source, distance: ex.Distance, descending: bool, radius: tuple[ex.Expr | None, bool]
) -> None:
    left, table = distance.left, source.table
    assert isinstance(left, ex.ColumnRef) and table is not None
    column = left.column
    source.extra = frozenset({DISTANCE, KNN_ROWID})

    def build(columns: tuple[ColumnDef, ...], with_rowid: bool) -> Knn:
        outputs = outputs_of(columns, with_rowid, distance)
        return Knn(
            table, column, distance, outputs, None,
            within=radius[0], within_inclusive=radius[1], descending=descending,
        )  # fmt: skip

    source.knn = build


def _replace_joined(
    node: Any, core: Core, source: Source, distance: ex.Distance, descending: bool
) -> None:
    """Write the searched table's distance where the SELECT has it, and order by it."""
    own = node.walk(prune=lambda each: isinstance(each, exp.Query) and each is not node)
    for call in [each for each in own if isinstance(each, exp.Anonymous)]:
        if core.expr(call) == distance:
            call.replace(exp.column(DISTANCE, table=source.alias))
    node.set("order", exp.Order(expressions=[
        exp.Ordered(
            this=exp.column(DISTANCE, table=source.alias), desc=descending, nulls_first=False
        ),
        exp.Ordered(this=exp.column(KNN_ROWID, table=source.alias), nulls_first=False),
    ]))  # fmt: skip
