"""What a process keeps decoded must never be wrong: not after damage, a signal, or a drop."""

from __future__ import annotations

import contextlib
import gc
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from tarsdb.errors import CorruptionError
from tarsdb.options import Durability, OpenOptions
from tarsdb.storage import Environment, Snapshot, WriteSet, delta, merge
from tarsdb.storage.segments import Segment
from tarsdb.storage.state import table_cache
from tests.unit.storage import tables
from tests.unit.storage.interruption import interrupted_at

OPTIONS = OpenOptions(
    background_merge=False, segment_rows=512, delta_limit_rows=100, durability=Durability.RELAXED
)


@pytest.fixture
def env(tmp_path: pathlib.Path) -> Iterator[Environment]:
    env = Environment.open(tmp_path / "t.tars", OPTIONS)
    yield env
    env.release()


def test_a_segment_whose_holes_were_not_read_is_not_kept(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that a transaction loaded and deleted must not appear after one failed read."""
    monkeypatch.setattr("tarsdb.storage.staging.STAGE_BYTES", 1)
    table = tables.make_table(env)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        view = snapshot.table(table, writes)
        rows = tables.columns_of(table, tables.rows(*range(300)))
        rowids = writes.insert_columns(table, view, rows)
        writes.delete(table, view, rowids[:100])
        writes.commit()
    env.caches.clear()
    with monkeypatch.context() as patch:

        def damaged(*_: object) -> None:
            raise CorruptionError("holes")

        patch.setattr(Segment, "load_holes", damaged)
        with pytest.raises(CorruptionError):
            tables.contents(env, table)
    assert sorted(row[0] for row in tables.contents(env, table).values()) == [*range(100, 300)]


def test_a_delta_read_that_was_interrupted_anywhere_is_read_again(env: Environment) -> None:
    table = tables.make_table(env)
    tables.insert(env, table, tables.rows(1, 2, 3))
    first = tables.contents(env, table)
    rowids = list(first)
    tables.update(env, table, rowids[0], (1, "changed", tables.vector(9)))
    tables.insert(env, table, tables.rows(4, 5))
    tables.delete(env, table, [rowids[1]])
    env.caches.clear()
    expected = tables.contents(env, table)
    where = ["start"]
    moments = 0
    while where:
        where = []
        env.caches.clear()
        with contextlib.suppress(KeyboardInterrupt):
            interrupted_at(lambda: tables.contents(env, table), moments, where)
        moments += 1
        assert tables.contents(env, table) == expected, where
    assert moments > 50
    gc.collect()
    assert not env._live


def test_a_record_that_does_not_decode_fails_every_time(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tables.make_table(env)
    tables.insert(env, table, tables.rows(*range(5)))
    before = tables.contents(env, table)
    env.caches.clear()
    calls: list[bytes] = []
    decode = delta.records.decode

    def third_is_bad(record: bytes) -> Any:
        calls.append(record)
        if len(calls) in (3, 6):
            raise CorruptionError("a delta record is damaged")
        return decode(record)

    monkeypatch.setattr(delta.records, "decode", third_is_bad)
    for _ in range(2):
        with pytest.raises(CorruptionError):
            tables.contents(env, table)
    assert tables.contents(env, table) == before


def test_dropped_tables_leave_no_cache(env: Environment) -> None:
    for number in range(5):
        table = tables.make_table(env)
        tables.load(env, table, tables.rows(*range(300)))
        assert len(tables.contents(env, table)) == 300
        with Snapshot(env) as snapshot:
            writes = WriteSet(env, snapshot.commit)
            writes.delete_object("table", "t")
            writes.drop_table_data(table)
            writes.commit()
            assert snapshot.table(table).count() == 300, number  # it still shows it
    with Snapshot(env) as snapshot:
        assert snapshot.catalog.tables() == []
    assert env.caches["tables"] == {}


def test_old_and_new_snapshots_share_caches_without_mixing(env: Environment) -> None:
    """Snapshots of many commits, merges between, read in any order, each its own rows."""
    table = tables.make_table(env)
    held: list[tuple[Snapshot, int]] = []
    for step in range(14):
        tables.insert(env, table, tables.rows(*range(step * 10, step * 10 + 10)))
        if step % 2:
            first = min(tables.contents(env, table))
            tables.delete(env, table, [first])
        if step % 3 == 2:
            merge(env, table, force=True)
        held.append((Snapshot(env), 10 * (step + 1) - (step + 1) // 2))
    env.caches.clear()
    for snapshot, count in [*held[::-1], *held, *held[::3]]:
        view = snapshot.table(table)
        rows = [chunk.rowids for chunk in view.chunks([1, 3])]
        assert sum(map(len, rows)) == view.count() == count
    assert len(table_cache(env.caches, table.id).states) <= 8
    for snapshot, _ in held:
        snapshot.close()
