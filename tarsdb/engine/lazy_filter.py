"""Searches whose filter is a sandboxed function: it is asked about the nearest rows, not about all.

The nearest rows are taken in growing numbers until enough of them pass. Where that would come near
to all rows, the function answers for every row at once, and the answer of an IMMUTABLE one is kept
for the state of the table it is about.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from tarsdb.engine import evaluate
from tarsdb.engine.context import Context
from tarsdb.index.base import Found
from tarsdb.index.flat import FlatIndex
from tarsdb.metrics import METRICS
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Knn
from tarsdb.storage import TableView

FIRST_ROWS = 64
"""Rows asked about at first, at least."""
MORE = 4
"""How many times as many rows are asked about next, and how many times k at first."""
LARGEST_SHARE = 8
"""The nearest rows are asked about while they are at most one in so many of all."""
BATCH_ROWS = 1 << 16
KEPT_ANSWERS = 8
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
        found = _lazily(context, plan, view, nearest, (k, positions, total // LARGEST_SHARE))
        if found is not None:
            return found
    return nearest(k, passing(context, plan, view, flat, positions))


def _lazily(
    context: Context, plan: Knn, view: TableView, nearest: Nearest,
    asked: tuple[int, np.ndarray | None, int],
) -> Found | None:  # fmt: skip
    """Ask about the nearest rows; None where too many would have to be asked about."""
    k, positions, most = asked
    wanted, verdicts = max(MORE * k, FIRST_ROWS), dict[int, bool]()
    while wanted <= most:
        rowids, distances = nearest(wanted, positions)
        ids = rowids[0][rowids[0] >= 0]
        fresh = np.array([i for i in ids.tolist() if i not in verdicts], dtype=np.int64)
        verdicts.update(zip(fresh.tolist(), _passes(context, plan, view, fresh), strict=True))
        keep = np.flatnonzero([verdicts[i] for i in ids.tolist()])[:k]
        if len(keep) == k or len(ids) < wanted:
            return rowids[:, keep], distances[:, keep]
        wanted *= MORE
    return None


def passing(
    context: Context, plan: Knn, view: TableView, flat: FlatIndex, positions: np.ndarray | None
) -> np.ndarray:
    """Return those of some positions (None: all) whose rows pass the plan's filters."""
    kept = known(context, plan, view, flat)
    if kept is not None:
        METRICS.add("udf_filter_hits")
        return kept if positions is None else positions[np.isin(positions, kept)]
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
    batch = evaluate.Batch(len(rowids), columns, context, rowids)
    return evaluate.truth(ex.And(plan.filters), batch).true


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
    key: list[Any] = [plan.table.id, plan.column.id]
    for call in plan.filters:
        function = context.catalog.function(call.target)
        if function is None or function.volatility.upper() != "IMMUTABLE":
            return None
        key += [function.digest, function.export, call]
        for node in call.args:
            value = context.parameter(node.key) if isinstance(node, ex.Parameter) else None
            if type(value) not in _PLAIN:
                return None
            key += [type(value), value]
    return tuple(key)
