"""Answers of repeated vector searches, kept while nothing they depend on has changed.

An answer belongs to a plan (which belongs to one catalog, one set of settings and of functions), a
state of the table (every commit that touches it makes another, whichever process it comes from)
and the values bound. Only short answers of stored columns are kept, as storage values; inside a
transaction that may write nothing is. A plan's first run keeps nothing: many statements run once.

Vector indexes that are built anew (``REINDEX``, ``OPTIMIZE``, upkeep) leave the rows as they are,
and an answer kept from before: it is what the search found, of rows that are still the same.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.engine.result import Result
from tarsdb.metrics import METRICS
from tarsdb.sql import expressions as ex
from tarsdb.types import Physical

if TYPE_CHECKING:
    from tarsdb.engine.context import Context
    from tarsdb.engine.search.vector_search import Shape
    from tarsdb.sql.plan import Knn
    from tarsdb.storage.state import TableState

MOST_ENTRIES = 1024
MOST_BYTES = 16 << 20
_VALUE_BYTES = 40
"""A number in a list, about; with an entry's own objects an answer is never counted as free."""
_ENTRY_BYTES = 800
_END = 32
"""Bytes at either end of a query that choose its entry; all of them are compared."""
_PLAIN = frozenset({int, str, bytes, bool, type(None)})
_SIZED = frozenset({Physical.UTF8, Physical.BINARY, Physical.FIXED16})

Asked = tuple[tuple[int, bytes, bytes], Any, "TableState"]
"""Where an answer would lie, all that was bound, and the table's state."""


class ResultCache:
    """A bounded cache of one connection, the answer used longest ago leaves first.

    Attributes
    ----------
    nbytes : int
        Estimate of what it holds.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self._kept: dict[Any, tuple[Knn, Any, weakref.ref[TableState], list[list[Any]], int]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, asked: Asked, shape: Shape) -> Result | None:
        """Return the kept answer of a search, as a result of its own."""
        place, bound, state = asked
        kept = self._kept.get(place)
        if kept is None:
            return None
        if kept[2]() is not state:
            self._forget(place)
            return None
        if kept[1] != bound:
            return None
        del self._kept[place]
        self._kept[place] = kept
        METRICS.add("result_cache.hits")
        return Result.short(shape.names, shape.types, shape.shown(kept[3]), kept[3])

    def keep(self, asked: Asked, plan: Knn, shape: Shape, stored: list[list[Any]]) -> None:
        """Keep an answer, given as storage values, a list for each output."""
        place, bound, state = asked
        self._forget(place)
        nbytes = (
            _ENTRY_BYTES
            + len(bound[0])
            + sum(
                _VALUE_BYTES * len(values)
                if sql_type is None or sql_type.physical not in _SIZED
                else sum(map(sys.getsizeof, values))
                for sql_type, values in zip(shape.types, stored, strict=True)
            )
        )
        if nbytes > MOST_BYTES // 16:
            return
        self._kept[place] = plan, bound, weakref.ref(state), stored, nbytes
        self.nbytes += nbytes
        while len(self._kept) > MOST_ENTRIES or self.nbytes > MOST_BYTES:
            self._forget(next(iter(self._kept)))

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.nbytes = 0

    def _forget(self, place: Any) -> None:
        kept = self._kept.pop(place, None)
        if kept is not None:
            self.nbytes -= kept[4]


def asked(context: Context, plan: Knn) -> Asked | None:
    """Return what a search asks; None where its answer is not kept."""
    if context.writes is not None or not context.engines.settings["result_cache"]:
        return None
    memo = plan.memo
    keys = memo.get("cached by")
    if keys is None:  # the first run of a plan
        memo["cached by"] = _keys(plan)
        return None
    if not keys:
        return None
    query = context.parameter(keys[0])
    if type(query) is not np.ndarray or query.ndim != 1 or query.dtype.kind not in "fiu":
        return None
    raw = query.tobytes()
    bound: tuple[Any, ...] = (raw, query.dtype)
    if len(keys) > 1:
        values = _values(context, keys[1:])
        if values is None:
            return None
        bound += values
    state = context.view(plan.table).state
    return (id(plan), raw[:_END], raw[-_END:]), bound, state


def _keys(plan: Knn) -> tuple[int | str, ...]:
    """Return the parameters an answer depends on, the query first; none where more than these."""
    from tarsdb.engine.search.filtered_rows import parameters_of
    from tarsdb.engine.search.vector_search import Shape

    shape, parameters = Shape.of(plan), parameters_of(plan)
    node = plan.distance.right
    is_simple = (
        isinstance(node, ex.Parameter)
        and not plan.distance.function
        and not plan.filters
        and shape.plain is not None
        and shape.window is not None
        and plan.within is None
        and plan.needs_filter_sql is None
    )
    if not is_simple or (plan.predicate is not None and parameters is None):
        return ()
    assert isinstance(node, ex.Parameter)
    return (node.key, *(parameters or ()))


def _values(context: Context, keys: Sequence[int | str]) -> tuple[Any, ...] | None:
    """Return values and their types, such that equal ones mean the same; None for odd ones."""
    found: list[Any] = []
    for key in keys:
        value = context.parameter(key)
        kind = type(value)
        if kind is float:
            found += (kind, value, math.copysign(1.0, value))
        elif kind in _PLAIN:
            found += (kind, value)
        else:
            return None
    return tuple(found)
