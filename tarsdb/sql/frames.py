"""Aggregate functions of ours over windows: frames as places among rows that are collected once.

DuckDB would collect the rows of every frame. In place of ``f(x) OVER (PARTITION BY p ORDER BY o)``
stands ``__framed_f(0, min(place) OVER (...), max(place) OVER (...))``: each row's place in the
order of all partitions comes from a query put below, where ``__placed_f`` hands place and arguments
over. A window sees all of its rows before the first answer, so by then they are complete.
"""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from tarsdb.records import dataclass
from tarsdb.schema import FunctionDef
from tarsdb.sql.binding import Binding
from tarsdb.sql.calls import resolve_call
from tarsdb.sql.expressions import ROWID
from tarsdb.sql.function_calls import own_nodes

PLACED, FRAMED = "__placed_", "__framed_"
SHORT_ROWS = 40
"""Rows of a frame below which DuckDB collects it in less time than a place takes (measured)."""
_AROUND = (exp.Filter, exp.IgnoreNulls, exp.RespectNulls, exp.WithinGroup)


@dataclass(frozen=True, slots=True)
class _Window:
    """A call of a function, its rows and their frame; nodes of the tree it stands in."""

    node: Any
    function: FunctionDef
    arguments: tuple[Any, ...]
    chosen: Any  # of FILTER, or None
    partition: list[Any]
    order: list[Any]
    spec: Any

    def reads(self) -> list[Any]:
        """Return what is computed for each row below."""
        chosen = [] if self.chosen is None else [self.chosen]
        return [*self.arguments, *chosen, *self.partition, *self.order]


def place_windows(binding: Binding, node: Any, first: int = 0) -> list[FunctionDef]:
    """Rewrite the windows of a SELECT over one relation, in place, where their rows can be placed.

    Left as they are: short frames, frames with EXCLUDE, DISTINCT and ORDER BY in the brackets,
    windows over groups, over joins, and in queries that may run more than once.

    Parameters
    ----------
    binding : Binding
    node : Select
    first : int
        The number of the first window.

    Returns
    -------
    list of FunctionDef
        By the number that the calls in the text name, from ``first`` on.
    """
    if not _runs_once(node) or not _one_relation(node):
        return []
    parts = [*node.expressions, *(node.args[p] for p in ("order", "qualify") if node.args.get(p))]
    found = [n for n in own_nodes(parts) if isinstance(n, exp.Window)]
    windows = [w for w in (_window(binding, node, each) for each in found) if w is not None]
    if not windows or _aggregates(parts, binding) or not _names_stay(node, windows):
        return []
    _put_below(node, windows, first)
    return [window.function for window in windows]


def _runs_once(node: Any) -> bool:
    """Return True for the outermost SELECT, and what stands first in FROM of one that runs once."""
    while node.parent is not None:
        holder = node.parent
        if not isinstance(holder, exp.Subquery) or not isinstance(holder.parent, exp.From):
            return False
        if holder.args.get("pivots") or holder.args.get("sample"):
            return False
        node = holder.parent.parent
        if not isinstance(node, exp.Select) or node.args.get("laterals"):
            return False
    return True


def _one_relation(node: Any) -> bool:
    origin = node.args.get("from_")
    if origin is None or not isinstance(origin.this, (exp.Table, exp.Subquery)):
        return False
    others = ("group", "having", "joins", "laterals", "sample", "distinct", "locks", "prewhere")
    inside = ("joins", "laterals", "pivots", "sample")
    return not any(map(node.args.get, others)) and not any(map(origin.this.args.get, inside))


def _window(binding: Binding, select: Any, node: Any) -> _Window | None:
    """Return a window as it is placed, None where it is not one of ours or has to be collected."""
    call, chosen = node.this, None
    if isinstance(call, exp.Filter):
        call, chosen = call.this, call.expression.this
    function = binding.catalog.function(call.name) if isinstance(call, exp.Anonymous) else None
    if function is None or function.kind != "aggregate" or not function.name.isidentifier():
        return None
    if not call.expressions or isinstance(
        call.expressions[-1], (exp.Order, exp.Distinct, exp.IgnoreNulls)
    ):
        return None
    stated, spec = node, node.args.get("spec")
    if node.args.get("alias") is not None:
        named = [w for w in select.args.get("windows") or () if w.name == node.alias]
        if len(named) != 1 or spec or node.args.get("order") or node.args.get("partition_by"):
            return None
        stated, spec = named[0], named[0].args.get("spec")
        if stated.args.get("alias") is not None:
            return None
    keys = stated.args.get("order")
    order = [] if keys is None else keys.expressions
    if spec is not None and (
        spec.args.get("exclude") or (not order and spec.args["kind"] != "ROWS")
    ):
        return None
    if spec is not None and _is_short(spec):
        return None
    resolved = resolve_call(binding, call)
    assert resolved is not None
    partition = stated.args.get("partition_by") or []
    return _Window(node, function, resolved.arguments, chosen, partition, order, spec)


def _is_short(spec: Any) -> bool:
    """Return True for a frame of few rows, which collecting is quicker for."""
    ends = [spec.args.get("start"), spec.args.get("end")]
    sizes = [int(end.this) for end in ends if isinstance(end, exp.Literal) and end.this.isdigit()]
    fixed = len(sizes) + sum(end in ("CURRENT ROW", None) for end in ends)
    return spec.args["kind"] == "ROWS" and fixed == len(ends) and sum(sizes) < SHORT_ROWS


def _aggregates(parts: list[Any], binding: Binding) -> bool:
    """Return True where rows are grouped: something is aggregated, and not over a window."""
    for node in own_nodes(parts):
        known = binding.catalog.function(node.name) if isinstance(node, exp.Anonymous) else None
        if isinstance(node, exp.AggFunc) or (known is not None and known.kind == "aggregate"):
            while isinstance(node.parent, _AROUND) and node.arg_key == "this":
                node = node.parent
            if not isinstance(node.parent, exp.Window) or node.arg_key != "this":
                return True
    return False


def _names_stay(node: Any, windows: list[_Window]) -> bool:
    """Return True where every name means the same in a query below, and what it reads is seen."""
    alias = _alias(node).lower()
    aliases = {item.alias.lower() for item in node.expressions if isinstance(item, exp.Alias)}
    for each in own_nodes(list(node.iter_expressions())):
        if isinstance(each, exp.Columns):
            return False
        if isinstance(each, exp.Column):
            bare = each.args.get("table") is None
            if (
                each.args.get("db")
                or each.name.lower() == ROWID
                or (bare and each.name.lower() == alias)
            ):
                return False
    for each in own_nodes([part for window in windows for part in window.reads()]):
        if isinstance(each, (exp.Window, exp.Columns, exp.Star)):
            return False
        bare = isinstance(each, exp.Column) and each.args.get("table") is None
        if bare and each.name.lower() in aliases:
            return False
    return not any(part.find(exp.Query) for window in windows for part in window.reads())


def _alias(node: Any) -> str:
    return node.args["from_"].this.alias_or_name or "__rows"


def _put_below(node: Any, windows: list[_Window], first: int) -> None:
    """Put two queries below that number rows and hand them over; ask about frames in this one."""
    alias, names = _alias(node), []
    numbered = exp.Select(expressions=[exp.Star()], from_=node.args["from_"])
    if node.args.get("where") is not None:
        numbered.set("where", node.args["where"].pop())
    placed = exp.Select(expressions=[exp.Star()], from_=_from(numbered, alias))
    for number, window in enumerate(windows, first):
        place, row = f"__place{number}", f"__placed{number}"
        names += [place, row]
        keys = [*(key.copy() for key in window.partition), *(key.copy() for key in window.order)]
        order = exp.Order(expressions=keys) if keys else None
        numbering = exp.Window(this=exp.RowNumber(), order=order, over="OVER")
        numbered.append("expressions", exp.alias_(numbering, place))
        chosen = exp.true() if window.chosen is None else window.chosen.copy()
        kept = exp.Coalesce(this=chosen, expressions=[exp.false()])
        given = [exp.Literal.number(number), exp.column(place), kept]
        given += [argument.copy() for argument in window.arguments]
        name = f"{PLACED}{window.function.name}"
        placed.append("expressions", exp.alias_(exp.Anonymous(this=name, expressions=given), row))
        window.node.replace(_framed(number, window, exp.column(row, table=alias), place))
    node.set("from_", _from(placed, alias))
    for item in node.expressions:
        star = item.this if isinstance(item, exp.Column) else item
        if isinstance(star, exp.Star):
            hidden = list(star.args.get("except_") or [])
            star.set("except_", hidden + [exp.column(name) for name in names])


def _from(query: Any, alias: str) -> Any:
    name = exp.TableAlias(this=exp.to_identifier(alias, quoted=True))
    return exp.From(this=exp.Subquery(this=query, alias=name))


def _framed(number: int, window: _Window, row: Any, place: str) -> Any:
    """Return the call that takes a window's place: given a frame's first and last row."""
    by_place = window.spec is None or window.spec.args["kind"] == "ROWS"
    spec, order = window.spec, window.order
    if by_place and (spec is not None or not order):  # its order, with ties as they were numbered
        order = [exp.Ordered(this=exp.column(place, table=row.table))]
    if spec is None and not window.order:
        spec = exp.WindowSpec(
            kind="ROWS", start="UNBOUNDED", start_side="PRECEDING", end="UNBOUNDED",
            end_side="FOLLOWING",
        )  # fmt: skip
    ends = [
        exp.Window(
            this=kind(this=row.copy()), partition_by=[key.copy() for key in window.partition],
            order=exp.Order(expressions=[key.copy() for key in order]),
            spec=None if spec is None else spec.copy(), over="OVER",
        )
        for kind in (exp.Min, exp.Max)
    ]  # fmt: skip
    name = f"{FRAMED}{window.function.name}"
    return exp.Anonymous(this=name, expressions=[exp.Literal.number(number), *ends])
