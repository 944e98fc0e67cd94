"""Plans as text, one line a node."""

from __future__ import annotations

from tarsdb.sql.plan import Plan


def explain(plan: Plan) -> list[str]:
    """Return the plan as indented lines."""
    return [type(plan).__name__]
