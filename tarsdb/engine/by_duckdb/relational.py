"""The relational engine: SQL text over named relations, run by a caged in-memory DuckDB.

It sees only the relations a plan names, the parameters bound to it and the functions registered
for it: no files, no extensions, no Python variables. Results are complete Arrow tables, copied
before the statement's snapshot ends. Knows neither storage nor models: the executor's ``Inputs``
provides them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa

from tarsdb.columns import Column
from tarsdb.engine.by_duckdb.duckdb_errors import ErrorCarrier, convert
from tarsdb.engine.by_duckdb.duckdb_functions import FunctionRegistry
from tarsdb.engine.by_duckdb.duckdb_scan import Scan, ScanDataset
from tarsdb.engine.by_duckdb.duckdb_values import bind_value, tidy_result
from tarsdb.engine.udf.window_frames import PlacedRows
from tarsdb.errors import Error, InterfaceError, InterruptError
from tarsdb.records import dataclass
from tarsdb.schema import FunctionDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Relation, Relational
from tarsdb.types import SqlType, from_storage, to_storage

_KEPT_TABLES = 64
_POLL_S = 0.1
_TOKENS = re.compile(
    r"'(?:[^']|'')*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|--[^\n]*|/\*.*?\*/"
    r"|\"(?P<quoted>(?:[^\"]|\"\")*)\"|(?P<bare>[A-Za-z_]\w*)",
    re.S,
)


class Inputs(Protocol):
    """What a statement provides to its relational plan."""

    def scan(self, relation: Relation) -> Scan:
        """Return a relation's rows; asked once per relation, before anything runs."""

    def parameter(self, key: int | str) -> Any:
        """Return the bound value of a parameter."""

    def constant(self, node: Any) -> Any:
        """Return the Python value of a native expression."""

    def call_model(self, call: ex.Call, columns: list[Column], rows: int) -> Column:
        """Run a model function."""

    def call_function(self, function: FunctionDef, columns: list[Column], rows: int) -> Column:
        """Run a sandboxed function."""

    def call_aggregate(
        self, function: FunctionDef, columns: list[Column], offsets: np.ndarray
    ) -> Column:
        """Run a sandboxed aggregate function over the rows of groups, group after group."""

    def aggregate_tree(self, function: FunctionDef, columns: list[Column]) -> Any:
        """Return states of runs of rows; None where a sandboxed aggregate does not merge them."""

    def call_frames(
        self, function: FunctionDef, tree: Any, starts: np.ndarray, stops: np.ndarray
    ) -> Column:
        """Run a sandboxed aggregate function over runs of the rows of a tree."""

    def call_table_function(
        self, function: FunctionDef, columns: list[Column], rows: int
    ) -> tuple[list[Column], np.ndarray]:
        """Run a sandboxed table function; return its rows, and where each row's begin."""

    def call_session_function(self, name: str, columns: list[Column], rows: int) -> Column:
        """Run a Python function of the connection."""

    def session_signature(self, name: str) -> tuple[Sequence[SqlType], SqlType]:
        """Return argument types and result type of a Python function of the connection."""


@dataclass(frozen=True)
class RelationalResult:
    """A complete answer: ``table`` owns its memory; ``types`` has one SQL type per column."""

    table: pa.Table
    names: list[str]
    types: list[SqlType]


class Running:
    """One statement while it runs."""

    def __init__(self, plan: Relational, inputs: Inputs) -> None:
        self.plan = plan
        self.inputs = inputs
        self.turn = threading.RLock()
        self.inside: int | None = None  # the thread that runs a scan or function of ours
        self.carrier = ErrorCarrier()
        self.calls = {call.name: call.call for call in plan.calls}
        self.functions = {function.name.lower(): function for function in plan.functions}
        self.placed: dict[int, PlacedRows] = {}  # by the window's number
        self.shown: dict[str, str] = {}  # generated name -> what the user calls it
        self.sources: dict[str, str] = {}  # relation name -> registered name
        self.datasets: list[ScanDataset] = []
        self.handles: list[Any] = []

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the statement's turn; whatever is raised travels through DuckDB as it is."""
        with self.turn:
            self.inside = threading.get_ident()
            try:
                yield
            except BaseException as error:
                raise self.carrier.wrap(error) from error
            finally:
                self.inside = None

    def end(self) -> None:
        """Cut every scan off from the snapshot."""
        for dataset in self.datasets:
            dataset.end()
        self.handles.clear()
        self.placed.clear()


class RelationalEngine:
    """DuckDB for one tarsdb Connection, made on first use, one statement at a time.

    Parameters
    ----------
    settings : mapping
        Reads ``file_access``, ``memory_limit`` and ``default_null_order`` at every statement; a
        change makes a new DuckDB, since a cage's configuration is locked.
    stopped : callable
        True once the running statement was asked to stop.
    stop : callable
        Asks what it calls to stop.
    """

    def __init__(
        self, settings: Mapping[str, Any], stopped: Callable[[], bool] = lambda: False,
        stop: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._stopped = stopped
        self._stop = stop
        self._lock = threading.RLock()
        self._connection: Any = None
        self._configured: tuple[Any, ...] = ()
        self._registry: FunctionRegistry | None = None
        self._tables: OrderedDict[int, tuple[pa.Table, Any]] = OrderedDict()
        self._running: Running | None = None
        self._executing = False
        self._worker: ThreadPoolExecutor | None = None
        self._closed = False
        self._finalizer: weakref.finalize[..., Any] | None = None

    def run(self, plan: Relational, inputs: Inputs) -> RelationalResult:
        """Run a plan and return its complete answer.

        Raises
        ------
        Error
            DuckDB's errors as tarsdb errors; an error of a scan or function as it was raised.
        """
        table = self._execute(plan, inputs, "")
        table, types = tidy_result(table)
        return RelationalResult(table, list(table.column_names), types)

    def explain(self, plan: Relational, inputs: Inputs, *, analyze: bool = False) -> str:
        """Return DuckDB's plan as text; ``analyze`` runs it and shows times and rows."""
        table = self._execute(plan, inputs, "EXPLAIN ANALYZE " if analyze else "EXPLAIN ")
        return "\n".join(text for text in table.column(table.num_columns - 1).to_pylist() if text)

    def interrupt(self) -> None:
        """End the running statement; called from another thread. Without one, do nothing."""
        connection, running = self._connection, self._running
        for _ in range(50):  # DuckDB forgets an interrupt that comes just before it starts
            if not self._executing or connection is None or self._running is not running:
                return
            connection.interrupt()
            time.sleep(0.002)

    def close(self) -> None:
        """Close DuckDB; later statements are refused."""
        with self._lock:
            self._closed = True
            self._discard()
            if self._worker is not None:
                self._worker.shutdown(wait=False)

    def _execute(self, plan: Relational, inputs: Inputs, prefix: str) -> pa.Table:
        active = self._running  # before the lock: the thread that holds it waits for this one
        if self._executing and active is not None and active.inside == threading.get_ident():
            raise InterfaceError(
                "a function or scan of a running query ran another query on its connection",
                hint="open a second connection for it",
            )
        with self._lock:
            running, previous = Running(plan, inputs), self._running
            try:
                connection = self._connect()
                self._register_relations(running)
                self._running = running
                try:
                    return self._submit(connection, running, prefix)
                except Error:
                    raise
                except (duckdb.Error, pa.ArrowException, RuntimeError, KeyboardInterrupt) as error:
                    raise self._translated(error, running) from None
            finally:
                running.end()
                self._running = previous

    def _submit(self, connection: Any, running: Running, prefix: str) -> pa.Table:
        if (
            running.plan.calls
            or running.plan.functions
            or running.plan.session_functions
            or running.plan.distances
            or running.plan.vectors
            or running.plan.windows
        ):
            assert self._registry is not None
            self._registry.require(running)
        values = self._values(running, connection)
        sql = prefix + _rename(running.plan.sql, running.sources)
        self._executing = True
        try:
            return self._interruptible(connection, sql, values)
        finally:
            self._executing = False

    def _interruptible(self, connection: Any, sql: str, values: dict[str, Any] | None) -> pa.Table:
        """Run in a worker: signals reach only the main thread, and DuckDB does not return to it.

        The wait is a poll: a signal the system hands to another thread wakes nobody (seen), and
        Python looks at it only when the main thread runs again. A request to stop that came
        before DuckDB had begun is found by the poll too.
        """
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="tarsdb-relational")
        work = self._worker.submit(_fetch, connection, sql, values)
        try:
            while not wait([work], timeout=_POLL_S).done:
                if self._stopped():
                    connection.interrupt()
            return work.result()
        except KeyboardInterrupt:
            self._stop()
            while not work.done():  # again: it may not have started when the first one came
                with contextlib.suppress(KeyboardInterrupt):
                    connection.interrupt()
                    wait([work], timeout=0.02)
            raise

    def _translated(self, error: BaseException, running: Running) -> BaseException:
        original = running.carrier.original(error)
        if isinstance(original, KeyboardInterrupt):
            return InterruptError("the statement was interrupted")
        if original is not None:
            return original
        if isinstance(error, (duckdb.FatalException, duckdb.InternalException)):
            self._discard()
        return convert(error, running.shown)

    def _values(self, running: Running, connection: Any) -> dict[str, Any] | None:
        values: dict[str, Any] = {}
        bits = dict(running.plan.bits)
        for key in running.plan.parameters:
            name = f"p{key}" if isinstance(key, int) else key
            shown = f"parameter {key + 1}" if isinstance(key, int) else f"parameter :{key}"
            value, sql_type = running.inputs.parameter(key), bits.get(key)
            if sql_type is not None:
                value = from_storage(to_storage(value, sql_type, shown), sql_type)
            values[name] = bind_value(value, shown, connection)
            if isinstance(key, int):
                running.shown[f"${name}"] = shown
        for name, node in running.plan.constants:
            plain = name.lstrip("$")
            value = running.inputs.constant(node)
            values[plain] = bind_value(value, "a constant expression", connection)
        return values or None

    def _register_relations(self, running: Running) -> None:
        for relation in running.plan.relations:
            scan = running.inputs.scan(relation)
            make = getattr(scan, "table", None)
            table = make() if make is not None else None
            if table is not None and scan.is_kept:
                name = self._keep(table)
            else:
                if table is None:
                    table = ScanDataset(scan, running.alone)
                    running.datasets.append(table)
                handle = _Source(self._connection, table)
                running.handles.append(handle)
                name = handle.name
            running.sources[relation.name.lower()] = name
            running.shown[name] = running.shown[relation.name] = _display(relation)

    def _keep(self, table: pa.Table) -> str:
        """Return the name a table is registered under; it stays so while it is in use."""
        held = self._tables.get(id(table))
        if held is None:
            held = self._tables[id(table)] = (table, _Source(self._connection, table))
            if len(self._tables) > _KEPT_TABLES:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(id(table))
        name: str = held[1].name
        return name

    def _connect(self) -> Any:
        if self._closed:
            raise InterfaceError("the connection is closed")
        wanted = tuple(
            self._settings.get(key) for key in ("file_access", "memory_limit", "default_null_order")
        )
        if self._connection is None or wanted != self._configured:
            self._discard()
            self._connection = open_caged(*wanted)
            self._configured = wanted
            self._finalizer = weakref.finalize(self, _close, self._connection, os.getpid())
            reference = weakref.ref(self)
            self._registry = FunctionRegistry(self._connection, lambda: _current(reference))
        return self._connection

    def _discard(self) -> None:
        self._tables.clear()
        self._registry = None
        if self._finalizer is not None:
            self._finalizer()
        self._finalizer = self._connection = None


def _close(connection: Any, pid: int) -> None:
    """Close a DuckDB in the process that opened it; what a fork inherits stays as it is.

    Its threads are the parent's: a child that destroys it crashes, at its end too.
    """
    if os.getpid() == pid:
        connection.close()
    else:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # and never less


def _unregister(connection: Any, name: str, pid: int) -> None:
    if os.getpid() == pid:
        connection.unregister(name)


def _current(reference: weakref.ref[RelationalEngine]) -> Running:
    engine = reference()
    running = None if engine is None else engine._running
    if running is None:
        raise InterfaceError("a function was called after its statement ended")
    return running


class _Source:
    """A Python object under a name DuckDB reads, until dropped.

    DuckDB's registry of sources costs 12 us; ``register`` makes a view, 300 us. The registry is
    not part of its public interface, so a version without it gets views.
    """

    _number = 0

    def __init__(self, connection: Any, source: Any) -> None:
        if hasattr(connection, "_register_source"):
            self._handle = connection._register_source(source)
            self.name: str = self._handle.name
            return
        _Source._number += 1
        self.name = f"__source_{_Source._number}"
        connection.register(self.name, source)
        weakref.finalize(self, _unregister, connection, self.name, os.getpid())


def _fetch(connection: Any, sql: str, values: dict[str, Any] | None) -> pa.Table:
    """Run one statement to a complete Arrow table (one pass where DuckDB's inner call exists)."""
    if hasattr(connection, "_submit"):
        return connection._submit(sql, values, "arrow").arrow_table()
    return connection.sql(sql, params=values).to_arrow_table()


def open_caged(file_access: bool | None, memory_limit: str | None, null_order: str | None) -> Any:
    """Return an in-memory DuckDB that reaches nothing outside itself.

    Parameters
    ----------
    file_access : bool
        Whether SQL text may read and write files.
    memory_limit : str, optional
    null_order : str, optional
        ``nulls_last`` or ``nulls_first``.
    """
    config: dict[str, Any] = {
        "python_enable_replacements": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "allow_persistent_secrets": "false",
        "enable_external_access": "true" if file_access else "false",
        "integer_division": "true",
        "arrow_lossless_conversion": "true",
        "temp_directory": "",
        "memory_limit": memory_limit or "2GB",
        "threads": str(min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                           else os.cpu_count() or 1, 8)),
    }  # fmt: skip
    connection = duckdb.connect(":memory:", config=config)
    connection.execute(f"SET default_null_order = '{null_order or 'nulls_last'}'")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET lock_configuration = true")
    return connection


def _display(relation: Relation) -> str:
    if relation.table is not None:
        return relation.table.name
    return relation.system or relation.variable or relation.name.strip("_")


def _rename(sql: str, sources: Mapping[str, str]) -> str:
    """Replace relation names by registered ones, outside of text, comments and other names."""
    if not sources:
        return sql

    def replace(match: re.Match[str]) -> str:
        name = match["quoted"] or match["bare"]
        if name is None:
            return match[0]
        return sources.get(name.lower(), match[0])

    return _TOKENS.sub(replace, sql)
