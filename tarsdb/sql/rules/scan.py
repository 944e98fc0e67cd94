"""A projection of one table with a native predicate, by rowid or in the order of columns."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from tarsdb.sql import expressions as ex
from tarsdb.sql.core import conjunction
from tarsdb.sql.plan import OrderBy, Scan
from tarsdb.sql.select import TableSelect
from tarsdb.types import Kind

_SORTED = frozenset(
    {Kind.BOOLEAN, Kind.SMALLINT, Kind.INT, Kind.BIGINT, Kind.REAL, Kind.DOUBLE, Kind.DATE,
     Kind.TIME, Kind.TIMESTAMP, Kind.TIMESTAMPTZ}
)  # fmt: skip
"""Types whose values are sorted as numbers."""


def match(select: TableSelect) -> Scan | None:
    """Return the plan, or None."""
    order = [_order_by(select, node) for node in select.order]
    terms = select.predicates()
    if terms is None:
        return None
    outputs = select.outputs()
    if outputs is None:
        return None
    known = tuple(by for by in order if by is not None)
    if len(known) != len(order):
        return None
    return Scan(select.table, outputs, conjunction(terms), select.limit, select.offset, known)


def _order_by(select: TableSelect, node: Any) -> OrderBy | None:
    """Return an item of ORDER BY that is a column: by name, as an alias or as a position."""
    null_order = select.binding.settings.get("default_null_order")
    if not isinstance(node, exp.Ordered) or null_order not in (None, "", "nulls_last"):
        return None
    if node.args.get("with_fill") is not None:
        return None
    named = node.this
    if isinstance(named, exp.Column) and named.args.get("table") is None:
        named = select.aliases.get(named.name.lower(), named)  # an alias comes before a column
    expr = select.core.expr(named)
    if isinstance(expr, ex.Literal) and isinstance(named, exp.Literal):
        place = expr.value
        if not isinstance(place, int) or not 1 <= place <= len(select.items):
            return None
        expr = select.items[place - 1].expr
    if not isinstance(expr, ex.ColumnRef) or expr.column.type.kind not in _SORTED:
        return None
    return OrderBy(expr.column, bool(node.args.get("desc")), bool(node.args.get("nulls_first")))
