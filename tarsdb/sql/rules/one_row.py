"""``SELECT embed('m', 'text')``: calls of ours with constants, from no table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlglot import exp

from tarsdb.sql import expressions as ex
from tarsdb.sql.binding import Binding
from tarsdb.sql.core import Core
from tarsdb.sql.kinds import output_type
from tarsdb.sql.plan import OneRow


def match(binding: Binding, node: Any, titles: Callable[[], list[str]]) -> OneRow | None:
    """Return the plan, or None."""
    if not isinstance(node, exp.Select) or any(
        value for part, value in node.args.items() if part != "expressions"
    ):
        return None
    items = node.expressions
    calls = [item.unalias() for item in items]
    if not items or not all(isinstance(call, exp.Anonymous) for call in calls):
        return None
    core = Core(binding, lambda column: None)
    found = [core.constant(call) for call in calls]
    if not all(isinstance(expr, ex.Call) for expr in found):
        return None
    names = titles()
    if len(names) != len(items):
        return None
    return OneRow(tuple(
        ex.Output(item.alias or name, expr, output_type(expr))
        for item, name, expr in zip(items, names, found, strict=True) if expr is not None
    ))  # fmt: skip
