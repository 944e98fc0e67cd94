"""Making the parts of vector indexes: CREATE INDEX, REINDEX, OPTIMIZE, and upkeep behind writers.

A part is built from private copies, so no snapshot is held meanwhile, and its arrays are staged
under a lease until one small transaction publishes them. Rows committed in between are fresh.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.engine import calibration
from tarsdb.engine.index_methods import METHODS, Rows
from tarsdb.engine.progress import SILENT, Listener, Work
from tarsdb.engine.vector_index import OPERATORS
from tarsdb.errors import Error, NotSupportedError
from tarsdb.index import arrays
from tarsdb.index.flat import FlatIndex
from tarsdb.index.navigation import operators
from tarsdb.metrics import METRICS
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
from tarsdb.types import Kind, SqlType

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

    @staticmethod
    def of(context: Context) -> Build:
        """Return how a statement's connection builds."""
        engines = context.engines
        return Build(engines.settings["threads"], engines.interrupt.check, engines.listener)

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
        an option is not known.
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
    return {"metric": metric, **METHODS[method].checked(options, name)}


# --- one part ---


def _source(
    snapshot: Snapshot, table: TableDef, index: IndexDef, commits: tuple[int, int], build: Build
) -> Rows:
    """Announce the build and copy its rows."""
    flat = _flat(snapshot, table, index)
    created = flat.created()
    chosen = flat.live() & (created > commits[0]) & (created <= commits[1])
    positions = np.flatnonzero(chosen)
    column = table.column_by_id(index.column_ids[0])
    build.check()
    if len(positions):
        build.listener.start(_announced(index, len(positions), column.type))
    build.check()

    def progress(done: int, total: int) -> None:
        build.show(min(done, total - 1), total)  # the last one is told when all is stored

    return Rows(
        flat.rowids(positions), flat.vectors(positions), column.type,
        OPERATORS[index.options["metric"]], build.threads, progress,
    )  # fmt: skip


def _announced(index: IndexDef, rows: int, sql_type: SqlType) -> Work:
    """Return what is told before a part is built."""
    memory, disk = METHODS[index.method].estimated_bytes(
        rows, sql_type, OPERATORS[index.options["metric"]], _options(index)
    )
    return Work(f"index {index.name}", "vectors", rows, memory, disk)


def _options(index: IndexDef) -> Any:
    """Return the options of an index as its method knows them."""
    given = {k: v for k, v in index.options.items() if k != "metric"}
    return METHODS[index.method].options()(**given)


def _pieces(source: Rows, index: IndexDef, build: Build) -> Iterator[Any]:
    """Build a part and yield its packed bytes."""
    method = METHODS[index.method]
    part = method.build(source, _options(index))
    steps = calibration.measured(part, method, source, build.check)
    for piece in arrays.pack({**part.to_arrays(), "calibration": steps}):
        build.check()
        yield piece


def _make_part(
    source: Rows,
    index: IndexDef,
    commits: tuple[int, int],
    store: Callable[[Iterable[Any]], str],
    build: Build,
) -> list[IndexPart]:
    """Build and store a part; none for no rows."""
    if not len(source.rowids):
        return []
    sizes: list[int] = []

    def counted() -> Iterator[Any]:
        for piece in _pieces(source, index, build):
            sizes.append(len(piece))
            yield piece

    digest = store(counted())
    build.show(len(source.rowids), len(source.rowids))
    METRICS.add("index.parts_built")
    return [IndexPart(digest, len(source.rowids), sum(sizes), *commits)]


# --- publishing ---


def publish(context: Context, table: TableDef, index: IndexDef) -> None:
    """Build an index over everything the transaction's snapshot shows, to appear at its commit."""
    writes = context.require_writes()
    writes.depend("table", table.name, table.version)  # the index may be dropped meanwhile
    commits = (0, context.snapshot.commit)
    build = Build.of(context)
    source = _source(context.snapshot, table, index, commits, build)
    writes.set_parts(index.id, _make_part(source, index, commits, writes.put_blob, build))


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
            kept = () if whole else stored[: _kept(stored, _fresh(snapshot, table, index, stored))]
            commits = (kept[-1].upto if kept else 0, snapshot.commit)
            source = _source(snapshot, table, index, commits, build)
        made = _make_part(
            source, index, commits, lambda pieces: put_blob(env, pieces, lease), build
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
                if not wanted or not refresh(env, table, index, Build(check=_check_exit), whole):
                    break
    except (Error, _AtExit):  # dropped meanwhile, no space, damaged: the next writer tries again
        METRICS.add("index.upkeep_failures")


class _AtExit(Exception):
    """The interpreter ends: what is half built is not waited for."""


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
    whole = sum(part.rows for part in stored) > 2 * max(covered, 0) + FRESH_ROWS
    return whole or fresh > FRESH_ROWS, whole


def wait(env: Environment) -> None:
    """Return when no part is being built in the background."""
    background.wait(env, THREAD)
