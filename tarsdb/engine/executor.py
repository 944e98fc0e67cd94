"""Run a query plan: native plans here, everything else handed to the relational engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tarsdb.columns import Column, concat, empty
from tarsdb.engine import point, result_cache, system_tables
from tarsdb.engine.context import Context
from tarsdb.engine.reading import access, batches, evaluate, found_rows, ordered, project
from tarsdb.engine.reading.joined_keys import FoundRows
from tarsdb.engine.result import Result
from tarsdb.engine.search import repeated_search, vector_search
from tarsdb.engine.search.vector_search import Neighbors
from tarsdb.errors import BindError, DataError, InternalError
from tarsdb.schema import FunctionDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import (
    Aggregate,
    AggregateCall,
    Knn,
    OneRow,
    PointLookup,
    Query,
    Relation,
    Relational,
    Scan,
)
from tarsdb.storage import TableView
from tarsdb.types import BIGINT, DOUBLE, SqlType, presenter

FEWEST_NEAREST, MORE_NEAREST = 64, 8
"""Rows that a search finds for a join at least, and times as many, where the first were too few."""
WHOLE_SHARE = 8
"""Where that is more than one row in so many, all are compared instead."""


def run(context: Context, plan: Query) -> Result:
    """Run a query plan to its full result."""
    if context.may_release and not isinstance(plan, (OneRow, Relational)):
        with context.with_snapshot():
            return run(context, plan)
    match plan:
        case PointLookup():
            return point.lookup(context, plan)
        case Knn():
            return _knn(context, plan)
        case Scan():
            return _scan(context, plan)
        case Aggregate():
            return _aggregate(context, plan)
        case OneRow():
            return _one_row(context, plan)
        case Relational():
            return relational_result(context, plan)
    raise InternalError(f"no executor for {type(plan).__name__}")


def _knn(context: Context, plan: Knn) -> Result:
    asked = result_cache.asked(context, plan)
    shape = vector_search.Shape.of(plan)
    if asked is not None:
        known = context.engines.results.find(asked, shape)
        if known is not None:
            return known
    found = vector_search.search(context, plan)
    stored = vector_search.few_values(context, plan, found)
    if stored is not None:
        if asked is not None:
            context.engines.results.keep(asked, plan, shape, stored)
        repeated_search.keep(context, plan)
        return Result.short(shape.names, shape.types, shape.shown(stored), stored)
    columns = [column.owned() for column in vector_search.outputs(context, plan, found)]
    if found.query_no is None:
        return Result(shape.names, shape.types, columns=columns)
    return Result(("query_no", *shape.names), (BIGINT, *shape.types), columns=columns)


def _scan(context: Context, plan: Scan) -> Result:
    skip = vector_search.count_of(context.constant(plan.offset), "OFFSET")
    limit = context.constant(plan.limit)
    stop = None if limit is None else skip + vector_search.count_of(limit, "LIMIT")
    view = context.view(plan.table)
    if plan.order:
        rowids = ordered.rowids_of(context, view, plan, stop)
    else:
        found = batches.by_index(context, view, plan.predicate, (ex.RowidRef(),), stop)
        rowids = None if found is None else found.rowids
    if rowids is not None:
        return found_rows.result(context, view, plan, rowids[skip:stop])
    names, types = project.header(plan.outputs)
    if plan.order:
        return Result(names, types, columns=ordered.whole(context, view, plan, skip, stop))
    read = [output.expr for output in plan.outputs]
    parts: list[list[Column]] = []
    rows = 0
    for batch in batches.scanned(context, view, plan.predicate, read, stop is not None):
        first, rows = rows, rows + batch.rows
        if rows > skip:
            last = rows if stop is None else stop
            kept = batches.window(batch, skip - first, last - first, *read)
            parts.append(project.evaluate_outputs(plan.outputs, kept))
        if stop is not None and rows >= stop:
            break
    return Result(names, types, columns=[
        _joined(output, [part[i] for part in parts]) for i, output in enumerate(plan.outputs)
    ])  # fmt: skip


def _joined(output: ex.Output, parts: list[Column]) -> Column:
    """Return a column of its parts, in memory of its own."""
    if len(parts) == 1:
        return parts[0].owned()
    return concat(parts[0].type, parts) if parts else _nothing(output)


def _one_row(context: Context, plan: OneRow) -> Result:
    alone = plan.outputs[0].expr if len(plan.outputs) == 1 else None
    if context.writes is None and isinstance(alone, ex.Call) and alone.name == "generate":
        context.may_release = True  # it takes seconds and reads nothing more
    columns = project.evaluate_outputs(plan.outputs, evaluate.Batch(1, {}, context))
    names, _ = project.header(plan.outputs)
    return Result(names, [column.type for column in columns], columns=columns)


def _nothing(output: ex.Output) -> Column:
    if output.type is not None:
        return empty(output.type)
    node = output.expr
    return empty(node.column.type if isinstance(node, ex.ColumnRef) else BIGINT)


def _aggregate(context: Context, plan: Aggregate) -> Result:
    view = context.view(plan.table)
    names = [call.name for call in plan.calls]
    types = [_aggregate_type(call) for call in plan.calls]
    only_count = all(call.function == "count_star" for call in plan.calls)
    if only_count:
        count = _count(context, view, plan)
        if count is not None:
            return Result(names, types, rows=[(count,) * len(plan.calls)])
    best = ordered.extreme(context, view, plan) if len(plan.calls) == 1 else None
    if best is not None:
        return Result(names, types, columns=best)
    states = [_State(call) for call in plan.calls]
    read = [call.operand for call in plan.calls if call.operand is not None]
    for batch in batches.passing(context, view, plan.predicate, read):
        for state in states:
            state.add(batch)
    return Result(names, types, rows=[tuple(state.final() for state in states)])


def _count(context: Context, view: TableView, plan: Aggregate) -> int | None:
    """Return how many rows pass, where that is known without looking at them."""
    if plan.predicate is None:
        return view.count()
    found = access.choose(plan.table, plan.predicate, view, context)
    return len(found.rowids) if found is not None and found.probe.rest is None else None


def _aggregate_type(call: AggregateCall) -> SqlType:
    if call.function in ("count_star", "count"):
        return BIGINT
    if call.function == "avg":
        return DOUBLE
    if call.function == "sum":
        return DOUBLE if call.type.dtype.kind == "f" else BIGINT
    return call.type


class _State:
    """Running value of one aggregate; sums of integers are exact Python integers."""

    def __init__(self, call: AggregateCall) -> None:
        self._call = call
        self._count = 0
        self._sum: Any = 0
        self._best: Any = None

    def add(self, batch: evaluate.Batch) -> None:
        """Take in one batch."""
        if self._call.operand is None:
            self._count += batch.rows
            return
        found = evaluate.value(self._call.operand, batch)
        column = evaluate.materialise(found, batch.rows, self._call.type)
        if column.validity is not None:
            column = column.take(column.validity)
        self._count += len(column)
        if len(column) == 0 or self._call.function == "count":
            return
        if self._call.function in ("sum", "avg"):
            self._sum += _exact_sum(column.values)
        else:
            self._keep_best(column)

    def _keep_best(self, column: Column) -> None:
        smallest = self._call.function == "min"
        if column.type.is_variable or column.type.dtype.kind not in "iu":
            items = column.to_list()
            found = _extreme(items, smallest)
        else:
            found = int(column.values.min() if smallest else column.values.max())
        self._best = found if self._best is None else _extreme([self._best, found], smallest)

    def final(self) -> Any:
        """Return the Python value of the aggregate."""
        function = self._call.function
        if function in ("count_star", "count"):
            return self._count
        if self._count == 0:
            return None
        if function == "sum":
            return self._sum
        if function == "avg":
            return float(self._sum) / self._count
        show = presenter(self._call.type)
        return self._best if show is None else show(self._best)


def _exact_sum(values: np.ndarray) -> Any:
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is NaN, as in DuckDB
            return float(values.sum(dtype=np.float64))
    if len(values) < 2**31 and values.dtype.itemsize <= 4:
        return int(values.sum(dtype=np.int64))
    if int(np.abs(values.astype(np.float64)).max()) < 2**62 // len(values):
        return int(values.sum(dtype=np.int64))
    return sum(values.tolist())


def _extreme(items: list[Any], smallest: bool) -> Any:
    """Return the least or greatest, NaN above every number."""

    def rank(item: Any) -> tuple[bool, Any]:
        return (item != item, 0 if item != item else item)

    return (min if smallest else max)(items, key=rank)


class RelationalInputs:
    """What a relational plan asks of its statement: scans, parameters, constants, calls.

    A search that finds the rows for a join (``Relation.window``) finds ``nearest`` of them, by
    default as many as the answer is to have, unless they are given; ``found`` are those there were.
    """

    def __init__(
        self, context: Context, plan: Relational, batches: dict[str, Any] | None = None,
        nearest: int | None = None, given: Neighbors | None = None,
    ) -> None:  # fmt: skip
        self._context = context
        self._batches = batches or {}
        self._reads_first = _reads_first(context, plan)
        self._nearest = nearest
        self._given = given
        self.found: Neighbors | None = None
        is_worth = any(self._is_large(each) for each in plan.relations if each.links)
        self._rows = FoundRows(context, plan.relations) if is_worth else None
        self._searched: dict[str, Any] = {}

    def _is_large(self, relation: Relation) -> bool:
        from tarsdb.engine.reading import scans

        if relation.table is None:
            return relation.knn is not None
        return not scans.is_small(self._context.view(relation.table), relation.columns)

    def scan(self, relation: Relation) -> Any:
        """Return the relation's rows as a scan (see ``engine.scans``)."""
        from tarsdb.engine.reading import scans

        context = self._context
        if self._rows is not None:
            for each in self._rows.searches():  # their rows tell which of other tables matter
                if each.name not in self._searched:
                    self._searched[each.name] = self._search(each)
        if relation.knn is not None:
            return self._searched.get(relation.name) or self._search(relation)
        if relation.table is not None:
            view = context.view(relation.table)
            if relation.filtered:
                return scans.ComputingScan(view, relation, context, self._reads_first)
            quiet = context.writes is None or context.writes.is_empty
            cache = context.snapshot.env.caches.setdefault("arrow", {}) if quiet else None
            rowids = None if self._rows is None else self._rows.of(relation)
            return scans.TableScan(view, relation, context, cache, self._reads_first, rowids)
        if relation.system is not None:
            return scans.ColumnsScan(*system_tables.read(context, relation.system))
        if relation.variable is not None:
            variable = context.variables(relation.variable) if context.variables else None
            if variable is None:
                raise BindError(f"variable {relation.variable!r} is gone")
            return scans.VariableScan(relation.variable, variable)
        return self._batches[relation.name]

    def _search(self, relation: Relation) -> Any:
        from tarsdb.engine.reading import scans

        context, knn = self._context, relation.knn
        assert knn is not None
        found = None if relation.window is None else self._given
        if found is None and relation.window is not None:
            if self._rows is not None:
                knn = replace(knn, predicate=self._rows.narrowed(relation), memo={})
            count = sum(window_of(context, relation)) if self._nearest is None else self._nearest
            knn = replace(knn, limit=ex.Literal(count), memo={})
        found = found or vector_search.search(context, knn)
        if relation.window is not None:
            self.found = found
        columns = vector_search.outputs(context, knn, found)
        if self._reads_first:
            columns = [column.owned() for column in columns]
        names = [output.name for output in knn.outputs]
        if found.query_no is not None:
            if relation.window is not None:
                name = f"{knn.table.name}.{knn.column.name}"
                raise DataError(f"{name}: a search whose rows are joined takes one query vector")
            names.insert(0, "query_no")
        if self._rows is not None:
            self._rows.give(relation, dict(zip(names, columns, strict=True)))
        return scans.ColumnsScan(names, columns)

    def parameter(self, key: int | str) -> Any:
        """Return the bound value of a parameter."""
        return self._context.parameter(key)

    def constant(self, node: ex.Expr) -> Any:
        """Return the value of an expression evaluated once."""
        self._release()
        return self._context.constant(node)

    def call_model(self, call: ex.Call, columns: list[Column], rows: int) -> Column:
        """Run a model function."""
        self._release()
        return self._context.call(call, columns, rows)

    def _release(self) -> None:
        """Let models run without the snapshot: every relation has been asked for by now."""
        if self._reads_first:
            self._context.may_release = True

    def call_function(self, function: FunctionDef, columns: list[Column], rows: int) -> Column:
        """Run a sandboxed function."""
        return self._context.call_function(function, columns, rows)

    def call_aggregate(
        self, function: FunctionDef, columns: list[Column], offsets: np.ndarray
    ) -> Column:
        """Run a sandboxed aggregate function over the rows of groups, group after group."""
        return self._context.engines.functions.call_aggregate(
            self._context, function, columns, offsets
        )

    def aggregate_tree(self, function: FunctionDef, columns: list[Column]) -> Any:
        """Return states of runs of rows; None where a sandboxed aggregate does not merge them."""
        return self._context.engines.functions.aggregate_tree(self._context, function, columns)

    def call_frames(
        self, function: FunctionDef, tree: Any, starts: np.ndarray, stops: np.ndarray
    ) -> Column:
        """Run a sandboxed aggregate function over runs of the rows of a tree."""
        functions = self._context.engines.functions
        return functions.call_frames(self._context, function, tree, (starts, stops))

    def call_table_function(
        self, function: FunctionDef, columns: list[Column], rows: int
    ) -> tuple[list[Column], np.ndarray]:
        """Run a sandboxed table function; return its rows, and where each row's begin."""
        return self._context.engines.functions.call_table(self._context, function, columns, rows)

    def call_session_function(self, name: str, columns: list[Column], rows: int) -> Column:
        """Run a Python function of the connection."""
        return self._context.engines.functions.call_session(name, columns, rows)

    def session_signature(self, name: str) -> tuple[tuple[SqlType, ...], SqlType]:
        """Return argument types and result type of a Python function of the connection."""
        function = self._context.engines.functions.session[name.lower()]
        return function.arguments, function.returns


def relational_result(
    context: Context, plan: Relational, batches: dict[str, Any] | None = None
) -> Result:
    """Run a relational plan; ``batches`` are the relations the engine provides itself."""
    searched = next((each for each in plan.relations if each.window is not None), None)
    if searched is not None:
        return _joined_search(context, plan, window_of(context, searched))
    answer = _run_relational(context, plan, RelationalInputs(context, plan, batches))
    return Result(answer.names, answer.types, table=answer.table)


def _run_relational(context: Context, plan: Relational, inputs: RelationalInputs) -> Any:
    with context.with_snapshot():  # until the inputs say otherwise
        return context.engines.relational.run(plan, inputs)


def _joined_search(context: Context, plan: Relational, window: tuple[int, int]) -> Result:
    """Run a plan one of whose joined tables is searched: first which rows, then what calls make.

    The search is run again for more rows until the join leaves as many as were asked for, or there
    are no more. Where that takes many of the table's rows, all are compared, batch by batch.
    """
    skipped, wanted = window
    first = plan.first or plan
    needed = wanted if plan.first is None else skipped + wanted  # it has no OFFSET
    nearest = skipped + wanted
    while True:
        searched = next(each for each in first.relations if each.window is not None)
        assert searched.knn is not None
        if nearest * WHOLE_SHARE > context.view(searched.knn.table).count():
            first = replace(first, relations=tuple(
                compared(searched) if each is searched else each for each in first.relations
            ))  # fmt: skip
            answer = _run_relational(context, first, RelationalInputs(context, first))
            break
        inputs = RelationalInputs(context, first, None, nearest)
        answer, found = _run_relational(context, first, inputs), inputs.found
        assert found is not None
        if answer.table.num_rows >= needed or len(found.rowids) < nearest:
            break
        left = answer.table.num_rows + skipped + wanted - needed
        likely = 2 * (skipped + wanted) * nearest // left if left else 0
        nearest = max(MORE_NEAREST * nearest, FEWEST_NEAREST, likely)
    if plan.first is not None:
        rows = [column.to_numpy()[:needed] for column in answer.table.columns[:2]]
        _, places = np.unique(rows[0], return_index=True)
        given = Neighbors(rows[0][np.sort(places)], rows[1][np.sort(places)])
        inputs = RelationalInputs(context, plan, None, nearest, given)
        answer = _run_relational(context, plan, inputs)
    return Result(answer.names, answer.types, table=answer.table)


def compared(relation: Relation) -> Relation:
    """Return a relation that compares all rows of the table a search would take from."""
    knn = relation.knn
    assert knn is not None
    terms: list[ex.Expr] = [ex.Not(ex.IsNull(ex.ColumnRef(knn.column)))]
    if knn.predicate is not None:
        terms.append(knn.predicate)
    if knn.within is not None:
        op = "<=" if knn.within_inclusive else "<"
        terms.append(ex.Compare(op, knn.distance, knn.within))
    named = {column.name for column in relation.columns}
    return Relation(
        relation.name, knn.table, relation.columns, predicate=ex.And(tuple(terms)), filtered=True,
        computed=tuple(output for output in knn.outputs if output.name not in named),
        links=relation.links,
    )  # fmt: skip


def window_of(context: Context, relation: Relation) -> tuple[int, int]:
    """Return how many rows of a plan's answer are to be left out, and how many to follow."""
    assert relation.window is not None
    limit, offset = (context.constant(node) for node in relation.window)
    skipped = vector_search.count_of(offset, "OFFSET")
    rows = vector_search.MAX_LIMIT if limit is None else vector_search.count_of(limit, "LIMIT")
    return skipped, rows


def _reads_first(context: Context, plan: Relational) -> bool:
    """Return whether tables are read whole before models run, which then pin no snapshot.

    An INSERT or CREATE TABLE may let go of its snapshot whatever the model does. A query does so
    for ``generate``, which takes seconds a row, and not when it calls functions, whose code it
    reads as it goes on.
    """
    if context.writes is not None:
        return context.may_release and bool(plan.calls)
    calls = [call.call for call in plan.calls] + [node for _, node in plan.constants]
    return not plan.functions and any(
        isinstance(call, ex.Call) and call.name == "generate" for call in calls
    )
