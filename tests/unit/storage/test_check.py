"""Damage: it is found, named by table and rows, and indexes are mended."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tarsdb.errors import CorruptionError
from tarsdb.options import OpenOptions
from tarsdb.schema import TableDef
from tarsdb.storage import Environment, Snapshot, WriteSet, check
from tarsdb.storage.transaction import WriteTxn
from tests.unit.storage import tables

OPTIONS = OpenOptions(background_merge=False, segment_rows=512)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "t.tars"


@pytest.fixture
def loaded(path: pathlib.Path) -> Iterator[tuple[Environment, TableDef]]:
    env = Environment.open(path, OPTIONS)
    table = tables.make_table(env)
    tables.load(env, table, tables.rows(*range(1000)))
    tables.insert(env, table, tables.rows(5000, 5001))
    tables.delete(env, table, [3])
    assert check(env, full=True) == []
    yield env, table
    env.release()


def damage(env: Environment, work: Callable[[WriteTxn], object]) -> None:
    env.stage(work)
    env.caches.clear()


def test_a_flipped_bit_in_a_block_names_table_and_rows(path: pathlib.Path) -> None:
    env = Environment.open(path, OPTIONS)
    table = tables.make_table(env)
    tables.load(env, table, tables.rows(*range(1000)))
    env.release()
    raw = bytearray(path.read_bytes())
    needle = np.array([700, 701, 702, 703], dtype=np.float32).tobytes()
    for at in [i for i in range(0, len(raw), 4) if raw[i : i + 16] == needle]:
        raw[at + 2] ^= 1
    path.write_bytes(raw)
    env = Environment.open(path, OPTIONS)
    with Snapshot(env) as snapshot:
        view = snapshot.table(table)
        assert view.row(1, [1, 2]) == (0, "text 0")
        assert view.row(1, [3]) is not None  # the other block is sound
        with pytest.raises(CorruptionError, match=r"table t, column c, rows 501\.\.1000"):
            view.row(701, [3])
        with pytest.raises(CorruptionError, match="table t"):
            view.vectors(3)
    assert check(env) == []  # headers are sound
    (finding,) = check(env, full=True)
    assert "table t, rows 501..1000, column c" in finding
    env.release()


def test_a_damaged_delta_record_is_found(loaded: tuple[Environment, TableDef]) -> None:
    env, table = loaded

    def flip(txn: WriteTxn) -> None:
        key, value = next(iter(txn.range("delta", b"", None)))
        broken = bytearray(value)
        broken[-1] ^= 1
        txn.put("delta", key, bytes(broken))

    damage(env, flip)
    with Snapshot(env) as snapshot, pytest.raises(CorruptionError, match="table t, row 1001"):
        snapshot.table(table).row(1001, [1])
    assert any("row 1001" in finding for finding in check(env, full=True))


@pytest.mark.parametrize("db", ["segments", "blocks", "delta", "tombs"])
def test_a_lost_entry_is_found(loaded: tuple[Environment, TableDef], db: str) -> None:
    env, _ = loaded
    damage(env, lambda txn: txn.delete(db, next(iter(txn.range(db, b"", None)))[0]))
    findings = check(env)
    assert findings
    assert all("table t" in finding for finding in findings)


def _lose(txn: WriteTxn) -> None:
    txn.delete("index", next(iter(txn.range("index", b"", None)))[0])


def _add(txn: WriteTxn) -> None:
    key = next(iter(txn.range("index", b"", None)))[0]
    txn.put("index", key[:-1] + b"\x77", (77).to_bytes(8, "big"))


def _redirect(txn: WriteTxn) -> None:
    key = next(iter(txn.range("index", b"", None)))[0]
    txn.delete("index", key)
    txn.put("index", key, (9).to_bytes(8, "big"))


@pytest.mark.parametrize("spoil", [_lose, _add, _redirect])
def test_a_damaged_index_is_found_and_mended(
    loaded: tuple[Environment, TableDef], spoil: Callable[[WriteTxn], None]
) -> None:
    env, table = loaded
    damage(env, spoil)
    findings = check(env, full=True)
    assert findings
    assert all("index pk" in finding for finding in findings)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        view = snapshot.table(table, writes)
        writes.rebuild_index(table, table.indexes[0], view)
        writes.commit()
    assert check(env, full=True) == []
    with Snapshot(env) as snapshot:
        view = snapshot.table(table)
        assert view.find(table.indexes[0], (0,)).tolist() == [1]
        assert len(view.range(table.indexes[0], (None, True), (None, True))) == 1001


def test_a_wrong_row_count_is_found(loaded: tuple[Environment, TableDef]) -> None:
    env, table = loaded
    from tarsdb.storage.table_meta import read_counters, write_counters

    def lie(txn: WriteTxn) -> None:
        counters = read_counters(txn, table.id, "t")
        counters.live_rows += 1
        write_counters(txn, table.id, counters)

    damage(env, lie)
    assert check(env, full=True) == ["table t: 1002 rows should be live, found 1001"]
