"""What conditions of searches read of all rows of a table, kept while it stays the same.

These are plain numbers, in the order of the vectors: what a sandboxed filter reads of rows
found here and there costs many times what it does with them (docs/decisions/0009), and conditions
are looked at in one go.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import Any

import numpy as np

from tarsdb.columns import Column
from tarsdb.engine.context import Context
from tarsdb.engine.reading import evaluate
from tarsdb.engine.udf.functions import cast
from tarsdb.index.flat import FlatIndex
from tarsdb.records import dataclass
from tarsdb.schema import ColumnDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Knn
from tarsdb.storage import TableView
from tarsdb.types import SqlType

KEPT_ARGUMENTS = 4
MOST_ARGUMENT_BYTES = 64 << 20
"""Of the arguments of one filter."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What filters read of every row of a table, in the order of its vectors.

    Attributes
    ----------
    flat : FlatIndex
    state : TableState
    places : int64 (n,)
        Positions of the live vectors.
    columns : dict of Column
        Owned, by column id; ``n`` values each.
    """

    flat: FlatIndex
    state: Any
    places: np.ndarray
    columns: dict[int, Column]
    _placed: dict[tuple[int, SqlType], Column] = field(default_factory=dict)

    def batch(self, context: Context) -> evaluate.Batch:
        """Return them as what a predicate is evaluated over."""
        return evaluate.Batch(len(self.places), dict(self.columns), context)

    def where(self, mask: np.ndarray) -> np.ndarray:
        """Return the positions of rows; ``mask`` is bool (n,)."""
        rows = np.flatnonzero(mask)  # faster than `places[mask]`
        return rows if len(self.places) == self.flat.rows else self.places[rows]

    def by_position(self, column_id: int, wanted: SqlType) -> Column:
        """Return a column, cast to a type that has all its values, with one for every position.

        Of vectors that ended it is any.
        """
        found = self._placed.get((column_id, wanted))
        if found is None:
            found = cast(self.columns[column_id], wanted, "")
            if len(self.places) < self.flat.rows:
                found = Column(wanted, self._spread(found.values), None, found.validity)
                if found.validity is not None:
                    found.validity = self._spread(found.validity)
            self._placed[column_id, wanted] = found
        return found

    def _spread(self, values: np.ndarray) -> np.ndarray:
        spread = np.zeros(self.flat.rows, values.dtype)
        spread[self.places] = values
        return spread


def columns_of(plan: Knn, what: str = "filters") -> dict[int, ColumnDef] | None:
    """Return the columns the filters read, by id; None where one is not a plain number.

    ``what`` may be ``'predicate'``, for those of the rest of the condition.
    """
    key = f"columns of {what}"
    if key not in plan.memo:
        nodes = plan.filters if what == "filters" else (plan.predicate,)
        columns = evaluate.columns_of(*nodes)
        plain = all(not (c.type.is_vector or c.type.is_variable) for c in columns.values())
        plain = plain and not any(isinstance(node, ex.RowidRef) for node in ex.walk(*nodes))
        plan.memo[key] = columns if plain and columns else None
    found: dict[int, ColumnDef] | None = plan.memo[key]
    return found


def of(
    context: Context, plan: Knn, view: TableView, flat: FlatIndex, what: str = "filters"
) -> Arguments | None:
    """Return the filters' arguments for all rows; None where they are not kept.

    Those are texts and vectors, what takes much memory, and the rows of a transaction that writes.
    """
    columns = columns_of(plan, what)
    if columns is None or context.writes is not None:
        return None
    if flat.rows * sum(c.type.dtype.itemsize for c in columns.values()) > MOST_ARGUMENT_BYTES:
        return None
    found = kept(context, plan, view, flat, what)
    if found is None:
        places = np.flatnonzero(flat.live())
        read = [column.owned() for column in view.rows(flat.rowids(places), list(columns))]
        found = Arguments(flat, view.state, places, dict(zip(columns, read, strict=True)))
        known = _known(context)
        known[plan.table.id, plan.column.id, *columns] = found
        while len(known) > KEPT_ARGUMENTS:
            known.popitem(last=False)
    return found


def kept(
    context: Context, plan: Knn, view: TableView, flat: FlatIndex, what: str = "filters"
) -> Arguments | None:
    """Return the arguments where they were read in this state of the table before."""
    columns = columns_of(plan, what)
    if columns is None or context.writes is not None:
        return None
    found = _known(context).get((plan.table.id, plan.column.id, *columns))
    current = found is not None and found.flat is flat and found.state is view.state
    return found if current else None


def _known(context: Context) -> OrderedDict[Any, Arguments]:
    known: OrderedDict[Any, Arguments]
    known = context.snapshot.env.caches.setdefault("filter arguments", OrderedDict())
    return known
