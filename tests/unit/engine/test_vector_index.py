"""Vector indexes through SQL: answers, freshness, filters, transactions, processes, damage."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.search import index_build, vector_index
from tarsdb.engine.search.index_methods import METHODS, Hnsw
from tarsdb.errors import CatalogError, DataError, NotSupportedError
from tarsdb.index.arrays import Runs
from tarsdb.kernels import dispatch, graph, ivf
from tarsdb.metrics import METRICS
from tarsdb.storage import Snapshot, blobs, read_parts

DIM, ROWS, K = 24, 3000, 10
OPERATORS = {"l2": "<->", "cosine": "<=>", "ip": "<#>"}


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    graph.wait()
    ivf.wait()
    dispatch.prepare("f32")  # NumPy's sums, meanwhile, differ in the last bit
    dispatch.wait()


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def clustered(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((40, DIM))
    drawn = centres[rng.integers(0, 40, rows)] + 0.4 * rng.standard_normal((rows, DIM))
    return drawn.astype(np.float32)


QUERIES = clustered(50, 99)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "a.tars"


def fill(db: tarsdb.Connection, method: str, metric: str = "l2") -> None:
    db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, kind INT, emb VECTOR({DIM}))")
    ids = np.arange(ROWS)
    db.table("t").insert({"id": ids, "kind": ids % 100, "emb": clustered(ROWS, 1)})
    db.execute(f"CREATE INDEX tv ON t USING {method} (emb vector_{metric}_ops)")


@pytest.fixture
def db(path: pathlib.Path, method: str) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(path) as db:
        fill(db, method)
        yield db


def search(db: tarsdb.Connection, op: str, where: str, k: int = K) -> list[list[tuple[int, float]]]:
    sql = f"SELECT id, emb {op} ? AS d FROM t {where} ORDER BY d LIMIT {k}"
    return [db.execute(sql, (query,)).fetchall() for query in QUERIES]


def exact(db: tarsdb.Connection, op: str, where: str, k: int = K) -> list[list[tuple[int, float]]]:
    """Answer the same from vectors fetched by SQL, with NumPy."""
    found = db.execute(f"SELECT id, emb FROM t {where}").numpy()
    if not len(found["id"]):
        return [[] for _ in QUERIES]
    rows = found["emb"].astype(np.float64)
    answers = []
    for query in QUERIES.astype(np.float64):
        if op == "<->":
            keys = np.sqrt(((rows - query) ** 2).sum(1))
        elif op == "<#>":
            keys = -(rows @ query)
        else:
            keys = 1 - rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
        order = np.argsort(keys, kind="stable")[:k]
        ids = found["id"][order].tolist()
        answers.append(list(zip(ids, keys[order].tolist(), strict=True)))
    return answers


def recall(db: tarsdb.Connection, op: str = "<->", where: str = "", k: int = K) -> float:
    hits = total = 0
    for found, wanted in zip(search(db, op, where, k), exact(db, op, where, k), strict=True):
        assert len(found) == len(wanted)
        assert [d for _, d in found] == sorted(d for _, d in found)
        known = dict(wanted)
        for row, distance in found:
            if row in known:
                assert distance == pytest.approx(known[row], rel=1e-5, abs=1e-4)
        hits += len({row for row, _ in found} & set(known))
        total += len(wanted)
    return hits / total if total else 1.0


def uses_index(db: tarsdb.Connection, op: str = "<->", where: str = "") -> bool:
    sql = f"EXPLAIN SELECT id FROM t {where} ORDER BY emb {op} ? LIMIT {K}"
    lines = [line for (line,) in db.execute(sql, (QUERIES[0],)).fetchall()]
    return any("index tv (" in line for line in lines)


def searches(method: str) -> int:
    return int(METRICS.snapshot().get(METHODS[method].counter, 0))


@pytest.mark.parametrize("metric", OPERATORS)
def test_recall_through_the_life_of_a_table(path: pathlib.Path, method: str, metric: str) -> None:
    op = OPERATORS[metric]
    with tarsdb.connect(path) as db:
        fill(db, method, metric)
        before = searches(method)
        assert recall(db, op) >= 0.95
        assert searches(method) == before + len(QUERIES)
        more = np.arange(ROWS, ROWS + 400)
        db.table("t").insert({"id": more, "kind": more % 100, "emb": clustered(400, 2)})
        assert recall(db, op) >= 0.95
        moved = clustered(300, 3)
        db.executemany("UPDATE t SET emb = ? WHERE id = ?",
                       [(moved[i], i * 7) for i in range(300)])  # fmt: skip
        assert recall(db, op) >= 0.95
        db.execute("DELETE FROM t WHERE id % 5 = 0")
        assert recall(db, op) >= 0.95
        assert uses_index(db, op)
        db.execute("OPTIMIZE t")
        assert recall(db, op) >= 0.95
        db.execute("VACUUM")
        assert recall(db, op) >= 0.95
        assert uses_index(db, op)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with tarsdb.connect(path, read_only=True) as db:
        assert recall(db, op) >= 0.95
        assert uses_index(db, op)


def test_less_effort_finds_less(db: tarsdb.Connection, method: str) -> None:
    """Control: recall is what is measured here."""
    few = {"hnsw": 10, "ivf": 1}[method]
    db.execute(f"SET {METHODS[method].setting} = {few}")
    sql = f"EXPLAIN SELECT id FROM t ORDER BY emb <-> ? LIMIT {K}"
    assert f"{METHODS[method].effort} {few};" in str(db.execute(sql, (QUERIES[0],)).fetchall())
    low = recall(db)
    db.execute(f"SET {METHODS[method].setting} = 400")
    assert low < recall(db)
    assert recall(db) >= 0.99


def test_an_updated_row_is_found_where_it_is_now(db: tarsdb.Connection) -> None:
    far = np.full(DIM, 50, np.float32)
    sql = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 3"
    old = db.execute("SELECT emb FROM t WHERE id = 42").fetchone()
    assert old is not None
    assert db.execute(sql, (old[0],)).fetchone() == (42,)
    db.execute("UPDATE t SET emb = ? WHERE id = 42", (far,))
    assert db.execute(sql, (far,)).fetchone() == (42,)
    assert (42,) not in db.execute(sql, (old[0],)).fetchall()
    db.execute("DELETE FROM t WHERE id = 42")
    assert db.execute(sql, (far,)).fetchone() != (42,)


def test_a_scalar_update_leaves_the_index_alone(db: tarsdb.Connection) -> None:
    db.execute("UPDATE t SET kind = kind + 1")
    sql = f"EXPLAIN SELECT id FROM t ORDER BY emb <-> ? LIMIT {K}"
    lines = str(db.execute(sql, (QUERIES[0],)).fetchall())
    assert "1 parts, 0 fresh rows" in lines
    assert recall(db) >= 0.95


def test_transactions_see_their_own_rows(db: tarsdb.Connection, path: pathlib.Path) -> None:
    far = np.full(DIM, 60, np.float32)
    sql = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 1"
    before = db.execute(sql, (far,)).fetchone()
    with tarsdb.connect(path) as other:
        db.execute("BEGIN")
        db.execute("INSERT INTO t VALUES (90000, 1, ?)", (far,))
        db.execute("DELETE FROM t WHERE id = 7")
        assert db.execute(sql, (far,)).fetchone() == (90000,)
        assert recall(db) >= 0.95
        assert uses_index(db)
        assert other.execute(sql, (far,)).fetchone() == before
        db.execute("ROLLBACK")
        assert db.execute(sql, (far,)).fetchone() == before
        db.execute("BEGIN")
        db.execute("INSERT INTO t VALUES (90000, 1, ?)", (far,))
        db.execute("COMMIT")
        assert other.execute(sql, (far,)).fetchone() == (90000,)


def test_an_old_snapshot_keeps_its_index(db: tarsdb.Connection, path: pathlib.Path) -> None:
    with tarsdb.connect(path) as other:
        other.execute("BEGIN")
        expected = search(other, "<->", "")
        db.execute("DELETE FROM t WHERE id < 1500")
        db.execute("OPTIMIZE t")
        assert search(other, "<->", "") == expected
        other.execute("COMMIT")
        assert all(row >= 1500 for found in search(other, "<->", "") for row, _ in found)


@pytest.mark.parametrize("where", ["WHERE kind < 50", "WHERE kind < 80", "WHERE kind = 3",
                                   "WHERE id < 1200", "WHERE kind = 1000"])  # fmt: skip
def test_filters_return_as_many_as_match(db: tarsdb.Connection, where: str) -> None:
    assert recall(db, where=where) >= 0.95


def test_a_filter_runs_inside_the_index(db: tarsdb.Connection, method: str) -> None:
    before = searches(method)
    assert recall(db, where="WHERE kind < 80") >= 0.95
    assert searches(method) > before
    assert uses_index(db, where="WHERE kind < 80")
    assert not uses_index(db, where="WHERE kind = 3")


def test_filters_in_turn_while_rows_change(db: tarsdb.Connection) -> None:
    """What is kept of a filter asked before is of no use to another one, nor after a commit."""
    ids = np.arange(0, ROWS, 7)
    for step in range(3):
        for where in ("WHERE kind < 80", "WHERE kind >= 30", "WHERE kind < 80"):
            assert recall(db, where=where) >= 0.95
        pairs = [((step * 31 + number) % 100, number) for number in ids.tolist()]
        db.executemany("UPDATE t SET kind = ? WHERE id = ?", pairs)
        moved = list(zip(clustered(len(ids), 20 + step), (ids + step).tolist(), strict=True))
        db.executemany("UPDATE t SET emb = ? WHERE id = ?", moved[:100])


def test_a_filter_far_from_the_query_still_gets_its_rows(db: tarsdb.Connection) -> None:
    """Rows that match lie in the clusters farthest from the query."""
    vectors = db.execute("SELECT id, emb FROM t").numpy()
    for query in QUERIES[:5]:
        away = np.linalg.norm(vectors["emb"] - query, axis=1)
        label = (away > np.median(away)).astype(int)
        db.executemany(
            "UPDATE t SET kind = ? WHERE id = ?",
            list(zip(label.tolist(), vectors["id"].tolist(), strict=True)),
        )
        sql = "SELECT id FROM t WHERE kind = 1 ORDER BY emb <-> ? LIMIT 10"
        found = {row[0] for row in db.execute(sql, (query,)).fetchall()}
        order = np.argsort(np.where(label == 1, away, np.inf), kind="stable")[:10]
        assert len(found & set(vectors["id"][order].tolist())) >= 8


def test_batches_and_offsets(db: tarsdb.Connection) -> None:
    sql = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 5"
    batch = db.execute(sql, (QUERIES,)).fetchall()
    single = [(n, *row) for n, q in enumerate(QUERIES) for row in db.execute(sql, (q,)).fetchall()]
    assert batch == single
    every = db.execute("SELECT id FROM t ORDER BY emb <-> ? LIMIT 8", (QUERIES[0],)).fetchall()
    part = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 5 OFFSET 3"
    assert db.execute(part, (QUERIES[0],)).fetchall() == every[3:]
    whole = db.execute("SELECT id FROM t ORDER BY emb <-> ?", (QUERIES[0],)).fetchall()
    assert len(whole) == ROWS


def test_inside_a_larger_query(db: tarsdb.Connection) -> None:
    sql = (
        "SELECT count(*), sum(n.kind) FROM "
        "(SELECT id, kind FROM t ORDER BY emb <-> ? LIMIT 10) n JOIN t ON t.id = n.id"
    )
    count, _ = db.execute(sql, (QUERIES[0],)).fetchone() or (0, 0)
    assert count == 10


def test_another_operator_is_exact_and_says_so(db: tarsdb.Connection) -> None:
    lines = str(db.execute("EXPLAIN SELECT id FROM t ORDER BY emb <=> ? LIMIT 5",
                           (QUERIES[0],)).fetchall())  # fmt: skip
    assert "exact (flat): no index for <=>, tv is for <->" in lines
    assert recall(db, "<=>") == 1.0


def test_another_process_uses_it(db: tarsdb.Connection, path: pathlib.Path, method: str) -> None:
    code = (
        "import sys, tarsdb, numpy as np\n"
        "from tarsdb.kernels import graph, ivf\n"
        "graph.wait(), ivf.wait()\n"
        "db = tarsdb.connect(sys.argv[1], read_only=True)\n"
        f"q = np.zeros({DIM}, np.float32)\n"
        "sql = 'SELECT id FROM t ORDER BY emb <-> ? LIMIT 5'\n"
        "print(db.execute(sql, (q,)).fetchall(), db.execute('EXPLAIN ' + sql, (q,)).fetchall())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    here = db.execute("SELECT id FROM t ORDER BY emb <-> ? LIMIT 5", (np.zeros(DIM),)).fetchall()
    assert ran.stdout.startswith(str(here))
    assert f"index tv ({method}): {METHODS[method].noun}" in ran.stdout


def test_dropping(db: tarsdb.Connection, method: str) -> None:
    db.execute("DROP INDEX tv")
    assert not uses_index(db)
    assert recall(db) == 1.0
    db.execute("VACUUM")
    options = {"hnsw": "m = 8, ef_construction = 40", "ivf": "lists = 50, codes = 'bits'"}[method]
    db.execute(f"CREATE INDEX tv ON t USING {method} (emb) WITH ({options})")
    assert uses_index(db)
    assert recall(db) >= 0.9
    db.execute("DROP TABLE t; VACUUM")
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_an_empty_table_may_have_an_index(path: pathlib.Path, method: str) -> None:
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        db.execute(f"CREATE INDEX tv ON t USING {method} (emb)")
        assert (
            db.execute("SELECT id FROM t ORDER BY emb <-> ? LIMIT 3", (QUERIES[0],)).fetchall()
            == []
        )
        db.table("t").insert({"id": np.arange(500), "emb": clustered(500, 1)})
        assert recall(db) == 1.0
        db.execute("REINDEX tv")
        assert uses_index(db)
        assert recall(db) >= 0.95
        db.execute("DELETE FROM t")
        assert recall(db) == 1.0


def test_rows_without_a_vector(path: pathlib.Path, method: str) -> None:
    with tarsdb.connect(path) as db:
        fill(db, method)
        db.execute("INSERT INTO t VALUES (70000, 1, NULL)")
        db.execute("UPDATE t SET emb = NULL WHERE id = 5")
        db.execute("REINDEX tv")
        every = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 10000"
        assert len(db.execute(every, (QUERIES[0],)).fetchall()) == ROWS - 1
        assert recall(db, where="WHERE emb IS NOT NULL") >= 0.95


@pytest.mark.parametrize(
    ("sql", "error", "words"),
    [
        ("USING m (kind)", NotSupportedError, "expected a vector column"),
        ("USING m (emb, kind)", NotSupportedError, "indexes one column"),
        ("USING m (emb bit_hamming_ops)", NotSupportedError, "metric 'hamming'"),
        ("USING m (emb) WITH (efc = 3)", NotSupportedError, "option 'efc'"),
        ("USING m (emb) WITH (seed = -1)", DataError, "option seed"),
        ("USING hnsw (emb) WITH (quantization = 'pq')", NotSupportedError, "quantization"),
        ("USING hnsw (emb) WITH (lists = 3)", NotSupportedError, "option 'lists'"),
        (
            "USING ivf (emb) WITH (codes = 'pq8')",
            DataError,
            "'pq8', expected auto or none or int8 or bits or pq",
        ),
        ("USING ivf (emb) WITH (lists = 3.5)", DataError, "option lists"),
        ("USING ivf (emb) WITH (codes = 'bits', refine_bits = 3)", DataError, "3, expected 0 or 2"),
        ("USING ivf (emb) WITH (refine_bits = 2)", DataError, "2, but codes is 'auto'"),
        ("USING fts (emb)", NotSupportedError, "not built yet"),
    ],
)
def test_what_it_cannot_do_is_said(
    db: tarsdb.Connection, method: str, sql: str, error: type[Exception], words: str
) -> None:
    sql = sql.replace("USING m ", f"USING {method} ")
    with pytest.raises(error, match=words):
        db.execute(f"CREATE INDEX other ON t {sql}")
    with pytest.raises(CatalogError):
        db.execute("DROP INDEX other")


def test_a_damaged_part_is_answered_for_exactly(db: tarsdb.Connection, path: pathlib.Path) -> None:
    with Snapshot(db._require_session().env) as snapshot:
        table = snapshot.catalog.table("t")
        assert table is not None
        (index,) = (i for i in table.indexes if i.name == "tv")
        (part,) = read_parts(snapshot.txn, index.id)
    db.close()
    whole = path.read_bytes()
    mark = whole.find(b"TARRAYS1")
    assert mark > 0
    at = mark + part.nbytes // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    with tarsdb.connect(path) as again:
        before = METRICS.snapshot().get("index.damaged_parts", 0)
        assert recall(again) == 1.0
        assert METRICS.snapshot()["index.damaged_parts"] > before
        assert not uses_index(again)
        findings = str(again.execute("PRAGMA integrity_check").fetchall())
        assert "index tv (REINDEX rebuilds it)" in findings
        again.execute("REINDEX tv")
        assert uses_index(again)
        assert recall(again) >= 0.95
        assert again.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_data_the_graph_is_bad_at_is_searched_exactly(path: pathlib.Path) -> None:
    """Inner products of vectors whose norms differ by orders of magnitude."""
    rows = clustered(ROWS, 1)
    rows *= np.random.default_rng(3).lognormal(0, 2.0, (ROWS, 1)).astype(np.float32)
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        db.table("t").insert({"id": np.arange(ROWS), "emb": rows})
        db.execute("CREATE INDEX tv ON t USING hnsw (emb vector_ip_ops)")
        assert recall(db, "<#>") >= 0.95
        db.execute("SET target_recall = 1")
        lines = str(db.execute("EXPLAIN SELECT id FROM t ORDER BY emb <#> ? LIMIT 5",
                               (QUERIES[0],)).fetchall())  # fmt: skip
        assert "exact: the graph cannot reach a recall of 1.0 on this data" in lines
        assert recall(db, "<#>") == 1.0


@pytest.mark.parametrize("metric", OPERATORS)
@pytest.mark.parametrize(
    ("rows", "least"),
    [
        (np.full((600, DIM), 2.5), 1), (np.repeat(np.eye(6, DIM), 100, axis=0), 1),
        (np.zeros((600, DIM)), 1), (1e-20 * clustered(600, 4), 0.9),
    ],
    ids=["equal", "duplicates", "zeros", "tiny"],
)  # fmt: skip
def test_odd_rows(
    path: pathlib.Path, method: str, metric: str, rows: np.ndarray, least: float
) -> None:
    """As many rows, at the distances exact search finds."""
    op = OPERATORS[metric]
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        db.table("t").insert({"id": np.arange(600), "emb": rows.astype(np.float32)})
        sql = f"SELECT emb {op} ? AS d FROM t ORDER BY d LIMIT {K}"
        exactly = [db.execute(sql, (query,)).numpy()["d"] for query in QUERIES]
        db.execute(f"CREATE INDEX tv ON t USING {method} (emb vector_{metric}_ops)")
        assert uses_index(db, op)
        before = searches(method)
        found = [db.execute(sql, (query,)).numpy()["d"] for query in QUERIES]
        assert searches(method) == before + len(QUERIES)
        same = np.isclose(found, exactly, rtol=1e-5, atol=1e-6, equal_nan=True)
        assert same.shape == (len(QUERIES), K)
        assert same.mean() >= least


def test_lists_are_as_many_as_asked_for(path: pathlib.Path) -> None:
    with tarsdb.connect(path) as db:
        fill(db, "ivf")
        db.execute("CREATE INDEX many ON t USING ivf (emb vector_cosine_ops) WITH (lists = 300)")
        db.execute("SET probes = 1000000")
        for op, lists in (("<->", round(4 * ROWS**0.5)), ("<=>", 300)):
            sql = f"EXPLAIN SELECT id FROM t ORDER BY emb {op} ? LIMIT 5"
            assert f"lists, probes {lists};" in str(db.execute(sql, (QUERIES[0],)).fetchall())
            assert recall(db, op) >= 0.999


@pytest.mark.parametrize("codes", ["'none'", "'int8'", "'bits'", "'bits', refine_bits = 2", "'pq'"])
def test_codes_of_lists(path: pathlib.Path, codes: str) -> None:
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, kind INT, emb VECTOR({DIM}))")
        ids = np.arange(ROWS)
        db.table("t").insert({"id": ids, "kind": ids % 100, "emb": clustered(ROWS, 1)})
        db.execute(f"CREATE INDEX tv ON t USING ivf (emb) WITH (codes = {codes})")
        assert uses_index(db)
        assert recall(db) >= 0.95
        assert recall(db, where="WHERE kind < 70") >= 0.95


def test_probes_grow_as_a_filter_leaves_fewer(path: pathlib.Path) -> None:
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, kind INT, emb VECTOR({DIM}))")
        rows = np.random.default_rng(1).standard_normal((20_000, DIM)).astype(np.float32)
        db.table("t").insert({"id": np.arange(20_000), "kind": np.arange(20_000) % 100,
                              "emb": rows})  # fmt: skip
        db.execute("CREATE INDEX tv ON t USING ivf (emb)")
        for setting in ("target_recall = 0.8", "probes = 20"):
            db.execute(f"SET {setting}")
            probes = []
            for where in ("", "WHERE kind < 70", "WHERE kind < 40"):
                sql = f"EXPLAIN SELECT id FROM t {where} ORDER BY emb <-> ? LIMIT 10"
                text = str(db.execute(sql, (QUERIES[0],)).fetchall())
                assert "index tv (ivf)" in text
                probes.append(int(text.split("probes ")[1].split(",")[0].split(";")[0]))
            assert probes == sorted(set(probes)), setting


@pytest.mark.parametrize("chunk", [1 << 16, (8 << 20) - 64])
def test_lists_are_read_where_the_file_has_them(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(blobs, "CHUNK_BYTES", chunk)
    with tarsdb.connect(path) as db:
        fill(db, "ivf")
    with tarsdb.connect(path) as db:
        assert recall(db) >= 0.95
        part = placed_part(db)
        assert isinstance(part.codes, Runs)
        assert part.nbytes < part.codes.nbytes
        db.table("t").insert({"id": [70_000], "kind": [1], "emb": clustered(1, 5)})
        assert recall(db) >= 0.95
        assert placed_part(db) is part


def test_a_part_made_again_elsewhere_in_the_file(path: pathlib.Path) -> None:
    """The same arrays, at another place: what is kept in memory by content leads nowhere."""
    with tarsdb.connect(path) as db:
        fill(db, "ivf")
        db.execute("SET target_recall = 0.99")
        assert recall(db) >= 0.99
        first = placed_part(db)
        ids = np.arange(ROWS, 3 * ROWS)
        for _ in range(3):
            db.table("t").insert({"id": ids, "kind": ids % 100, "emb": clustered(2 * ROWS, 6)})
            db.execute("REINDEX tv")
            db.execute("VACUUM")
            db.execute(f"DELETE FROM t WHERE id >= {ROWS}")
            db.execute("VACUUM")
        db.execute("CREATE TABLE other (a TEXT)")
        db.execute("INSERT INTO other VALUES (?)", ("x" * 1_000_000,))
        db.execute("REINDEX tv")
        assert recall(db) >= 0.99
        second = placed_part(db)
        np.testing.assert_array_equal(first.rowids, second.rowids)
        assert first._table[1][0, 1] != second._table[1][0, 1]


def placed_part(db: tarsdb.Connection) -> Any:
    """Return the only part that is placed."""
    (found,) = db._require_session().env.caches["placed"].values()
    (part,) = found[2].parts
    return part.part


def test_a_small_part_is_searched_as_long_as_it_matters(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most neighbours of a query lie in the smaller part: a short list alone misses some."""
    rng = np.random.default_rng(8)
    topic = (3 + 0.3 * rng.standard_normal((1500, DIM))).astype(np.float32)
    with tarsdb.connect(path) as db:
        fill(db, "hnsw")
        monkeypatch.setattr(index_build, "TIER", 0)  # parts stay apart
        ids = np.arange(ROWS, ROWS + len(topic))
        db.table("t").insert({"id": ids, "kind": ids % 100, "emb": topic})
        index_build.wait(db._require_session().env)
        db.execute("SET ef_search = 96")
        sql = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 40"
        assert "2 parts, 0 fresh" in str(db.execute(f"EXPLAIN {sql}", (topic[0],)).fetchall())
        queries = (3 + 0.3 * rng.standard_normal((60, DIM))).astype(np.float32)

        def recall() -> float:
            hits = 0
            for query in queries:
                right = ids[np.argsort(np.linalg.norm(topic - query, axis=1))[:40]].tolist()
                found = [row[0] for row in db.execute(sql, (query,)).fetchall()]
                hits += len(set(found) & set(right))
            return hits / (40 * len(queries))

        longer = recall()
        (placed,) = db._require_session().env.caches["placed"].values()
        placed[2].scopes.clear()
        monkeypatch.setattr(Hnsw, "first_effort", lambda self, effort, k: effort)
        assert longer == recall()  # both search that part with the whole list
        monkeypatch.undo()
        placed[2].scopes.clear()
        monkeypatch.setattr(vector_index, "prepared", lambda *given: None)
        assert longer == recall()
        monkeypatch.setattr(vector_index, "_important", lambda *given: [])
        assert recall() < longer


def test_ended_rows_are_passed_by_inside_the_search(db: tarsdb.Connection, method: str) -> None:
    """Were they left out of what it names afterwards only, hardly any would be left."""
    away = np.square(clustered(ROWS, 1) - QUERIES[0]).sum(axis=1)
    nearest = np.argsort(away)
    db.execute(f"DELETE FROM t WHERE id IN ({', '.join(map(str, nearest[:60]))})")
    db.execute(f"SET {METHODS[method].setting} = 20")
    before = METRICS.snapshot()
    found = db.execute(f"SELECT id FROM t ORDER BY emb <-> ? LIMIT {K}", (QUERIES[0],)).fetchall()
    after = METRICS.snapshot()
    assert len({row for (row,) in found} & set(nearest[60 : 60 + K].tolist())) >= 0.8 * K
    for name, more in ((METHODS[method].counter, 1), ("index.exact_instead", 0)):
        assert after.get(name, 0) == before.get(name, 0) + more
