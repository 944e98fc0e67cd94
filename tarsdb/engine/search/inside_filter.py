"""Searches by a graph that ask a sandboxed filter about the nodes they come to.

Both are compiled: a guest of the filter is lent to the kernel, which calls it for the nodes of each
step (``kernels/cpu/asking.py``). How many nodes a search comes to depends on the share of rows that
pass. It begins with the share that searches before it met, and goes on where it meets a smaller
one. Where asking about all rows is likely cheaper, or asking went too far, ``lazy_filter`` answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import cast as cast_type

import numpy as np

from tarsdb.engine.context import Context
from tarsdb.engine.reading import evaluate
from tarsdb.engine.search import filter_arguments, lazy_filter, vector_index
from tarsdb.engine.udf.functions import cast
from tarsdb.index.base import Found
from tarsdb.index.flat import FlatIndex
from tarsdb.index.navigation import NAVIGATIONS, as_numbers
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass
from tarsdb.schema import FunctionDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Knn

if TYPE_CHECKING:
    from tarsdb.index.hnsw import Graph
    from tarsdb.index.hnsw.asking import Argument, Asked
    from tarsdb.udf_sandbox import Lent

ASKED_S = 250e-9
"""Seconds that a search takes for each row it asks about, besides what the function takes."""
SEEN = 2
"""Nodes asked about for each that is kept in the list, about."""
ROUNDS = 3
"""Times the graph is searched at most: again where fewer rows pass than was thought."""
NEAR_ENOUGH = 0.8
"""A share so much smaller than was thought asks for no further search."""


def search(
    context: Context, plan: Knn, placed: vector_index.Placed, flat: FlatIndex, ask: vector_index.Ask
) -> Found | None:
    """Return the k nearest rows that pass the plan's filter, or None to find them otherwise.

    Parameters
    ----------
    context : Context
    plan : Knn
    placed : Placed
        The index of the plan's column.
    flat : FlatIndex
    ask : Ask
        One query, and no positions.

    Returns
    -------
    rowids : int64 (1, k)
    distances : float32 (1, k)
    """
    view, function = context.view(plan.table), _function(context, plan)
    if function is None or not _is_searchable(placed):
        return None
    if lazy_filter.known(context, plan, view, flat) is not None:
        return None
    price = lazy_filter.seconds(context, plan, flat.rows)
    if price is None:
        return None
    habit, spent = lazy_filter.habit_of(context, plan), lazy_filter.spent_on(context, plan, view)
    left = price[0] - spent.rows * lazy_filter.NEAREST_S
    most, inside = int(left / (ASKED_S + price[1])), _Search(placed, flat, ask, habit)
    effort, _ = inside.efforts(habit.share)
    if not effort or SEEN * effort > most * habit.share or len(placed.fresh) > most:
        return None
    habit.unread += lazy_filter.ROUND_S  # about what the other way takes longer
    if lazy_filter.unread(context, plan, view, flat) > 0:
        return None
    habit.unread, kept = 0, filter_arguments.of(context, plan, view, flat)
    given = None if kept is None else _arguments(context, plan, function, kept)
    if given is None:
        return None

    def work(lent: Lent) -> np.ndarray | None:
        from tarsdb.index.hnsw.asking import Asked

        asked = Asked(lent, given, most)
        found = inside.run(asked)
        lent.end(asked.rows, asked.calls)
        lent.check(asked.error)
        METRICS.add("udf_rows", asked.rows)
        return found

    positions = context.engines.functions.lend(context, function, work, most)
    spent.rows += lazy_filter.ROUND_S / lazy_filter.NEAREST_S
    if positions is None or len(positions) < ask.k:
        return None
    METRICS.add("udf_filter_inside")
    op = vector_index.operator(placed.index)
    return flat.among(ask.queries, positions[np.newaxis], ask.k, op)


def _function(context: Context, plan: Knn) -> FunctionDef | None:
    """Return the function of a plan's one filter, where a guest of it may be lent."""
    if len(plan.filters) != 1 or context.writes is not None:
        return None
    found = context.catalog.function(plan.filters[0].target)
    is_plain = found is not None and found.volatility.upper() == "IMMUTABLE" and found.strict
    return found if is_plain and found and not found.is_cached else None


def _is_searchable(placed: vector_index.Placed) -> bool:
    is_loose = NAVIGATIONS[vector_index.operator(placed.index)].is_loose
    return placed.method.asks and not is_loose and all(e.part.is_ready() for e in placed.parts)


def _arguments(
    context: Context, plan: Knn, function: FunctionDef, kept: filter_arguments.Arguments
) -> list[Argument] | None:
    """Return a filter's arguments: columns by position and constants; None where one is NULL."""
    from tarsdb.index.hnsw.asking import Argument

    call, found = plan.filters[0], []
    for number, (node, (name, wanted)) in enumerate(
        zip(call.args, function.arguments, strict=True)
    ):
        if isinstance(node, ex.ColumnRef):
            column = kept.by_position(node.column.id, wanted)
            found.append(Argument(column.values, column.validity))
        else:
            one = evaluate.argument_of(call, number, evaluate.Batch(1, {}, context))
            column = cast(one, wanted, f"{function.name}({name})")
            if column.validity is not None:
                return None
            found.append(Argument(column.values, is_constant=True))
    return found


@dataclass(frozen=True, slots=True)
class _Search:
    """The search of all parts for one query."""

    placed: vector_index.Placed
    flat: FlatIndex
    ask: vector_index.Ask
    habit: lazy_filter.Habit

    def run(self, asked: Asked) -> np.ndarray | None:
        """Return positions of candidates and fresh rows that pass; None where asking ended."""
        from tarsdb.index.hnsw.asking import UNKNOWN

        fresh = asked.passing(self.placed.fresh)
        masks = [
            np.full(len(each.part), UNKNOWN, np.uint8) if each.live is None else UNKNOWN * each.live
            for each in self.placed.parts
        ]
        share, found = self.habit.share, None
        for _ in range(ROUNDS):
            found = None if fresh is None else self._near(asked, masks, share)
            if asked.rows:
                self.habit.learn(asked.passed, asked.rows)
            if found is None or self.habit.share >= share * NEAR_ENOUGH:
                break
            share = self.habit.share
        return None if found is None or fresh is None else np.concatenate([*found, fresh])

    def efforts(self, share: float) -> tuple[int, int]:
        """Return the effort where a share of rows passes, and the reach; 0 where it is too short.

        Within the reach there have to be as many rows that pass as the effort asks for.
        """
        effort, method = vector_index.effort_among(self.placed, self.ask, share), self.placed.method
        if not effort:
            return 0, 0
        effort = method.settled(effort, self.ask.k, [each.part for each in self.placed.parts])
        reach = method.reach(effort, round(share * self.flat.rows))
        return (effort, reach) if effort <= share * reach else (0, 0)

    def _near(self, asked: Asked, masks: list[np.ndarray], share: float) -> list[np.ndarray] | None:
        effort, reach = self.efforts(share)
        query, found = as_numbers(self.ask.queries[0]), []
        for each, mask in zip(self.placed.parts, masks, strict=True):
            taken = self.placed.method.candidates(each.part, self.ask.k, effort)
            unknown = asked.of(each.positions, mask)
            near = None if not effort else cast_type("Graph", each.part).search(
                query, taken, effort, unknown, reach, each.positions
            )  # fmt: skip
            if near is None:
                return None
            found.append(near)
        return found
