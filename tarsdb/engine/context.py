"""The context of one running statement: its snapshot, own writes, parameters and calls.

Everything an executor needs from outside passes through here, so that executors stay functions of
a plan and a context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.columns import Column
from tarsdb.engine.inference.models import ModelRuntime
from tarsdb.engine.progress import SILENT, Listener
from tarsdb.engine.result_cache import ResultCache
from tarsdb.engine.settings import Settings
from tarsdb.engine.udf.functions import FunctionRuntime
from tarsdb.errors import (
    CatalogError,
    ConflictError,
    CorruptionError,
    InternalError,
    InterruptError,
    ProgrammingError,
    StatementTimeoutError,
)
from tarsdb.loading import collector_paused
from tarsdb.metrics import Metrics
from tarsdb.schema import FunctionDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.storage import CatalogView, Environment, Snapshot, TableView, WriteSet

if TYPE_CHECKING:
    from tarsdb.engine.by_duckdb.relational import RelationalEngine

Parameters = Sequence[Any] | Mapping[str, Any]


class Interrupt:
    """A flag other threads set to end the running statement, with the reason."""

    def __init__(self) -> None:
        self._asked = False
        self._timed_out = False

    def set(self, *, timed_out: bool = False) -> None:
        """Ask the running statement to stop."""
        self._timed_out = timed_out
        self._asked = True

    def clear(self) -> None:
        """Forget an earlier request."""
        self._asked = False

    def is_set(self) -> bool:
        """Return True when a stop was asked for."""
        return self._asked

    def error(self) -> InterruptError | StatementTimeoutError:
        """Return the error that tells why."""
        if self._timed_out:
            return StatementTimeoutError(
                "the statement ran longer than statement_timeout",
                hint="SET statement_timeout = 0 removes the limit",
            )
        return InterruptError("the statement was interrupted")

    def check(self) -> None:
        """Raise when a stop was asked for."""
        if self._asked:
            raise self.error()


class Engines:
    """What a connection keeps between statements: runtimes of models, functions and DuckDB."""

    def __init__(self, env: Environment, settings: Settings, read_only: bool = False) -> None:
        self.env = env
        self.settings = settings
        self._read_only = read_only
        self.done = Metrics()  # what models did for this connection, for EXPLAIN ANALYZE
        self.interrupt = Interrupt()
        self.models = ModelRuntime(env)
        self.listener = SILENT
        self.results = ResultCache()
        self.functions = FunctionRuntime(env, self.interrupt.check)
        self._relational: RelationalEngine | None = None

    @property
    def may_write(self) -> bool:
        """Whether this connection may change the file."""
        return not (self._read_only or self.env.read_only)

    @property
    def relational(self) -> RelationalEngine:
        """The relational engine, made on first use (imports duckdb)."""
        if self._relational is None:
            with collector_paused():
                from tarsdb.engine.by_duckdb.relational import RelationalEngine

            self._relational = RelationalEngine(
                self.settings, self.interrupt.is_set, self._stop_functions
            )
        return self._relational

    def listen(self, listener: Listener) -> None:
        """Tell a listener, and nobody else, how far long work is."""
        self.listener = self.models.listener = listener

    def _stop_functions(self, *, timed_out: bool = False) -> None:
        self.interrupt.set(timed_out=timed_out)
        self.functions.interrupt()

    def stop(self, *, timed_out: bool = False) -> None:
        """Ask whatever runs now to end."""
        self._stop_functions(timed_out=timed_out)
        if self._relational is not None:
            self._relational.interrupt()

    def close(self) -> None:
        """Close what was opened."""
        if self._relational is not None:
            self._relational.close()
            self._relational = None
        self.functions.close()
        self.results.clear()


class Context:
    """One statement's view of the world.

    Parameters
    ----------
    engines : Engines
    snapshot : Snapshot
        The read transaction every read of the statement goes through.
    writes : WriteSet, optional
        The transaction's own changes, overlaid on every read.
    parameters : sequence or mapping
    variables : callable, optional
        Name to Python object of the caller's frame, or None.
    """

    __slots__ = (
        "_catalog", "budget", "engines", "may_release", "parameters", "snapshot", "variables",
        "writes",
    )  # fmt: skip

    def __init__(
        self,
        engines: Engines,
        snapshot: Snapshot,
        writes: WriteSet | None,
        parameters: Parameters,
        variables: Callable[[str], Any] | None = None,
    ) -> None:
        self.engines = engines
        self.snapshot = snapshot
        self.writes = writes
        self.parameters = parameters
        self.variables = variables
        self._catalog: CatalogView | None = None
        self.budget: Any = None
        self.may_release = False

    @property
    def catalog(self) -> CatalogView:
        """Names to definitions, with the transaction's own changes."""
        known = self._catalog
        if known is None:
            known = self.snapshot.catalog
            if self.writes is not None:
                known = self.writes.overlay(known)
            self._catalog = known
        return known

    @contextmanager
    def without_snapshot(self) -> Iterator[None]:
        """Run long work (a model) without pinning a snapshot, where the statement allows it.

        Raises
        ------
        ConflictError
            The catalog changed meanwhile and the statement writes; it runs again.
        """
        if not self.may_release:
            yield
            return
        version = self.snapshot.catalog_version
        self.snapshot.close()
        try:
            yield
        finally:
            self.snapshot = Snapshot(self.engines.env)
        if self.writes is not None and self.snapshot.catalog_version != version:
            raise ConflictError("the catalog changed while a model ran")

    @contextmanager
    def with_snapshot(self) -> Iterator[None]:
        """Keep the snapshot, whatever runs: something that it shows is being read."""
        may_release, self.may_release = self.may_release, False
        try:
            yield
        finally:
            self.may_release = may_release

    def refresh(self) -> None:
        """Take the catalog anew after the write set changed it."""
        self._catalog = None

    def view(self, table: TableDef) -> TableView:
        """Return the table as this statement sees it."""
        return self.snapshot.table(table, self.writes)

    def read_blob(self, digest: str) -> bytes:
        """Return stored bytes; those this transaction staged are newer than its snapshot."""
        try:
            return self.snapshot.read_blob(digest)
        except CorruptionError:
            if self.writes is None:
                raise
            return self.writes.read_blob(digest)

    def require_writes(self) -> WriteSet:
        """Return the write set; a plan that writes always has one."""
        if self.writes is None:
            raise InternalError("a write ran without a write set")
        return self.writes

    def parameter(self, key: int | str) -> Any:
        """Return the bound value of a parameter."""
        try:
            return self.parameters[key]  # type: ignore[index] # a mismatch is reported below
        except (KeyError, IndexError, TypeError) as error:
            raise _missing(key, self.parameters) from error

    def constant(self, node: ex.Expr | None) -> Any:
        """Evaluate an expression without columns to one Python value (None stays None)."""
        if node is None:
            return None
        if isinstance(node, ex.Literal):
            return node.value
        from tarsdb.engine.reading.compare import Constant
        from tarsdb.engine.reading.evaluate import Batch, value
        from tarsdb.engine.result import present

        answer = value(node, Batch(1, {}, self))
        return answer.value if isinstance(answer, Constant) else present(answer)[0]

    def call(self, call: ex.Call, arguments: list[Column], rows: int) -> Column:
        """Run a model function or another function over a batch of rows."""
        if call.kind == "model":
            return self.engines.models.call(self, call, arguments, rows)
        if call.kind == "tokenizer":
            from tarsdb.engine.udf import tokenizers

            return tokenizers.call(self, call, arguments[0], rows)
        function = self.catalog.function(call.target)
        if function is None:
            return self.engines.functions.call_session(call.target, arguments, rows)
        return self.call_function(function, arguments, rows)

    def in_case(self, name: str, texts: Column) -> Column:
        """Return ``lower`` or ``upper`` of texts that have other letters than ASCII's."""
        from tarsdb.engine.by_duckdb import letter_case

        return letter_case.in_case(name, texts)

    def ilike(self, texts: Column, pattern: str) -> np.ndarray:
        """Return which texts match whatever the case, where some have other letters."""
        from tarsdb.engine.by_duckdb import letter_case

        return letter_case.ilike(texts, pattern)

    def compare(self, node: ex.Distance, vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Return the distances of float32 (n, dim) to a query by a sandboxed metric."""
        function = self.catalog.function(node.function)
        if function is None:
            raise CatalogError(f"function {node.function!r} does not exist")
        return self.engines.functions.compare(
            self, function, (vectors, query), is_swapped=node.is_swapped
        )

    def call_function(self, function: FunctionDef, columns: list[Column], rows: int) -> Column:
        """Run a sandboxed function over a batch of rows."""
        return self.engines.functions.call(self, function, columns, rows)


def _missing(key: int | str, parameters: Parameters) -> ProgrammingError:
    if isinstance(key, int):
        if isinstance(parameters, Mapping):
            return ProgrammingError("the statement has positional parameters, a mapping was bound")
        return ProgrammingError(
            f"the statement uses parameter {key + 1}, {len(parameters)} were bound"
        )
    if isinstance(parameters, Mapping):
        return ProgrammingError(f"no value was bound for parameter :{key}")
    return ProgrammingError(f"the statement names parameter :{key}, a sequence was bound")
