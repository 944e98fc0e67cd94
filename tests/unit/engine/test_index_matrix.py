"""Every method over every metric of every type of vector, through SQL, against NumPy's answer."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.cli import main
from tarsdb.engine.search import index_build, vector_index
from tarsdb.engine.search.index_methods import METHODS
from tarsdb.errors import NotSupportedError, SQLSyntaxError
from tarsdb.index import navigation
from tarsdb.index.hnsw import nearest
from tarsdb.index.navigation import Navigation, as_numbers
from tarsdb.kernels import dispatch, graph, ivf
from tarsdb.metrics import METRICS
from tarsdb.storage import Snapshot, read_parts

DIM, ROWS, K = 64, 1500, 10
OPERATORS = {
    "l2": "<->", "ip": "<#>", "cosine": "<=>", "l1": "<+>", "hamming": "<~>", "jaccard": "<%>",
}  # fmt: skip
NUMERIC, BITS = ("l2", "ip", "cosine", "l1"), ("hamming", "jaccard")
TYPES = {"VECTOR": NUMERIC, "HALFVEC": NUMERIC, "INT8VEC": NUMERIC, "BIT": BITS}
PAIRS = [(kind, metric) for kind, metrics in TYPES.items() for metric in metrics]
INVALID = [(kind, m) for kind, metrics in TYPES.items() for m in OPERATORS if m not in metrics]
CASES = [(method, kind, metric) for method in METHODS for kind, metric in PAIRS]
REFINED = "codes = 'bits', refine_bits = 2"
CODED = [(*case, "") for case in CASES] + [
    ("ivf", kind, metric, codes) for codes in (REFINED, "codes = 'pq'")
    for kind, metric in PAIRS if kind != "BIT"
]  # fmt: skip
FLAT = [("flat", kind, metric, "") for kind, metric in PAIRS]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    graph.wait()
    ivf.wait()
    for kind in ("f32", "f16", "i8", "bit"):
        dispatch.prepare(kind)
    dispatch.wait()


def drawn(rows: int, seed: int, kind: str, dim: int = DIM) -> np.ndarray:
    """Return clustered vectors, as a program binds them."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((30, dim))
    found = centres[rng.integers(0, 30, rows)] + 0.5 * rng.standard_normal((rows, dim))
    if kind == "INT8VEC":
        return np.clip(np.rint(30 * found), -128, 127).astype(np.int8)
    if kind == "BIT":
        return found > 0.5
    return found.astype(np.float16 if kind == "HALFVEC" else np.float32)


def _jaccard(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    common = rows @ query
    return np.where(common, 1 - common / np.maximum(rows.sum(1) + query.sum() - common, 1), 1)


def _cosine(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return 1 - rows @ query / (np.linalg.norm(rows, axis=1) * np.linalg.norm(query))


TRUE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "l2": lambda rows, query: np.sqrt(((rows - query) ** 2).sum(1)),
    "ip": lambda rows, query: -(rows @ query),
    "cosine": _cosine,
    "l1": lambda rows, query: np.abs(rows - query).sum(1),
    "hamming": lambda rows, query: np.abs(rows - query).sum(1),
    "jaccard": _jaccard,
}


class Life:
    """A table with one index, none if the method is flat, and the rows it should hold."""

    def __init__(
        self, db: tarsdb.Connection, method: str, kind: str, metric: str, options: str = ""
    ) -> None:
        self.db, self.method, self.kind, self.metric = db, method, kind, metric
        self.rows: dict[int, np.ndarray] = {}
        self.queries = drawn(15, 99, kind)
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, kind INT, emb {kind}({DIM}))")
        self.insert(0, ROWS, 1)
        if method != "flat":
            name = f"{kind.lower()}_{metric}_ops"
            given = f"WITH ({options})" if options else ""
            db.execute(f"CREATE INDEX tv ON t USING {method} (emb {name}) {given}")

    def insert(self, start: int, rows: int, seed: int) -> None:
        ids, vectors = np.arange(start, start + rows), drawn(rows, seed, self.kind)
        self.db.table("t").insert({"id": ids, "kind": ids % 100, "emb": vectors})
        self.rows.update(zip(ids.tolist(), vectors, strict=True))

    def update(self, ids: range, seed: int) -> None:
        vectors = drawn(len(ids), seed, self.kind)
        self.db.executemany(
            "UPDATE t SET emb = ? WHERE id = ?", list(zip(vectors, ids, strict=True))
        )
        self.rows.update(zip(ids, vectors, strict=True))

    def delete(self, every: int) -> None:
        self.db.execute(f"DELETE FROM t WHERE id % {every} = 0")
        self.rows = {row: vector for row, vector in self.rows.items() if row % every}

    @property
    def sql(self) -> str:
        return f"SELECT id, emb {OPERATORS[self.metric]} ? AS d FROM t WHEREd ORDER BY d LIMIT {K}"

    def recall(self, db: tarsdb.Connection | None = None, kinds: int = 100) -> float:
        """Return the share of true neighbours found; a row as near as the last one is right."""
        sql = self.sql.replace("WHEREd", f"WHERE kind < {kinds}" if kinds < 100 else "")
        ids = np.array([row for row in self.rows if row % 100 < kinds])
        vectors = np.array([self.rows[row] for row in ids.tolist()], np.float64)
        hits = 0
        for query in self.queries:
            true = TRUE[self.metric](vectors, query.astype(np.float64))
            found = (db or self.db).execute(sql, (query,)).fetchall()
            assert len({row for row, _ in found}) == K
            distances = np.array([distance for _, distance in found])
            own = true[np.searchsorted(ids, [row for row, _ in found])]
            np.testing.assert_allclose(distances, own, rtol=2e-3, atol=2e-3)
            assert (np.diff(distances) >= 0).all()
            last = np.sort(true)[K - 1]
            hits += int((own <= last + 1e-6 * abs(last)).sum())
        return hits / (K * len(self.queries))

    def explained(self, db: tarsdb.Connection | None = None, kinds: int = 100) -> str:
        sql = self.sql.replace("WHEREd", f"WHERE kind < {kinds}" if kinds < 100 else "")
        return str((db or self.db).execute(f"EXPLAIN {sql}", (self.queries[0],)).fetchall())

    def uses_index(self, db: tarsdb.Connection | None = None, kinds: int = 100) -> bool:
        how = self.explained(db, kinds)
        if self.method == "flat":
            return "search: exact (flat), " in how
        return f"index tv ({self.method}): {METHODS[self.method].noun}" in how


@pytest.mark.parametrize(("method", "kind", "metric", "options"), CODED + FLAT)
def test_the_life_of_a_table(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, method: str, kind: str, metric: str,
    options: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(index_build, "FRESH_ROWS", 250)

    has_index = method != "flat"

    def good(db: tarsdb.Connection | None = None, kinds: int = 100) -> bool:
        return life.uses_index(db, kinds) and life.recall(db, kinds) >= (0.9 if has_index else 1)

    with tarsdb.connect(tmp_path / "a.tars") as db:
        life = Life(db, method, kind, metric, options)
        counter = METHODS[method].counter if has_index else "index.searches of none"
        before = METRICS.snapshot().get(counter, 0)
        assert good()
        assert METRICS.snapshot().get(counter, 0) == before + has_index * len(life.queries)
        life.insert(ROWS, 200, 2)
        assert ("200 fresh rows" in life.explained()) == has_index
        assert good()
        life.insert(ROWS + 200, 100, 3)  # the indexer takes them in
        index_build.wait(db._require_session().env)
        assert ("0 fresh rows" in life.explained()) == has_index
        assert good()
        life.update(range(3, 603, 4), 4)
        life.delete(7)
        assert good()
        assert good(kinds=95)
        assert life.recall(kinds=3) == 1
        few = sum(row % 100 < 3 for row in life.rows)
        reason = f"exact over the {few} matching rows, cheaper than the "
        assert (reason in life.explained(kinds=3)) == has_index
        db.execute("BEGIN")
        kept = dict(life.rows)
        life.insert(5000, 50, 5)
        life.delete(11)
        assert good()
        db.execute("ROLLBACK")
        life.rows = kept
        assert good()
        db.execute("OPTIMIZE t")
        assert good()
        db.execute("VACUUM")
        assert good()
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with tarsdb.connect(tmp_path / "a.tars", read_only=True) as db:
        assert good(db)
        _batches_and_reports(db, life, tmp_path / "a.tars")


def _batches_and_reports(db: tarsdb.Connection, life: Life, path: pathlib.Path) -> None:
    sql = life.sql.replace("WHEREd", "")
    singly = [(n, *row) for n, query in enumerate(life.queries)
              for row in db.execute(sql, (query,)).fetchall()]  # fmt: skip
    assert db.execute(sql, (life.queries,)).fetchall() == singly
    if life.method == "flat":
        return
    ((recall, reason),) = db.execute("SELECT recall, reason FROM tars_recall_stats").fetchall()
    assert recall >= 0.9, reason


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("kind", "metric"),
    [("VECTOR", "l1"), ("HALFVEC", "cosine"), ("INT8VEC", "l2"), *(("BIT", m) for m in BITS)],
)
def test_sentence_embeddings(
    tmp_path: pathlib.Path, shared_data: pathlib.Path, method: str, kind: str, metric: str
) -> None:
    """Queries that are no rows of the table; found is what is no farther than the last of ten."""
    rows, queries = (
        np.load(shared_data / "minilm384" / name)[:count].astype(np.float32)
        for name, count in (("base.f16.npy", 30_000), ("query.f16.npy", 200))
    )
    if kind == "BIT":
        rows, queries = rows > 0, queries > 0
    elif kind == "INT8VEC":
        rows, queries = ((500 * each).clip(-128, 127).astype(np.int8) for each in (rows, queries))
    sql = f"SELECT emb {OPERATORS[metric]} ? AS d FROM t ORDER BY d LIMIT {K}"
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb {kind}(384))")
        db.table("t").insert({"id": np.arange(len(rows)), "emb": rows})
        exactly = db.execute(sql, (queries,)).numpy()["d"].reshape(-1, K)
        db.execute(f"CREATE INDEX tv ON t USING {method} (emb) WITH (metric = '{metric}')")
        assert f"index tv ({method})" in str(db.execute(f"EXPLAIN {sql}", (queries[0],)).fetchall())
        found = db.execute(sql, (queries,)).numpy()["d"].reshape(-1, K)
        last = exactly[:, -1:]
        assert (found <= last + 1e-5 * abs(last)).mean() >= 0.92


@pytest.mark.parametrize(("method", "kind", "metric", "options"), CODED)
def test_sizes_are_told_before(method: str, kind: str, metric: str, options: str) -> None:
    with tarsdb.connect(":memory:") as db:
        told: list[Any] = []
        db.on_progress(lambda done, total: None, told.append)
        life = Life(db, method, kind, metric, options)
        with Snapshot(db._require_session().env) as snapshot:
            table = snapshot.catalog.table("t")
            assert table is not None
            (part,) = read_parts(snapshot.txn, next(i for i in table.indexes if i.name == "tv").id)
        assert len(life.rows) == ROWS
        assert 0.75 * part.nbytes <= told[-1].disk_bytes <= 1.4 * part.nbytes


@pytest.mark.parametrize(("kind", "metric"), [("HALFVEC", "l1"), ("BIT", "jaccard")])
def test_bench(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], kind: str, metric: str
) -> None:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        Life(db, "ivf", kind, metric)
    line = ["bench", str(tmp_path / "a.tars"), "t", "--queries", "20", "--format", "json"]
    assert main(line) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {row["operator"] for row in shown} == {OPERATORS[metric]}
    assert next(row for row in shown if row["search"] == "tv")["recall"] >= 0.9


def test_another_process(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.tars"
    here = {}
    with tarsdb.connect(path) as db:
        for at, (method, kind, metric, options) in enumerate(CODED):
            db.execute(f"CREATE TABLE t{at} (id INT PRIMARY KEY, emb {kind}({DIM}))")
            db.table(f"t{at}").insert({"id": np.arange(400), "emb": drawn(400, at, kind)})
            db.execute(f"CREATE INDEX tv{at} ON t{at} USING {method} (emb) "
                       f"WITH (metric = '{metric}'{options and ', ' + options})")  # fmt: skip
            query = drawn(400, at, kind)[7].astype(np.float64).tolist()
            sql = f"SELECT id FROM t{at} ORDER BY emb {OPERATORS[metric]} ? LIMIT 5"
            here[sql] = query, db.execute(sql, (query,)).fetchall()
            assert f"index tv{at} ({method})" in str(
                db.execute(f"EXPLAIN {sql}", (query,)).fetchall()
            )
    code = (
        "import json, sys, tarsdb\n"
        "from tarsdb.kernels import graph, ivf\n"
        "graph.wait(), ivf.wait()\n"
        "db = tarsdb.connect(sys.argv[1], read_only=True)\n"
        "def run(sql, query): return db.execute(sql, (query,)).fetchall()\n"
        "for sql, query in json.load(sys.stdin):\n"
        "    how = str(run('EXPLAIN ' + sql, query))\n"
        "    print(json.dumps([run(sql, query), 'index tv' in how]))\n"
    )
    asked = json.dumps([(sql, query) for sql, (query, _) in here.items()])
    ran = subprocess.run([sys.executable, "-c", code, str(path)], input=asked, text=True,
                         capture_output=True, check=True)  # fmt: skip
    there = [json.loads(line) for line in ran.stdout.splitlines()]
    assert there == [[[list(row) for row in rows], True] for _, rows in here.values()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "metric"), [("VECTOR", "l1"), ("INT8VEC", "l2")])
def test_candidates_by_a_wrong_operator_are_noticed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, method: str, kind: str, metric: str
) -> None:
    """Control: what the tests above measure falls."""
    monkeypatch.setitem(navigation.NAVIGATIONS, OPERATORS[metric], Navigation("<#>"))
    with tarsdb.connect(tmp_path / "a.tars") as db:
        life = Life(db, method, kind, metric)
        db.execute("SET ef_search = 16; SET probes = 4")
        assert life.uses_index()
        assert life.recall() < 0.8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", BITS)
def test_candidates_for_a_wrong_query_are_noticed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, method: str, metric: str
) -> None:
    """Control for bits: each is taken for its opposite."""
    with tarsdb.connect(tmp_path / "a.tars") as db:
        life = Life(db, method, "BIT", metric)
        for module in (vector_index, nearest):
            monkeypatch.setattr(module, "as_numbers", lambda rows: 1 - as_numbers(rows))
        assert life.uses_index()
        assert life.recall() < 0.8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "metric"), INVALID)
def test_a_metric_of_other_types_is_refused(method: str, kind: str, metric: str) -> None:
    with tarsdb.connect(":memory:") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb {kind}({DIM}))")
        fitting = " or ".join(TYPES[kind])
        words = rf"metric '{metric}' is not defined for {kind}\({DIM}\), expected {fitting}"
        for how in (f"(emb {kind.lower()}_{metric}_ops)", f"(emb) WITH (metric = '{metric}')"):
            with pytest.raises(NotSupportedError, match=words) as raised:
                db.execute(f"CREATE INDEX tv ON t USING {method} {how}")
            assert f"{kind.lower()}_{TYPES[kind][0]}_ops" in (raised.value.hint or "")


def test_bits_have_no_further_bits() -> None:
    with tarsdb.connect(":memory:") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb BIT({DIM}))")
        with pytest.raises(NotSupportedError, match=r"index tv: option refine_bits .* BIT\(64\)"):
            db.execute(f"CREATE INDEX tv ON t USING ivf (emb) WITH ({REFINED})")
        db.execute("CREATE INDEX tv ON t USING ivf (emb) WITH (codes = 'bits', refine_bits = 0)")


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("(emb vector_l1_ops)", NotSupportedError, r"class vector_l1_ops is not for metric 'l1'"),
        ("(emb halfvec_l1_ops) WITH (metric = 'l2')", NotSupportedError, r"for metric 'l2'"),
        ("(emb halfvec_l3_ops)", SQLSyntaxError, "operator class"),
        ("(emb) WITH (metric = 'l3')", NotSupportedError, r"metric 'l3' is not defined"),
    ],
)
def test_an_operator_class_is_of_its_type(how: str, error: type[Exception], words: str) -> None:
    with tarsdb.connect(":memory:") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb HALFVEC({DIM}))")
        with pytest.raises(error, match=words):
            db.execute(f"CREATE INDEX tv ON t USING ivf {how}")
        db.execute("CREATE INDEX tv ON t USING ivf (emb l1_ops)")


def odd(kind: str) -> dict[str, np.ndarray]:
    """Return rows that are hard on an index, of a type."""
    rows, rng = 400, np.random.default_rng(8)
    dtype: Any = {"INT8VEC": np.int8, "BIT": bool, "HALFVEC": np.float16}.get(kind, np.float32)
    ends = {"INT8VEC": (-128, 127), "BIT": (0, 1), "HALFVEC": (-65504, 65504)}.get(kind, (-1, 1))
    sparse = rng.random((rows, 20)) < rng.beta(0.5, 3, (rows, 1))
    return {
        "zeros": np.zeros((rows, 20), dtype),
        "equal": np.ones((rows, 20), dtype),
        "ends": rng.choice(ends, (rows, 20)).astype(dtype),
        "sparse": sparse.astype(dtype),
        "wide": rng.choice(ends, (60, 4096)).astype(dtype),
        "one element": rng.choice([0, 1], (rows, 1)).astype(dtype),
        "one row": np.ones((1, 20), dtype),
        "no rows": np.ones((0, 20), dtype),
    }


@pytest.mark.parametrize("growth", [0.01, 100.0])
@pytest.mark.parametrize(("method", "kind", "metric", "options"), [
    each for each in CODED + FLAT if each[1] == "VECTOR" and each[2] in ("l2", "ip")])  # fmt: skip
def test_lengths_change_after_a_build(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, method: str, kind: str, metric: str,
    options: str, growth: float,
) -> None:  # fmt: skip
    """What codes were made for no longer holds: of fresh rows, in parts, and in one part of all."""
    monkeypatch.setattr(index_build, "FRESH_ROWS", 250)
    with tarsdb.connect(tmp_path / "a.tars") as db:
        life = Life(db, method, kind, metric, options)
        usual = life.queries
        for turn in range(3):
            ids = np.arange(ROWS + 200 * turn, ROWS + 200 * (turn + 1))
            vectors = drawn(200, 50 + turn, kind) * growth
            db.table("t").insert({"id": ids, "kind": ids % 100, "emb": vectors})
            life.rows.update(zip(ids.tolist(), vectors, strict=True))
            if turn:
                index_build.wait(db._require_session().env)
            for queries in (usual, (usual * growth).astype(usual.dtype)):
                life.queries = queries
                assert life.uses_index()
                assert life.recall() >= 0.9
        db.execute("OPTIMIZE t")
        for queries in (usual, (usual * growth).astype(usual.dtype)):
            life.queries = queries
            assert life.uses_index()
            assert life.recall() >= 0.9


@pytest.mark.parametrize(("method", "kind", "metric"), CASES)
def test_odd_rows(tmp_path: pathlib.Path, method: str, kind: str, metric: str) -> None:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        for at, (name, rows) in enumerate(odd(kind).items()):
            db.execute(f"CREATE TABLE t{at} (id INT PRIMARY KEY, emb {kind}({rows.shape[1]}))")
            if len(rows):
                db.table(f"t{at}").insert({"id": np.arange(len(rows)), "emb": rows})
            sql = f"SELECT emb {OPERATORS[metric]} ? AS d FROM t{at} ORDER BY d LIMIT {K}"
            queries = [*rows[:10], *drawn(2, 9, kind, rows.shape[1])]  # the last are far away
            exactly = [db.execute(sql, (query,)).numpy()["d"] for query in queries]
            db.execute(f"CREATE INDEX tv{at} ON t{at} USING {method} (emb) "
                       f"WITH (metric = '{metric}')")  # fmt: skip
            found = [db.execute(sql, (query,)).numpy()["d"] for query in queries]
            near = []
            for query, one, other in zip(queries, found, exactly, strict=True):
                assert one.shape == other.shape, name
                assert np.isnan(one).sum() == np.isnan(other).sum(), name
                last = np.nan_to_num(other[-1:], nan=np.inf)
                if any(query is row for row in queries[:-2]):
                    near.extend(np.nan_to_num(one, nan=np.inf) <= last + 1e-3 * abs(last))
            assert np.mean(near or [1]) >= 0.85, name
