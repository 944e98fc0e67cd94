"""User functions: sandboxed ones of the catalog, and trusted Python ones of a connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tarsdb.columns import Column, from_list
from tarsdb.engine.udf import function_cache
from tarsdb.errors import CatalogError, DatabaseError, Error, ProgrammingError, UdfError
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass
from tarsdb.schema import FunctionDef
from tarsdb.storage import Environment
from tarsdb.types import Kind, SqlType, to_storage

if TYPE_CHECKING:
    from tarsdb.engine.context import Context
    from tarsdb.udf_sandbox import Budget, Figures, Lent, SandboxedFunction, StateTree

T = TypeVar("T")


@dataclass(frozen=True)
class SessionFunction:
    """A trusted Python function of one connection.

    ``vectorized`` functions take and return sequences (NumPy arrays or lists) of a batch; others
    take and return one row's values. A None argument gives None without a call when ``strict``.
    """

    name: str
    call: Callable[..., Any]
    arguments: tuple[SqlType, ...]
    returns: SqlType
    vectorized: bool = False
    strict: bool = True


class FunctionRuntime:
    """Runs functions for one connection; compiled modules are shared through ``env.caches``."""

    def __init__(self, env: Environment, check: Callable[[], None] = lambda: None) -> None:
        self._env = env
        self._check = check  # raises once the running statement was asked to stop
        self._lock = threading.Lock()
        self.session: dict[str, SessionFunction] = {}
        self._callers: set[int] = set()  # threads that run one of these
        self._running: list[Budget] = []

    def register(self, function: SessionFunction) -> None:
        """Add or replace a Python function of this connection."""
        self.session[function.name.lower()] = function

    def refuse_own(self) -> None:
        """Raise where a Python function of the connection wants the connection that runs it.

        Its statement holds the connection, and often another thread than the function's.
        """
        if self._callers and threading.get_ident() in self._callers:
            raise ProgrammingError(
                "a function of create_function() cannot use the connection that calls it",
                hint="give it a connection of its own: tarsdb.connect(path)",
            )

    def preload(self, context: Context) -> None:
        """Make all functions of the file ready; the error of one that cannot be is its caller's."""
        for function in context.catalog.functions():
            with suppress(Error):
                self._compiled(context, function)

    def call(
        self, context: Context, function: FunctionDef, columns: list[Column], rows: int
    ) -> Column:
        """Run a sandboxed function over a batch; limits hold for the whole statement."""
        with self._using(context, function, columns, rows) as (compiled, arguments, budget):

            def compute(given: list[Column], count: int) -> Column:
                found: Column = compiled.call(given, count, budget)
                return found

            if function.is_cached and rows:
                counted = (compiled.figures, budget.figures_of(function.name))
                answer = function_cache.through(context, function, arguments, counted, compute)
            else:
                answer = compute(arguments, rows)
        if function.role == "reranker" and np.isnan(answer.values).any():
            row = int(np.argmax(np.isnan(answer.values)))
            raise UdfError(f"function {function.name}: the score of row {row} is NaN")
        return answer

    def lend(
        self, context: Context, function: FunctionDef, work: Callable[[Lent], T], rows: int
    ) -> T | None:
        """Run work with a guest of a scalar function that compiled code may call for so many rows.

        None where the function's backend has none, or ``work`` returned it.
        """
        with self._running_one(context, function, 0) as (compiled, budget):
            found: T | None = compiled.lend(work, rows, budget) if compiled.lends else None
            return found

    def call_aggregate(
        self, context: Context, function: FunctionDef, columns: list[Column], offsets: np.ndarray
    ) -> Column:
        """Run a sandboxed aggregate function; group g has rows ``offsets[g]`` and on."""
        rows = int(offsets[-1])
        with self._using(context, function, columns, rows) as (compiled, arguments, budget):
            answer: Column = compiled.call(
                arguments, offsets, budget, context.engines.settings["threads"]
            )
            return answer

    def aggregate_tree(
        self, context: Context, function: FunctionDef, columns: list[Column]
    ) -> StateTree | None:
        """Return the states of runs of rows; None where an aggregate function cannot merge."""
        with self._running_one(context, function, len(columns[0])) as (compiled, budget):
            tree: StateTree | None = compiled.tree(columns, budget)
            return tree

    def call_frames(
        self, context: Context, function: FunctionDef, tree: StateTree,
        frames: tuple[np.ndarray, np.ndarray],
    ) -> Column:  # fmt: skip
        """Return an aggregate function's values for runs of a tree's rows: starts and stops."""
        with self._running_one(context, function, len(frames[0])) as (compiled, budget):
            answer: Column = compiled.framed(tree, *frames, budget)
            return answer

    def call_table(
        self, context: Context, function: FunctionDef, columns: list[Column], rows: int
    ) -> tuple[list[Column], np.ndarray]:
        """Run a sandboxed table function; return its rows, and where each row's begin."""
        with self._using(context, function, columns, rows) as (compiled, arguments, budget):
            answer: tuple[list[Column], np.ndarray] = compiled.call(arguments, rows, budget)
            return answer

    def compare(
        self,
        context: Context,
        function: FunctionDef,
        pair: tuple[np.ndarray, np.ndarray],
        *,
        is_swapped: bool,
    ) -> np.ndarray:
        """Return the distances of vectors, float32 (n, dim), to a query (dim,) by a metric."""
        vectors, query = pair
        with self._running_one(context, function, len(vectors)) as (compiled, budget):
            found: np.ndarray = compiled.compare(
                vectors, query, is_swapped=is_swapped, budget=budget
            )
            return found

    @contextmanager
    def _using(
        self, context: Context, function: FunctionDef, columns: list[Column], rows: int
    ) -> Iterator[tuple[Any, list[Column], Budget]]:
        """Yield the compiled function, arguments of its types, and the statement's budget."""
        with self._running_one(context, function, rows) as (compiled, budget):
            arguments = [
                cast(column, sql_type, f"{function.name}({name})")
                for column, (name, sql_type) in zip(columns, function.arguments, strict=True)
            ]
            yield compiled, arguments, budget

    @contextmanager
    def _running_one(
        self, context: Context, function: FunctionDef, rows: int
    ) -> Iterator[tuple[Any, Budget]]:
        """Yield the compiled function and the statement's budget, which can be interrupted."""
        from tarsdb.udf_sandbox import Budget

        compiled = self._compiled(context, function)
        if context.writes is not None:
            context.writes.depend("function", function.name, function.version)
        if context.budget is None:
            context.budget = Budget(
                lookup=partial(_look_up, context), embed=partial(_embed, context)
            )
        budget = context.budget
        METRICS.add("udf_rows", rows)
        self._running.append(budget)
        try:
            yield compiled, budget
        finally:
            self._running.remove(budget)

    def figures(self, function: FunctionDef) -> Figures | None:
        """Return what a function did in this process; None when it was not called yet."""
        compiled = self._env.caches.get("functions", {}).get(_key(function))
        return None if compiled is None else compiled.figures

    def _compiled(self, context: Context, function: FunctionDef) -> SandboxedFunction:
        loaded, key = self._env.caches.setdefault("functions", {}), _key(function)
        compiled: SandboxedFunction | None = loaded.get(key)
        if compiled is None:
            from tarsdb.udf_sandbox import stoppable

            with self._lock, stoppable(context.engines.interrupt.is_set):
                compiled = loaded.get(key) or _compile(context, function)
                loaded[key] = compiled
        return compiled

    def call_session(self, name: str, columns: Sequence[Column], rows: int) -> Column:
        """Run a Python function of this connection over a batch."""
        function = self.session.get(name.lower())
        if function is None:
            raise CatalogError(f"function {name!r} does not exist")
        thread = threading.get_ident()
        self._callers.add(thread)
        try:
            results = _run(function, columns, rows, self._check)
        except DatabaseError:
            raise
        except Exception as error:
            raise UdfError(f"function {name}: {type(error).__name__}: {error}") from error
        finally:
            self._callers.discard(thread)
        if len(results) != rows:
            raise UdfError(f"function {name} returned {len(results)} values for {rows} rows")
        stored = [to_storage(item, function.returns, name) for item in results]
        return from_list(function.returns, stored)

    def interrupt(self) -> None:
        """End calls that run now."""
        for budget in tuple(self._running):
            budget.interrupt()

    def close(self) -> None:
        """Forget this connection's functions."""
        self.session.clear()


def _key(function: FunctionDef) -> tuple[Any, ...]:
    return (function.name, function.digest, function.export, function.arguments,
            function.returns, function.kind, function.columns, function.role,
            function.strict, function.language,
            tuple(sorted(function.options.items())))  # fmt: skip


def _look_up(context: Context, name: str, key: str) -> bytes | None:
    from tarsdb.engine.udf import capabilities

    function = context.catalog.function(name)
    return None if function is None else capabilities.look_up(context, function, key)


def _embed(context: Context, name: str, text: str) -> bytes | None:
    from tarsdb.engine.udf import capabilities

    function = context.catalog.function(name)
    return None if function is None else capabilities.embed(context, function, text)


def _compile(context: Context, function: FunctionDef) -> SandboxedFunction:
    from tarsdb.udf_sandbox import (
        AggregateFunction,
        MetricFunction,
        ScalarFunction,
        Source,
        SourceFunction,
        TableFunction,
        limits_from_options,
    )

    code, limits = context.read_blob(function.digest), limits_from_options(function.options)
    types = [sql_type for _, sql_type in function.arguments]
    compiled: SandboxedFunction
    if function.language != "wasm":
        compiled = SourceFunction(
            Source(function.language, code.decode()), function.export, types, function.returns,
            strict=function.strict, limits=limits,
        )  # fmt: skip
    elif function.kind == "table":
        outputs = [sql_type for _, sql_type in function.columns]
        compiled = TableFunction(
            code, function.export, types, outputs, strict=function.strict, limits=limits
        )
    else:
        kinds: dict[str, type[ScalarFunction | AggregateFunction]] = {
            "aggregate": AggregateFunction, "metric": MetricFunction,
        }  # fmt: skip
        made = kinds.get(function.role or function.kind, ScalarFunction)
        compiled = made(
            code, function.export, types, function.returns, strict=function.strict, limits=limits
        )
    compiled.name = function.name
    return compiled


def cast(column: Column, sql_type: SqlType, name: str) -> Column:
    """Return a column with its values converted to a type, each through its Python value."""
    if column.type == sql_type:
        return column
    if column.type.kind in _INTEGERS and sql_type.kind in _INTEGERS and len(column):
        limits, values = np.iinfo(sql_type.dtype), column.values
        if limits.min <= values.min() and values.max() <= limits.max:
            return Column(sql_type, values.astype(sql_type.dtype), None, column.validity)
    if column.type.kind in _NUMBERS and sql_type.kind is Kind.DOUBLE:
        return Column(sql_type, column.values.astype(sql_type.dtype), None, column.validity)
    if column.type.kind in _INTEGERS and sql_type.kind is Kind.REAL:
        return Column(sql_type, column.values.astype(sql_type.dtype), None, column.validity)
    from tarsdb.engine.result import present

    return from_list(sql_type, [to_storage(item, sql_type, name) for item in present(column)])


_INTEGERS = frozenset({Kind.SMALLINT, Kind.INT, Kind.BIGINT})
_NUMBERS = _INTEGERS | {Kind.REAL}


def _run(
    function: SessionFunction, columns: Sequence[Column], rows: int, check: Callable[[], None]
) -> Sequence[Any]:
    from tarsdb.engine.result import present

    arguments = [present(column) for column in columns]
    if function.vectorized:
        return list(function.call(*arguments)) if arguments else list(function.call())
    if not arguments:
        return [function.call() for _ in range(rows)]
    results = []
    for row in zip(*arguments, strict=True):
        check()
        skipped = function.strict and None in map(_none_marker, row)
        results.append(None if skipped else function.call(*row))
    return results


def _none_marker(item: Any) -> Any:
    return None if item is None else True
