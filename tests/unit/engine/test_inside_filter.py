"""Searches by a graph that ask a sandboxed filter by themselves, beside exact search."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb import errors
from tarsdb.engine.search import inside_filter, lazy_filter
from tarsdb.kernels import graph

DIM, ROWS, K, THOUSAND = 16, 6000, 10, 1000

# keeps(n, c, k): (n + c) mod 1000 < k; traps for n = -1, loops for ever for n = -2
KEEPS = """(module (func (export "keeps") (param i64 i64 i64) (result i32)
  (if (i64.eq (local.get 0) (i64.const -1)) (then unreachable))
  (if (i64.eq (local.get 0) (i64.const -2)) (then (loop $l (br $l))))
  (i64.lt_s (i64.rem_s (i64.add (local.get 0) (local.get 1)) (i64.const 1000)) (local.get 2))))"""
SQL = "SELECT id FROM t WHERE {}(n, ?, ?) ORDER BY emb <-> ? LIMIT 10"


def create(name: str, more: str = "") -> str:
    code = KEEPS.replace("keeps", name)
    role = "" if name == "plain" else f"WITH (role = 'filter'{more})"
    return (
        f"CREATE FUNCTION {name}(n BIGINT, c BIGINT, k BIGINT) RETURNS BOOLEAN LANGUAGE wasm "
        f"AS '{code}' {role}"
    )


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    rng = np.random.default_rng(7)
    graph.wait()
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(f"CREATE TABLE t (id BIGINT PRIMARY KEY, n INT, emb VECTOR({DIM}))")
        db.table("t").insert({
            "id": np.arange(ROWS), "n": rng.permutation(ROWS) % THOUSAND, "emb": vectors(rng, ROWS),
        })  # fmt: skip
        db.execute("OPTIMIZE t")
        db.execute("CREATE INDEX near ON t USING hnsw (emb)")
        db.execute(create("keeps"))
        db.execute(create("plain"))
        for number in range(8):  # what a call takes is known, and arguments are kept
            found(db, number * THOUSAND, 900, query(number))
        yield db


def vectors(rng: np.random.Generator, count: int) -> np.ndarray:
    centres = np.random.default_rng(1).standard_normal((50, DIM))
    rows = centres[rng.integers(0, 50, count)] + 0.5 * rng.standard_normal((count, DIM))
    return rows.astype(np.float32)


def query(number: int) -> np.ndarray:
    return vectors(np.random.default_rng(number + 100), 1)[0]


def found(db: tarsdb.Connection, *parameters: Any, name: str = "keeps") -> list[int]:
    return [row[0] for row in db.execute(SQL.format(name), parameters).fetchall()]


def inside(db: tarsdb.Connection) -> float:
    sql = "SELECT value FROM tars_metrics WHERE name = 'udf_filter_inside'"
    kept = db.execute(sql).fetchall()
    return float(kept[0][0]) if kept else 0.0


def passing(db: tarsdb.Connection, ids: list[int], constant: int, most: int) -> bool:
    marks = ", ".join(map(str, ids))
    rows = db.execute(f"SELECT n FROM t WHERE id IN ({marks})").fetchall()
    return len(rows) == len(ids) and all((n + constant) % THOUSAND < most for (n,) in rows)


def test_it_finds_the_rows_that_pass(db: tarsdb.Connection) -> None:
    hits = searches = 0
    before = inside(db)
    for number in range(60):
        constant, most = number * THOUSAND + 7 * number, (900, 500, 300, 200)[number % 4]
        ids = found(db, constant, most, query(number))
        assert len(set(ids)) == K and passing(db, ids, constant, most)
        assert not passing(db, ids, constant, 0)
        hits += len({*ids} & {*found(db, constant, most, query(number), name="plain")})
        searches += 1
    assert inside(db) - before >= 30
    assert hits / searches / K >= 0.95


def test_it_looks_further_where_fewer_pass_than_before(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    original = inside_filter._Search.efforts

    def efforts(self: inside_filter._Search, share: float) -> tuple[int, int]:
        shares.append(share)
        return original(self, share)

    monkeypatch.setattr(inside_filter._Search, "efforts", efforts)
    for most, low, high in ((1000, 0.8, 1), (250, 0.1, 0.5), (900, 0.1, 0.5)):
        before, number = inside(db), 40 + most
        shares.clear()
        assert len(found(db, number * THOUSAND, most, query(3))) == K
        assert inside(db) == before + 1
        assert low <= shares[-1] <= high
    assert len(shares) == 2  # to choose and to search: more passed than had been thought


def test_few_or_no_rows_that_pass_are_found_otherwise(db: tarsdb.Connection) -> None:
    for most, wanted in ((1, 6), (0, 0), (300, K)):
        for number in range(4):
            constant = 50_000 + number * THOUSAND
            ids = found(db, constant, most, query(number))
            assert len(ids) == wanted
            assert ids == found(db, constant, most, query(number), name="plain") or most == 300
    assert passing(db, ids, constant, 300)


def test_rows_that_changed_are_asked_about(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = inside_filter._Search.run

    def run(self: inside_filter._Search, asked: Any) -> np.ndarray | None:
        named = original(self, asked)
        assert named is None or self.flat.live()[named].all()
        return named

    monkeypatch.setattr(inside_filter._Search, "run", run)
    nearest = db.execute("SELECT id FROM t ORDER BY emb <-> ? LIMIT 60", (query(1),)).fetchall()
    gone = [row[0] for row in nearest[:40]]
    near = [row[0] for row in nearest[40:]]
    db.execute(f"DELETE FROM t WHERE id IN ({', '.join(map(str, gone))})")
    for number in range(12):  # the arguments are read anew when that has paid
        before = inside(db)
        ids = found(db, number * THOUSAND, 1000, query(1))
        assert len(set(ids)) == K and not {*ids} & {*gone}
    assert inside(db) > before
    db.execute("UPDATE t SET n = 950 WHERE id = ?", (near[1],))
    db.execute("UPDATE t SET n = NULL WHERE id = ?", (near[2],))
    db.execute("INSERT INTO t VALUES (70001, 5, ?), (70002, 950, ?)", (query(1), query(1)))
    before = inside(db)
    for number in range(12):
        ids = found(db, number * THOUSAND, 900, query(1))
        assert ids[0] == 70001 and len(ids) == K
        assert not {*ids} & {*gone, *near[1:3], 70002}
    assert inside(db) > before
    with db.transaction():
        db.execute("UPDATE t SET n = 950 WHERE id = 70001")
        assert 70001 not in found(db, 0, 900, query(1))
    assert 70001 not in found(db, 0, 900, query(1))


def test_what_it_did_is_counted(db: tarsdb.Connection) -> None:
    sql = "SELECT calls, rows, fuel, transitions FROM tars_functions WHERE name = 'keeps'"
    rows = "SELECT value FROM tars_metrics WHERE name = 'udf_rows'"
    before, asked = db.execute(sql).fetchone(), db.execute(rows).fetchone()
    count = inside(db)
    found(db, 77_000, 800, query(3))
    after, told = db.execute(sql).fetchone(), db.execute(rows).fetchone()
    assert before and after and asked and told
    calls, made, fuel, transitions = (b - a for a, b in zip(before, after, strict=True))
    assert inside(db) == count + 1 and calls == 1
    assert K <= made <= ROWS / 4 and told[0] - asked[0] == made
    assert 1 < transitions <= made
    assert fuel / made == pytest.approx(before[2] / before[1], rel=0.5)


def test_explain_analyze_tells(db: tarsdb.Connection) -> None:
    told = "asked about the nodes the graph's search came to"
    sql = f"EXPLAIN ANALYZE {SQL.format('keeps')}"
    for most, is_inside in ((900, True), (1, False)):
        lines = [row[0] for row in db.execute(sql, (88_000, most, query(3))).fetchall()]
        assert any(told in line for line in lines) == is_inside
        assert any(line.startswith("function keeps: ") for line in lines)


@pytest.mark.parametrize(
    ("mark", "error", "text"),
    [(-1, errors.UdfTrapError, "unreachable|UNREACHABLE"), (-2, errors.UdfLimitError, "fuel")],
)
def test_what_the_function_does_wrong_ends_the_statement(
    db: tarsdb.Connection, mark: int, error: type[Exception], text: str
) -> None:
    near = found(db, 0, 1000, query(5))
    db.execute("UPDATE t SET n = ? WHERE id = ?", (mark, near[3]))
    for number in range(12):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(error, match=text):
            if number > 5:  # until then the arguments were not read yet
                patch.setattr(lazy_filter, "search", None)
            found(db, number * THOUSAND, 900, query(5))
    db.execute("UPDATE t SET n = 1 WHERE id = ?", (near[3],))
    for number in range(12):
        assert len(found(db, number * THOUSAND, 900, query(5))) == K


def test_the_time_of_a_statement_ends_it(tmp_path: pathlib.Path, db: tarsdb.Connection) -> None:
    db.execute("DROP FUNCTION keeps")
    db.execute(create("keeps", ", fuel = 1000000000000, timeout_ms = 100"))
    for number in range(8):
        found(db, number * THOUSAND, 900, query(number))
    near, before = found(db, 9000, 1000, query(5)), inside(db)
    assert before
    db.execute("UPDATE t SET n = -2 WHERE id = ?", (near[3],))
    for number in range(4):
        with pytest.raises(errors.UdfLimitError, match="timeout_ms = 100"):
            found(db, number * THOUSAND, 900, query(5))


@pytest.mark.parametrize("backend", ["worker"])
def test_other_backends_answer_as_before(db: tarsdb.Connection, backend: str) -> None:
    db.execute("DROP FUNCTION keeps")
    db.execute(create("keeps", f", backend = '{backend}'"))
    before = inside(db)
    for number in range(6):
        ids = found(db, number * THOUSAND, 900, query(number))
        assert passing(db, ids, 0, 900) and len(ids) == K
    assert inside(db) == before


def test_rows_that_were_not_asked_about_grant_no_fuel(db: tarsdb.Connection) -> None:
    budgets: list[Any] = []
    from tarsdb.udf_sandbox.limits import Budget

    def end(self: Budget, key: int, fuel: int, seconds: float, spared: int = 0) -> None:
        original(self, key, fuel, seconds, spared)
        budgets.append((self._spent[key].rows, spared))

    original = Budget.end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Budget, "end", end)
        count = inside(db)
        found(db, 31_000, 800, query(3))
    assert inside(db) == count + 1
    ((granted, spared),) = budgets
    assert spared > 0 and K <= granted <= ROWS / 4


def test_where_it_would_cost_more_it_is_not_tried(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = inside(db)
    monkeypatch.setattr(inside_filter, "ASKED_S", 1.0)
    assert len(found(db, 11_000, 900, query(1))) == K
    assert inside(db) == before
    monkeypatch.undo()
    assert len(found(db, 12_000, 900, query(1))) == K
    assert inside(db) == before + 1
    # the same constants again and again: in the end all rows are asked about, once
    for _ in range(20):
        assert len(found(db, 12_000, 900, query(1))) == K
    assert inside(db) <= before + 10
    assert lazy_filter.KEPT_ANSWERS > 1


def test_threads_search_at_once(db: tarsdb.Connection, tmp_path: pathlib.Path) -> None:
    wrong: list[Any] = []

    def work(start: int) -> None:
        with tarsdb.connect(tmp_path / "a.tars") as own:
            for number in range(start, start + 25):
                ids = found(own, number * THOUSAND, 300, query(number))
                if len(ids) != K or not passing(own, ids, 0, 300):
                    wrong.append((number, ids))

    before = inside(db)
    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert inside(db) - before > 40
