"""``count(*)``, count, sum, avg, min and max over one table, not grouped."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from tarsdb.sql import expressions as ex
from tarsdb.sql.core import conjunction
from tarsdb.sql.kinds import category, output_type
from tarsdb.sql.plan import Aggregate, AggregateCall
from tarsdb.sql.select import TableSelect
from tarsdb.types import BIGINT

_FUNCTIONS: dict[type[Any], str] = {
    exp.Count: "count", exp.Sum: "sum", exp.Avg: "avg", exp.Min: "min", exp.Max: "max",
}  # fmt: skip
_ARGUMENTS = {
    "count": ("number", "decimal", "text", "bool", "date", "timestamp", "uuid"),
    "sum": ("number",),
    "avg": ("number",),
    "min": ("number", "text", "date", "timestamp"),
    "max": ("number", "text", "date", "timestamp"),
}


def match(select: TableSelect) -> Aggregate | None:
    """Return the plan, or None."""
    if select.order or select.limit is not None or select.offset is not None:
        return None
    first = select.node.expressions[0]
    if type(first.this if isinstance(first, exp.Alias) else first) not in _FUNCTIONS:
        return None
    calls = []
    for item in select.items:
        call = _call(select, item.name, item.node)
        if call is None:
            return None
        calls.append(call)
    terms = select.predicates()
    if terms is None:
        return None
    return Aggregate(select.table, tuple(calls), conjunction(terms))


def _call(select: TableSelect, name: str, node: Any) -> AggregateCall | None:
    function = _FUNCTIONS.get(type(node))
    if function is None:
        return None
    if any(value for part, value in node.args.items() if part not in ("this", "big_int")):
        return None
    if isinstance(node.this, exp.Star):
        starred = function == "count" and not any(node.this.args.values())
        return AggregateCall("count_star", None, name, BIGINT) if starred else None
    operand = select.core.expr(node.this)
    if operand is None or category(operand) not in _ARGUMENTS[function]:
        return None
    sql_type = output_type(operand)
    if sql_type is None or not (isinstance(operand, ex.ColumnRef) or ex.calls(operand)):
        return None
    return AggregateCall(function, operand, name, sql_type)
