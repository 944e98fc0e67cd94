"""Large loads staged beside the caller's work: the same rows, errors in time, nothing left over."""

from __future__ import annotations

import pathlib
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tarsdb.errors import StorageFullError
from tarsdb.options import Durability, OpenOptions
from tarsdb.schema import TableDef
from tarsdb.storage import Environment, Snapshot, WriteSet, check, failpoints
from tests.unit.storage import tables
from tests.unit.storage.interruption import interrupted_at

OPTIONS = OpenOptions(durability=Durability.RELAXED, background_merge=False, segment_rows=256)
BATCH = 300


@pytest.fixture
def env(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    monkeypatch.setattr("tarsdb.storage.staging.STAGE_BYTES", 4000)
    env = Environment.open(tmp_path / "t.tars", OPTIONS)
    yield env
    failpoints.disarm()
    env.release()


def add(writes: WriteSet, snapshot: Snapshot, table: TableDef, batch: int) -> None:
    columns = tables.columns_of(table, tables.rows(*range(batch * BATCH, (batch + 1) * BATCH)))
    writes.insert_columns(table, snapshot.table(table, writes), columns)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("tarsdb-stage")]


def leases(env: Environment) -> list[bytes]:
    return [key for key in tables.keys_of(env, "meta") if key.startswith(b"lease/")]


def test_rows_are_those_of_a_load_without_a_thread(env: Environment) -> None:
    beside, alone = (tables.make_table(env, name=name) for name in ("beside", "alone"))
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        with writes.loading():
            for batch in range(4):
                add(writes, snapshot, beside, batch)
                seen = snapshot.table(beside, writes)
                assert seen.count() == (batch + 1) * BATCH - batch
                assert len(seen.find(beside.indexes[0], (batch * BATCH,))) == 1
                dead = seen.find(beside.indexes[0], (batch * BATCH + 7,))
                assert writes.delete(beside, seen, dead) == 1  # one of rows under way
        assert threads() == []
        for batch in range(4):
            add(writes, snapshot, alone, batch)
            seen = snapshot.table(alone, writes)
            writes.delete(alone, seen, seen.find(alone.indexes[0], (batch * BATCH + 7,)))
        writes.commit()
    found = [sorted(tables.contents(env, table).values()) for table in (beside, alone)]
    assert found[0] == found[1]
    assert len(found[0]) == 4 * (BATCH - 1)
    assert leases(env) == []
    assert check(env, full=True) == []


def test_the_caller_goes_on_while_the_disk_works(env: Environment) -> None:
    table = tables.make_table(env)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        failpoints.arm("stage.before_commit", "sleep:1500", nth=1)
        with writes.loading():
            started = time.monotonic()
            add(writes, snapshot, table, 0)
            assert time.monotonic() - started < 1.4
            assert tables.keys_of(env, "blocks") == {}
            assert threads()
        assert tables.keys_of(env, "blocks")
        writes.commit()
    assert len(tables.contents(env, table)) == BATCH


def test_arrays_are_the_callers_again_at_the_end(env: Environment) -> None:
    table = tables.make_table(env)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        columns = tables.columns_of(table, tables.rows(*range(BATCH)))
        few = [column.slice(0, 70) for column in columns]  # too few to be staged
        with writes.loading():
            writes.insert_columns(table, snapshot.table(table, writes), few)
        before = columns[2].values.copy()
        columns[2].values[:] = -1
        writes.commit()
    stored = [row[2] for row in tables.contents(env, table).values()]
    assert np.array_equal(stored, before[:70])


@pytest.mark.parametrize("batches", [1, 2], ids=["at the end", "at the next batch"])
def test_an_error_of_the_thread_is_the_callers(env: Environment, batches: int) -> None:
    table = tables.make_table(env)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        writes.insert(table, snapshot.table(table, writes), tables.rows(9999))
        failpoints.arm("load.before_stage", "enospc", nth=1)
        with pytest.raises(StorageFullError), writes.loading():
            for batch in range(batches):
                add(writes, snapshot, table, batch)
        assert threads() == []
        assert snapshot.table(table, writes).count() == 1
        with writes.loading():
            add(writes, snapshot, table, 0)
        writes.commit()
    assert len(tables.contents(env, table)) == 1 + BATCH
    assert leases(env) == []
    assert check(env, full=True) == []


def test_without_a_thread_rows_are_staged_at_once(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    table = tables.make_table(env)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with writes.loading():
            for batch in range(2):
                add(writes, snapshot, table, batch)
                assert tables.keys_of(env, "blocks")
        writes.commit()
    assert len(tables.contents(env, table)) == 2 * BATCH


def test_ctrl_c_at_any_moment_leaves_nothing(env: Environment) -> None:
    table = tables.make_table(env)
    tried = 0
    for moment in range(0, 100_000, 7):
        where: list[str] = []
        with Snapshot(env) as snapshot:
            writes = WriteSet(env, snapshot.commit)

            def load(writes: WriteSet = writes, snapshot: Snapshot = snapshot) -> None:
                with writes.loading():
                    for batch in range(2):
                        add(writes, snapshot, table, batch)

            if _interrupts(load, moment, where):
                assert snapshot.table(table, writes).count() == 0, where
            writes.discard()
        assert tables.keys_of(env, "blocks") == {}, where
        assert leases(env) == [], where
        tried += 1
        if not where:
            break
    assert tried > 100
    assert threads() == []
    tables.load(env, table, tables.rows(1, 2, 3))
    assert len(tables.contents(env, table)) == 3


def _interrupts(load: object, moment: int, where: list[str]) -> bool:
    try:
        interrupted_at(load, moment, where)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        return True
    return False
