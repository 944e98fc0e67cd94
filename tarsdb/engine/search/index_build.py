"""Making the parts of vector indexes: CREATE INDEX, REINDEX, OPTIMIZE, and upkeep behind writers.

A part is built from private copies, so no snapshot is held meanwhile, and its arrays are staged
under a lease until one small transaction publishes them. Rows committed in between are fresh.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.engine.progress import SILENT, Listener, Work
from tarsdb.engine.result import Result
from tarsdb.engine.search import asked, calibration, index_choice
from tarsdb.engine.search.calibration import Calibration
from tarsdb.engine.search.index_choice import AUTO, FLAT, AutoOptions, Choice, Shape
from tarsdb.engine.search.index_methods import METHODS, Rows, checked
from tarsdb.engine.search.unfinished import Unfinished
from tarsdb.engine.search.vector_index import OPERATORS
from tarsdb.errors import Error, NotSupportedError
from tarsdb.index import arrays
from tarsdb.index.course import Course
from tarsdb.index.flat import FlatIndex
from tarsdb.index.navigation import operators
from tarsdb.kernels.gpu.device import Device, choose
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass
from tarsdb.schema import IndexDef, TableDef
from tarsdb.storage import (
    IndexPart,
    Lease,
    Snapshot,
    WriteSet,
    background,
    known_parts,
    put_blob,
    replace_parts,
)
from tarsdb.types import TEXT, Kind, SqlType

if TYPE_CHECKING:
    from tarsdb.engine.context import Context
    from tarsdb.storage import Environment

THREAD = "indexer"
FRESH_ROWS = 1000
"""Fresh rows that are worth a part: searching them exactly then takes as long as a graph does."""
TIER = 8
"""A new part takes in the parts before it that have at most this many times its rows."""


@dataclass(frozen=True)
class Build:
    """How to build."""

    threads: int = 1
    check: Callable[[], None] = lambda: None
    """Called now and then; raises to stop."""
    listener: Listener = SILENT
    device: Device | None = None
    env: Environment | None = None
    """Where an unfinished build leaves its state; None for nowhere."""

    @staticmethod
    def of(context: Context) -> Build:
        """Return how a statement's connection builds."""
        engines = context.engines
        settings = engines.settings
        device = choose(settings["device"])
        check, env = engines.interrupt.check, context.snapshot.env
        return Build(settings["threads"], check, engines.listener, device, env)

    def show(self, done: int, total: int) -> None:
        """Tell how far a build is, and stop where that was asked for."""
        self.check()
        self.listener.show(done, total)
        self.check()  # the listener itself may have asked


def checked_options(
    method: str, given: dict[str, Any], sql_type: SqlType, name: str
) -> dict[str, Any]:
    """Return the options an index is stored with.

    Raises
    ------
    NotSupportedError
        The metric is not defined for the column's type, the operator class is for another type, or
        an option is not known or not for the type.
    DataError
        An option is outside its range.
    """
    options = {k: v for k, v in given.items() if k not in ("opclass", "metric")}
    defined = [each for each, op in OPERATORS.items() if op in operators(sql_type)]
    kind = sql_type.kind.value.lower()
    classes = ", ".join(f"{kind}_{each}_ops" for each in defined)
    metric = str(given.get("metric", "hamming" if sql_type.kind is Kind.BIT else "l2")).lower()
    if metric not in defined:
        raise NotSupportedError(
            f"index {name}: metric {metric!r} is not defined for {sql_type}, "
            f"expected {' or '.join(defined)}",
            hint=f"operator classes: {classes}",
        )
    opclass = given.get("opclass", "")
    if opclass not in ("", f"{metric}_ops", f"{kind}_{metric}_ops"):
        raise NotSupportedError(
            f"index {name}: operator class {opclass} is not for metric {metric!r} of {sql_type}",
            hint=f"operator classes: {classes}",
        )
    known = AutoOptions if method == AUTO else METHODS[method].options()
    made = checked(known, options, name)
    if made.get("refine_bits") and sql_type.kind is Kind.BIT:
        raise NotSupportedError(
            f"index {name}: option refine_bits is not for {sql_type}",
            hint="codes of BIT vectors are exact",
        )
    return {"metric": metric, **made}


# --- one part ---


def _source(
    snapshot: Snapshot,
    table: TableDef,
    index: IndexDef,
    commits: tuple[int, int],
    choose_by: Callable[[Shape], Choice],
    build: Build,
) -> tuple[Rows, Choice]:
    """Choose how to build a part, announce it, and copy its rows."""
    flat = _flat(snapshot, table, index)
    created = flat.created()
    chosen = flat.live() & (created > commits[0]) & (created <= commits[1])
    positions = np.flatnonzero(chosen)
    column = table.column_by_id(index.column_ids[0])
    op = OPERATORS[index.options["metric"]]
    choice = choose_by(Shape(len(positions), column.type, op))
    build.check()
    _announce(index, Shape(len(positions), column.type, op), choice, build)
    build.check()

    def progress(done: int, total: int) -> None:
        build.show(min(done, total - 1), total)  # the last one is told when all is stored

    rows = Rows(
        flat.rowids(positions),
        flat.vectors(positions),
        column.type,
        op,
        build.threads,
        Course(progress),
        build.device,
    )
    return rows, choice


def _choice(
    index: IndexDef, kept: Sequence[IndexPart], searches: asked.Asked, shape: Shape
) -> Choice:
    """Return what makes a part of that shape beside others of an index."""
    given = _options(index)
    if index.method != AUTO:
        return Choice(index.method, given)
    wanted = AutoOptions(**given)
    if not kept:
        return index_choice.chosen(shape, wanted, searches)
    whole = replace(shape, rows=shape.rows + sum(part.rows for part in kept))
    return index_choice.more_of(kept, whole, wanted)


def _options(index: IndexDef) -> dict[str, Any]:
    return {k: v for k, v in index.options.items() if k != "metric"}


def _announce(index: IndexDef, shape: Shape, choice: Choice, build: Build) -> None:
    """Tell what is going to be built, if anything."""
    if not shape.rows or choice.method == FLAT:
        return
    method = METHODS[choice.method]
    options = method.options()(**choice.options)
    memory, disk = method.estimated_bytes(shape.rows, shape.type, shape.op, options)
    build.listener.start(
        Work(f"index {index.name}", "vectors", shape.rows, memory, disk, choice.reason)
    )


def _built(
    source: Rows, index: IndexDef, choice: Choice, build: Build
) -> tuple[Choice, dict[str, np.ndarray]]:
    """Build a part by a choice, or by another where that does not suffice; return its arrays."""
    shape, tried = Shape(len(source.rowids), source.type, source.op), list[str]()
    while choice.method != FLAT:
        method = METHODS[choice.method]
        kept = Unfinished.of(build.env, source, choice) if build.env is not None else None
        course = kept.course(source.course.progress) if kept is not None else source.course
        part = method.build(replace(source, course=course), method.options()(**choice.options))
        steps = calibration.measured(part, method, source, build.check)
        if kept is not None:
            kept.forget()
        if index_choice.suffices(choice, part, Calibration(steps, method), shape):
            return choice, {**part.to_arrays(), "calibration": steps}
        del part  # the next one needs the memory
        tried.append(choice.method)
        choice = index_choice.instead(tried, choice, shape, AutoOptions(**_options(index)))
        _announce(index, shape, choice, build)
    return choice, {}


def _make_part(
    source: Rows,
    index: IndexDef,
    choice: Choice,
    commits: tuple[int, int],
    store: Callable[[Iterable[Any]], str],
    build: Build,
) -> list[IndexPart]:
    """Build and store a part; none for no rows, unless that was chosen."""
    rows = len(source.rowids)
    if not rows and choice.method != FLAT:
        return []
    choice, made = _built(source, index, choice, build)
    name = choice.method if index.method == AUTO else ""
    by = choice.asked.stored()
    if not made:
        return [IndexPart("", rows, 0, *commits, name, choice.reason, by)]
    sizes: list[int] = []

    def counted() -> Iterator[Any]:
        for piece in arrays.pack(made):
            build.check()
            sizes.append(len(piece))
            yield piece

    digest = store(counted())
    build.show(rows, rows)
    METRICS.add("index.parts_built")
    return [IndexPart(digest, rows, sum(sizes), *commits, name, choice.reason, by)]


# --- publishing ---


def publish(context: Context, table: TableDef, index: IndexDef) -> tuple[IndexPart, ...]:
    """Build an index over everything the transaction's snapshot shows, to appear at its commit.

    Returns its parts.
    """
    writes = context.require_writes()
    writes.depend("table", table.name, table.version)  # the index may be dropped meanwhile
    commits = (0, context.snapshot.commit)
    build = Build.of(context)
    snapshot = context.snapshot
    searches = asked.known(snapshot.env, index.id, known_parts(snapshot.txn, index.id))
    choose_by = partial(_choice, index, (), searches)
    source, choice = _source(snapshot, table, index, commits, choose_by, build)
    parts = _make_part(source, index, choice, commits, writes.put_blob, build)
    writes.set_parts(index.id, parts)
    return tuple(parts)


def choices(built: Iterable[tuple[IndexDef, Sequence[IndexPart]]]) -> Result:
    """Return what was chosen for the indexes of a statement, and why; nothing to see if nothing."""
    rows = [
        (index.name, parts[-1].method, parts[-1].reason)
        for index, parts in built
        if parts and parts[-1].method
    ]
    return Result(("index", "method", "reason"), (TEXT,) * 3, rows=rows) if rows else Result()


def refresh(env: Environment, table: TableDef, index: IndexDef, build: Build, whole: bool) -> bool:
    """Add a part for fresh rows, or build the index anew; readers and writers go on meanwhile.

    Returns
    -------
    bool
        Whether other parts were published; False when somebody else was first.
    """
    with Lease(env) as lease:
        with Snapshot(env) as snapshot:
            stored = known_parts(snapshot.txn, index.id)
            whole = whole or not all(part.digest for part in stored)
            kept = () if whole else stored[: _kept(stored, _fresh(snapshot, table, index, stored))]
            commits = (kept[-1].upto if kept else 0, snapshot.commit)
            choose_by = partial(_choice, index, kept, asked.known(env, index.id, stored))
            source, choice = _source(snapshot, table, index, commits, choose_by, build)
        made = _make_part(
            source, index, choice, commits, lambda pieces: put_blob(env, pieces, lease), build
        )
        return replace_parts(env, index.id, stored, [*kept, *made], lease)


# --- upkeep behind writers ---


def after_commit(env: Environment, writes: WriteSet) -> None:
    """Count rows no part covers, and start building one in the background when there are many."""
    if not env.options.background_merge:
        return
    known: dict[int, int] = env.caches.setdefault("fresh vectors", {})
    due = []
    for own in writes.tables.values():
        for index in own.table.indexes:
            if index.method != "btree":
                rows = own.changed_rows(index.column_ids[0])
                known[index.id] = known.get(index.id, 0) + rows
                if known[index.id] > FRESH_ROWS:
                    due.append((own.table, index))
    if due and not background.is_busy(env, THREAD):
        background.start(env, THREAD, lambda: _run(env, due))


def _run(env: Environment, due: list[tuple[TableDef, IndexDef]]) -> None:
    known: dict[int, int] = env.caches.setdefault("fresh vectors", {})
    try:
        for table, index in due:
            while True:  # rows committed during a build may be worth the next one
                known[index.id] = 0
                wanted, whole = _is_due(env, table, index)
                if not wanted or not refresh(env, table, index, _behind(env), whole):
                    break
    except (Error, _AtExit):  # dropped meanwhile, no space, damaged: the next writer tries again
        METRICS.add("index.upkeep_failures")


class _AtExit(Exception):
    """The interpreter ends: what is half built is not waited for."""


def _behind(env: Environment) -> Build:
    return Build(check=_check_exit, env=env)


def _check_exit() -> None:
    if not threading.main_thread().is_alive():
        raise _AtExit


def _kept(stored: Sequence[IndexPart], fresh: int) -> int:
    """Return how many parts stay as they are when fresh rows become one."""
    rows, kept = fresh, len(stored)
    while kept and stored[kept - 1].rows <= TIER * rows:
        kept -= 1
        rows += stored[kept].rows
    return kept


def _fresh(
    snapshot: Snapshot, table: TableDef, index: IndexDef, stored: Sequence[IndexPart]
) -> int:
    """Return how many live rows no part covers."""
    flat = _flat(snapshot, table, index)
    upto = stored[-1].upto if stored else 0
    return int((flat.live() & (flat.created() > upto)).sum())


def _flat(snapshot: Snapshot, table: TableDef, index: IndexDef) -> FlatIndex:
    column = table.column_by_id(index.column_ids[0])
    return FlatIndex(snapshot.table(table).vectors(column.id), column.type)


def _is_due(env: Environment, table: TableDef, index: IndexDef) -> tuple[bool, bool]:
    """Return whether an index wants another part, and whether it had better be built anew."""
    with Snapshot(env) as snapshot:
        stored = known_parts(snapshot.txn, index.id)
        fresh = _fresh(snapshot, table, index, stored)
        covered = snapshot.table(table).count() - fresh
        vectors = int(_flat(snapshot, table, index).live().sum())
    if index.method == AUTO and stored:
        column = table.column_by_id(index.column_ids[0])
        shape = Shape(vectors, column.type, OPERATORS[index.options["metric"]])
        if index_choice.has_outgrown(stored, shape, AutoOptions(**_options(index))):
            return True, True
        if not stored[-1].digest:
            return False, False
    whole = sum(part.rows for part in stored) > 2 * max(covered, 0) + FRESH_ROWS
    return whole or fresh > FRESH_ROWS, whole


def wait(env: Environment) -> None:
    """Return when no part is being built in the background."""
    background.wait(env, THREAD)
