"""Write sets: what one transaction does to keys on disk, conflicts, savepoints, catalog."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from tarsdb.errors import ConflictError, IntegrityError
from tarsdb.options import OpenOptions
from tarsdb.schema import ColumnDef, IndexDef
from tarsdb.storage import Environment, Snapshot, WriteSet, check, merge, vacuum
from tarsdb.types import parse_type
from tests.unit.storage import tables
from tests.unit.storage.tables import DIM, vector

OPTIONS = OpenOptions(background_merge=False, segment_rows=512)


@pytest.fixture
def env(tmp_path: pathlib.Path) -> Iterator[Environment]:
    env = Environment.open(tmp_path / "t.tars", OPTIONS)
    yield env
    assert check(env, full=True) == []
    env.release()


def test_updating_scalars_writes_no_vector(env: Environment) -> None:
    table = tables.make_table(env)
    (rowid,) = tables.insert(env, table, tables.rows(1))
    before = tables.keys_of(env, "delta")
    tables.update(env, table, rowid, (1, "other", vector(1)))
    fresh = tables.keys_of(env, "delta").keys() - before.keys()
    assert len(fresh) == 1
    assert int.from_bytes(next(iter(fresh))[4:8], "big") == 0  # group 0: the scalars
    tables.update(env, table, rowid, (1, "other", vector(2)))
    assert tables.contents(env, table)[rowid] == (1, "other", vector(2).tolist())


def test_deleting_and_updating_rewrites_no_block(env: Environment) -> None:
    table = tables.make_table(env)
    tables.load(env, table, tables.rows(*range(600)))
    before = {db: tables.keys_of(env, db) for db in ("blocks", "segments")}
    tables.update(env, table, 5, (4, "new", vector(9)))
    tables.delete(env, table, [6, 7])
    assert {db: tables.keys_of(env, db) for db in ("blocks", "segments")} == before
    found = tables.contents(env, table)
    assert len(found) == 598
    assert found[5] == (4, "new", vector(9).tolist())


def test_null_vectors_have_no_version(env: Environment) -> None:
    table = tables.make_table(env)
    new = [(i, "x", None if i % 2 else vector(i)) for i in range(300)]
    tables.load(env, table, new)
    with Snapshot(env) as snapshot:
        view = snapshot.table(table)
        assert sum(len(block.rowids) for block in view.vectors(3)) == 150
        values = [view.row(rowid, [3])[0] for rowid in (1, 2)]  # type: ignore[index]
        assert np.array_equal(values[0], vector(0))
        assert values[1] is None
        gathered = view.rows(np.array([2, 1, 999]), [3, 1])
        assert gathered[0].validity is not None
        assert gathered[0].validity.tolist() == [False, True, False]
        assert gathered[1].to_list() == [1, 0, None]


def test_first_committer_wins_on_a_row(env: Environment) -> None:
    table = tables.make_table(env)
    (rowid,) = tables.insert(env, table, tables.rows(1))
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        view = snapshot.table(table, writes)
        writes.update(table, view, [rowid], tables.changed(table, [(1, "mine", None)]))
        tables.update(env, table, rowid, (1, "theirs", None))
        with pytest.raises(ConflictError, match=f"row {rowid} was changed by commit") as caught:
            writes.commit()
    assert caught.value.retryable
    assert tables.contents(env, table)[rowid][1] == "theirs"


def test_a_key_taken_meanwhile_conflicts_and_a_known_one_violates(env: Environment) -> None:
    table = tables.make_table(env)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        writes.insert(table, snapshot.table(table, writes), tables.rows(7))
        tables.insert(env, table, tables.rows(7))
        with pytest.raises(ConflictError, match="same key of pk"):
            writes.commit()
    with pytest.raises(IntegrityError, match=r"PRIMARY KEY index pk: \(a\) = \(7\)"):
        tables.insert(env, table, tables.rows(8, 7))
    assert len(tables.contents(env, table)) == 1


def test_vacuum_makes_older_updates_conflict(env: Environment) -> None:
    table = tables.make_table(env)
    first, second = tables.insert(env, table, tables.rows(1, 2))
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        writes.update(
            table,
            snapshot.table(table, writes),
            [first],
            tables.changed(table, [(1, "mine", None)]),
        )
        tables.update(env, table, first, (1, "theirs", None))
        tables.delete(env, table, [second])
        vacuum(env)
        with pytest.raises(ConflictError, match="VACUUM"):
            writes.commit()
    assert tables.contents(env, table) == {first: (1, "theirs", None)}


def test_altered_table_conflicts(env: Environment) -> None:
    table = tables.make_table(env)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        writes.insert(table, snapshot.table(table, writes), tables.rows(1))
        other = WriteSet(env, snapshot.commit)
        other.put_object("table", "t", dataclasses.replace(table, checks=(("c", "a > 0"),)))
        other.commit()
        with pytest.raises(ConflictError, match="table t was changed by commit"):
            writes.commit()


def test_two_creations_of_one_name_conflict(env: Environment) -> None:
    table = tables.make_table(env)
    with Snapshot(env) as snapshot:
        sets = [WriteSet(env, snapshot.commit) for _ in range(2)]
        for writes in sets:
            fresh = dataclasses.replace(table, id=writes.new_id(), name="Other", version=0)
            writes.put_object("table", "Other", fresh)
        sets[0].commit()
        with pytest.raises(ConflictError, match="other"):
            sets[1].commit()
    assert tables.current(env, "OTHER").name == "Other"


def test_dependency_on_a_changed_object_conflicts(env: Environment) -> None:
    table = tables.make_table(env)
    tables.make_table(env, name="used")
    used = tables.current(env, "used")
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        writes.insert(table, snapshot.table(table, writes), tables.rows(1))
        writes.depend("table", "used", used.version)
        other = WriteSet(env, snapshot.commit)
        other.delete_object("table", "used")
        other.drop_table_data(used)
        other.commit()
        with pytest.raises(ConflictError, match="used was removed"):
            writes.commit()


def test_added_column_shows_its_default_and_dropped_one_nothing(env: Environment) -> None:
    table = tables.make_table(env)
    tables.load(env, table, tables.rows(*range(300)))
    tables.insert(env, table, tables.rows(1000))
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        added = (
            ColumnDef(4, "d", parse_type("INT"), missing=42),
            ColumnDef(5, "e", parse_type(f"VECTOR({DIM})")),
            ColumnDef(6, "f", parse_type("UUID"), missing="ab" * 16),
        )
        kept = tuple(c for c in table.columns if c.name != "c")
        wider = dataclasses.replace(table, columns=kept + added, next_column_id=7)
        writes.put_object("table", "t", wider)
        writes.commit()
    table = tables.current(env)
    assert table.version > 1
    tables.insert(env, table, [(2000, "new", 1, vector(3), b"0" * 16)])
    expected = (1000, "text 1000", 42, None, b"\xab" * 16)
    for step in ("before", "merged", "vacuumed"):
        found = tables.contents(env, table)
        assert found[301] == expected, step
        assert found[1] == (0, "text 0", 42, None, b"\xab" * 16), step
        assert found[302] == (2000, "new", 1, vector(3).tolist(), b"0" * 16), step
        merge(env, force=True) if step == "before" else vacuum(env)
        assert check(env, full=True) == []
    groups = {int.from_bytes(key[4:8], "big") for key in tables.keys_of(env, "blocks")}
    assert groups == {0, 5}  # the dropped vector column is gone


def test_create_index_on_existing_and_own_rows(env: Environment) -> None:
    table = tables.make_table(env)
    tables.load(env, table, tables.rows(*range(400)))
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        writes.insert(table, snapshot.table(table, writes), tables.rows(1000))
        writes.delete(table, snapshot.table(table, writes), np.array([1]))
        index = IndexDef(writes.new_id(), "extra", "t", (2,), True)
        wider = dataclasses.replace(table, indexes=(*table.indexes, index))
        writes.put_object("table", "t", wider)
        view = snapshot.table(wider, writes)
        writes.rebuild_index(wider, index, view)
        assert view.find(index, ("text 5",)).tolist() == [6]
        assert len(view.find(index, ("text 1000",))) == 1
        assert view.find(index, ("text 0",)).tolist() == []
        with pytest.raises(IntegrityError):
            writes.insert(wider, view, [(2000, "text 7", None)])
        writes.commit()
    with Snapshot(env) as snapshot:
        view = snapshot.table(tables.current(env))
        assert view.find(index, ("text 1000",)).tolist() == [401]
        assert len(view.range(index, (("text 1",), True), (("text 2",), False))) == 112


def test_unique_index_over_duplicates_is_refused(env: Environment) -> None:
    table = tables.make_table(env)
    tables.insert(env, table, [(1, "same", None), (2, "same", None), (3, None, None)])
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        index = IndexDef(writes.new_id(), "u", "t", (2,), True)
        wider = dataclasses.replace(table, indexes=(*table.indexes, index))
        with pytest.raises(IntegrityError, match=r"u: \(b\) = \('same'\)"):
            writes.rebuild_index(wider, index, snapshot.table(wider, writes))


def test_index_build_conflicts_with_rows_committed_meanwhile(env: Environment) -> None:
    table = tables.make_table(env)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        index = IndexDef(writes.new_id(), "u", "t", (2,))
        wider = dataclasses.replace(table, indexes=(*table.indexes, index))
        writes.put_object("table", "t", wider)
        writes.rebuild_index(wider, index, snapshot.table(wider, writes))
        tables.insert(env, table, tables.rows(1))
        with pytest.raises(ConflictError, match="while an index"):
            writes.commit()


@pytest.mark.parametrize("count", [3, 3000])
def test_dropping_a_table_removes_its_data(env: Environment, count: int) -> None:
    table = tables.make_table(env)
    tables.load(env, table, tables.rows(*range(count)))
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        writes.delete_object("table", "t")
        writes.drop_table_data(table)
        assert writes.overlay(snapshot.catalog).table("t") is None
        writes.commit()
    vacuum(env)
    for db in ("delta", "blocks", "segments", "tombs", "index"):
        assert not tables.keys_of(env, db), db


def test_dropping_an_index_removes_its_entries(env: Environment) -> None:
    table = tables.make_table(env)
    tables.insert(env, table, tables.rows(1, 2, 3))
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        writes.put_object("table", "t", dataclasses.replace(table, indexes=table.indexes[:1]))
        writes.commit()
    assert len(tables.keys_of(env, "index")) == 3


def test_overlay_follows_savepoints(env: Environment) -> None:
    table = tables.make_table(env)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        mark = writes.savepoint()
        writes.put_object("table", "New", dataclasses.replace(table, id=99, name="New"))
        catalog = writes.overlay(snapshot.catalog)
        assert catalog.table_names() == ["New", "t"]
        assert writes.overlay(snapshot.catalog) is catalog
        writes.rollback_to(mark)
        assert writes.overlay(snapshot.catalog).table_names() == ["t"]
        assert writes.is_empty


def test_ids_are_never_repeated(env: Environment) -> None:
    writes = WriteSet(env, 0)
    found = [writes.new_id() for _ in range(600)]
    env.caches.clear()
    found += [writes.new_id() for _ in range(10)]
    assert len(set(found)) == 610


def test_blobs_live_while_leased_or_referenced(env: Environment) -> None:
    writes = WriteSet(env, 0)
    digest = writes.put_blob(b"weights" * 1000)
    vacuum(env)
    assert writes.read_blob(digest) == b"weights" * 1000
    writes.discard()
    vacuum(env)
    assert not tables.keys_of(env, "blobs")
