"""Nearest neighbours of one table: choose the rows, search exactly, gather the answer.

Search here is exact: one pass of the ``flat`` index over the vectors in the map, restricted to
the rows a predicate keeps. The flat index of an unchanged column is kept between statements; the
addresses it holds are used only under a snapshot that gave the same blocks.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np

from tarsdb.columns import Column
from tarsdb.engine.context import Context
from tarsdb.engine.reading import evaluate, project
from tarsdb.engine.search import asked as searches
from tarsdb.engine.search import filtered_rows, inside_filter, lazy_filter, vector_index
from tarsdb.errors import DataError, DimensionMismatchError, ProgrammingError
from tarsdb.index.base import Found, OneCall
from tarsdb.index.coded import CERTIFIED, CodeCache
from tarsdb.index.flat import FlatIndex, prepare_queries, prepare_query
from tarsdb.index.own_metric import Distance
from tarsdb.kernels.gpu.device import choose
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass
from tarsdb.schema import ColumnDef, IndexDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Knn
from tarsdb.storage import TableView
from tarsdb.types import BIGINT, REAL, Kind, SqlType, presenter

MAX_LIMIT = 2**40
_Asked = tuple[np.ndarray, int, np.ndarray | None]
"""Queries, rows wanted, positions allowed."""
FEW = 10
"""A filter leaves few rows where these are at most one in so many."""
# A batch is searched in parts, between which it can be interrupted: of a second or so each, and
# of a fifth while NumPy answers for kernels that are not compiled yet.
MIN_QUERIES, PRODUCTS_AT_ONCE, REFERENCE_PRODUCTS = 256, 2_000_000_000, 200_000_000


@dataclass(slots=True)
class Neighbors:
    """Answer of one search, ascending by distance.

    ``query_no`` is None for a single query.
    """

    rowids: np.ndarray  # int64 (n,)
    distances: np.ndarray  # float32 (n,)
    query_no: np.ndarray | None = None


def search(context: Context, plan: Knn) -> Neighbors:
    """Run the search of a plan; OFFSET is applied, outputs are not."""
    node = plan.distance.right
    query = (
        context.parameter(node.key) if isinstance(node, ex.Parameter) else context.constant(node)
    )
    if query is None:
        return Neighbors(np.empty(0, np.int64), np.empty(0, np.float32))
    view = context.view(plan.table)
    index = flat_index(context, view, plan.column.id, plan.column.type)
    queries, is_batch = query_matrix(query, plan.column.type, plan.column.name)
    answer = _answer(context, plan, view, index, (queries, is_batch))
    if not len(answer.distances) or not math.isfinite(answer.distances[0]):
        # the cause may be a query that is not finite; queries of bits are prepared, and packed
        for row in queries if plan.column.type.kind is not Kind.BIT else ():
            prepare_query(row, plan.column.type)
    return answer


def _answer(
    context: Context,
    plan: Knn,
    view: TableView,
    index: FlatIndex,
    asked: tuple[np.ndarray, bool],
) -> Neighbors:
    queries, is_batch = asked
    shape = Shape.of(plan)
    positions = None
    if shape.is_filtered:
        positions = filtered_rows.positions(context, plan, view, index)
    if plan.filters and (plan.within is not None or plan.descending or is_batch):
        positions = lazy_filter.passing(context, plan, view, index, positions)
    if plan.within is not None:
        return _within(context, plan, index, queries, positions)
    skip, wanted = shape.window or _window(context, plan)
    k = min(wanted + skip, view.count())

    def nearest(k: int, positions: np.ndarray | None) -> Found:
        return _nearest(context, plan, index, (queries, k, positions))

    if plan.filters and not (plan.descending or is_batch):
        inside = _inside(context, plan, index, (queries, k, positions))
        found = inside or lazy_filter.search(context, plan, index, nearest, (k, positions))
    else:
        found = nearest(k, positions)
    return _flatten(*found, skip, is_batch)


def _inside(context: Context, plan: Knn, flat: FlatIndex, asked: _Asked) -> Found | None:
    """Search a graph that asks the plan's filter by itself, where it can and that is cheaper."""
    definition, (_, k, positions) = Shape.of(plan).index, asked
    if definition is None or definition.function or positions is not None or not k:
        return None
    placed = vector_index.place(context, definition, flat)
    if placed is None:
        return None
    found = inside_filter.search(context, plan, placed, flat, _ask(context, placed, asked))
    if found is not None:
        METRICS.add(placed.method.counter)
        _tally(context, definition, k, is_few=False)[0] += 1
    return found


def _nearest(context: Context, plan: Knn, index: FlatIndex, asked: _Asked) -> Found:
    """Return the k nearest rows of each query, by an index where one fits."""
    (queries, k, positions), found = asked, None
    definition, distance = Shape.of(plan).index, metric_of(context, plan)
    if definition is not None:
        found = _by_index(context, definition, index, asked, distance)
    if found is None and distance is not None:
        found = _by_metric(index, distance, asked)
    return found or _exact(context, plan, index, (queries, positions), k)


def _exact(
    context: Context, plan: Knn, index: FlatIndex, asked: tuple[np.ndarray, np.ndarray | None],
    k: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    settings, (queries, positions), op = context.engines.settings, asked, plan.distance.op
    if settings["device"] != "cpu" and positions is None and not plan.descending:
        device = choose(settings["device"])
        if device is not None:
            return index.search_on(device, queries, k, op, threads=settings["threads"])
    rows = index.rows if positions is None else len(positions)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    at = 0
    while not found or at < len(queries):
        context.engines.interrupt.check()
        step = _queries_at_once(index, op, max(rows * index.width, 1))
        found.append(index.search(
            queries[at : at + step], k, op, positions=positions, descending=plan.descending,
            threads=settings["threads"],
        ))  # fmt: skip
        at += step
    if len(found) == 1:
        return found[0]
    return np.concatenate([ids for ids, _ in found]), np.concatenate([by for _, by in found])


def _queries_at_once(index: FlatIndex, op: str, products: int) -> int:
    if index.scan(op) is None:
        return max(1, REFERENCE_PRODUCTS // products)
    return max(MIN_QUERIES, PRODUCTS_AT_ONCE // products)


def metric_of(context: Context, plan: Knn) -> Distance | None:
    """Return the sandboxed metric a search compares by; None where an operator does."""
    node = plan.distance
    if not node.function:
        return None

    def compare(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        context.engines.interrupt.check()
        return context.compare(node, rows, query)

    compare.__name__ = node.function  # what errors call it
    return compare


def _by_metric(index: FlatIndex, distance: Distance, asked: _Asked) -> Found:
    queries, k, positions = asked
    found = [index.search_by(distance, query, k, positions) for query in queries]
    return np.stack([ids for ids, _ in found]), np.stack([values for _, values in found])


def _window(context: Context, plan: Knn) -> tuple[int, int]:
    """Return OFFSET and LIMIT."""
    limit = context.constant(plan.limit)
    wanted = MAX_LIMIT if limit is None else count_of(limit, "LIMIT")
    return count_of(context.constant(plan.offset), "OFFSET"), wanted


def _ask(context: Context, placed: vector_index.Placed, asked: _Asked) -> vector_index.Ask:
    settings = context.engines.settings
    target = vector_index.target_of(placed, settings["target_recall"])
    return vector_index.Ask(
        *asked, settings[placed.method.setting], target, settings["threads"],
        device=choose(settings["device"]), check_stop=context.engines.interrupt.check,
    )  # fmt: skip


def _by_index(
    context: Context, definition: IndexDef, flat: FlatIndex, asked: _Asked,
    distance: Distance | None,
) -> Found | None:  # fmt: skip
    """Search by an approximate index, where it can."""
    function = context.catalog.function(definition.function)
    if function is not None and function.digest != definition.digest:
        return None  # it is not the metric the index was made for
    placed, found = vector_index.place(context, definition, flat), None
    if placed is not None:
        ask = _ask(context, placed, asked)
        if distance is not None:
            ask = replace(ask, distance=distance, threads=1)
        found = vector_index.search(placed, flat, ask, vector_index.operator(definition))
    is_few = asked[2] is not None and found is None and len(asked[2]) * FEW <= flat.rows
    _tally(context, definition, asked[1], is_few)[0] += len(asked[0])
    return found


def _tally(context: Context, definition: IndexDef, k: int, is_few: bool) -> list[int]:
    """Return what counts searches of an index for so many rows; ``is_few``: among few rows."""
    target = context.engines.settings["target_recall"]
    return searches.observed(context.snapshot.env, definition.id).tally(k, target, is_few)


def prepared(
    context: Context, plan: Knn, view: TableView, flat: FlatIndex
) -> tuple[OneCall, str, list[int]] | None:
    """Return a search with a fixed window as one call, and what counts it; None where none is.

    A counter's name, and the count of such searches of the index.

    The call belongs to an index, or to the codes of the rows a filter keeps, and dies with them.
    """
    shape, op, positions, placed, tally = Shape.of(plan), plan.distance.op, None, None, [0]
    assert shape.window is not None
    if shape.is_filtered:
        positions = filtered_rows.kept_positions(context, plan, view, flat)
        if positions is None:
            return None
    k = min(sum(shape.window), view.count())
    asked = np.empty((0, flat.width), np.float32), k, positions
    if shape.index is not None:
        placed = vector_index.place(context, shape.index, flat)
        is_few = positions is not None and len(positions) * FEW <= flat.rows
        tally = _tally(context, shape.index, k, is_few)
    ask = None if placed is None else _ask(context, placed, asked)
    if positions is not None:
        coded = flat.by_codes(positions, k, op)
        if coded is None or (placed and ask and vector_index.choose(placed, flat, ask)[0]):
            return None
        return coded, CERTIFIED, tally
    if placed is None or ask is None:
        return None
    scope = vector_index.known_scope(placed, flat, ask)
    found = None if scope is None else vector_index.prepared(scope, op)
    return None if found is None else (found, placed.method.counter, tally)


def explained(context: Context, plan: Knn) -> str:
    """Return how a search would be answered, and why, in words."""
    found = _explained(context, plan)
    device = choose(context.engines.settings["device"])
    if device is None or plan.descending or plan.predicate or plan.needs_filter_sql:
        return found
    return f"{found}; of large batches exact searches and lists by device {device.name}"


def _explained(context: Context, plan: Knn) -> str:
    if plan.descending or plan.within is not None:
        return "exact (flat): an index finds the nearest only"
    op = plan.distance.op
    compared = f", compared by {op}" if plan.distance.function else ""
    definition = vector_index.index_for(plan.table, plan.column.id, op)
    if definition is None:
        others = [
            f"{i.name} is for {vector_index.answers(i)}"
            for i in plan.table.indexes
            if i.method != "btree" and i.column_ids == (plan.column.id,)
        ]
        return f"exact (flat){compared}" + (
            f": no index for {op}, {', '.join(others)}" if others else ""
        )
    view = context.view(plan.table)
    flat = flat_index(context, view, plan.column.id, plan.column.type)
    placed = vector_index.place(context, definition, flat)
    if placed is None:
        return f"exact (flat){compared}: {vector_index.unplaced(context, definition)}"
    try:
        filtered = Shape.of(plan).is_filtered
        positions = filtered_rows.positions(context, plan, view, flat) if filtered else None
        limit = context.constant(plan.limit)
    except ProgrammingError:  # parameters are not bound
        return f"index {definition.name} ({definition.method}), or exact where few rows match"
    k = 10 if limit is None else count_of(limit, "LIMIT")
    query = np.empty((1, plan.column.type.width), np.float32)
    ask = _ask(context, placed, (query, k, positions))
    effort, why = vector_index.choose(placed, flat, ask)
    if not effort:
        return f"{why}{compared}"
    shape = f"{len(placed.parts)} parts, {len(placed.fresh)} fresh rows searched exactly"
    found = f"index {definition.name} ({definition.method}): {why}{compared}; {shape}"
    reason = placed.stored[-1].reason
    return f"{found}; chosen: {reason}" if reason else found


def _within(
    context: Context, plan: Knn, index: FlatIndex, queries: np.ndarray, positions: Any
) -> Neighbors:
    if len(queries) != 1:
        raise DataError("a range search takes one query vector, not a batch")
    radius = float(context.constant(plan.within))
    rowids, distances = index.within(
        queries[0], radius, plan.distance.op, inclusive=plan.within_inclusive, positions=positions
    )
    if plan.descending:
        order = np.lexsort((rowids, -distances))
        rowids, distances = rowids[order], distances[order]
    skip = count_of(context.constant(plan.offset), "OFFSET")
    limit = context.constant(plan.limit)
    stop = None if limit is None else skip + count_of(limit, "LIMIT")
    return Neighbors(rowids[skip:stop], distances[skip:stop])


def _flatten(rowids: np.ndarray, distances: np.ndarray, skip: int, is_batch: bool) -> Neighbors:
    if skip:
        rowids, distances = rowids[:, skip:], distances[:, skip:]
    if not is_batch:
        found = rowids[0]
        if len(found) and found[-1] < 0:
            keep = found >= 0
            return Neighbors(found[keep], distances[0][keep])
        return Neighbors(found, distances[0])
    query_no = np.repeat(np.arange(len(rowids)), rowids.shape[1])
    flat_rowids, flat_distances = rowids.reshape(-1), distances.reshape(-1)
    keep = flat_rowids >= 0
    return Neighbors(flat_rowids[keep], flat_distances[keep], query_no[keep])


def flat_index(context: Context, view: TableView, column_id: int, sql_type: SqlType) -> FlatIndex:
    """Return the exact index over a vector column, kept while its blocks stay the same."""
    blocks = view.vectors(column_id)
    kept = context.snapshot.env.caches.setdefault("flat", {})
    key = (view.table.id, column_id)
    held = kept.get(key)
    if held is not None and held[0] is blocks:
        index: FlatIndex = held[1]
        return index
    codes = context.snapshot.env.caches.setdefault("codes", CodeCache())
    index = FlatIndex(blocks, sql_type, codes)
    kept[key] = (blocks, index)
    return index


def query_matrix(query: Any, sql_type: SqlType, name: str) -> tuple[np.ndarray, bool]:
    """Return the query as (q, width), and whether a batch was bound."""
    plain = isinstance(query, np.ndarray) and query.dtype == np.float32
    if plain and sql_type.kind is Kind.VECTOR and query.shape == (sql_type.dim,):
        # NaN or infinity shows in the answer: `search` looks at that
        return np.ascontiguousarray(query)[np.newaxis, :], False
    try:
        array = np.asarray(query) if not isinstance(query, str) else None
    except ValueError as error:  # rows of different lengths
        raise DataError(f"search in {name}: the query is no vector and no matrix") from error
    if array is not None and array.dtype != object and array.ndim == 2:
        if not len(array):
            raise DataError(f"a batch of no queries was bound for {name}")
        return prepare_queries(array, sql_type), True
    try:
        return prepare_query(query, sql_type)[np.newaxis, :], False
    except DimensionMismatchError as error:
        raise DimensionMismatchError(f"search in {name}: {error.message}", error.hint) from error


def count_of(value: Any, clause: str) -> int:
    """Return a LIMIT or OFFSET value as a count (NULL: none for OFFSET).

    Raises
    ------
    DataError
        The value is negative or not whole.
    """
    if value is None:
        return 0
    if isinstance(value, (str, bytes)) or int(value) != value or value < 0:
        raise DataError(f"{clause} must be a whole number of at least 0, not {value!r}")
    return int(value)


class Shape:
    """What a search plan alone decides: columns to fetch, names, types; kept with the plan."""

    def __init__(self, plan: Knn) -> None:
        self._distance = plan.distance
        self.nodes = [output.expr for output in plan.outputs]
        beside = [
            {n.column for n in ex.walk(node, known=plan.distance) if isinstance(n, ex.ColumnRef)}
            for node in self.nodes
        ]
        self.columns = [column.id for column in dict.fromkeys(c for each in beside for c in each)]
        self._is_distance = [node == plan.distance for node in self.nodes]
        names, types = project.header(plan.outputs)
        self.names = tuple(names)
        self.types = tuple(
            REAL if is_distance else sql_type
            for is_distance, sql_type in zip(self._is_distance, types, strict=True)
        )
        # per output its scalar column, None for what the distance alone gives; None: others, too
        self.plain = _plain_columns(self.nodes, plan.distance)
        self.stored = [column for column in self.plain or () if column is not None]
        self.is_filtered = plan.predicate is not None or plan.needs_filter_sql is not None
        self.window = _fixed_window(plan)
        self.index = None
        if not plan.descending:  # an index finds the nearest only
            self.index = vector_index.index_for(plan.table, plan.column.id, plan.distance.op)
        shows = [None if t is None else presenter(t) for t in self.types]
        self.shows = shows if any(shows) else None

    def shown(self, stored: list[list[Any]]) -> list[tuple[Any, ...]]:
        """Return storage values as the rows a reader sees."""
        if self.shows is None:
            return list(zip(*stored, strict=True))
        columns = [
            values if show is None else [show(value) for value in values]
            for values, show in zip(stored, self.shows, strict=True)
        ]
        return list(zip(*columns, strict=True))

    def made_of_distance(self, number: int, distances: np.ndarray) -> np.ndarray:
        """Return the values of an output that only the distance is needed for."""
        if self._is_distance[number]:
            return distances
        batch = evaluate.Batch(len(distances), {}, cast(Any, None))  # it has no calls
        batch.called[self._distance] = Column(REAL, distances)
        value = evaluate.value(self.nodes[number], batch)
        assert isinstance(value, Column)
        return value.values

    @staticmethod
    def of(plan: Knn) -> Shape:
        """Return the shape of a plan, made on first use."""
        shape: Shape | None = plan.memo.get("shape")
        if shape is None:
            shape = plan.memo["shape"] = Shape(plan)
        return shape


def _fixed_window(plan: Knn) -> tuple[int, int] | None:
    """Return OFFSET and LIMIT where both are literals, or absent."""
    found = []
    for node, clause, absent in ((plan.offset, "OFFSET", 0), (plan.limit, "LIMIT", MAX_LIMIT)):
        if node is not None and not isinstance(node, ex.Literal):
            return None
        value = None if node is None else node.value
        found.append(absent if value is None else count_of(value, clause))
    return found[0], found[1]


def _plain_columns(nodes: list[ex.Expr], distance: ex.Distance) -> list[ColumnDef | None] | None:
    found: list[ColumnDef | None] = []
    for node in nodes:
        if isinstance(node, ex.ColumnRef) and not node.column.type.is_vector:
            found.append(node.column)
        elif node == distance or _is_made_of(node, distance):
            found.append(None)
        else:
            return None
    return found


def _is_made_of(node: ex.Expr, distance: ex.Distance) -> bool:
    """Return whether an output is computed from the distance and numbers."""
    if not isinstance(node, ex.Arithmetic) or distance not in ex.walk(node):
        return False
    return all(isinstance(n, (ex.Arithmetic, ex.Literal)) for n in ex.walk(node, known=distance))


def few_values(context: Context, plan: Knn, found: Neighbors) -> list[list[Any]] | None:
    """Return a short answer as storage values, a list for each output; None where it is not one.

    No arrays are made of it, which is most of the work of a small search.
    """
    shape = Shape.of(plan)
    if shape.plain is None or found.query_no is not None:
        return None
    view = context.view(plan.table)
    values = view.few_values(found.rowids.tolist(), shape.stored)
    if values is None:
        return None
    columns = iter(values)
    return [
        shape.made_of_distance(number, found.distances).tolist()
        if column is None
        else next(columns)
        for number, column in enumerate(shape.plain)
    ]


def outputs(context: Context, plan: Knn, found: Neighbors) -> list[Column]:
    """Return the plan's output columns for the rows found."""
    shape = Shape.of(plan)
    ids = shape.columns
    columns = {}
    if ids:
        columns = dict(zip(ids, context.view(plan.table).rows(found.rowids, ids), strict=True))
    distances = Column(REAL, found.distances)
    batch = evaluate.Batch(
        len(found.rowids), columns, context, found.rowids, called={plan.distance: distances}
    )
    answer = [
        evaluate.materialise(evaluate.value(node, batch), batch.rows, sql_type)
        for node, sql_type in zip(shape.nodes, shape.types, strict=True)
    ]
    if found.query_no is not None:
        answer.insert(0, Column(BIGINT, found.query_no))
    return answer
