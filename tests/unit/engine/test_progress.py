"""Callers hear how far an index build is, and may stop it without a trace."""

from __future__ import annotations

import pathlib
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.progress import Work
from tarsdb.engine.search.index_methods import METHODS
from tarsdb.errors import InterruptError
from tarsdb.kernels import graph, ivf
from tarsdb.storage import IndexPart, Snapshot, read_parts

ROWS, DIM = 3000, 40
BUILDS = {
    "create": "CREATE INDEX tv ON t USING {} (emb)", "reindex": "REINDEX t",
    "optimize": "OPTIMIZE t",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    graph.wait()
    ivf.wait()


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        vectors = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)
        db.table("t").insert({"id": np.arange(ROWS), "emb": vectors})
        yield db


def prepare(db: tarsdb.Connection, kind: str, method: str) -> None:
    if kind != "create":
        db.execute(BUILDS["create"].format(method))
        db.execute("DELETE FROM t WHERE id < 10")


def stored(db: tarsdb.Connection) -> list[IndexPart]:
    """Return the parts of index tv."""
    with Snapshot(db._require_session().env) as snapshot:
        table = snapshot.catalog.table("t")
        assert table is not None
        found = [i for i in table.indexes if i.name == "tv"]
        return [part for index in found for part in read_parts(snapshot.txn, index.id)]


def state(db: tarsdb.Connection) -> object:
    return (
        db.execute("SELECT * FROM tars_indexes ORDER BY name").fetchall(),
        db.execute("SELECT * FROM tars_commits").fetchall(),
        stored(db),
    )


@pytest.mark.parametrize("kind", BUILDS)
def test_a_build_is_announced_grows_and_ends_at_its_total(
    db: tarsdb.Connection, kind: str, method: str
) -> None:
    prepare(db, kind, method)
    heard: list[Work | tuple[int, int]] = []
    db.on_progress(lambda done, total: heard.append((done, total)), heard.append)
    db.execute(BUILDS[kind].format(method))
    db.on_progress(None)
    work, *steps = heard
    rows = ROWS if kind == "create" else ROWS - 10
    assert isinstance(work, Work)
    assert (work.what, work.unit, work.total) == ("index tv", "vectors", rows)
    assert len(steps) > 3
    assert [total for _, total in steps] == [rows] * len(steps)  # type: ignore[misc]
    done = [step[0] for step in steps]  # type: ignore[index]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == rows
    assert done.count(rows) == 1
    heard.clear()
    db.execute("REINDEX t")
    assert not heard


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", BUILDS)
def test_an_error_of_the_callback_leaves_everything_as_it_was(
    db: tarsdb.Connection, kind: str, method: str, last: bool
) -> None:
    prepare(db, kind, method)
    before = state(db)

    def report(done: int, total: int) -> None:
        if done == total if last else done > total // 2:
            raise KeyError("mine")

    db.on_progress(report)
    with pytest.raises(KeyError, match="mine"):
        db.execute(BUILDS[kind].format(method))
    db.on_progress(None)
    assert state(db) == before
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.execute(BUILDS[kind].format(method))  # nothing is in the way
    assert state(db) != before


@pytest.mark.parametrize("where", ["begin", "early", "last"])
@pytest.mark.parametrize("kind", BUILDS)
def test_interrupt_ends_a_build_wherever_it_is(
    db: tarsdb.Connection, kind: str, method: str, where: str
) -> None:
    prepare(db, kind, method)
    before = state(db)
    after: list[int] = []

    def begin(work: Work) -> None:
        if where == "begin":
            db.interrupt()

    def report(done: int, total: int) -> None:
        after.append(done)
        if where != "begin" and (done == total if where == "last" else done > 0):
            db.interrupt()

    db.on_progress(report, begin)
    with pytest.raises(InterruptError):
        db.execute(BUILDS[kind].format(method))
    db.on_progress(None)
    if where != "last":
        assert max(after) < ROWS // 2
    assert state(db) == before
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_an_index_stopped_inside_a_transaction_leaves_its_other_statements(
    db: tarsdb.Connection, method: str
) -> None:
    db.execute("BEGIN")
    db.execute("DELETE FROM t WHERE id = 1")
    db.on_progress(lambda done, total: db.interrupt())
    with pytest.raises(InterruptError):
        db.execute(BUILDS["create"].format(method))
    db.on_progress(None)
    db.execute("COMMIT")
    assert db.execute("SELECT count(*) FROM t").fetchall() == [(ROWS - 1,)]
    assert db.execute("SELECT count(*) FROM tars_indexes WHERE name = 'tv'").fetchall() == [(0,)]


def test_no_work_is_announced_for_no_rows(db: tarsdb.Connection, method: str) -> None:
    heard: list[object] = []
    db.execute("DELETE FROM t")
    db.on_progress(lambda done, total: heard.append(done), heard.append)
    db.execute(BUILDS["create"].format(method))
    assert not heard


@pytest.mark.parametrize(
    ("sql_type", "how"),
    [
        ("VECTOR(200)", "hnsw (emb) WITH (ef_construction = 16)"),
        ("VECTOR(64)", "hnsw (emb) WITH (ef_construction = 16, metric = 'ip', m = 8)"),
        ("VECTOR(16)", "hnsw (emb) WITH (ef_construction = 16, m = 32)"),
        ("VECTOR(200)", "ivf (emb)"),
        ("VECTOR(64)", "ivf (emb) WITH (metric = 'ip', lists = 40)"),
        ("VECTOR(200)", "ivf (emb) WITH (codes = 'bits', sample = 10)"),
        ("VECTOR(200)", "ivf (emb) WITH (codes = 'bits', refine_bits = 2)"),
        ("VECTOR(200)", "ivf (emb) WITH (codes = 'pq')"),
        ("VECTOR(100)", "ivf (emb) WITH (codes = 'none', metric = 'cosine')"),
    ],
)
def test_estimates_are_near_what_a_build_takes(
    tmp_path: pathlib.Path, sql_type: str, how: str
) -> None:
    rows = 20_000
    works: list[Work] = []
    with tarsdb.connect(tmp_path / "b.tars") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb {sql_type})")
        dim = int(sql_type[7:-1])
        vectors = np.random.default_rng(1).standard_normal((rows, dim)).astype(np.float32)
        db.table("t").insert({"id": np.arange(rows), "emb": vectors})
        db.on_progress(None, works.append)
        tracemalloc.start()
        held = tracemalloc.get_traced_memory()[0]
        db.execute(f"CREATE INDEX tv ON t USING {how}")
        peak = tracemalloc.get_traced_memory()[1] - held
        tracemalloc.stop()
        (work,) = works
        (part,) = stored(db)
    # how full the last tiles of lists are depends on the data
    assert work.disk_bytes == pytest.approx(part.nbytes, rel=0.05 if "hnsw" in how else 0.1)
    assert 0.6 * peak < work.memory_bytes < 1.6 * peak
