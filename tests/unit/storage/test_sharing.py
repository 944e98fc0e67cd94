"""Threads and processes that get in each other's way: closing, forking, groups, full threads."""

from __future__ import annotations

import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tarsdb.errors import InterfaceError, StorageFullError
from tarsdb.options import Durability, OpenOptions
from tarsdb.storage import Environment, Snapshot, WriteSet, check, failpoints, merge
from tests.unit.storage import tables
from tests.unit.storage.kv import Put

OPTIONS = OpenOptions(durability=Durability.RELAXED, background_merge=False, segment_rows=256)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> Iterator[str]:
    yield str(tmp_path / "t.tars")
    failpoints.disarm()


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run in a thread; the list gets its result or its error."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


@pytest.mark.parametrize("act", ["commit", "stage"])
def test_closing_waits_for_a_writer(path: str, act: str) -> None:
    """Unmapping the file under a write transaction would end the process."""
    env = Environment.open(path, OPTIONS)
    inside, leave = threading.Event(), threading.Event()

    def slowly() -> None:
        inside.set()
        leave.wait(10)

    def write() -> object:
        if act == "commit":
            return env.commit(Put(b"a", bytes(100_000), before=slowly))
        return env.stage(lambda txn: (slowly(), txn.put("delta", b"a", bytes(100_000)))[0])

    thread, outcome = in_thread(write)
    assert inside.wait(5)
    env.release()
    time.sleep(0.05)
    leave.set()
    thread.join(10)
    assert not isinstance(outcome[0], BaseException), outcome
    with pytest.raises(InterfaceError, match="closed"):
        env.commit(Put(b"b"))
    with pytest.raises(InterfaceError, match="closed"):
        env.read()
    env = Environment.open(path, OPTIONS)
    with env.read() as txn:
        assert len(txn.get("delta", b"a") or b"") == 100_000
    env.release()


def test_opening_again_while_a_last_reader_holds_it_open(path: str) -> None:
    env = Environment.open(path, OPTIONS)
    env.commit(Put(b"a"))
    txn = env.read()
    env.release()
    with pytest.raises(InterfaceError, match="closed"):
        env.read()
    again = Environment.open(path, OPTIONS)
    assert again is env
    again.commit(Put(b"b"))
    txn.close()
    with again.read() as now:
        assert now.commit_number == 2
    again.release()


def test_readers_and_a_closing_thread(path: str) -> None:
    """A reader that comes while the last reference goes gets an answer or a typed error."""
    for _ in range(30):
        env = Environment.open(path, OPTIONS)

        def read(env: Environment = env) -> None:
            while True:
                with env.read() as txn:
                    txn.get("meta", b"head")

        readers = [in_thread(read) for _ in range(2)]
        time.sleep(0.002)
        env.release()
        for thread, outcome in readers:
            thread.join(10)
            assert isinstance(outcome[0], InterfaceError), outcome


def test_a_change_too_big_for_the_space_fails_alone(path: str) -> None:
    env = Environment.open(path, OpenOptions(max_size_bytes=1 << 20))
    leave = threading.Event()
    holder, _ = in_thread(lambda: env.stage(lambda _: leave.wait(10)))
    while not env.is_writing:
        time.sleep(0.001)
    sizes = {b"a": 100, b"b": 4 << 20, b"c": 100}
    waiting = {
        key: in_thread(lambda k=key, n=size: env.commit(Put(k, bytes(n)), Durability.GROUP))
        for key, size in sizes.items()
    }
    while len(env._committer._queue) < 3:
        time.sleep(0.001)
    leave.set()
    for thread, _ in [*waiting.values(), (holder, [])]:
        thread.join(10)
    failed = {key for key, (_, out) in waiting.items() if isinstance(out[0], BaseException)}
    assert failed == {b"b"}
    assert isinstance(waiting[b"b"][1][0], StorageFullError)
    with env.read() as txn:
        assert [key for key, _ in txn.range("delta", b"", None)] == [b"a", b"c"]
    env.release()


def test_a_child_forked_during_a_merge_can_merge(path: str) -> None:
    """What another thread of the parent held at the fork must not be held for ever in the child."""
    env = Environment.open(path, OPTIONS)
    other = Environment.open(path + "2", OPTIONS)
    table = tables.make_table(env)
    tables.insert(env, table, tables.rows(1, 2))
    tables.make_table(other)
    inside, leave = threading.Event(), threading.Event()

    def pause() -> None:
        inside.set()
        leave.wait(20)

    failpoints.arm("merge.before_stage", pause)
    thread, _ = in_thread(lambda: merge(env, table, force=True))
    assert inside.wait(5)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            failpoints.disarm()
            mine = Environment.open(path + "2", OPTIONS)
            merge(mine, force=True)
            tables.make_table(mine, name="child")
            mine.release()
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + 10
    done, code = 0, 0
    while not done and time.monotonic() < deadline:
        done, code = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)
    leave.set()
    thread.join(10)
    if not done:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert done, "the child hangs"
    assert os.waitstatus_to_exitcode(code) == 0
    assert tables.current(other, "child").name == "child"
    env.release()
    other.release()


def test_a_commit_is_made_although_no_thread_can_start(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the interpreter's end, or in a full container."""
    env = Environment.open(path, OpenOptions(durability=Durability.RELAXED, delta_limit_rows=10))
    table = tables.make_table(env)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    tables.insert(env, table, tables.rows(*range(20)))
    monkeypatch.undo()
    assert len(tables.contents(env, table)) == 20
    tables.insert(env, table, tables.rows(*range(100, 120)))
    deadline = time.monotonic() + 10
    while tables.keys_of(env, "delta") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tables.keys_of(env, "delta") == {}
    env.release()


def test_a_load_that_cannot_be_staged_inserts_nothing(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tarsdb.storage.staging.STAGE_BYTES", 1)
    env = Environment.open(path, OPTIONS)
    table = tables.make_table(env)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        view = snapshot.table(table, writes)
        writes.insert(table, view, tables.rows(1000))
        failpoints.arm("load.before_stage", "enospc", nth=1)
        with pytest.raises(StorageFullError):
            columns = tables.columns_of(table, tables.rows(*range(300)))
            writes.insert_columns(table, view, columns)
        assert view.count() == 1
        writes.insert_columns(table, view, columns)
        writes.commit()
    assert len(tables.contents(env, table)) == 301
    assert check(env, full=True) == []
    env.release()


def test_undoing_an_index_build_keeps_the_entries_of_bulk_rows(path: str) -> None:
    env = Environment.open(path, OPTIONS)
    table = tables.make_table(env)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        view = snapshot.table(table, writes)
        writes.insert_columns(table, view, tables.columns_of(table, tables.rows(*range(300))))
        mark = writes.savepoint()
        writes.rebuild_index(table, table.indexes[0], view)
        writes.rollback_to(mark)
        assert view.find(table.indexes[0], (7,)).tolist() == [np.int64(1 << 62) + 7]
        writes.commit()
    assert check(env, full=True) == []
    env.release()


def test_a_dropped_last_reader_lets_the_file_close(path: str) -> None:
    env = Environment.open(path, OpenOptions(max_read_age_s=0.2))
    txn = env.read()
    env.release()
    del txn
    deadline = time.monotonic() + 5
    while not env._is_closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert env._is_closed
