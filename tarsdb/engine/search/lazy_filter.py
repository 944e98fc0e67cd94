"""Searches whose filter is a sandboxed function: about which rows it is asked.

The nearest rows are taken in growing numbers until enough of them pass. Where asking about all rows
is cheaper than about the next of these, with what searches with the same constants asked about
before, or that would come near to all, the function answers for every row at once, and the answer
of an IMMUTABLE one is kept for the state of the table. Numbers it reads are kept too, in the order
of the vectors, so that other constants cost one call (docs/decisions/0009 has the figures behind
this).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from tarsdb.engine.context import Context
from tarsdb.engine.reading import evaluate
from tarsdb.engine.search import filter_arguments
from tarsdb.index.base import Found
from tarsdb.index.flat import FlatIndex
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Knn
from tarsdb.storage import TableView

FIRST_ROWS = 64
"""Rows asked about at first, at least."""
MORE = 4
"""How many times as many rows are asked about next, and how many times k at first."""
LARGEST_SHARE = 8
"""The nearest rows are asked about while they are at most one in so many of all."""
ROUND_S, NEAREST_S = 300e-6, 2.5e-6
"""Seconds that asking about the nearest rows takes, and for each of them: a search, a call."""
WHOLE_S, ROW_S, READ_S = 100e-6, 5e-9, 100e-9
"""Seconds that asking about all rows takes, for each row, and for reading its arguments first."""
FUEL_S = 0.4e-9
"""Seconds a function takes for a unit of fuel, about."""
BATCH_ROWS = 1 << 16
KEPT_ANSWERS = 8
KEPT_SPENT = 64
_PLAIN = frozenset({int, float, str, bytes, bool, type(None)})

Nearest = Callable[[int, np.ndarray | None], Found]
"""``nearest(k, positions)``: the k nearest rows among these positions (None: all), (1, k')."""


def search(
    context: Context, plan: Knn, flat: FlatIndex, nearest: Nearest,
    asked: tuple[int, np.ndarray | None],
) -> Found:  # fmt: skip
    """Return the k nearest rows that pass the plan's filters.

    Parameters
    ----------
    context : Context
    plan : Knn
    flat : FlatIndex
        Of the plan's column.
    nearest : callable
    asked : (int, int64 (m,) or None)
        How many rows are wanted, and the positions that pass everything else.

    Returns
    -------
    rowids : int64 (1, k')
    distances : float32 (1, k')
    """
    k, positions = asked
    view = context.view(plan.table)
    if known(context, plan, view, flat) is None:
        total = flat.rows if positions is None else len(positions)
        price, reading = seconds(context, plan, total), total * READ_S
        if positions is None:
            reading = unread(context, plan, view, flat)
        limits = total / LARGEST_SHARE, _price(price, reading, total)
        spent = spent_on(context, plan, view) if positions is None else Spent()
        before = spent.rows
        found = _lazily(context, plan, nearest, (k, positions), limits, spent)
        if found is not None:
            if price is not None and positions is None:
                paid = (spent.rows - before) * NEAREST_S
                habit_of(context, plan).unread += max(paid - price[0], 0)
            return found
    return nearest(k, passing(context, plan, view, flat, positions))


def _price(price: tuple[float, float] | None, reading: float, total: int) -> float:
    """Return what asking about all rows costs, in rows of those that are nearest."""
    return total if price is None else (price[0] + reading - ROUND_S) / (NEAREST_S + price[1])


def seconds(context: Context, plan: Knn, total: int) -> tuple[float, float] | None:
    """Return what asking about all rows costs, and what the function takes for a row.

    The latter is told by the fuel it used so far; None where it counts none.
    """
    fuel = 0.0
    for call in plan.filters:
        function = context.catalog.function(call.target)
        figures = None if function is None else context.engines.functions.figures(function)
        if not figures or not figures.fuel or filter_arguments.columns_of(plan) is None:
            return None
        fuel += figures.fuel / figures.rows
    row = fuel * FUEL_S
    return WHOLE_S + total * (ROW_S + row), row


def unread(context: Context, plan: Knn, view: TableView, flat: FlatIndex) -> float:
    """Return the seconds that reading the arguments of all rows costs this search.

    Those that earlier searches would have been spared are taken off.
    """
    if filter_arguments.kept(context, plan, view, flat) is not None:
        return 0
    return max(flat.rows * READ_S - habit_of(context, plan).unread, 0)


def _lazily(
    context: Context, plan: Knn, nearest: Nearest, asked: tuple[int, np.ndarray | None],
    limits: tuple[float, float], spent: Spent,
) -> Found | None:  # fmt: skip
    """Ask about the nearest rows; None where all should be asked about.

    ``limits`` are how many may be asked about at once, and how many are as dear as all. What
    earlier searches spent on the same constants counts: the next one would pay that again.
    """
    k, positions = asked
    most = min(limits[0], limits[1] - spent.rows)
    view = context.view(plan.table)
    habit, verdicts = habit_of(context, plan), dict[int, bool]()
    wanted = max(MORE * k, FIRST_ROWS, int(1.5 * k / habit.share))
    while wanted <= most:
        spent.rows += wanted + ROUND_S / NEAREST_S
        rowids, distances = nearest(wanted, positions)
        ids = rowids[0][rowids[0] >= 0]
        fresh = np.array([i for i in ids.tolist() if i not in verdicts], dtype=np.int64)
        verdicts.update(zip(fresh.tolist(), _passes(context, plan, view, fresh), strict=True))
        keep = np.flatnonzero([verdicts[i] for i in ids.tolist()])[:k]
        habit.learn(sum(verdicts.values()), len(verdicts))
        if len(keep) == k or len(ids) < wanted:
            return rowids[:, keep], distances[:, keep]
        wanted = max(wanted * MORE, wanted * k // max(len(keep), 1))  # as many pass farther away
    return None


def passing(
    context: Context, plan: Knn, view: TableView, flat: FlatIndex, positions: np.ndarray | None
) -> np.ndarray:
    """Return those of some positions (None: all) whose rows pass the plan's filters."""
    kept = known(context, plan, view, flat)
    if kept is not None:
        METRICS.add("udf_filter_hits")
        return kept if positions is None else positions[np.isin(positions, kept)]
    if positions is None:
        whole = filter_arguments.of(context, plan, view, flat)
        if whole is not None:
            passed = whole.where(_true(plan, whole.batch(context)))
            _keep(context, plan, view, flat, passed)
            habit = habit_of(context, plan)
            habit.learn(len(passed), len(whole.places))
            habit.unread = 0
            return passed
    places = np.flatnonzero(flat.live()) if positions is None else positions
    parts = []
    for start in range(0, len(places), BATCH_ROWS):
        context.engines.interrupt.check()
        part = places[start : start + BATCH_ROWS]
        parts.append(part[_passes(context, plan, view, flat.rowids(part))])
    found = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if positions is None:
        _keep(context, plan, view, flat, found)
    return found


def _passes(context: Context, plan: Knn, view: TableView, rowids: np.ndarray) -> np.ndarray:
    needed = list(evaluate.columns_of(*plan.filters))
    columns = dict(zip(needed, view.rows(rowids, needed), strict=True))
    return _true(plan, evaluate.Batch(len(rowids), columns, context, rowids))


def _true(plan: Knn, batch: evaluate.Batch) -> np.ndarray:
    return evaluate.truth(ex.And(plan.filters), batch).true


@dataclass(slots=True)
class Spent:
    """What searches with the same filter and constants paid in one state of a table.

    Attributes
    ----------
    rows : float
        Nearest rows asked about; asking once counts as some more.
    """

    rows: float = 0.0


def spent_on(context: Context, plan: Knn, view: TableView) -> Spent:
    """Return what was spent so far, to add to; where nothing is kept, on this search only."""
    key = _key(context, plan)
    if key is None:
        return Spent()
    states: WeakKeyDictionary[Any, OrderedDict[Any, Spent]]  # what is over is not held by it
    states = context.snapshot.env.caches.setdefault("filter searches", WeakKeyDictionary())
    kept = states.setdefault(view.state, OrderedDict())
    found = kept.setdefault(key, Spent())
    while len(kept) > KEPT_SPENT:
        kept.popitem(last=False)
    return found


@dataclass(slots=True)
class Habit:
    """What the searches of this process with some filters found out about these.

    Attributes
    ----------
    share : float
        Of the rows asked about, those that passed, by the last search.
    unread : float
        Seconds that would have been spared had the arguments of all rows been read.
    """

    share: float = 1.0
    unread: float = 0.0

    def learn(self, passed: int, asked: int) -> None:
        """Take note of a search."""
        self.share = (passed + 1) / (asked + 1)


def habit_of(context: Context, plan: Knn) -> Habit:
    """Return the habit of a plan's filters, whatever their constants are."""
    habits: OrderedDict[Any, Habit]
    habits = context.snapshot.env.caches.setdefault("filter habits", OrderedDict())
    found = habits.setdefault((plan.table.id, *(call.target for call in plan.filters)), Habit())
    while len(habits) > KEPT_SPENT:
        habits.popitem(last=False)
    return found


# --- answers for all rows, kept ---


def known(context: Context, plan: Knn, view: TableView, flat: FlatIndex) -> np.ndarray | None:
    """Return the positions of all rows that pass, where they were found in this state before."""
    key = _key(context, plan)
    found = None if key is None else _answers(context).get(key)
    if found is None or found[0] is not flat or found[1] is not view.state:
        return None
    positions: np.ndarray = found[2]
    return positions


def _keep(
    context: Context, plan: Knn, view: TableView, flat: FlatIndex, positions: np.ndarray
) -> None:
    key, answers = _key(context, plan), _answers(context)
    if key is None:
        return
    answers[key] = (flat, view.state, positions)
    answers.move_to_end(key)
    while len(answers) > KEPT_ANSWERS:
        answers.popitem(last=False)


def _answers(context: Context) -> OrderedDict[Any, tuple[FlatIndex, Any, np.ndarray]]:
    answers: OrderedDict[Any, tuple[FlatIndex, Any, np.ndarray]]
    answers = context.snapshot.env.caches.setdefault("filters", OrderedDict())
    return answers


def _key(context: Context, plan: Knn) -> Any:
    """Return what the filters' answer depends on besides the rows; None where more than that."""
    if context.writes is not None:
        return None
    if "filter text" not in plan.memo:
        plan.memo["filter text"] = repr(plan.filters)
    key: list[Any] = [plan.table.id, plan.column.id, plan.memo["filter text"]]
    for call in plan.filters:
        function = context.catalog.function(call.target)
        if function is None or function.volatility.upper() != "IMMUTABLE":
            return None
        key += [function.digest, function.export]
        for node in call.args:
            value = context.parameter(node.key) if isinstance(node, ex.Parameter) else None
            if type(value) not in _PLAIN:
                return None
            # -0.0 equals 0.0, but functions tell them apart
            key += [type(value), str(value) if isinstance(value, float) else value]
    return tuple(key)
