"""Vector indexes behind the writers: parts made in the background, and what stops a build."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.search import index_build, vector_index
from tarsdb.engine.search.calibration import Calibration
from tarsdb.engine.search.index_methods import METHODS
from tarsdb.errors import ConflictError, CorruptionError, InterruptError
from tarsdb.kernels import graph, ivf
from tarsdb.storage import IndexPart, Snapshot, read_parts
from tarsdb.storage.index_parts import all_digests

DIM = 8


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    graph.wait()
    ivf.wait()


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "a.tars"


@pytest.fixture
def db(path: pathlib.Path, method: str) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        add(db, 0, 300)
        db.execute(f"CREATE INDEX tv ON t USING {method} (emb)")
        yield db


def add(db: tarsdb.Connection, start: int, rows: int) -> None:
    vectors = np.random.default_rng(start).standard_normal((rows, DIM)).astype(np.float32)
    db.table("t").insert({"id": np.arange(start, start + rows), "emb": vectors})


def parts(db: tarsdb.Connection) -> tuple[IndexPart, ...]:
    with Snapshot(db._require_session().env) as snapshot:
        table = snapshot.catalog.table("t")
        assert table is not None
        index = next(i for i in table.indexes if i.name == "tv")
        return read_parts(snapshot.txn, index.id)


def blobs(db: tarsdb.Connection) -> int:
    with db._require_session().env.read() as txn:
        return len(all_digests(txn))


def settle(db: tarsdb.Connection) -> None:
    index_build.wait(db._require_session().env)


def test_many_fresh_rows_become_a_part(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_build, "FRESH_ROWS", 100)
    add(db, 1000, 80)
    settle(db)
    assert [part.rows for part in parts(db)] == [300]
    add(db, 2000, 80)
    settle(db)
    (one,) = parts(db)  # 160 fresh rows take in the 300 before them
    assert one.rows == 460
    for number in range(3, 40):
        add(db, number * 1000, 60)
        settle(db)
    sizes = [part.rows for part in parts(db)]
    assert sum(sizes) >= 460 + 37 * 60 - 160
    assert len(sizes) <= 4
    query = np.zeros(DIM, np.float32)
    answer = db.execute("SELECT id FROM t ORDER BY emb <-> ? LIMIT 10", (query,)).fetchall()
    db.execute("DROP INDEX tv")
    exact = db.execute("SELECT id FROM t ORDER BY emb <-> ? LIMIT 10", (query,)).fetchall()
    assert len(set(answer) & set(exact)) >= 9


def test_deleted_rows_leave_the_index(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_build, "FRESH_ROWS", 10)
    db.execute("DELETE FROM t WHERE id >= 40")
    settle(db)
    assert [part.rows for part in parts(db)] == [40]


def test_no_upkeep_where_it_is_switched_off(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_build, "FRESH_ROWS", 10)
    with tarsdb.connect(path, options=tarsdb.OpenOptions(background_merge=False)) as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        db.execute("CREATE INDEX tv ON t USING hnsw (emb)")
        add(db, 0, 200)
        settle(db)
        assert parts(db) == ()


def test_an_interrupted_build_leaves_nothing(path: pathlib.Path, method: str) -> None:
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        add(db, 0, 40_000)
        slowly = {"hnsw": "m = 32", "ivf": "iterations = 1000"}[method]
        timer = threading.Timer(0.3, db.interrupt)
        timer.start()
        with pytest.raises(InterruptError):
            db.execute(f"CREATE INDEX tv ON t USING {method} (emb) WITH ({slowly})")
        timer.join()
        assert db.execute("SELECT name FROM tars_indexes WHERE name = 'tv'").fetchall() == []
        assert blobs(db) == 0
        assert db.execute("SELECT count(*) FROM t").fetchone() == (40_000,)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize(
    "script",
    [
        "BEGIN; REINDEX tv; DROP INDEX tv; COMMIT",
        "BEGIN; DROP INDEX tv; CREATE INDEX x ON t USING hnsw (emb); DROP INDEX x; COMMIT",
        "BEGIN; REINDEX tv; DROP TABLE t; COMMIT",
        "DROP TABLE t",
    ],
)
def test_a_dropped_index_leaves_no_parts(db: tarsdb.Connection, script: str) -> None:
    db.execute(script)
    assert blobs(db) == 0


def test_a_savepoint_brings_parts_back(db: tarsdb.Connection) -> None:
    db.execute("BEGIN; REINDEX tv; SAVEPOINT s; DROP INDEX tv; ROLLBACK TO s; COMMIT")
    assert [part.rows for part in parts(db)] == [300]


def test_a_reindex_beside_a_drop_conflicts(db: tarsdb.Connection, path: pathlib.Path) -> None:
    with tarsdb.connect(path) as other:
        other.execute("BEGIN; REINDEX tv")
        db.execute("DROP INDEX tv")
        with pytest.raises(ConflictError):
            other.execute("COMMIT")
    assert blobs(db) == 0


def test_a_list_of_parts_that_is_damaged_is_made_anew(db: tarsdb.Connection) -> None:
    env = db._require_session().env
    query = (np.zeros(DIM, np.float32),)
    sql = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 300"
    expected = db.execute(sql, query).fetchall()
    with env.read() as txn:
        key = next(key for key, _ in txn.range("meta", b"parts/", b"parts0"))
        whole = bytes(txn.get("meta", key) or b"")
    env.stage(lambda txn: txn.put("meta", key, whole[:-3] + b"999"))
    assert db.execute(sql, query).fetchall() == expected
    assert "REINDEX" in str(db.execute("EXPLAIN " + sql, query).fetchall())
    assert "REINDEX" in str(db.execute("PRAGMA integrity_check").fetchall())
    db.execute("VACUUM")
    db.execute("REINDEX tv")
    assert [part.rows for part in parts(db)] == [300]
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize(
    "steps",
    [
        np.zeros((2, 3)),
        np.zeros(4),
        np.array([[0.0, 1.0]]),
        np.array([[np.nan, 1.0]]),
        np.array([[1e300, 1.0]]),
        np.array([[10.0, np.nan]]),
        np.array([[10, 1]]),
    ],
)
def test_a_calibration_from_outside_is_checked(steps: np.ndarray, method: str) -> None:
    if steps.ndim == 2 and steps.shape[1] == 2:
        more = len(METHODS[method].calibrated) - 1
        steps = np.concatenate([steps, *[steps[:, 1:]] * more], axis=1)
    with pytest.raises(CorruptionError):
        Calibration(steps, METHODS[method])


def test_parts_in_memory_are_bounded(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_index, "KEPT_BYTES", 1)
    for _ in range(3):
        add(db, 100_000 + len(parts(db)) + np.random.default_rng().integers(10**6).item(), 5)
        db.execute("REINDEX tv")
        db.execute("SELECT id FROM t ORDER BY emb <-> ? LIMIT 3", (np.zeros(DIM),)).fetchall()
    assert len(db._require_session().env.caches["index parts"]) == 1


def test_rows_committed_during_a_build_are_built_next(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_build, "FRESH_ROWS", 100)
    refresh, calls = index_build.refresh, []

    def slow(*arguments: object) -> bool:
        done = refresh(*arguments)  # type: ignore[arg-type]
        calls.append(done)
        if len(calls) == 1:  # while the thread is busy no other is started
            add(db, 5000, 150)
        return done

    monkeypatch.setattr(index_build, "refresh", slow)
    add(db, 1000, 150)
    settle(db)
    assert calls == [True, True]
    assert sum(part.rows for part in parts(db)) == 600
