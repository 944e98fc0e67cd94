"""Calls of functions left to the scan of their table, which makes them for many rows at once.

DuckDB calls a function for 2,048 rows at a time, some 100 us each. Where a SELECT reads one table
and WHERE is native, the scan applies WHERE, its calls included; and calls that the rest of the
outermost SELECT makes for every row become columns of the relation, under DuckDB's grouping,
sorting and aggregates. Calls in CASE and COALESCE are made for the rows that come to them, where
the conditions are native too. What else may be evaluated for some rows only (AND, FILTER, a SELECT
list under LIMIT) stays with DuckDB, and so does all that reads a join: a function is not to be
asked about rows that the join drops.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlglot import exp

from tarsdb.sql import expressions as ex
from tarsdb.sql.core import Core, conjunction
from tarsdb.sql.expressions import Output
from tarsdb.sql.function_calls import has_aggregate, own_nodes
from tarsdb.sql.scope import Scope, Source, owner

if TYPE_CHECKING:
    from tarsdb.sql.relational import Rewriter

PREFIX = "__computed"
_TABLE_PARTS = frozenset({"this", "alias", "db"})
_EVERY_ROW = (
    exp.Alias, exp.Paren, exp.Predicate, exp.Not, exp.Neg, exp.Add, exp.Sub, exp.Mul, exp.Div,
    exp.Mod, exp.Cast, exp.Abs, exp.Round, exp.Floor, exp.Ceil, exp.Sqrt, exp.Ln, exp.Exp,
    exp.Length, exp.Lower, exp.Upper, exp.DPipe, exp.AggFunc, exp.Window,
    exp.Distinct, exp.Order, exp.Ordered, exp.Group,
)  # fmt: skip
"""Nodes that evaluate all of their operands, whatever the row."""
Terms = tuple[ex.Expr, ...]
"""What is true of the rows for which something is evaluated."""


def leave_to_scan(rewriter: Rewriter, node: Any, scope: Scope) -> None:
    """Give the one table of a SELECT its WHERE and the calls for every row, where that is right."""
    source = _only_table(node, scope)
    if source is None:
        return
    core = Core(rewriter.binding, _lookup(node, scope), functions=True)
    condition = node.args.get("where")
    nodes = [] if condition is None else core.conjuncts(condition.this)
    terms = [term for term in map(core.condition, nodes) if term is not None]
    if len(terms) < len(nodes):
        return
    computed: dict[ex.Call | ex.Guarded, str] = {}
    if node.parent is None and not _shows_whole_rows(node, source):
        computed = _Computed(rewriter, core, node, source).calls
    if computed or ex.calls(*terms):
        whole = conjunction(terms)
        source.filtered, source.terms = True, [] if whole is None else [whole]
        source.extra |= frozenset(computed.values())
        source.computed = tuple(
            Output(name, node, node.call.returns if isinstance(node, ex.Guarded) else node.returns)
            for node, name in computed.items()
        )
        node.set("where", None)


def _only_table(node: Any, scope: Scope) -> Source | None:
    origin = node.args.get("from_")
    if origin is None or len(scope.sources) != 1 or not isinstance(origin.this, exp.Table):
        return None
    if node.args.get("joins") or node.args.get("laterals") or node.args.get("sample"):
        return None
    if any(value and part not in _TABLE_PARTS for part, value in origin.this.args.items()):
        return None
    source = scope.sources[0]
    return source if source.table is not None and not source.batch else None


def _lookup(node: Any, scope: Scope) -> Any:
    """Return how columns are found: those of the table that no other item's alias may hide."""
    aliases = {
        item.alias.lower()
        for item in node.expressions
        if isinstance(item, exp.Alias)
        and not (isinstance(item.this, exp.Column) and item.this.name.lower() == item.alias.lower())
    }

    def lookup(column: Any) -> ex.Expr | None:
        found = owner(column, scope)
        if found is None or found.table is None or column.name.lower() in aliases:
            return None
        known = found.table.column(column.name)
        return None if known is None else ex.ColumnRef(known)

    return lookup


def _shows_whole_rows(node: Any, source: Source) -> bool:
    """Return True where columns of ours would be seen: COLUMNS(...), or a table as a value."""
    return node.find(exp.Columns) is not None or any(
        column.name.lower() == source.alias for column in node.find_all(exp.Column)
    )


class _Computed:
    """The calls of an outermost SELECT that became columns: ``calls`` has the columns' names."""

    def __init__(self, rewriter: Rewriter, core: Core, node: Any, source: Source) -> None:
        self.calls: dict[ex.Call | ex.Guarded, str] = {}
        self._core = core
        self._source = source
        catalog = rewriter.binding.catalog
        order, group, having = (node.args.get(part) for part in ("order", "group", "having"))
        parts = [*node.expressions, *(p for p in (order, having, node.args.get("qualify")) if p)]
        if group or having or has_aggregate(node, catalog):
            self._replace(self._grouped(node, group, catalog))
            shared = frozenset(self.calls)
            for each in own_nodes(parts):
                known = catalog.function(each.name) if isinstance(each, exp.Anonymous) else None
                if isinstance(each, exp.AggFunc) or (known and known.kind == "aggregate"):
                    self._replace(each.iter_expressions())
        else:
            keys = [] if order is None else [order, *_named_items(node, order.expressions)]
            self._replace(keys if node.args.get("limit") is not None else [*parts, *keys])
            shared = frozenset(self.calls)
        for each in own_nodes(parts):
            call = self._call(each)
            if call in shared:
                self._put(each, call)

    def _grouped(self, node: Any, group: Any, catalog: Any) -> list[Any]:
        """Return what GROUP BY computes for every row."""
        if group is None:
            return []
        if group.args.get("all"):
            return [item for item in node.expressions if not has_aggregate(item, catalog)]
        table = self._source.table
        names = [
            key for key in group.expressions
            if not isinstance(key, exp.Column) or table is None or table.column(key.name) is None
        ]  # fmt: skip
        return [*group.expressions, *_named_items(node, names)]

    def _replace(self, parts: Any) -> None:
        """Put columns in place of the calls that are made whenever some parts are evaluated."""
        stack: list[tuple[Any, Terms]] = [(part, ()) for part in parts]
        while stack:
            node, terms = stack.pop()
            call = self._call(node)
            if call is not None and not call.is_volatile:
                condition = None if call in self.calls else conjunction(list(terms))
                self._put(node, call if condition is None else ex.Guarded(condition, call))
            elif isinstance(node, (exp.Case, exp.If)):
                stack.extend(self._branches(node, terms))
            elif isinstance(node, exp.Coalesce):
                stack.extend(self._choices([node.this, *node.expressions], terms))
            elif isinstance(node, _EVERY_ROW):
                stack.extend((child, terms) for child in node.iter_expressions())

    def _branches(self, node: Any, terms: Terms) -> Iterator[tuple[Any, Terms]]:
        """Yield what CASE evaluates, and for which rows, as far as that is native."""
        subject = node.this if isinstance(node, exp.Case) else None
        if subject is not None:
            yield subject, terms
        for each in node.args["ifs"] if isinstance(node, exp.Case) else [node]:
            test = (
                each.this
                if subject is None
                else exp.EQ(this=subject.copy(), expression=each.this.copy())
            )
            condition = self._core.condition(test)
            yield each.this, terms
            if condition is None or _is_volatile(condition):
                return
            yield each.args["true"], (*terms, condition, ex.Not(ex.IsNull(condition)))
            terms = (*terms, ex.Or((ex.Not(condition), ex.IsNull(condition))))
        default = node.args.get("default" if isinstance(node, exp.Case) else "false")
        if default is not None:
            yield default, terms

    def _choices(self, nodes: list[Any], terms: Terms) -> Iterator[tuple[Any, Terms]]:
        """Yield what COALESCE evaluates, and for which rows, as far as that is native."""
        for node in nodes:
            found = self._core.expr(node)
            yield node, terms
            if found is None or _is_volatile(found):
                return
            terms = (*terms, ex.IsNull(found))

    def _call(self, node: Any) -> ex.Call | None:
        call = self._core.expr(node) if isinstance(node, exp.Anonymous) else None
        return call if isinstance(call, ex.Call) else None

    def _put(self, node: Any, call: ex.Call | ex.Guarded) -> None:
        name = self.calls.setdefault(call, f"{PREFIX}{len(self.calls)}")
        node.replace(exp.column(name, table=self._source.alias))


def _is_volatile(node: ex.Expr) -> bool:
    return any(call.is_volatile for call in ex.calls(node))


def _named_items(node: Any, keys: list[Any]) -> Iterator[Any]:
    """Yield the items of the SELECT list that keys name by alias or position."""
    named = {item.alias.lower(): item for item in node.expressions if isinstance(item, exp.Alias)}
    for key in keys:
        target = key.this if isinstance(key, exp.Ordered) else key
        if isinstance(target, exp.Column) and target.name.lower() in named:
            yield named[target.name.lower()]
        elif isinstance(target, exp.Literal) and target.this.isdigit():
            position = int(target.this) - 1
            if 0 <= position < len(node.expressions):
                yield node.expressions[position]
