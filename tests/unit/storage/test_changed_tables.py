"""Merge and vacuum beside ALTER TABLE: they may be called with a definition that is old by now."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from tarsdb.options import Durability, OpenOptions
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.storage import Environment, Snapshot, WriteSet, check, failpoints, merge, vacuum
from tarsdb.types import parse_type
from tests.unit.storage import tables
from tests.unit.storage.tables import vector

OPTIONS = OpenOptions(
    background_merge=False, segment_rows=256, delta_limit_rows=100, durability=Durability.RELAXED
)


@pytest.fixture
def env(tmp_path: pathlib.Path) -> Iterator[Environment]:
    env = Environment.open(tmp_path / "t.tars", OPTIONS)
    yield env
    failpoints.disarm()
    assert check(env, full=True) == []
    env.release()


def add_columns(env: Environment, table: TableDef) -> TableDef:
    """Add a scalar and a vector column, as ALTER TABLE does."""
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        first = table.next_column_id
        added = (
            ColumnDef(first, "added", parse_type("TEXT")),
            ColumnDef(first + 1, "second", parse_type(f"VECTOR({tables.DIM})")),
        )
        changed = dataclasses.replace(
            table, columns=(*table.columns, *added), next_column_id=first + 2
        )
        writes.put_object("table", table.name, changed)
        writes.commit()
    return tables.current(env)


def filled(env: Environment) -> tuple[TableDef, TableDef, dict[int, tuple[object, ...]]]:
    """Return (definition from before, definition now, contents) of a table that grew columns."""
    old = tables.make_table(env)
    tables.insert(env, old, tables.rows(1, 2, 3))
    new = add_columns(env, old)
    more = [(k, f"t{k}", vector(k), f"new {k}", vector(-k)) for k in range(10, 20)]
    rowids = tables.insert(env, new, more)
    tables.delete(env, new, rowids[:2])
    return old, new, tables.contents(env, new)


def test_merge_with_an_old_definition_keeps_new_columns(env: Environment) -> None:
    old, new, before = filled(env)
    assert merge(env, old, force=True) > 0
    assert tables.contents(env, new) == before


def test_vacuum_with_an_old_definition_keeps_new_columns(env: Environment) -> None:
    old, new, before = filled(env)
    merge(env, new, force=True)
    tables.delete(env, new, [rowid for rowid in before if before[rowid][0] in (1, 12)])
    before = tables.contents(env, new)
    vacuum(env, old)
    assert tables.contents(env, new) == before


def test_combining_with_an_old_definition_keeps_new_columns(env: Environment) -> None:
    old, new, _ = filled(env)
    merge(env, new, force=True)
    tables.insert(env, new, [(30, "x", vector(30), "new 30", vector(3))])
    before = tables.contents(env, new)
    merge(env, old, force=True)
    merge(env, old, force=True)
    assert tables.contents(env, new) == before


def test_a_column_added_between_reading_and_writing_a_merge(env: Environment) -> None:
    table = tables.make_table(env)
    tables.insert(env, table, tables.rows(1, 2, 3))
    changed: list[TableDef] = []

    def alter() -> None:
        failpoints.disarm("merge.before_stage")
        new = add_columns(env, table)
        tables.insert(env, new, [(7, "seven", vector(7), "new", vector(70))])
        changed.append(new)

    failpoints.arm("merge.before_stage", alter)
    merge(env, table, force=True)
    merge(env, table, force=True)
    rows = sorted(tables.contents(env, changed[0]).values())
    assert rows[-1] == (7, "seven", vector(7).tolist(), "new", vector(70).tolist())


def test_a_dropped_table_is_left_alone(env: Environment) -> None:
    table = tables.make_table(env)
    tables.insert(env, table, tables.rows(1, 2, 3))
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        writes.delete_object("table", "t")
        writes.drop_table_data(table)
        writes.commit()
    assert merge(env, table, force=True) == 0
    assert vacuum(env, table) == 0
    assert tables.keys_of(env, "segments") == tables.keys_of(env, "delta") == {}


def test_wide_rows_are_not_combined_over_and_over(tmp_path: pathlib.Path) -> None:
    env = Environment.open(tmp_path / "wide.tars", OpenOptions(durability=Durability.RELAXED))
    table = tables.make_table(env, ("BIGINT", "VECTOR(16000)"))
    one = np.ones(16000, dtype=np.float32)
    tables.load(env, table, [(key, one) for key in range(640)])

    def vectors() -> list[bytes]:
        return [key for key in tables.keys_of(env, "segments") if key[4:8] != bytes(4)]

    before = vectors()
    assert len(before) >= 2
    merge(env, table, force=True)
    assert vectors() == before
    env.release()
