"""USING auto chooses by what was asked: rows wanted, recall, filters."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.search import asked, index_choice
from tarsdb.engine.search.asked import ENOUGH, Asked, Observed
from tarsdb.kernels import dispatch, graph, ivf
from tarsdb.storage import IndexPart, Snapshot, read_parts

DIM, ROWS = 24, 6000
SEARCH = "SELECT id FROM t ORDER BY emb <-> ? LIMIT {}"
AMONG = "SELECT id FROM t WHERE grp = 7 ORDER BY emb <-> ? LIMIT 5"
RNG = np.random.default_rng(3)
QUERY = RNG.standard_normal(DIM).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    graph.wait()
    ivf.wait()
    dispatch.prepare("f32")
    dispatch.wait()


@pytest.fixture
def db(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tarsdb.Connection]:
    monkeypatch.setattr(index_choice, "FEWEST_ROWS", 5000)  # so that tests are fast
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, grp INT, emb VECTOR({DIM}))")
        db.execute("CREATE INDEX tg ON t (grp)")
        centres = RNG.standard_normal((40, DIM))[RNG.integers(0, 40, ROWS)]
        vectors = (centres + 0.4 * RNG.standard_normal((ROWS, DIM))).astype(np.float32)
        db.table("t").insert({"id": np.arange(ROWS), "grp": np.arange(ROWS) % 60, "emb": vectors})
        yield db


def ask(db: tarsdb.Connection, sql: str, times: int = ENOUGH) -> None:
    for _ in range(times):
        db.execute(sql, (QUERY,)).fetchall()


def optimized(db: tarsdb.Connection) -> tuple[str, str]:
    ((_, method, reason),) = db.execute("OPTIMIZE t").fetchall()
    return method, reason


def listed(db: tarsdb.Connection) -> Any:
    return db.execute("SELECT asked FROM tars_indexes WHERE name = 'tv'").fetchall()[0][0]


def part(db: tarsdb.Connection) -> IndexPart:
    with Snapshot(db._require_session().env) as snapshot:
        table = snapshot.catalog.table("t")
        assert table is not None
        (index,) = (index for index in table.indexes if index.name == "tv")
        return read_parts(snapshot.txn, index.id)[-1]


@pytest.mark.parametrize("is_repeated", [True, False])
def test_searches_are_counted_once_each(db: tarsdb.Connection, is_repeated: bool) -> None:
    db.execute("CREATE INDEX tv ON t USING auto (emb)")
    assert listed(db) is None
    for at in range(30):
        literal = f"[{', '.join(map(str, QUERY + at))}]"
        if is_repeated:
            db.execute(SEARCH.format(20), (QUERY,)).fetchall()
        else:
            db.execute(f"SELECT id FROM t ORDER BY emb <-> '{literal}' LIMIT 20").fetchall()
    db.execute("SELECT id FROM t ORDER BY emb <-> ? LIMIT 20", (np.stack([QUERY] * 10),)).fetchall()
    ask(db, AMONG, 10)
    db.execute("SELECT id FROM t ORDER BY emb <=> ? LIMIT 900", (QUERY,)).fetchall()  # not its own
    assert (
        listed(db) == "50 searches, most for up to 20 rows at 0.95, 20% among few rows of a filter"
    )


def test_searches_among_few_rows_need_no_index(db: tarsdb.Connection) -> None:
    assert db.execute("CREATE INDEX tv ON t USING auto (emb)").fetchall()[0][1] == "hnsw"
    ask(db, AMONG, ENOUGH - 1)
    assert optimized(db)[0] == "hnsw"  # not enough to choose by
    ask(db, AMONG, 1)
    expected = f"exact search does: {ENOUGH} searches, all among few rows of a filter"
    assert optimized(db) == ("flat", expected)
    assert part(db).asked == (ENOUGH, 0, 0.0, 1.0)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    ask(db, SEARCH.format(10), 2)  # 2 of 102: a whole search is far dearer than one among few
    assert optimized(db)[0] == "hnsw"


def test_what_was_chosen_by_is_kept_for_others(
    db: tarsdb.Connection, tmp_path: pathlib.Path
) -> None:
    db.execute("CREATE INDEX tv ON t USING auto (emb)")
    ask(db, AMONG)
    chosen = optimized(db)
    db.close()
    with tarsdb.connect(tmp_path / "a.tars") as again:
        assert listed(again) is None
        assert optimized(again) == chosen
        ask(again, SEARCH.format(10))
        assert optimized(again)[0] == "hnsw"
        assert part(again).asked == (ENOUGH, 10, 0.95, 0.0)


def test_a_part_reaches_the_recall_of_as_many_rows_as_are_wanted(db: tarsdb.Connection) -> None:
    db.execute("CREATE INDEX tv ON t USING auto (emb)")
    ask(db, SEARCH.format(2500))
    method, reason = optimized(db)
    assert method == "flat"
    assert reason.endswith("do not reach a recall of 0.95 of 2,500 rows faster than exact search")
    ask(db, SEARCH.format(10), 20 * ENOUGH)
    method, reason = optimized(db)
    assert method == "hnsw"
    assert f"; {21 * ENOUGH:,} searches, most for up to 10 rows at 0.95, 0% among" in reason


def test_the_recall_asked_for_is_one_a_part_must_reach(db: tarsdb.Connection) -> None:
    db.execute("CREATE INDEX tv ON t USING auto (emb) WITH (target_recall = 0.5)")
    db.execute("SET target_recall = 0.99")
    ask(db, SEARCH.format(10))
    optimized(db)
    assert part(db).asked == (ENOUGH, 10, 0.99, 0.0)
    promised = index_choice.Choice("hnsw", {}, target=0.5, asked=Asked(ENOUGH, 30, 0.99)).promised
    assert promised == (0.99, 30)
    assert index_choice.Choice("hnsw", {}, target=0.5).promised == (0.5, 10)


def test_most_searches_decide() -> None:
    seen = Observed()
    for k, times in ((10, 60), (100, 29), (1234, 11)):
        seen.tally(k, 0.95, False)[0] += times
    assert seen.summary() == Asked(100, 1300, 0.95, 0.0)
    seen.tally(7, 0.9, True)[0] += 100
    seen.tally(100, 0.95, False)[0] += 20
    assert seen.summary() == Asked(220, 100, 0.95, 100 / 220)
    assert Observed().summary() == Asked()


def test_kinds_of_searches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "_KINDS", 3)
    seen = Observed()
    for k in range(10, 30):
        seen.tally(k, 0.95, False)[0] += 1
    seen.tally(11, 0.95, False)[0] += 1
    assert seen.summary().searches == 4


def test_parts_of_other_versions_were_chosen_by_nothing() -> None:
    assert Asked.of([]) == Asked()
    assert Asked.of([IndexPart("", 1, 0, 0, 1, "flat", "why")]) == Asked()
    assert Asked.of([IndexPart("", 1, 0, 0, 1, "flat", "why", (1.0,))]) == Asked()
    kept = Asked(200, 30, 0.9, 0.5)
    assert Asked.of([IndexPart("", 1, 0, 0, 1, "flat", "why", kept.stored())]) == kept
    assert Asked(ENOUGH - 1, 30, 0.9, 0.5).stored() == ()
