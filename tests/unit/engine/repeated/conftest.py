"""Files and comparisons for the tests of searches asked again."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

import tarsdb
from tarsdb.engine import executor
from tarsdb.engine.context import Context, Engines, Parameters
from tarsdb.engine.result import Result
from tarsdb.engine.search import vector_search
from tarsdb.engine.search.repeated_search import RepeatedSearch
from tarsdb.kernels import dispatch, graph
from tarsdb.sql.plan import Knn
from tarsdb.storage import Snapshot, merge
from tests.unit.engine.repeated.asking import (
    DIM,
    ROWS,
    Ways,
    insert,
)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    graph.wait()
    for kind in ("f32", *dispatch.CODED, dispatch.GATHER, dispatch.ANSWER):
        dispatch.prepare(kind)
    dispatch.wait()


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Ways:
    """Tell which searches were answered by what was kept; each is compared with the usual way."""
    seen = Ways()
    made: dict[RepeatedSearch, tuple[Engines, Knn]] = {}
    init, real, usual_way = RepeatedSearch.__init__, RepeatedSearch.answer, executor._knn

    def noted(self: RepeatedSearch, context: Context, plan: Knn, *rest: Any) -> None:
        made[self] = context.engines, plan
        init(self, context, plan, *rest)

    def compared(self: RepeatedSearch, parameters: Parameters) -> Result | None:
        found = real(self, parameters)
        if found is not None:
            if self.is_compiled:
                seen.append(True)
            else:
                seen.looked_up += 1
            engines, plan = made[self]
            with Snapshot(engines.env) as snapshot:
                context = Context(engines, snapshot, None, parameters)
                usual = vector_search.search(context, plan)
                stored = vector_search.few_values(context, plan, usual)
            assert stored is not None
            rows = vector_search.Shape.of(plan).shown(stored)
            assert found.rows() == rows
            assert [*map(type, found.rows()[0])] == [*map(type, rows[0])]
        return found

    def otherwise(context: Context, plan: Knn) -> Result:
        seen.append(False)
        return usual_way(context, plan)

    monkeypatch.setattr(RepeatedSearch, "__init__", noted)
    monkeypatch.setattr(RepeatedSearch, "answer", compared)
    monkeypatch.setattr(executor, "_knn", otherwise)
    return seen


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A file with rows and an index: made once, each test has a copy."""
    path = tmp_path_factory.mktemp("made") / "a.tars"
    with tarsdb.connect(path) as db:
        db.execute(
            "CREATE TABLE t (id BIGINT PRIMARY KEY, a SMALLINT, b INT, c REAL, d DOUBLE, day DATE,"
            f" word TEXT, flag BOOLEAN, rare INT, emb VECTOR({DIM}))"
        )
        insert(db, 0, ROWS, 1)
        db.execute("CREATE INDEX tv ON t USING hnsw (emb)")
    return path


@pytest.fixture
def db(made: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(shutil.copy(made, tmp_path / "a.tars")) as db:
        yield db


@pytest.fixture
def scattered(db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch) -> tarsdb.Connection:
    """Rows of every kind of place: segments that overlap, the delta, some changed twice or gone."""
    for _ in range(3):
        db.execute("UPDATE t SET b = b + 1 WHERE id % 3 = 0")
        db.execute("UPDATE t SET c = c + 1 WHERE id % 7 = 0")
        merge(db._require_session().env, force=True)
    insert(db, ROWS, 200, 7)
    db.execute("UPDATE t SET a = 9 WHERE id % 10 = 0")
    db.execute("UPDATE t SET a = 10, d = 0.5 WHERE id % 20 = 0")
    db.execute("DELETE FROM t WHERE id % 11 = 0")
    return db


@pytest.fixture
def unindexed(db: tarsdb.Connection) -> tarsdb.Connection:
    db.execute("DROP INDEX tv")
    return db
