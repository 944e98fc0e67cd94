"""Index probes: the same rows as a scan, for every kind of key, and used only where they help."""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

import pytest

import tarsdb

ROWS = 4000
LONG = "x" * 700
COLUMNS = "id INT, a INT, t TEXT, d DOUBLE, b BOOLEAN, day DATE, pair INT, n DECIMAL(9,2)"


def _row(rng: random.Random, number: int) -> tuple[Any, ...]:
    return (
        number,
        rng.choice([None, rng.randint(-20, 400)]),
        rng.choice([None, "", "a", "ä", "aa", LONG, LONG + "y", f"k{rng.randint(0, 300)}"]),
        rng.choice([None, 0.0, -0.0, float("nan"), float("inf"), rng.randint(-50, 50) / 4]),
        rng.choice([None, True, False]),
        rng.choice([None, dt.date(2020, 1, 1) + dt.timedelta(days=rng.randint(0, 300))]),
        rng.randint(0, 60),
        rng.choice([None, rng.randint(-500, 500) / 100]),
    )


@pytest.fixture(scope="module")
def db() -> Any:
    rng = random.Random(5)
    with tarsdb.connect() as connection:
        rows = [_row(rng, i) for i in range(ROWS)]
        for name in ("plain", "keyed"):
            connection.execute(f"CREATE TABLE {name} ({COLUMNS})")
            marks = ", ".join("?" * 8)
            connection.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)
        for column in ("a", "t", "d", "b", "day", "n"):
            connection.execute(f"CREATE INDEX keyed_{column} ON keyed ({column})")
        connection.execute("CREATE INDEX keyed_pair ON keyed (pair, a)")
        yield connection


PREDICATES: list[tuple[str, tuple[Any, ...]]] = [
    ("a = 7", ()), ("a = ?", (7,)), ("a = ?", (7.0,)), ("a = 7.5", ()), ("a = ?", (None,)),
    ("a < -15", ()), ("a <= -15 AND a > -18", ()), ("a BETWEEN 390 AND 400", ()), ("a > 7.5", ()),
    ("a IN (1, 2, NULL)", ()), ("a IN (1, 2, 3)", ()), ("a = 1 OR a = 2", ()), ("NOT a = 1", ()),
    ("a = 7 AND b", ()), ("a = 7 AND t = 'a'", ()), ("a > 3 AND a > 395", ()),
    ("a < 400 AND a < -15", ()), ("a IS NULL", ()), ("a = ?", (2**40,)), ("a > ?", (2**40,)),
    ("t = 'k7'", ()), ("t = ''", ()), ("t = 'ä'", ()), ("t = ?", (LONG,)), ("t >= ?", (LONG,)),
    ("t > ?", (LONG,)), ("t < 'a'", ()), ("t IN ('k1', 'k2')", ()), ("t = ?", (LONG + "y",)),
    ("d = 0", ()), ("d = ?", (-0.0,)), ("d = ?", (float("nan"),)), ("d > 12", ()),
    ("d >= ?", (float("inf"),)), ("d < -12.25", ()), ("d = ?", (3,)),
    ("b = true", ()), ("b", ()), ("NOT b", ()),
    ("day = '2020-02-03'", ()), ("day >= ?", (dt.date(2020, 10, 20),)), 
    ("day = ?", ("2020-02-03",)),
    ("pair = 3 AND a = 7", ()), ("pair = 3", ()), ("pair IN (1, 2) AND a IN (7, 8)", ()),
    ("n = 1.25", ()), ("n > 4.9", ()), ("n = ?", (1.25,)),
    ("a = 7 AND a = 8", ()), ("a = 7 AND a = 7", ()), ("a IN (7, 8) AND a = 8", ()),
    ("a IN (7, 8, 9) AND a <> 8", ()), ("a = 7 AND a > 8", ()), ("a = 7 AND a < 8", ()),
    ("pair = 3 AND a = 7 AND b AND n > 0", ()), ("t = ? AND a > 7", (LONG,)),
    ("a > 395 AND a > 398", ()), ("a > 398 AND a > 395 AND a < 400", ()),
]  # fmt: skip


@pytest.mark.parametrize(("predicate", "parameters"), PREDICATES)
def test_a_probe_finds_what_a_scan_finds(
    db: tarsdb.Connection, predicate: str, parameters: tuple[Any, ...]
) -> None:
    answers = [
        sorted(db.execute(f"SELECT id FROM {t} WHERE {predicate}", parameters).fetchall())
        for t in ("plain", "keyed")
    ]
    assert answers[0] == answers[1]
    with db.transaction():  # own rows on top
        for table in ("plain", "keyed"):
            db.execute(f"INSERT INTO {table} (id, a, t, d, pair) VALUES (-1, 7, 'k7', 0.0, 3)")
            db.execute(f"DELETE FROM {table} WHERE id < 50")
            db.execute(f"UPDATE {table} SET a = 7 WHERE id BETWEEN 60 AND 65")
        answers = [
            sorted(db.execute(f"SELECT id FROM {t} WHERE {predicate}", parameters).fetchall())
            for t in ("plain", "keyed")
        ]
        assert answers[0] == answers[1]
        db.execute("ROLLBACK; BEGIN")


def plan(db: tarsdb.Connection, sql: str) -> str:
    return "\n".join(line for (line,) in db.execute(f"EXPLAIN {sql}"))


def test_few_rows_are_probed_and_many_are_scanned(db: tarsdb.Connection) -> None:
    assert "index keyed_a (lookup)" in plan(db, "SELECT id FROM keyed WHERE a = 7")
    assert "index keyed_a (range)" in plan(db, "SELECT id FROM keyed WHERE a > 395")
    assert "index keyed_pair (lookup)" in plan(db, "SELECT id FROM keyed WHERE pair = 3 AND a = 7")
    assert "access: scan" in plan(db, "SELECT id FROM keyed WHERE a > 0")
    assert "access: scan" in plan(db, "SELECT id FROM keyed WHERE b = true")
    assert "access: scan" in plan(db, "SELECT id FROM plain WHERE a = 7")
