"""Searches asked again in one state of the file: always the answer of the usual way."""

from __future__ import annotations

import gc
import pathlib
import subprocess
import sys
import weakref

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.search import index_build
from tarsdb.errors import DataError, DimensionMismatchError, ProgrammingError
from tarsdb.index.hnsw.nearest import Nearest
from tarsdb.kernels import dispatch
from tarsdb.kernels.cpu import answer
from tarsdb.kernels.native import address
from tarsdb.sql.plan import Knn
from tests.unit.engine.repeated.asking import (
    DIM,
    QUERIES,
    ROWS,
    SQL,
    Ways,
    ask,
    insert,
    vectors,
)


def test_the_third_search_and_those_after_it(db: tarsdb.Connection, used: Ways) -> None:
    ask(db)
    assert used == [False, False, *[True] * 10]
    used.clear()
    assert ask(db) == ask(db)
    assert all(used)
    known = db.execute(SQL, (QUERIES[0],))
    assert known.numpy()["a"].dtype == np.int16
    assert known.arrow().column("c").to_pylist() == [row[3] for row in known.fetchall()]


def test_what_is_made_of_the_distance(db: tarsdb.Connection, used: Ways) -> None:
    sql = "SELECT id, 1 - (emb <-> ?) AS s, b FROM t ORDER BY s DESC LIMIT 10"
    found = ask(db, sql)
    assert used == [False, False, *[True] * 10]
    plain = ask(db, "SELECT id, emb <-> ? AS far, b FROM t ORDER BY far LIMIT 10")
    for rows, near in zip(found, plain, strict=True):
        near = [(i, float(np.float32(1) - np.float32(far)), b) for i, far, b in near]
        assert rows == near


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE t SET b = 77 WHERE id % 2 = 0", "DELETE FROM t WHERE id % 3 = 1", "VACUUM",
        "OPTIMIZE t", "REINDEX tv", "DROP INDEX tv", "SET ef_search = 99",
        "ALTER TABLE t ADD COLUMN more INT",
    ],
)  # fmt: skip
def test_every_change_is_seen(db: tarsdb.Connection, used: Ways, change: str) -> None:
    insert(db, ROWS, 90, 2)
    before = ask(db)
    db.execute(change)
    used.clear()
    after = ask(db)
    assert not used[0]
    if change.split()[0] not in ("OPTIMIZE", "REINDEX", "DROP", "SET"):  # another recall
        assert (after != before) == change.startswith(("UPDATE", "DELETE"))
    assert ask(db) == after


def test_other_connections_and_processes(
    db: tarsdb.Connection, used: Ways, tmp_path: pathlib.Path
) -> None:
    ask(db)
    with tarsdb.connect(tmp_path / "a.tars") as other:
        other.execute("DELETE FROM t WHERE id = ?", (ask(db)[0][0][0],))
    first = ask(db)
    assert ask(db) == first
    gone = first[0][0][0]
    code = "import sys, tarsdb\nwith tarsdb.connect(sys.argv[1]) as db: db.execute(sys.argv[2])"
    statement = f"UPDATE t SET a = 9999 WHERE id = {gone}"
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.tars", statement], check=True)
    assert ask(db)[0][0][:2] == (gone, 9999)
    assert any(used)


def test_own_writes_and_older_snapshots(
    db: tarsdb.Connection, used: Ways, tmp_path: pathlib.Path
) -> None:
    before = ask(db)
    ask(db)
    with tarsdb.connect(tmp_path / "a.tars") as other:
        ask(other)
        other.execute("BEGIN")
        assert ask(other) == before
        db.execute("DELETE FROM t WHERE id = ?", (before[0][0][0],))
        assert ask(db) != before
        assert ask(other) == before
        other.execute("UPDATE t SET b = 5")
        assert ask(other)[0][0][2] == 5
        other.execute("ROLLBACK")
        assert ask(other) == ask(db)


def test_what_is_asked_often_is_told(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(db, ROWS, 300, 2)
    told: list[Nearest] = []
    monkeypatch.setattr(Nearest, "asked_often", lambda self: told.append(self))
    ask(db)
    assert len(told) == 1  # ten searches were answered by what was kept, two the usual way


def test_fresh_rows_are_compared_by_codes(
    db: tarsdb.Connection, used: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(db, ROWS, 300, 2)
    coded: list[bool] = []
    real = Nearest.asked_often

    def noted(self: Nearest) -> None:
        real(self)
        coded.append(bool(self._coded))

    monkeypatch.setattr(Nearest, "asked_often", noted)
    first = ask(db)
    assert ask(db) == first
    assert coded[-1]
    assert used.count(True) == 22
    assert any(row[0] >= ROWS for rows in first for row in rows)


@pytest.mark.parametrize("what", ["id, emb", "b + 1", "count"])
def test_other_columns_go_the_usual_way(db: tarsdb.Connection, used: Ways, what: str) -> None:
    sql = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 0"
    if what != "count":
        sql = f"SELECT {what} FROM t ORDER BY emb <-> ? LIMIT 10"
    assert repr(ask(db, sql)) == repr(ask(db, sql))
    assert not any(used)
    assert not used.looked_up


def test_other_parameters_go_the_usual_way(db: tarsdb.Connection, used: Ways) -> None:
    expected = ask(db)
    used.clear()
    for n, query in enumerate(QUERIES):
        assert db.execute(SQL, (query.tolist(),)).fetchall() == expected[n]
        assert db.execute(SQL, (query.astype(np.float64),)).fetchall() == expected[n]
        strided = np.repeat(query, 2)[::2]
        assert db.execute(SQL, (strided,)).fetchall() == expected[n]
    assert db.execute(SQL, (None,)).fetchall() == []
    assert len(db.execute(SQL, (QUERIES,)).fetchall()) == 120
    assert not any(used)
    bad: list[tuple[object, type[Exception]]] = [
        (np.full(DIM, np.nan, np.float32), DataError), (np.zeros(5, np.float32),
        DimensionMismatchError), (np.full(DIM, np.inf, np.float32), DataError),
    ]  # fmt: skip
    for value, error in bad:
        with pytest.raises(error):
            db.execute(SQL, (value,))
    with pytest.raises(ProgrammingError, match="parameter 1"):
        db.execute(SQL)


def test_fresh_rows_and_several_parts(
    db: tarsdb.Connection, used: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_build, "FRESH_ROWS", 250)
    monkeypatch.setattr(index_build, "TIER", 0)
    insert(db, ROWS, 300, 3)
    index_build.wait(db._require_session().env)
    insert(db, ROWS + 300, 40, 4)
    assert ask(db) == ask(db)
    db.execute("OPTIMIZE t")  # rows of the delta become a segment
    used.clear()
    assert ask(db) == ask(db)
    assert sum(used) > 10


def test_answers_without_rows_of_a_short_delta(db: tarsdb.Connection, used: Ways) -> None:
    db.execute("UPDATE t SET b = 77 WHERE id % 100 = 0")
    insert(db, ROWS, 20, 5)
    rows = ask(db)
    used.clear()
    assert ask(db) == rows
    ids = [[int(str(row[0])) for row in answer] for answer in rows]
    assert used == [not any(i % 100 == 0 or i >= ROWS for i in found) for found in ids]
    assert sum(used) >= len(used) / 2
    used.clear()
    (near, *_) = db.execute(SQL, (vectors(20, 5)[0],)).fetchall()
    assert near[:3] == (ROWS, ROWS % 500, -ROWS)
    assert used == [False]


def test_a_level_changed(db: tarsdb.Connection, used: Ways) -> None:
    ask(db)
    try:
        dispatch.use("portable")
        used.clear()
        ask(db)
        assert not any(used)
    finally:
        dispatch.use(None)


def test_nothing_old_is_held(db: tarsdb.Connection) -> None:
    """A plan that ran before a commit does not keep what it saw in memory."""
    ask(db)
    env = db._require_session().env
    (placed,) = env.caches["placed"].values()
    old = weakref.ref(placed[2])
    del placed
    db.execute("DELETE FROM t WHERE id = 5")
    db.execute("SELECT id FROM t ORDER BY emb <-> ? LIMIT 3", (QUERIES[0],))
    gc.collect()
    assert old() is None


def test_what_it_writes_to_is_held_also_where_nothing_shows_it(db: tarsdb.Connection) -> None:
    """A distance that is not selected is written all the same."""
    sql = "SELECT id, a FROM t ORDER BY emb <-> ? LIMIT 10"
    ask(db, sql)
    prepared = db._require_session()._prepared[sql]
    assert not isinstance(prepared, list) and isinstance(prepared.plan, Knn)
    search = prepared.plan.memo["repeated"]
    words, ids, distances = search._held
    assert words[answer.IDS] == address(ids) and words[answer.VALUES] == address(distances)
    assert search._words == address(words)


# --- rows that a filter keeps, by their codes ---

FILTERED = "SELECT id, a, emb <-> ? AS far FROM t WHERE a < 300 AND id < 900 ORDER BY far LIMIT 10"
BOUND = "SELECT id, b, emb <=> :q AS far FROM t WHERE a < :most ORDER BY far LIMIT 7"


@pytest.mark.parametrize("op", ["<->", "<#>", "<=>"])
def test_a_filter_asked_again(unindexed: tarsdb.Connection, used: Ways, op: str) -> None:
    sql = FILTERED.replace("<->", op)
    first = ask(unindexed, sql)
    assert ask(unindexed, sql) == first
    assert sum(used) >= 20
    vectors_, ids = vectors(ROWS, 1), np.arange(ROWS)
    kept = ids[(ids % 500 < 300) & (ids < 900)]
    near = np.argsort(((vectors_[kept] - QUERIES[0]) ** 2).sum(1))[:10]
    assert op != "<->" or [row[0] for row in first[0]] == kept[near].tolist()


def test_the_constants_of_a_filter_count(unindexed: tarsdb.Connection, used: Ways) -> None:
    def find(most: object) -> list[tuple[int, ...]]:
        return unindexed.execute(BOUND, {"q": QUERIES[3], "most": most}).fetchall()

    expected = {most: find(most) for most in (400, 250)}
    for most in (400, 400, 400, 250, 400.0, 250, 250, 250):
        used.clear()
        assert find(most) == expected[most]
    assert used == [True]
    used.clear()
    for odd in (True, 250.5, 250.0):
        assert all(row[0] % 500 < odd for row in find(odd))
    assert not any(used)
    with pytest.raises(ProgrammingError, match=":most"):
        unindexed.execute(BOUND, {"q": QUERIES[3]})


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE t SET a = 400 WHERE id % 2 = 0", "DELETE FROM t WHERE id % 3 = 1",
        "UPDATE t SET emb = NULL WHERE id % 5 = 0", "VACUUM",
    ],
)  # fmt: skip
def test_a_filter_sees_every_change(unindexed: tarsdb.Connection, used: Ways, change: str) -> None:
    before = ask(unindexed, FILTERED)
    unindexed.execute(change)
    used.clear()
    after = ask(unindexed, FILTERED)
    assert not used[0]
    assert (after != before) == (change != "VACUUM")
    unindexed.execute("OPTIMIZE t")  # rows of the delta become a segment
    assert ask(unindexed, FILTERED) == after
    assert ask(unindexed, FILTERED) == after


def test_rows_asked_for_once_are_not_coded(unindexed: tarsdb.Connection) -> None:
    for most in range(300, 320):
        unindexed.execute(BOUND, {"q": QUERIES[0], "most": most})
        codes = unindexed._require_session().env.caches["codes"]
        assert not codes.nbytes
    unindexed.execute(BOUND, {"q": QUERIES[0], "most": most})
    assert codes.nbytes


def test_few_rows_and_rows_alike_go_the_usual_way(unindexed: tarsdb.Connection, used: Ways) -> None:
    few = FILTERED.replace("id < 900", "id < 100")
    assert ask(unindexed, few) == ask(unindexed, few)
    assert not any(used)
    unindexed.execute("UPDATE t SET emb = ? WHERE id < 1900", (vectors(1, 5)[0],))
    alike = FILTERED.replace("id < 900", "id < 1900")
    assert ask(unindexed, alike) == ask(unindexed, alike)
    assert not any(used)


def test_a_stale_answer_would_be_noticed(
    db: tarsdb.Connection, used: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: without a look at the state of the file the comparison above fails."""
    ask(db)
    monkeypatch.setattr("tarsdb.storage.Revisit.enter", lambda self: self._env.enter(self._slot))
    placed = list(db._require_session().env.caches["placed"].values())
    db.execute("UPDATE t SET b = 77")
    with pytest.raises(AssertionError):
        ask(db)
    assert placed
