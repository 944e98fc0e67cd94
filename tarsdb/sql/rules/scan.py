"""A projection of one table with a native predicate, in rowid order."""

from __future__ import annotations

from tarsdb.sql.core import conjunction
from tarsdb.sql.plan import Scan
from tarsdb.sql.select import TableSelect


def match(select: TableSelect) -> Scan | None:
    """Return the plan, or None."""
    if select.order:
        return None
    terms = select.predicates()
    if terms is None:
        return None
    outputs = select.outputs()
    if outputs is None:
        return None
    return Scan(select.table, outputs, conjunction(terms), select.limit, select.offset)
