"""Searches asked again in one state of the file: always the answer of the usual way."""

from __future__ import annotations

import gc
import pathlib
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine import executor
from tarsdb.engine.context import Context, Engines, Parameters
from tarsdb.engine.reading import cells
from tarsdb.engine.result import Result
from tarsdb.engine.search import index_build, vector_search
from tarsdb.engine.search.repeated_search import COPIED_ROWS, RepeatedSearch
from tarsdb.errors import DataError, DimensionMismatchError, ProgrammingError
from tarsdb.index.base import OFTEN
from tarsdb.index.hnsw.nearest import Nearest
from tarsdb.kernels import dispatch, graph
from tarsdb.kernels.cpu import answer
from tarsdb.kernels.native import address
from tarsdb.sql.plan import Knn
from tarsdb.storage import ByRow, GroupState, Snapshot, merge

DIM, ROWS = 40, 3000
SQL = "SELECT id, a, b, c, d, day, emb <-> ? AS far FROM t ORDER BY far LIMIT 10"


def vectors(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)


QUERIES = vectors(12, 99)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    graph.wait()
    for kind in ("f32", *dispatch.CODED, dispatch.GATHER, dispatch.ANSWER):
        dispatch.prepare(kind)
    dispatch.wait()


class Ways(list[bool]):
    """Whether searches were one compiled call or went the usual way.

    ``looked_up``: of those in between, by what was kept but with values looked up row by row.
    """

    looked_up = 0


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


def insert(db: tarsdb.Connection, start: int, rows: int, seed: int) -> None:
    ids = np.arange(start, start + rows)
    db.table("t").insert({
        "id": ids, "a": (ids % 500).astype(np.int16), "b": -ids, "c": ids / 7, "d": ids / 3,
        "day": (ids % 1000).astype("datetime64[D]"), "word": [f"w{i}" for i in ids.tolist()],
        "flag": ids % 2 == 0, "rare": [None if i % 3 else i for i in ids.tolist()],
        "emb": vectors(rows, seed),
    })  # fmt: skip


def ask(db: tarsdb.Connection, sql: str = SQL) -> list[list[tuple[object, ...]]]:
    return [db.execute(sql, (query,)).fetchall() for query in QUERIES]


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


# --- values that are no numbers, or NULL: looked up row by row ---

LOOKED_UP = "SELECT word, rare, flag, emb <-> ? AS far, id FROM t ORDER BY far LIMIT 10"


@pytest.mark.parametrize("is_scattered", [False, True])
def test_texts_booleans_and_nulls_are_looked_up(
    request: pytest.FixtureRequest, used: Ways, is_scattered: bool
) -> None:
    db = request.getfixturevalue("scattered" if is_scattered else "db")
    first = ask(db, LOOKED_UP)
    assert ask(db, LOOKED_UP) == first
    assert used == [False] * 3  # two at first, and one that tries a copy
    assert used.looked_up == 21
    assert {type(value) for rows in first for row in rows for value in row} == {
        str, int, float, bool, type(None),
    }  # fmt: skip
    known = repeated(db, LOOKED_UP)
    assert not known.is_compiled


def test_what_is_made_of_the_distance_beside_a_text(db: tarsdb.Connection, used: Ways) -> None:
    found = ask(db, "SELECT word, 1 - (emb <-> ?) AS s, id FROM t ORDER BY s DESC LIMIT 10")
    assert used == [False] * 3
    assert used.looked_up == 9
    plain = ask(db, "SELECT word, emb <-> ? AS far, id FROM t ORDER BY far LIMIT 10")
    for rows, near in zip(found, plain, strict=True):
        far = [float(np.float32(1) - np.float32(row[1])) for row in near]
        assert rows == [(row[0], s, row[2]) for row, s in zip(near, far, strict=True)]


@pytest.mark.parametrize("op", ["<#>", "<=>"])
def test_texts_of_a_filter_are_looked_up(unindexed: tarsdb.Connection, used: Ways, op: str) -> None:
    sql = f"SELECT id, word FROM t WHERE a < 300 AND id < 900 ORDER BY emb {op} ? LIMIT 10"
    first = ask(unindexed, sql)
    assert ask(unindexed, sql) == first
    assert used.looked_up >= 18
    assert not any(used)


def test_what_is_looked_up_is_of_the_newest_state(
    db: tarsdb.Connection, used: Ways, tmp_path: pathlib.Path
) -> None:
    before = ask(db, LOOKED_UP)
    gone = before[0][0][4]
    code = "import sys, tarsdb\nwith tarsdb.connect(sys.argv[1]) as db: db.execute(sys.argv[2])"
    statement = f"UPDATE t SET word = 'new', rare = NULL WHERE id = {gone}"
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.tars", statement], check=True)
    assert ask(db, LOOKED_UP)[0][0][:2] == ("new", None)
    ask(db, LOOKED_UP)
    with tarsdb.connect(tmp_path / "a.tars") as other:
        other.execute("DELETE FROM t WHERE id = ?", (gone,))
    after = ask(db, LOOKED_UP)
    assert after[0][0][4] != gone
    used.looked_up = 0
    db.execute("BEGIN")
    db.execute("UPDATE t SET word = 'own' WHERE id = ?", (after[0][0][4],))
    assert ask(db, LOOKED_UP)[0][0][0] == "own"
    assert not used.looked_up
    db.execute("ROLLBACK")
    assert ask(db, LOOKED_UP) == after


def test_a_stale_look_up_would_be_noticed(db: tarsdb.Connection, used: Ways) -> None:
    """Control: one that takes another state for its own finds rows that are gone."""
    gone = ask(db, LOOKED_UP)[0][0][4]
    held = list(db._require_session().env.caches["placed"].values())
    db.execute("DELETE FROM t WHERE id = ?", (gone,))
    with Snapshot(db._require_session().env) as snapshot:
        repeated(db, LOOKED_UP)._state = snapshot.txn.file_state()
    with pytest.raises(AssertionError):
        ask(db, LOOKED_UP)
    assert held


def repeated(db: tarsdb.Connection, sql: str) -> RepeatedSearch:
    prepared = db._require_session()._prepared[sql]
    assert not isinstance(prepared, list)
    assert isinstance(prepared.plan, Knn)
    found = prepared.plan.memo["repeated"]
    assert isinstance(found, RepeatedSearch)
    return found


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


# --- rows of the delta and of segments that overlap: copied once they are asked for often ---

SCATTER = "UPDATE t SET b = 77 WHERE id % 10 = 0"


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


def test_scattered_rows_are_copied_when_asked_often(
    scattered: tarsdb.Connection, used: Ways
) -> None:
    group = scalars(scattered)
    assert group.overlapping
    assert group.count
    first = ask(scattered)
    assert ask(scattered) == first
    assert used == [False] * 3 + [True] * (len(used) - 3)
    assert used.looked_up == OFTEN + ROWS // COPIED_ROWS - 2
    ids = {int(str(row[0])) for rows in first for row in rows}
    assert any(i % 20 == 0 for i in ids) and any(i >= ROWS for i in ids)
    assert not any(i % 11 == 0 for i in ids)
    near = scattered.execute(SQL, (vectors(ROWS, 1)[420],)).fetchall()[0]
    assert near[:5] == (420, 10, -417, 63, 0.5)


def test_a_short_delta_that_answers_are_in_is_copied(db: tarsdb.Connection, used: Ways) -> None:
    insert(db, ROWS, 20, 5)
    query = vectors(20, 5)[0]
    found = [db.execute(SQL, (query,)).fetchall() for _ in range(20)]
    assert found == found[:1] * 20
    often = OFTEN + ROWS // COPIED_ROWS
    assert used == [False] * (often + 1) + [True] * (19 - often)


@pytest.mark.parametrize("other_process", [False, True])
def test_copies_end_with_their_state(
    scattered: tarsdb.Connection, used: Ways, tmp_path: pathlib.Path, other_process: bool
) -> None:
    ask(scattered)
    before = ask(scattered)
    copies = weakref.ref(copied(scattered)[0])
    gone = before[0][0][0]
    statement = f"UPDATE t SET a = 9999 WHERE id = {gone}"
    if other_process:
        code = "import sys, tarsdb\nwith tarsdb.connect(sys.argv[1]) as db: db.execute(sys.argv[2])"
        subprocess.run([sys.executable, "-c", code, tmp_path / "a.tars", statement], check=True)
    else:
        with tarsdb.connect(tmp_path / "a.tars") as other:
            other.execute(statement)
    used.clear()
    after = ask(scattered)
    assert not used[0]
    assert after[0][0][:2] == (gone, 9999)
    assert ask(scattered) == after
    assert used[-1]
    gc.collect()
    assert copies() is None


def test_copies_in_a_transaction(scattered: tarsdb.Connection, used: Ways) -> None:
    ask(scattered)
    before = ask(scattered)
    scattered.execute("BEGIN")
    scattered.execute("UPDATE t SET a = 77 WHERE id = ?", (before[0][0][0],))
    used.clear()
    assert ask(scattered)[0][0][1] == 77
    assert not any(used)
    scattered.execute("ROLLBACK")
    assert ask(scattered) == before


def test_copies_are_shared_and_bounded(
    scattered: tarsdb.Connection, used: Ways, monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:  # fmt: skip
    ask(scattered)
    ask(scattered)
    (known,) = copied(scattered)
    rows = ROWS + 200
    assert known.nbytes <= (1 + 8 + 2 + 4 + 4 + 8 + 4) * rows
    with tarsdb.connect(tmp_path / "a.tars") as other:  # it need not ask often
        used.clear()
        ask(other, "SELECT id, a FROM t ORDER BY emb <-> ? LIMIT 5")
        assert used == [False, False, *[True] * 10]
    assert copied(scattered) == [known]
    monkeypatch.setattr(cells, "COPIED_BYTES", 20 * rows)
    scattered.execute(SCATTER)
    used.clear()
    ask(scattered)
    ask(scattered)
    assert not any(used)
    assert copied(scattered) in ([], [known])
    narrow = "SELECT id, a FROM t ORDER BY emb <-> ? LIMIT 10"
    wider = "SELECT id, b, c FROM t ORDER BY emb <-> ? LIMIT 10"  # 17 bytes; no room for both
    for sql in (narrow, wider, narrow, wider):
        assert ask(scattered, sql) == ask(scattered, sql)
    assert used[-1]
    assert sum(each.nbytes for each in copied(scattered)) <= 20 * rows


def test_copies_of_tables_make_room(
    scattered: tarsdb.Connection, used: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 10"
    ask(scattered, sql)
    ask(scattered, sql)
    (known,) = copied(scattered)
    scattered.execute(f"CREATE TABLE u (id BIGINT PRIMARY KEY, emb VECTOR({DIM}))")
    scattered.table("u").insert({"id": np.arange(ROWS), "emb": vectors(ROWS, 3)})
    scattered.execute("CREATE INDEX uv ON u USING hnsw (emb)")
    scattered.execute("UPDATE u SET id = id + 10000 WHERE id % 10 = 0")
    monkeypatch.setattr(cells, "COPIED_BYTES", known.nbytes + 5 * ROWS)
    used.clear()
    other = sql.replace(" t ", " u ")
    first = ask(scattered, other)
    assert ask(scattered, other) == first
    assert used[-1]
    assert known not in copied(scattered)
    assert len(copied(scattered)) == 1


@pytest.mark.parametrize("what", ["id, word", "id, flag", "id, rare"])
def test_what_cannot_be_copied(
    scattered: tarsdb.Connection, used: Ways, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    tried: list[bool] = []
    real = cells.Cells.copied
    monkeypatch.setattr(
        cells.Cells, "copied", staticmethod(lambda *args: tried.append(True) or real(*args))
    )
    sql = f"SELECT {what} FROM t ORDER BY emb <-> ? LIMIT 10"
    assert ask(scattered, sql) == ask(scattered, sql)
    assert not any(used)
    assert len(tried) == 1
    assert not copied(scattered)


def test_nulls_of_rows_that_are_gone_do_not_count(db: tarsdb.Connection, used: Ways) -> None:
    db.execute("UPDATE t SET rare = 5 WHERE rare IS NULL")
    sql = "SELECT id, rare FROM t ORDER BY emb <-> ? LIMIT 10"
    assert ask(db, sql) == ask(db, sql)
    assert used[-1]


def test_a_copy_with_a_wrong_value_would_be_noticed(
    scattered: tarsdb.Connection, used: Ways
) -> None:
    """Control: the comparison of each answer with the usual way fails."""
    ask(scattered)
    ask(scattered)
    (known,) = copied(scattered)
    for values in known._columns.values():
        values += values.dtype.type(1)
    with pytest.raises(AssertionError):
        ask(scattered)


def scalars(db: tarsdb.Connection) -> GroupState:
    with Snapshot(db._require_session().env) as snapshot:
        return snapshot.table(snapshot.catalog.table("t")).scalars()


def copied(db: tarsdb.Connection) -> list[ByRow]:
    kept = db._require_session().env.caches.get("cells by row", {})
    return [copies for _, copies in kept.values()]


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


@pytest.fixture
def unindexed(db: tarsdb.Connection) -> tarsdb.Connection:
    db.execute("DROP INDEX tv")
    return db


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
