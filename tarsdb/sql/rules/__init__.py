"""Native plans, one rule a file; the first that matches wins, else the plan is relational."""

from __future__ import annotations

from collections.abc import Callable

from tarsdb.sql.plan import Query
from tarsdb.sql.rules import aggregate, knn, point_lookup, scan
from tarsdb.sql.select import TableSelect

Rule = Callable[[TableSelect], Query | None]

RULES: tuple[Rule, ...] = (point_lookup.match, knn.match, aggregate.match, scan.match)
