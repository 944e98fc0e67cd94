"""USING auto through SQL: what is chosen, why, and that answers keep what is promised."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.progress import Work
from tarsdb.engine.search import index_build, index_choice, vector_index
from tarsdb.engine.search.asked import Asked
from tarsdb.engine.search.index_methods import METHODS
from tarsdb.errors import DataError, NotSupportedError
from tarsdb.kernels import dispatch, graph, ivf
from tarsdb.metrics import METRICS
from tarsdb.schema import IndexDef
from tarsdb.storage import IndexPart, Snapshot, read_parts
from tarsdb.types import parse_type

DIM, ROWS, K = 24, 8000, 10
GRAPH_BYTES = ROWS * 400
"""More than a graph of these rows takes, and less than one of twice as many."""
SEARCH = f"SELECT id FROM t ORDER BY emb <-> ? LIMIT {K}"


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    graph.wait()
    ivf.wait()
    dispatch.prepare("f32")
    dispatch.wait()


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an index pay from fewer rows on, so that tests are fast."""
    monkeypatch.setattr(index_choice, "FEWEST_ROWS", 5000)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "a.tars"


@pytest.fixture
def db(path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        yield db


def clustered(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((40, DIM))
    drawn = centres[rng.integers(0, 40, rows)] + 0.4 * rng.standard_normal((rows, DIM))
    return drawn.astype(np.float32)


QUERIES = clustered(50, 99)


def insert(db: tarsdb.Connection, rows: np.ndarray, start: int = 0) -> None:
    db.table("t").insert({"id": np.arange(start, start + len(rows)), "emb": rows})


def create(db: tarsdb.Connection, options: str = "", opclass: str = "") -> tuple[str, str]:
    """Create the index and return what was chosen and why."""
    sql = f"CREATE INDEX tv ON t USING auto (emb {opclass}) {options}"
    return only(db.execute(sql).fetchall())


def only(rows: list[tuple[Any, ...]]) -> tuple[str, str]:
    ((index, method, reason),) = rows
    assert index == "tv"
    return method, reason


def memory(share: float) -> str:
    return f"WITH (memory = '{round(share * GRAPH_BYTES / 1000)}KB')"


def listed(db: tarsdb.Connection) -> tuple[str, str]:
    found = db.execute("SELECT name, chosen, reason FROM tars_indexes WHERE method = 'auto'")
    return only(found.fetchall())


def explained(db: tarsdb.Connection, sql: str = SEARCH) -> str:
    return str(db.execute(f"EXPLAIN {sql}", (QUERIES[0],)).fetchall()[-1][0])


def parts(db: tarsdb.Connection) -> tuple[IndexPart, ...]:
    with Snapshot(db._require_session().env) as snapshot:
        table = snapshot.catalog.table("t")
        assert table is not None
        (index,) = (index for index in table.indexes if index.name == "tv")
        return read_parts(snapshot.txn, index.id)


def recall(db: tarsdb.Connection, sql: str = SEARCH) -> float:
    """Return the share of what exact search in float64 finds."""
    rows = db.execute("SELECT id, emb FROM t").numpy()
    vectors, hits = rows["emb"].astype(np.float64), 0
    for query in QUERIES:
        keys = ((vectors - query) ** 2).sum(1) if "<->" in sql else -(vectors @ query)
        true = set(rows["id"][np.argsort(keys)[:K]].tolist())
        hits += len(true & {row for (row,) in db.execute(sql, (query,)).fetchall()})
    return hits / (K * len(QUERIES))


def counted(name: str) -> int:
    return int(METRICS.snapshot().get(name, 0))


def test_few_rows_are_left_to_exact_search(db: tarsdb.Connection) -> None:
    insert(db, clustered(1500, 1))
    reason = "1,500 rows, an index pays from 5,000"
    assert create(db) == listed(db) == ("flat", reason)
    assert explained(db).startswith(f"search: exact (flat): index tv (auto): {reason}")
    assert recall(db) == 1
    assert [(part.digest, part.rows, part.nbytes) for part in parts(db)] == [("", 1500, 0)]
    (stats,) = db.execute("SELECT method, recall, reason FROM tars_recall_stats").fetchall()
    assert stats == ("auto", None, f"exact: index tv (auto): {reason}")


@pytest.mark.parametrize(
    ("share", "budget", "method", "noun"),
    [(1, "3.2 MB", "hnsw", "graph"), (0.1, "320.0 kB", "ivf", "lists")],
)
def test_a_graph_where_it_fits_else_lists(
    path: pathlib.Path, db: tarsdb.Connection, share: float, budget: str, method: str, noun: str
) -> None:
    counter = METHODS[method].counter
    insert(db, clustered(ROWS, 1))
    chosen, reason = create(db, memory(share))
    assert (chosen, reason) == listed(db)
    assert chosen == method
    assert reason.startswith("a graph of 8,000 rows takes up to ")
    assert reason.endswith(f", memory is {budget}")
    before = counted(counter)
    assert recall(db) >= 0.95
    assert counted(counter) == before + len(QUERIES)
    assert explained(db).startswith(f"search: index tv (auto): {noun}, ")
    assert f"; chosen: {reason}, " in explained(db)
    assert db.execute("SELECT recall FROM tars_recall_stats").fetchall()[0][0] >= 0.95
    db.close()
    with tarsdb.connect(path) as again:
        assert listed(again) == (method, reason)
        assert recall(again) >= 0.95
        assert counted(counter) > before + len(QUERIES)
        again.execute("DELETE FROM t WHERE id % 3 = 0")
        insert(again, clustered(300, 5), ROWS)
        assert recall(again) >= 0.95
        assert again.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        again.execute("VACUUM")
        assert recall(again) >= 0.95
        assert explained(again).startswith(f"search: index tv (auto): {noun}, ")


def test_optimize_chooses_again(db: tarsdb.Connection) -> None:
    insert(db, clustered(1500, 1))
    assert create(db, memory(1))[0] == "flat"
    assert only(db.execute("OPTIMIZE t").fetchall())[0] == "flat"
    insert(db, clustered(ROWS - 1500, 2), 1500)
    index_build.wait(db._require_session().env)
    assert only(db.execute("OPTIMIZE t").fetchall()) == listed(db)
    assert listed(db)[0] == "hnsw"
    insert(db, clustered(ROWS, 3), ROWS)
    method, reason = only(db.execute("OPTIMIZE t").fetchall())
    assert (method, reason[:24]) == ("ivf", "a graph of 16,000 rows t")
    assert recall(db) >= 0.95
    db.execute("DELETE FROM t WHERE id >= 7000")
    assert only(db.execute("REINDEX tv").fetchall())[0] == listed(db)[0] == "hnsw"
    assert recall(db) >= 0.95
    db.execute("DELETE FROM t WHERE id >= 1000")
    assert only(db.execute("OPTIMIZE").fetchall())[0] == "flat"
    assert recall(db) == 1
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_upkeep_moves_on_as_rows_are_added(db: tarsdb.Connection) -> None:
    env = db._require_session().env
    assert create(db, memory(1)) == ("flat", "0 rows, an index pays from 5,000")
    found = []
    for start in range(0, 2 * ROWS, 2600):
        insert(db, clustered(2600, start), start)
        index_build.wait(env)
        found.append(listed(db)[0])
        assert {part.method for part in parts(db)} == {found[-1]}
        assert recall(db) >= 0.95
    assert found[0] == "flat"
    assert found[2] == "hnsw"
    assert found[-1] == "ivf"
    assert sorted(found, key=["flat", "hnsw", "ivf"].index) == found


def test_upkeep_adds_parts_by_the_same_method(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_build, "TIER", 1)
    insert(db, clustered(ROWS, 1))
    assert create(db, memory(0.1))[0] == "ivf"
    insert(db, clustered(1100, 2), ROWS)
    index_build.wait(db._require_session().env)
    assert [(part.rows, part.method) for part in parts(db)] == [(ROWS, "ivf"), (1100, "ivf")]
    assert len({part.reason for part in parts(db)}) == 1
    assert "2 parts" in explained(db)
    assert recall(db) >= 0.95


def test_rows_without_vectors_do_not_count(db: tarsdb.Connection) -> None:
    """Upkeep would else build again and again, and choose the same each time."""
    insert(db, clustered(1500, 1))
    create(db)
    db.executemany("INSERT INTO t (id) VALUES (?)", [(n,) for n in range(1500, 6000)])
    moved = clustered(1400, 2)
    db.executemany("UPDATE t SET emb = ? WHERE id = ?", [(v, n) for n, v in enumerate(moved)])
    index_build.wait(db._require_session().env)
    assert listed(db) == ("flat", "1,500 rows, an index pays from 5,000")


def hard(rows: int) -> np.ndarray:
    """Return vectors whose norms differ by orders of magnitude, for inner products."""
    norms = np.random.default_rng(3).lognormal(0, 2.0, (rows, 1))
    return (clustered(rows, 1) * norms).astype(np.float32)


INNER = SEARCH.replace("<->", "<#>")


def test_lists_are_tried_where_a_graph_does_not_reach_the_recall(db: tarsdb.Connection) -> None:
    insert(db, hard(ROWS))
    tried: list[Work] = []
    db.on_progress(None, tried.append)
    method, reason = create(db, "WITH (target_recall = 1)", "vector_ip_ops")
    assert (method, reason) == listed(db)
    assert method == "ivf"
    assert reason == "a graph does not reach a recall of 1 faster than exact search"
    assert [work.why[:21] for work in tried] == ["a graph of 8,000 rows", "a graph does not reac"]
    assert f"chosen: {reason}" in explained(db, INNER)
    assert recall(db, INNER) == 1


def test_data_no_method_is_good_at_is_searched_exactly(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_choice, "FEWEST_ROWS", 2000)
    insert(db, hard(4000))
    method, reason = create(db, "WITH (target_recall = 1)", "vector_ip_ops")
    assert (method, reason) == listed(db)
    assert method == "flat"
    assert reason == "a graph and lists do not reach a recall of 1 faster than exact search"
    assert explained(db, INNER).startswith(f"search: exact (flat): index tv (auto): {reason}")
    assert recall(db, INNER) == 1
    built = counted("index.parts_built")
    insert(db, hard(1500), 4000)
    index_build.wait(db._require_session().env)
    assert parts(db)[0].rows == 4000  # not tried again for so few more
    assert counted("index.parts_built") == built
    insert(db, hard(4000), 8000)
    index_build.wait(db._require_session().env)
    assert sum(part.rows for part in parts(db)) == 9500


def test_a_promise_of_the_index_holds_where_the_connection_wants_less(
    db: tarsdb.Connection,
) -> None:
    insert(db, clustered(ROWS, 1))
    create(db, "WITH (target_recall = 0.98)")
    db.execute("SET target_recall = 0.5")
    assert recall(db) >= 0.98
    promised = explained(db)
    db.execute("DROP INDEX tv")
    db.execute("CREATE INDEX tv ON t USING hnsw (emb)")
    assert recall(db) < 0.98
    assert explained(db).split(";")[0] != promised.split(";")[0]


def test_what_is_chosen_is_announced(db: tarsdb.Connection) -> None:
    insert(db, clustered(ROWS, 1))
    heard: list[Work] = []
    steps: list[int] = []
    db.on_progress(lambda done, total: steps.append(done), heard.append)
    _, reason = create(db)
    (work,) = heard
    assert (work.what, work.total, work.why) == ("index tv", ROWS, reason)
    assert steps[-1] == ROWS
    heard.clear()
    db.execute("DELETE FROM t WHERE id >= 100")
    assert only(db.execute("OPTIMIZE t").fetchall())[0] == "flat"
    assert not heard


def test_a_choice_in_a_transaction_is_undone_with_it(db: tarsdb.Connection) -> None:
    insert(db, clustered(1500, 1))
    db.execute("BEGIN")
    assert create(db)[0] == "flat"
    db.execute("ROLLBACK")
    assert db.execute("SELECT count(*) FROM tars_indexes WHERE name = 'tv'").fetchall() == [(0,)]
    db.execute("CREATE INDEX th ON t USING hnsw (emb)")
    chosen = db.execute("SELECT chosen, reason FROM tars_indexes WHERE name = 'th'").fetchall()
    assert chosen == [(None, None)]
    assert db.execute("REINDEX th").description is None


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ("m = 16", NotSupportedError, "index tv: option 'm' is not known"),
        ("lists = 16", NotSupportedError, "index tv: option 'lists' is not known"),
        ("memory = 'much'", DataError, "option memory: 'much' is not a size"),
        ("memory = 1000", DataError, "option memory: 1000 is not a size"),
        ("target_recall = 0", DataError, "option target_recall is 0, expected more than 0"),
        ("target_recall = 1.5", DataError, "option target_recall is 1.5"),
        ("target_recall = 'high'", DataError, "option target_recall is 'high'"),
    ],
)
def test_what_is_not_known_is_refused(
    db: tarsdb.Connection, options: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        create(db, f"WITH ({options})")
    assert db.execute("SELECT count(*) FROM tars_indexes WHERE name = 'tv'").fetchall() == [(0,)]


@pytest.mark.parametrize(
    ("kind", "op", "budget", "method"),
    [
        ("HALFVEC", "<=>", "1GB", "hnsw"), ("INT8VEC", "<->", "1KB", "ivf"),
        ("BIT", "<~>", "1KB", "ivf"), ("VECTOR", "<+>", "1GB", "hnsw"),
    ],
)  # fmt: skip
def test_any_type_and_operator(
    path: pathlib.Path, kind: str, op: str, budget: str, method: str
) -> None:
    metric = {"<=>": "cosine", "<->": "l2", "<~>": "hamming", "<+>": "l1"}[op]
    of: dict[str, Any] = {"INT8VEC": np.int8, "BIT": np.uint8}

    def made(rows: np.ndarray) -> np.ndarray:
        scaled = rows > 0 if kind == "BIT" else 20 * rows
        return scaled.astype(of.get(kind, np.float32))

    search = f"SELECT id, emb {op} ? AS d FROM t ORDER BY d LIMIT {K}"
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb {kind}({DIM}))")
        insert(db, made(clustered(ROWS, 1)))
        true = [db.execute(search, (query,)).fetchall() for query in made(QUERIES)]
        assert create(db, f"WITH (metric = '{metric}', memory = '{budget}')")[0] == method
        before = counted(METHODS[method].counter)
        found = [db.execute(search, (query,)).fetchall() for query in made(QUERIES)]
        assert counted(METHODS[method].counter) == before + len(QUERIES)
    near = [
        distance <= right[-1][1] + 1e-6
        for rows, right in zip(found, true, strict=True)
        for _, distance in rows
    ]
    assert np.mean(near) >= 0.95


def test_a_method_of_another_version_is_exact_until_upkeep() -> None:
    stored = (IndexPart("", ROWS, 0, 0, 1, "newer", "it said so"),)
    shape = index_choice.Shape(ROWS, parse_type(f"VECTOR({DIM})"), "<->")
    assert index_choice.has_outgrown(stored, shape, index_choice.AutoOptions())
    index = IndexDef(1, "tv", "t", (2,), method="auto", options={"metric": "l2"})
    assert vector_index.method_of(index, stored) is None


@pytest.mark.parametrize(
    ("sql_type", "op", "memory", "options"),
    [
        ("VECTOR(384)", "<->", "10MB", {"codes": "pq"}),
        ("VECTOR(384)", "<->", "150MB", {"codes": "pq"}),
        ("VECTOR(384)", "<->", "250MB", {"codes": "bits", "refine_bits": 2}),
        ("VECTOR(128)", "<->", "100MB", {}),
        ("BIT(4096)", "<~>", "10MB", {"codes": "bits"}),
    ],
)
def test_codes_of_lists_that_do_not_fit(
    sql_type: str, op: str, memory: str, options: dict[str, Any]
) -> None:
    shape = index_choice.Shape(1_000_000, parse_type(sql_type), op)
    choice = index_choice.chosen(shape, index_choice.AutoOptions(memory=memory), Asked())
    assert (choice.method, choice.options) == ("ivf", options)
    roomy = index_choice.chosen(shape, index_choice.AutoOptions(memory="4GB"), Asked())
    assert roomy.method == "hnsw"
