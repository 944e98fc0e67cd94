"""Small statements an application sends again and again, beside SQLite and DuckDB.

Two tables, 5,000 rows and 50, in files. Each statement is executed with new parameters and its rows
are fetched, the engines taking turns; time of the process's processors, as DuckDB works in threads
of its own. Answers are compared. DuckDB, with its defaults, is made for larger questions; it is
what answers ours where the way is Relational.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import sqlite3
import statistics
import time
from collections.abc import Callable
from typing import Any

import duckdb

import tarsdb
from benchmarks import harness, inputs

NAME = "small_queries"
PACKAGES = ("lmdb", "numpy", "duckdb", "pyarrow")
CREATE = (
    "CREATE TABLE t (id BIGINT PRIMARY KEY, kind TEXT, name TEXT, body TEXT, score INT, w DOUBLE,"
    " user_id INT)",
    "CREATE TABLE u (id INT PRIMARY KEY, name TEXT, grp TEXT)",
    "CREATE INDEX t_user ON t (user_id)",
)
ROWS, USERS, KINDS = 5_000, 50, ("note", "task", "mail", "chat")
Take = Callable[[random.Random], tuple[Any, ...]]


def _none(pick: random.Random) -> tuple[Any, ...]:
    return ()


def _user(pick: random.Random) -> tuple[Any, ...]:
    return (pick.randrange(USERS),)


def _row(pick: random.Random) -> tuple[Any, ...]:
    return (pick.randrange(ROWS),)


def _score(pick: random.Random) -> tuple[Any, ...]:
    return (pick.randrange(100),)


STATEMENTS: dict[str, tuple[str, Take]] = {
    "a row": ("SELECT * FROM t WHERE id = ?", _row),
    "three rows": ("SELECT id, name FROM t WHERE id IN (?, ?, ?) ORDER BY id",
                   lambda pick: tuple(pick.randrange(ROWS) for _ in range(3))),
    "a page": ("SELECT * FROM t WHERE user_id = ? AND score > 50 ORDER BY id DESC LIMIT 20", _user),
    "counts": ("SELECT count(*), max(w) FROM t WHERE user_id = ?", _user),
    "a range": ("SELECT count(*) FROM t WHERE score BETWEEN ? AND 60", _score),
    "sums of all": ("SELECT sum(score), avg(w) FROM t", _none),
    "order of two": ("SELECT id, name FROM t ORDER BY score, id LIMIT 10 OFFSET 20", _none),
    "groups": ("SELECT kind, count(*) FROM t GROUP BY kind ORDER BY kind", _none),
    "groups of a user": ("SELECT kind, count(*), max(w) FROM t WHERE user_id = ? GROUP BY kind"
                         " ORDER BY kind", _user),
    "having": ("SELECT user_id, count(*) AS n FROM t GROUP BY user_id HAVING count(*) > 20"
               " ORDER BY n DESC, user_id LIMIT 5", _none),
    "distinct": ("SELECT DISTINCT kind FROM t ORDER BY kind", _none),
    "functions": ("SELECT upper(name), length(body) FROM t WHERE id = ?", _row),
    "case": ("SELECT id, CASE WHEN score > 50 THEN 'high' ELSE 'low' END FROM t WHERE user_id = ?"
             " ORDER BY id", _user),
    "lower in WHERE": ("SELECT id FROM t WHERE lower(name) = 'name 5' AND score > ? ORDER BY id"
                       " LIMIT 5", _score),
    "a join of one": ("SELECT t.id, u.name FROM t JOIN u ON t.user_id = u.id WHERE t.id = ?", _row),
    "a join": ("SELECT t.id, u.name FROM t JOIN u ON t.user_id = u.id WHERE u.grp = 'a'"
               " AND t.score = ? ORDER BY t.id LIMIT 10", _score),
    "exists": ("SELECT name FROM u WHERE EXISTS (SELECT 1 FROM t WHERE t.user_id = u.id"
               " AND t.score = ?) ORDER BY name", _score),
}  # fmt: skip


def run(repeats: int) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    with inputs.scratch() as folder:
        engines = _engines(folder)
        figures = {name: _measured(engines, name, repeats) for name in STATEMENTS}
        for db in engines.values():
            db.close()
    times = [figure["times_of_sqlite"] for figure in figures.values()]
    return {
        "rows": ROWS, "repeats": repeats, "figures": figures,
        "median_times_of_sqlite": statistics.median(times),
        "median_share_of_duckdb": statistics.median(
            figure["share_of_duckdb"] for figure in figures.values()
        ),
    }  # fmt: skip


def _engines(folder: pathlib.Path) -> dict[str, Any]:
    pick = random.Random(7)
    rows = [
        (i, pick.choice(KINDS), f"name {i % 97}", f"what was said in {i} " * 3, pick.randrange(100),
         pick.random(), i % USERS)
        for i in range(ROWS)
    ]  # fmt: skip
    users = [(i, f"user {i}", "abc"[i % 3]) for i in range(USERS)]
    engines: dict[str, Any] = {
        "tarsdb": tarsdb.connect(folder / "one.tars"),
        "sqlite": sqlite3.connect(folder / "one.db", isolation_level=None),
        "duckdb": duckdb.connect(str(folder / "one.duckdb")),
    }
    for db in engines.values():
        for sql in CREATE:
            db.execute(sql)
        db.execute("BEGIN")
        db.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        db.executemany("INSERT INTO u VALUES (?, ?, ?)", users)
        db.execute("COMMIT")
    engines["tarsdb"].execute("OPTIMIZE")
    engines["sqlite"].execute("ANALYZE")
    return engines


def _measured(engines: dict[str, Any], name: str, repeats: int) -> dict[str, Any]:
    """Return CPU microseconds of a statement of each engine, medians; ours by which way."""
    sql, take = STATEMENTS[name]
    pick = random.Random(name)
    took: dict[str, list[float]] = {engine: [] for engine in engines}
    for turn in range(repeats + repeats // 5):
        parameters, answers = take(pick), {}
        for engine, db in engines.items():
            began = time.process_time()
            answers[engine] = db.execute(sql, parameters).fetchall()
            if turn >= repeats // 5:
                took[engine].append((time.process_time() - began) * 1e6)
        if len({_rounded(rows) for rows in answers.values()}) > 1:
            raise AssertionError(f"{name}: {answers} for {parameters}")
    plan = engines["tarsdb"].execute(f"EXPLAIN {sql}", take(pick)).fetchall()
    ours, theirs, other = (statistics.median(took[engine]) for engine in engines)
    return {
        "sql": sql, "way": plan[0][0].split()[0], "cpu_us": ours, "sqlite_cpu_us": theirs,
        "duckdb_cpu_us": other, "times_of_sqlite": ours / theirs, "share_of_duckdb": ours / other,
    }  # fmt: skip


def _rounded(rows: list[tuple[Any, ...]]) -> tuple[tuple[Any, ...], ...]:
    """Return rows without the last digits of sums, which depend on their order."""
    return tuple(tuple(round(v, 9) if isinstance(v, float) else v for v in row) for row in rows)


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--store", default=NAME, help="name of the result, '' for none")
    given = parser.parse_args()
    record = run(given.repeats)
    for name, figure in record["figures"].items():
        print(
            f"  {name:<18} {figure['way']:<12} {figure['cpu_us']:6.0f} us, "
            f"{figure['times_of_sqlite']:5.1f} times SQLite, "
            f"{figure['share_of_duckdb']:.2f} of DuckDB"
        )
    if given.store:
        versions = harness.environment(PACKAGES)
        versions["versions"]["sqlite"] = sqlite3.sqlite_version
        harness.write(given.store, {**record, **versions})


if __name__ == "__main__":
    main()
