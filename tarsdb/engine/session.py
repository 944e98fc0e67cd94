"""One connection's session: the life of a statement, transactions, the plan cache.

A statement outside a transaction reads one snapshot and, when it writes, commits a private write
set; a conflict with another commit runs it again. Inside ``BEGIN`` all statements share one
snapshot and one write set, and a failing statement undoes only itself.
"""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from types import FrameType
from typing import Any, TypeVar

from tarsdb.engine import admin, bound, ddl, executor
from tarsdb.engine.context import Context, Engines, Interrupt, Parameters
from tarsdb.engine.inference import generation, inference_cache
from tarsdb.engine.names import Names, variables_of
from tarsdb.engine.result import Result
from tarsdb.engine.search import index_build
from tarsdb.engine.search.repeated_search import RepeatedSearch
from tarsdb.engine.settings import Settings
from tarsdb.engine.writing import mutate, update_many
from tarsdb.errors import (
    ConflictError,
    InterfaceError,
    InterruptError,
    ProgrammingError,
    ReadOnlyError,
    SnapshotExpiredError,
)
from tarsdb.options import Durability
from tarsdb.records import dataclass
from tarsdb.sql import bind, check_function_name, parameter_keys, parse, split
from tarsdb.sql.plan import (
    Aggregate,
    AlterTable,
    Copy,
    CreateFunction,
    CreateIndex,
    CreateModel,
    CreateModule,
    CreateTable,
    CreateTrigger,
    CreateView,
    Delete,
    Describe,
    Drop,
    Explain,
    Insert,
    Knn,
    Maintain,
    OneRow,
    Plan,
    PointLookup,
    Pragma,
    Relational,
    Scan,
    SetOption,
    Show,
    Transaction,
    Truncate,
    Update,
)
from tarsdb.storage import Environment, Snapshot, WriteSet

T = TypeVar("T")
QUERIES = (PointLookup, Scan, OneRow, Aggregate, Knn, Relational)
DDL = (
    CreateTable,
    AlterTable,
    CreateIndex,
    CreateModel,
    CreateModule,
    CreateFunction,
    CreateTrigger,
    CreateView,
    Drop,
    Truncate,
)
MIN_ATTEMPTS = 3
PLAN_CACHE_SIZE = 512


@dataclass(slots=True)
class _Prepared:
    """A parsed statement and the plan it had under one catalog and one set of settings."""

    statement: Any
    takes: int | None  # positional parameters; None with named ones
    plan: Plan | None = None
    key: tuple[int, int] = (-1, -1)


@dataclass(slots=True)
class _Open:
    """An open transaction."""

    snapshot: Snapshot
    writes: WriteSet
    savepoints: list[tuple[str, int]] = field(default_factory=list)


class Session:
    """Executes statements for one connection; one at a time, from any thread.

    Parameters
    ----------
    env : Environment
        Shared with other sessions on the same file.
    settings : Settings
    read_only : bool
        Refuse writes, though another session of the process may make them.
    """

    def __init__(self, env: Environment, settings: Settings, read_only: bool = False) -> None:
        self.env = env
        self.read_only = read_only
        self.settings = settings
        self.engines = Engines(env, settings, read_only)
        self._lock = threading.RLock()
        self._open: _Open | None = None
        self._prepared: dict[str, _Prepared | list[str]] = {}
        self._generating: weakref.WeakSet[Interrupt] = weakref.WeakSet()

    @property
    def in_transaction(self) -> bool:
        """True between BEGIN and COMMIT or ROLLBACK."""
        return self._open is not None

    def execute(
        self,
        sql: str,
        parameters: Parameters = (),
        frame: FrameType | None = None,
        many: Iterable[Parameters] | None = None,
    ) -> Result:
        """Execute one statement, or a script of several (the last one's result is returned).

        ``many`` holds the parameter sets of ``executemany``: all in one transaction.
        """
        if not isinstance(sql, str):
            raise InterfaceError(f"a statement is a str, not {type(sql).__name__}")
        self.engines.functions.refuse_own()
        with self._lock:
            self.engines.interrupt.clear()
            prepared = self._prepare(sql)
            if isinstance(prepared, list):
                if many is not None:
                    raise ProgrammingError("executemany takes one statement, not a script")
                return self._script(prepared, parameters, frame)
            timeout_ms = self.settings.statement_timeout_ms
            if not timeout_ms:
                return self._execute(prepared, parameters, frame, many)
            with self._watched(timeout_ms):
                return self._execute(prepared, parameters, frame, many)

    def inspect(self, work: Callable[[Context], T]) -> T:
        """Return what ``work`` makes of the newest snapshot; for tools that measure.

        It reads only. :meth:`interrupt` reaches it where it asks ``engines.interrupt``.
        """
        self.engines.functions.refuse_own()
        with self._lock:
            self.engines.interrupt.clear()
            context = Context(self.engines, Snapshot(self.env), None, ())
            try:
                return work(context)
            finally:
                context.snapshot.close()

    def _script(
        self, statements: list[str], parameters: Parameters, frame: FrameType | None
    ) -> Result:
        if parameters and len(statements) > 1:
            raise ProgrammingError("a script of several statements takes no parameters")
        result = Result()
        for text in statements:
            result = self.execute(text, parameters, frame)
        return result

    def _prepare(self, sql: str) -> _Prepared | list[str]:
        found = self._prepared.get(sql)
        if found is None:
            statements = split(sql) if ";" in sql else [sql]
            found = _prepared(statements[0]) if len(statements) == 1 else statements
            if len(self._prepared) >= PLAN_CACHE_SIZE:
                self._prepared.pop(next(iter(self._prepared)))
            self._prepared[sql] = found
        return found

    @contextmanager
    def _watched(self, timeout_ms: int) -> Iterator[None]:
        """End the statement after ``timeout_ms``."""
        timer = threading.Timer(timeout_ms / 1000, self.engines.stop, kwargs={"timed_out": True})
        timer.daemon = True
        timer.start()
        try:
            yield
        except InterruptError:
            raise self.engines.interrupt.error() from None
        finally:
            timer.cancel()

    def _execute(
        self,
        prepared: _Prepared,
        parameters: Parameters,
        frame: FrameType | None,
        many: Iterable[Parameters] | None,
    ) -> Result:
        takes = prepared.takes
        if many is not None:
            many = bound.checked(many, takes)
        elif takes is not None and len(parameters) > takes:
            bound.check(parameters, takes)
        plan = prepared.plan
        if type(plan) is Knn and many is None and self._open is None:
            repeated: RepeatedSearch | None = plan.memo.get("repeated")
            if repeated is not None and (found := repeated.answer(parameters)) is not None:
                return found
        variables = variables_of(frame)
        if self._open is not None:
            return self._inside(self._open, prepared, parameters, variables, many)
        gate = self.env.retry_gate
        if gate.locked():  # someone runs again after a conflict: let it through first
            with gate:
                pass
        try:
            return self._alone(prepared, parameters, variables, many)
        except ConflictError:
            if many is not None and not isinstance(many, Sequence):
                raise  # its parameters are used up
        with gate:
            return self._again(lambda: self._alone(prepared, parameters, variables, many))

    def _again(self, run: Callable[[], Result]) -> Result:
        """Run a statement until it no longer conflicts, for as long as ``lock_timeout``."""
        deadline = time.monotonic() + self.settings["lock_timeout"] / 1000
        attempt = 0
        while True:
            attempt += 1
            try:
                return run()
            except ConflictError:
                if attempt >= MIN_ATTEMPTS and time.monotonic() > deadline:
                    raise
            self.engines.interrupt.check()
            time.sleep(random.random() * min(0.05, 0.001 * 2**attempt))

    def _alone(
        self, prepared: _Prepared, parameters: Parameters, variables: Any, many: Any
    ) -> Result:
        """Run a statement as its own transaction."""
        context = Context(self.engines, Snapshot(self.env), None, parameters, variables)
        try:
            plan = self._plan(prepared, context, variables)
            if isinstance(plan, QUERIES) and many is None:
                return executor.run(context, plan)
            if isinstance(plan, (Transaction, SetOption)):
                return self._control(plan)
            if not _writes(plan):
                return self._other(context, plan)
            self._require_writable()
            context.writes = WriteSet(self.env, context.snapshot.commit)
            context.may_release = isinstance(plan, (Insert, CreateTable))
            try:
                result = self._write(context, plan, many)
            except BaseException:
                context.writes.discard()
                raise
        finally:
            context.snapshot.close()
        self._commit(context.writes)
        return result

    def _inside(
        self, opened: _Open, prepared: _Prepared, parameters: Parameters, variables: Any, many: Any
    ) -> Result:
        """Run a statement in the open transaction."""
        with self._resumed(opened):
            return self._statement(opened, prepared, parameters, variables, many)

    @contextmanager
    def _resumed(self, opened: _Open) -> Iterator[None]:
        """Use the snapshot of the open transaction; between statements it may expire."""
        try:
            opened.snapshot.txn.resume()
        except SnapshotExpiredError as error:
            self.rollback()
            error.message += "; the transaction was rolled back"
            raise
        try:
            yield
        finally:
            if self._open is opened:
                opened.snapshot.txn.park()

    def _statement(
        self, opened: _Open, prepared: _Prepared, parameters: Parameters, variables: Any, many: Any
    ) -> Result:
        """Run a statement of a transaction; undo only it when it fails."""
        context = Context(self.engines, opened.snapshot, opened.writes, parameters, variables)
        plan = self._plan(prepared, context, variables)
        if isinstance(plan, (Transaction, SetOption)):
            return self._control(plan)
        if isinstance(plan, Maintain) and plan.action != "reindex":
            raise ProgrammingError(f"{plan.action.upper()} cannot run inside a transaction")
        if not _writes(plan):
            return (
                executor.run(context, plan)
                if isinstance(plan, QUERIES)
                else self._other(context, plan)
            )
        self._require_writable()
        mark = opened.writes.savepoint()
        try:
            return self._write(context, plan, many)
        except BaseException:
            opened.writes.rollback_to(mark)
            raise

    def _plan(self, prepared: _Prepared, context: Context, variables: Any) -> Plan:
        ready = None if prepared.plan is not None else prepared.statement.plan
        if isinstance(ready, (Pragma, SetOption)):  # asks nothing of a catalog that may be damaged
            return ready
        shared = context.writes is None or context.catalog is context.snapshot.catalog
        key = context.snapshot.catalog_version, self.settings.version
        if shared and prepared.plan is not None and prepared.key == key:
            return prepared.plan
        names = Names(context.catalog, self.engines.functions.session, variables)
        plan = bind(prepared.statement, names, settings=self.settings)
        if shared and not names.used_variable:
            prepared.plan, prepared.key = plan, key
        return plan

    def _write(self, context: Context, plan: Plan, many: Any) -> Result:
        if isinstance(plan, Insert):
            return mutate.insert(context, plan, many)
        if many is not None:
            return self._each(context, plan, many)
        if isinstance(plan, Update):
            return mutate.update(context, plan)
        if isinstance(plan, Delete):
            return mutate.delete(context, plan)
        if isinstance(plan, DDL):
            return ddl.run_ddl(context, plan)
        if isinstance(plan, Copy):
            from tarsdb.engine.writing import transfer

            return transfer.copy_from(context, plan)
        return self._other(context, plan)

    def _each(self, context: Context, plan: Plan, many: Iterable[Parameters]) -> Result:
        """Run UPDATE or DELETE once for each parameter set."""
        if not isinstance(plan, (Update, Delete)):
            raise ProgrammingError("executemany runs INSERT, UPDATE and DELETE")
        how = update_many.keyed(plan)
        if how is not None and isinstance(plan, Update):
            return Result(changed=update_many.update(context, plan, how, many))
        changed = 0
        for parameters in many:
            self.engines.interrupt.check()
            context.parameters = parameters
            changed += self._write(context, plan, None).changed
        return Result(changed=changed)

    def _other(self, context: Context, plan: Plan) -> Result:
        if isinstance(plan, Explain):
            return admin.explain(context, plan)
        if isinstance(plan, Show):
            return admin.show(context, plan)
        if isinstance(plan, Describe):
            return admin.describe(context, plan)
        if isinstance(plan, Pragma):
            return admin.pragma(context, plan)
        if isinstance(plan, Maintain):
            if plan.action != "checkpoint":
                self._require_writable()
            return admin.maintain(context, plan)
        if isinstance(plan, Copy):
            from tarsdb.engine.writing import transfer

            return transfer.copy_to(context, plan)
        raise ProgrammingError(
            "executemany runs INSERT, UPDATE and DELETE only", hint="execute() runs this statement"
        )

    def _control(self, plan: Transaction | SetOption) -> Result:
        if isinstance(plan, SetOption):
            self.settings.set(plan.name, plan.value)
            return Result()
        if plan.action == "begin":
            self.begin()
        elif plan.action == "commit":
            self._require_open("COMMIT")
            self.commit()
        elif plan.action == "rollback":
            self._require_open("ROLLBACK")
            self.rollback()
        else:
            self._savepoint(plan)
        return Result()

    def begin(self) -> None:
        """Open a transaction."""
        self.engines.functions.refuse_own()
        with self._lock:
            if self._open is not None:
                raise ProgrammingError("BEGIN: a transaction is open already")
            snapshot = Snapshot(self.env)
            self._open = _Open(snapshot, WriteSet(self.env, snapshot.commit))
            snapshot.txn.park()

    def commit(self) -> None:
        """Commit the open transaction; does nothing outside one."""
        self.engines.functions.refuse_own()
        with self._lock:
            opened, self._open = self._open, None
            if opened is None:
                return
            opened.snapshot.close()
            self._commit(opened.writes)

    def rollback(self) -> None:
        """Undo the open transaction; does nothing outside one."""
        self.engines.functions.refuse_own()
        with self._lock:
            opened, self._open = self._open, None
            if opened is not None:
                opened.writes.discard()
                opened.snapshot.close()

    def _commit(self, writes: WriteSet) -> None:
        if writes.is_empty:
            return
        try:
            durability = Durability(self.settings["durability"])
            writes.commit(durability, self.settings["lock_timeout"] / 1000)
        except BaseException:
            writes.discard()
            raise
        index_build.after_commit(self.env, writes)
        inference_cache.after_commit(self.env, writes)

    def _savepoint(self, plan: Transaction) -> None:
        opened = self._require_open(plan.action.upper())
        name = (plan.name or "").lower()
        if plan.action == "savepoint":
            opened.savepoints.append((name, opened.writes.savepoint()))
            return
        position = next(
            (i for i in reversed(range(len(opened.savepoints))) if opened.savepoints[i][0] == name),
            None,
        )
        if position is None:
            raise ProgrammingError(f"savepoint {plan.name!r} does not exist")
        if plan.action == "rollback_to":
            opened.writes.rollback_to(opened.savepoints[position][1])
            del opened.savepoints[position + 1 :]
        else:
            del opened.savepoints[position:]

    def _require_open(self, verb: str) -> _Open:
        if self._open is None:
            raise ProgrammingError(f"{verb}: no transaction is open", hint="BEGIN opens one")
        return self._open

    def _require_writable(self) -> None:
        if not self.engines.may_write:
            raise ReadOnlyError(f"{self.env.path} is open read-only")

    def register(self, function: Any) -> None:
        """Add a Python function of this connection."""
        self.engines.functions.refuse_own()
        with self._lock:
            check_function_name(function.name)
            self.engines.functions.register(function)
            self._prepared.clear()  # plans may use what had the name before

    def interrupt(self) -> None:
        """End the running statement and texts being generated; callable from any thread."""
        self.engines.stop()
        self._end_texts()

    def _end_texts(self) -> None:
        for interrupt in tuple(self._generating):
            interrupt.set()

    def generate(self, name: str, prompt: Any, options: Mapping[str, Any], stream: bool) -> Any:
        """Complete a prompt; other statements of the connection may run meanwhile.

        It sees the models of the open transaction, as statements do, and then answers whatever
        others commit.

        Returns a text, a list of texts for a list of prompts, or with ``stream`` an iterator.
        """
        self.engines.functions.refuse_own()
        interrupt = Interrupt()

        with self._lock:
            inside = self._open
            if inside is None:
                lease, generator, prepared = self.inspect(
                    lambda context: generation.open_model(context, name, options)
                )
            else:
                with self._resumed(inside):
                    context = Context(self.engines, inside.snapshot, inside.writes, ())
                    lease, generator, prepared = generation.open_model(context, name, options)
            self._generating.add(interrupt)

        def check() -> None:
            interrupt.check()
            if inside is None:
                lease.check()

        with generation.naming(lease.model):
            if stream:
                pieces = generation.stream(generator, prompt, prepared, check)
                return generation.NamedPieces(pieces, lease.model)
            return generation.complete(generator, prompt, prepared, check)

    def close(self) -> None:
        """Roll back what is open and let go of the environment."""
        self._end_texts()
        with self._lock:
            self.rollback()
            self.engines.close()
            self._prepared.clear()
            inference_cache.hurry(self.env)
            self.env.release()


def _prepared(text: str) -> _Prepared:
    statement = parse(text)
    return _Prepared(statement, bound.positions(parameter_keys(statement)))


def _writes(plan: Plan) -> bool:
    if isinstance(plan, Copy):
        return plan.direction == "from"
    if isinstance(plan, Maintain):
        return plan.action == "reindex"
    return isinstance(plan, (Insert, Update, Delete, *DDL))
