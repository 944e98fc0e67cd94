"""Long statements ask whether they are to stop, often enough, and leave nothing half done."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import tarsdb
from tarsdb import errors
from tarsdb.engine.context import Interrupt
from tarsdb.engine.search import vector_search
from tarsdb.index.flat import FlatIndex
from tarsdb.index.hnsw import nearest
from tarsdb.kernels import graph, ivf

FEW, MANY = 5_000, 15_000
STATEMENTS = [
    "COPY t TO '{path}.csv'",
    "COPY t TO '{path}.json'",
    "COPY t TO '{path}.parquet'",
    "CREATE INDEX made ON t (name)",
    "CREATE UNIQUE INDEX made ON t (name)",
    "REINDEX t",
    "PRAGMA integrity_check",
    "VACUUM",
]


class Checks:
    """Counts the checks of a statement; raises at one of them, where one is named."""

    def __init__(self) -> None:
        self.made = 0
        self.last: int | None = None

    def start(self, last: int | None = None) -> None:
        self.made, self.last = 0, last

    def check(self, _: Interrupt) -> None:
        self.made += 1
        if self.made == self.last:
            raise errors.InterruptError("the statement was interrupted")


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    counted = Checks()
    monkeypatch.setattr(Interrupt, "check", lambda self: counted.check(self))
    return counted


def filled(path: Path, rows: int) -> tarsdb.Connection:
    """Return a table of rows, as many dead ones and some that were changed one by one."""
    db = tarsdb.connect(path)
    db.execute("CREATE TABLE t (id INT PRIMARY KEY, name TEXT)")
    given = pa.table({"id": np.arange(2 * rows), "name": [f"n{-i}" for i in range(2 * rows)]})
    assert given.num_rows == 2 * rows
    db.execute("INSERT INTO t SELECT * FROM given")
    db.execute("DELETE FROM t WHERE id % 2 = 1")
    db.executemany("UPDATE t SET name = ? WHERE id = ?", [(f"u{i}", i) for i in range(0, 40, 2)])
    return db


def state(db: tarsdb.Connection, folder: Path) -> list[object]:
    files = sorted((f.name, f.read_bytes()) for f in folder.iterdir())
    rows = db.execute("SELECT count(*), sum(id), min(name), max(name) FROM t").fetchall()
    return [db.execute("SHOW INDEXES").fetchall(), rows, files]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Yield where COPY writes; its files stand beside the database."""
    made = tmp_path / "copies"
    made.mkdir()
    return made


@pytest.mark.parametrize("template", STATEMENTS)
def test_a_statement_asks_the_more_the_more_rows_there_are(
    tmp_path: Path, folder: Path, checks: Checks, template: str
) -> None:
    counts = []
    for rows in (FEW, MANY):
        db = filled(tmp_path / f"{rows}.tars", rows)
        checks.start()
        db.execute(template.format(path=folder / "copy"))
        counts.append(checks.made)
        db.close()
    assert counts[0] >= 2
    assert counts[1] >= counts[0] + (MANY - FEW) // 8192  # a block of narrow rows has so many


@pytest.mark.parametrize("template", STATEMENTS)
def test_a_statement_that_is_to_stop_ends_there_and_leaves_nothing_half_done(
    tmp_path: Path, folder: Path, checks: Checks, template: str
) -> None:
    sql = template.format(path=folder / "copy")
    with filled(tmp_path / "counted.tars", FEW) as counted:
        checks.start()
        counted.execute(sql)
        needed = checks.made
    for file in folder.iterdir():
        file.write_text("what was there before")
    for last in sorted({2, needed // 2, needed}):
        with filled(tmp_path / f"{last}.tars", FEW) as db:
            before = state(db, folder)
            checks.start(last)
            with pytest.raises(errors.InterruptError):
                db.execute(sql)
            assert checks.made == last
            checks.start()
            assert state(db, folder) == before
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            db.execute(sql)  # and it can be run again
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            for file in folder.iterdir():
                assert file.read_bytes() != b"what was there before"
                file.write_text("what was there before")


def test_a_copy_that_is_stopped_leaves_no_new_file(
    tmp_path: Path, folder: Path, checks: Checks
) -> None:
    with filled(tmp_path / "t.tars", FEW) as db:
        for suffix in ("csv", "json", "parquet"):
            checks.start(4)
            with pytest.raises(errors.InterruptError):
                db.execute(f"COPY t TO '{folder / 'copy'}.{suffix}'")
            assert list(folder.iterdir()) == []


def vectors(path: Path, method: str | None) -> tuple[tarsdb.Connection, str, list[np.ndarray]]:
    db, rng = tarsdb.connect(path), np.random.default_rng(7)
    db.execute("CREATE TABLE v (id INT PRIMARY KEY, emb VECTOR(8))")
    rows = rng.standard_normal((600, 8)).astype(np.float32)
    db.executemany("INSERT INTO v VALUES (?, ?)", list(enumerate(rows)))
    if method is not None:
        db.execute(f"CREATE INDEX near ON v USING {method} (emb)")
    sql = "SELECT id, emb <-> ? AS d FROM v ORDER BY d LIMIT 3"
    return db, sql, [rng.standard_normal((20, 8)).astype(np.float32)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", ["hnsw", "ivf"])
def test_a_batch_by_an_index_is_interrupted_between_its_parts(
    tmp_path: Path, checks: Checks, monkeypatch: pytest.MonkeyPatch, method: str, threads: int
) -> None:
    graph.wait()
    ivf.wait()
    db, sql, queries = vectors(tmp_path / "v.tars", method)
    db.execute(f"SET threads = {threads}")
    whole = db.execute(sql, queries).fetchall()
    assert "index near" in str(db.execute(f"EXPLAIN {sql}", queries).fetchall())
    monkeypatch.setattr(nearest, "QUERIES_AT_ONCE", 3)
    checks.start()
    db.execute(sql, [queries[0][:3]])
    of_few = checks.made
    checks.start()
    assert db.execute(sql, queries).fetchall() == whole
    asked = checks.made
    assert asked >= of_few + 7 - threads  # 7 parts for 1 or 2; more where queries are alone
    checks.start(asked - 1)
    with pytest.raises(errors.InterruptError):
        db.execute(sql, queries)
    assert asked - 1 <= checks.made <= asked + 1  # another thread may have asked meanwhile
    assert threads > 1 or checks.made == asked - 1


def test_a_batch_without_compiled_kernels_is_interrupted_between_small_parts(
    tmp_path: Path, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, sql, queries = vectors(tmp_path / "v.tars", None)
    whole = db.execute(sql, queries).numpy()["id"]
    monkeypatch.setattr(FlatIndex, "scan", lambda self, op: None)
    monkeypatch.setattr(vector_search, "REFERENCE_PRODUCTS", 600 * 8 * 4)
    checks.start()
    assert np.array_equal(db.execute(sql, queries).numpy()["id"], whole)
    asked = checks.made
    assert asked >= 5
    checks.start(asked - 1)
    with pytest.raises(errors.InterruptError):
        db.execute(sql, queries)
    assert checks.made == asked - 1
