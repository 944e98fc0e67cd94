"""Segments without vectors hold more rows; vectors lie as before and are read without a copy."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

import tarsdb
from tarsdb.options import OpenOptions
from tarsdb.storage import Environment, Snapshot, merge
from tests.unit.storage import tables

ROWS, DIM = 20_000, 8
SEGMENT_ROWS = OpenOptions().segment_rows


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "a.tars"


def load(path: pathlib.Path, columns: str, **values: object) -> None:
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE TABLE t (id BIGINT PRIMARY KEY, {columns})")
        db.table("t").insert({"id": np.arange(ROWS), **values})


def sizes(path: pathlib.Path) -> Iterator[tuple[int, list[int]]]:
    """Yield column groups and the rows of their segments."""
    env = Environment.open(path, OpenOptions(background_merge=False))
    try:
        with Snapshot(env) as snapshot:
            view = snapshot.table(tables.current(env), None)
            yield 0, [segment.rows for segment in view.scalars().segments]
            for column in view.table.vector_columns:
                found = view.vector_group(column).segments
                yield column.id, [segment.rows for segment in found]
    finally:
        env.release()


def test_narrow_rows_fill_fewer_segments(path: pathlib.Path) -> None:
    load(path, "x DOUBLE", x=np.arange(ROWS) / 7)
    ((_, found),) = sizes(path)
    assert len(found) == -(-ROWS // (4 * SEGMENT_ROWS))
    assert max(found) - min(found) <= 1


@pytest.mark.parametrize(
    ("length", "most"), [(20, 4 * SEGMENT_ROWS), (100, 5_000), (1_000, SEGMENT_ROWS)]
)
def test_wide_rows_stay_in_small_segments(path: pathlib.Path, length: int, most: int) -> None:
    load(path, "body TEXT", body=[chr(97 + i % 26) * length for i in range(ROWS)])
    ((_, found),) = sizes(path)
    assert most // 2 < max(found) <= most


def test_scalars_beside_vectors_grow_when_combined(path: pathlib.Path) -> None:
    vectors = np.random.default_rng(1).random((ROWS, DIM), np.float32)
    load(path, f"x DOUBLE, v VECTOR({DIM})", x=np.arange(ROWS) / 7, v=vectors)
    before = dict(sizes(path))
    assert max(before[0]) <= SEGMENT_ROWS
    env = Environment.open(path, OpenOptions(background_merge=False))
    merge(env, force=True)
    env.release()
    after = dict(sizes(path))
    assert len(after[0]) == -(-ROWS // (4 * SEGMENT_ROWS))
    assert after[3] == before[3]
    with tarsdb.connect(path) as db:
        found = db.execute("SELECT id, x, v FROM t ORDER BY id").numpy()
        assert np.array_equal(found["x"], np.arange(ROWS) / 7)
        assert np.array_equal(np.stack(found["v"]), vectors)
        db.execute("DELETE FROM t WHERE id % 3 = 1")
        kept = np.flatnonzero(np.arange(ROWS) % 3 != 1)
        found = db.execute("SELECT id, v FROM t ORDER BY id").numpy()
        assert np.array_equal(found["id"], kept)
        assert np.array_equal(np.stack(found["v"]), vectors[kept])


def test_vectors_of_large_segments_are_not_copied(path: pathlib.Path) -> None:
    vectors = np.random.default_rng(1).random((ROWS, DIM), np.float32)
    load(path, f"x DOUBLE, v VECTOR({DIM})", x=np.arange(ROWS) / 7, v=vectors)
    env = Environment.open(path, OpenOptions(background_merge=False))
    merge(env, force=True)
    with Snapshot(env) as snapshot:
        view = snapshot.table(tables.current(env), None)
        chunks = list(view.chunks([1, 3]))
        parts = view.vector_group(view.table.vector_columns[0]).segments
        assert len(parts) <= len(chunks) < len(parts) + len(view.scalars().segments)
        assert not any(chunk.columns[1].values.flags.owndata for chunk in chunks)
        assert not any(chunk.columns[1].values.flags.writeable for chunk in chunks)
        assert np.array_equal(np.concatenate([c.columns[1].values for c in chunks]), vectors)
        # the control: rows across two of the vectors' segments are gathered
        across = view.rows(np.arange(parts[0].high - 9, parts[0].high + 9), [3])[0]
        assert across.values.flags.writeable
    env.release()
