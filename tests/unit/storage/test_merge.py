"""Merge, vacuum, staging and the processes around them."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import tarsdb
from tarsdb.errors import ConflictError
from tarsdb.index.base import placed
from tarsdb.options import Durability, OpenOptions
from tarsdb.schema import TableDef
from tarsdb.storage import (
    Environment,
    Snapshot,
    WriteSet,
    check,
    failpoints,
    merge,
    staging,
    table_stats,
    vacuum,
    wait_for_merge,
)
from tests.unit.storage import tables
from tests.unit.storage.tables import vector

OPTIONS = OpenOptions(
    background_merge=False, segment_rows=256, delta_limit_rows=100, durability=Durability.RELAXED
)
ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def env(tmp_path: pathlib.Path) -> Iterator[Environment]:
    env = Environment.open(tmp_path / "t.tars", OPTIONS)
    yield env
    failpoints.disarm()
    assert check(env, full=True) == []
    env.release()


def stats(env: Environment) -> dict[str, int]:
    with Snapshot(env) as snapshot:
        return table_stats(snapshot, tables.current(env))


def test_merge_waits_for_the_limit_and_changes_nothing_visible(env: Environment) -> None:
    table = tables.make_table(env)
    for start in range(0, 90, 30):
        tables.insert(env, table, tables.rows(*range(start, start + 30)))
    assert merge(env) == 0
    tables.insert(env, table, tables.rows(*range(100, 130)))
    before = tables.contents(env, table)
    held = Snapshot(env)
    blocks = held.table(table).vectors(3)
    assert merge(env) == 240
    assert tables.contents(env, table) == before
    assert stats(env)["delta_rows"] == 0
    assert held.table(table).vectors(3) is blocks  # the reader was not disturbed
    assert held.table(table).count() == 120
    held.close()


def test_unchanged_tables_share_one_list_of_vectors(env: Environment) -> None:
    table = tables.make_table(env)
    other = tables.make_table(env, name="other")
    tables.insert(env, table, tables.rows(1, 2))
    with Snapshot(env) as snapshot:
        first = snapshot.table(table).vectors(3)
    tables.insert(env, other, tables.rows(5))
    with Snapshot(env) as snapshot:
        assert snapshot.table(table).vectors(3) is first
    tables.insert(env, table, tables.rows(3))
    with Snapshot(env) as snapshot:
        assert snapshot.table(table).vectors(3) is not first


def test_segments_a_commit_leaves_alone_keep_their_blocks(env: Environment) -> None:
    table = tables.make_table(env)
    rowids = tables.insert(env, table, tables.rows(*range(600)))
    merge(env, force=True)
    with Snapshot(env) as snapshot:
        before = snapshot.table(table).vectors(3)
        places = [placed(block) for block in before]
    held = Snapshot(env)
    tables.update(env, table, rowids[300], (300, "changed", vector(7)))
    with Snapshot(env) as snapshot:
        after = snapshot.table(table).vectors(3)
        kept = [any(block is each for each in before) for block in after]
        assert kept == [True, False, True, False]  # the last is the delta
        assert after[1].live is not None
        assert np.flatnonzero(~after[1].live).tolist() == [300 - 200]
        assert [placed(block) is each for block, each in zip(after, places, strict=False)] == kept[
            :3
        ]
    assert held.table(table).vectors(3) is before  # as long as its snapshot
    held.close()
    tables.delete(env, table, rowids[:200])
    with Snapshot(env) as snapshot:
        assert len(snapshot.table(table).vectors(3)) == 3  # no row of the first is live


def test_blocks_with_own_deletes_do_not_lie_where_the_others_do(env: Environment) -> None:
    table = tables.make_table(env)
    rowids = tables.insert(env, table, tables.rows(*range(100)))
    merge(env, force=True)
    with Snapshot(env) as snapshot:
        (block,) = snapshot.table(table).vectors(3)
        assert len(placed(block).held) == 2  # all are live
        writes = WriteSet(env, snapshot.commit)
        view = snapshot.table(table, writes)
        writes.delete(table, view, np.array([rowids[7]]))
        (own,) = view.vectors(3)
        assert np.flatnonzero(~placed(own).held[2]).tolist() == [7]
        assert len(placed(block).held) == 2
        writes.discard()


def test_small_segments_are_combined(env: Environment) -> None:
    table = tables.make_table(env)
    for start in range(0, 360, 60):
        tables.insert(env, table, tables.rows(*range(start, start + 60)))
        merge(env, table, force=True)
    before = tables.contents(env, table)
    merge(env, force=True)
    assert stats(env)["segments"] <= 4
    assert tables.contents(env, table) == before


def test_background_merge_and_back_pressure(tmp_path: pathlib.Path) -> None:
    options = OpenOptions(delta_limit_rows=40, segment_rows=64, durability=Durability.RELAXED)
    env = Environment.open(tmp_path / "b.tars", options)
    table = tables.make_table(env)
    for start in range(0, 400, 10):
        tables.insert(env, table, tables.rows(*range(start, start + 10)))
        assert stats(env)["delta_rows"] <= 4 * 40 + 10
    wait_for_merge(env)
    assert stats(env)["segments"] > 0
    assert len(tables.contents(env, table)) == 400
    assert check(env, full=True) == []
    env.release()


class Crowd:
    """Threads that write, read and tidy one table at the same time."""

    def __init__(self, env: Environment, table: TableDef) -> None:
        self.env, self.table = env, table
        self.errors: list[BaseException] = []
        self.done = threading.Event()

    def start(self, work: Callable[..., None], *arguments: int) -> threading.Thread:
        def guarded() -> None:
            try:
                work(*arguments)
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        return thread

    def retry(self, work: Callable[[], object]) -> None:
        """Run work again while a vacuum came in between."""
        while True:
            try:
                work()
                return
            except ConflictError:
                continue

    def write(self, first: int) -> None:
        env, table = self.env, self.table
        for key in range(first, first + 40):
            (rowid,) = tables.insert(env, table, tables.rows(key))
            if key % 4 == 0:
                row = (key, "updated", vector(key + 1))
                self.retry(lambda rowid=rowid, row=row: tables.update(env, table, rowid, row))  # type: ignore[misc]
            if key % 5 == 0:
                self.retry(lambda rowid=rowid: tables.delete(env, table, [rowid]))  # type: ignore[misc]

    def read(self) -> None:
        while not self.done.is_set():
            with Snapshot(self.env) as snapshot:
                view = snapshot.table(self.table)
                rows = sum(len(chunk.rowids) for chunk in view.chunks([1, 2, 3]))
                live = sum(
                    len(block.rowids) if block.live is None else int(block.live.sum())
                    for block in view.vectors(3)
                )
                assert rows == view.count() == live

    def care(self) -> None:
        while not self.done.is_set():
            merge(self.env, self.table, force=True)
            vacuum(self.env, self.table)


def test_threads_write_read_and_merge_at_once(env: Environment) -> None:
    crowd = Crowd(env, tables.make_table(env))
    writers = [crowd.start(crowd.write, first) for first in (0, 1000, 2000)]
    others = [crowd.start(work) for work in (crowd.read, crowd.read, crowd.care)]
    for thread in writers:
        thread.join()
    crowd.done.set()
    for thread in others:
        thread.join()
    assert crowd.errors == []
    found = tables.contents(env, crowd.table)
    assert len(found) == 3 * (40 - 8)
    assert sum(row[1] == "updated" for row in found.values()) == 3 * (10 - 2)


def test_vacuum_frees_versions_and_keeps_old_readers(env: Environment) -> None:
    table = tables.make_table(env)
    tables.load(env, table, tables.rows(*range(600)))
    held = Snapshot(env)
    before = held.table(table).count()
    tables.delete(env, table, list(range(1, 500)))
    assert vacuum(env) > 0
    assert stats(env)["tombstones"] == 0
    assert stats(env)["rows"] == 101
    assert sum(len(c.rowids) for c in held.table(table).chunks([1, 2, 3])) == before == 600
    held.close()
    assert vacuum(env) == 0
    assert len(tables.contents(env, table)) == 101


def test_bulk_rows_are_staged_and_discarded(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "STAGE_BYTES", 4000)
    table = tables.make_table(env)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        view = snapshot.table(table, writes)
        writes.insert_columns(table, view, tables.columns_of(table, tables.rows(*range(500))))
        assert tables.keys_of(env, "blocks")
        assert vacuum(env) == 0  # the lease protects them
        assert view.count() == 500
        assert sum(len(c.rowids) for c in view.chunks([1, 2, 3])) == 500
        writes.discard()
    assert not tables.keys_of(env, "blocks")
    assert tables.contents(env, table) == {}


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from tarsdb.storage import Environment, merge, staging, vacuum
from tests.unit.storage import tables, test_merge
staging.STAGE_BYTES = 4000
env = Environment.open(sys.argv[2], test_merge.OPTIONS)
table = tables.current(env)
action = sys.argv[3]
if action == "load":
    for start in (5000, 6000):
        tables.load(env, table, tables.rows(*range(start, start + 300)))
elif action == "merge":
    merge(env, force=True)
elif action == "vacuum":
    vacuum(env)
else:
    for key in range(7000, 7020):
        tables.insert(env, table, tables.rows(key))
env.release()
"""


def run_child(path: str, action: str, points: str = "") -> int:
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(ROOT), path, action],
        env={"TARSDB_FAILPOINTS": points},
        check=False,
        timeout=60,
    ).returncode


@pytest.mark.parametrize(
    ("action", "point"),
    [
        ("merge", "merge.before_write"), ("merge", "merge.before_commit"),
        ("vacuum", "vacuum.before_write"), ("vacuum", "vacuum.before_commit"),
        ("load", "stage.after_commit"), ("load", "apply.after_writes"),
    ],
)  # fmt: skip
def test_killed_process_leaves_a_sound_file(env: Environment, action: str, point: str) -> None:
    table = tables.make_table(env)
    tables.load(env, table, tables.rows(*range(300)))
    tables.insert(env, table, tables.rows(*range(1000, 1050)))
    tables.delete(env, table, [1, 2, 301])
    before = tables.contents(env, table)
    assert run_child(env.path, action, f"{point}=kill") == -9
    assert tables.contents(env, table) == before
    assert check(env, full=True) == []
    vacuum(env)
    assert tables.contents(env, table) == before
    listed = {key[:16] for key in tables.keys_of(env, "blocks")}
    assert listed == tables.keys_of(env, "segments").keys()  # nothing of the dead load is left


def test_other_processes_commits_are_seen(env: Environment) -> None:
    table = tables.make_table(env)
    tables.insert(env, table, tables.rows(1))
    held = Snapshot(env)
    assert held.table(table).count() == 1
    assert run_child(env.path, "insert") == 0
    assert run_child(env.path, "merge") == 0
    assert len(tables.contents(env, table)) == 21
    assert held.table(table).count() == 1
    assert [c.rowids.tolist() for c in held.table(table).chunks([1])] == [[1]]
    held.close()


@pytest.mark.parametrize("background_merge", [True, False])
def test_segments_of_many_commits_are_combined(
    tmp_path: pathlib.Path, background_merge: bool
) -> None:
    options = OpenOptions(background_merge=background_merge, durability=Durability.RELAXED)
    with tarsdb.connect(tmp_path / "a.tars", options=options) as db:
        db.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)")
        db.execute("INSERT INTO t SELECT i, 0 FROM range(5000) r(i)")
        env = db._require_session().env
        most = 0
        for step in range(1, 65):
            if step % 2:
                db.execute("UPDATE t SET n = ? WHERE id BETWEEN ? AND ?", (step, step, step + 399))
            else:
                first = 5000 + 300 * step
                db.execute("INSERT INTO t SELECT i, 0 FROM range(?, ?) r(i)", (first, first + 300))
            wait_for_merge(env)
            most = max(most, stats(env)["segments"])
        assert db.execute("SELECT count(*), max(n) FROM t").fetchall() == [(14_600, 63)]
        assert db.execute("SELECT n FROM t WHERE id IN (1, 63, 64, 462)").fetchall() == [
            (1,), (63,), (63,), (63,)
        ]  # fmt: skip
        assert check(env, full=True) == []
    assert (most < 40) == background_merge


def test_writers_merge_themselves_where_the_delta_is_far_over_its_limit(
    tmp_path: pathlib.Path,
) -> None:
    """Nobody merges behind them here: as if it cannot keep up."""
    options = OpenOptions(
        background_merge=False, delta_limit_rows=10, durability=Durability.RELAXED
    )
    env = Environment.open(tmp_path / "p.tars", options)
    table = tables.make_table(env)
    largest = 0
    for number in range(130):
        tables.insert(env, table, tables.rows(number))
        with Snapshot(env) as snapshot:
            largest = max(largest, table_stats(snapshot, table)["delta_rows"])
    assert 10 < largest <= 40
    env.release()


def test_a_vacuum_gives_way_to_another_that_came_between(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it read to write anew is there no more: nothing of it may be written."""
    table = tables.make_table(env)
    tables.load(env, table, tables.rows(*range(600)))
    tables.delete(env, table, list(range(10, 200)))
    module = sys.modules["tarsdb.storage.vacuum"]
    prepare, came = module._prepare, []  # type: ignore[attr-defined]

    def prepared(*arguments: object) -> object:
        step = prepare(*arguments)
        if step is not None and not came:
            came.append(0)
            came[0] = vacuum(env, table)
        return step

    before = tables.contents(env, table)
    monkeypatch.setattr(module, "_prepare", prepared)
    vacuum(env, table)
    assert came and came[0] > 0
    assert tables.contents(env, table) == before
