"""Random bytes and mutated statements through a connection: only tarsdb's errors come out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import tarsdb

STATEMENTS = [
    "SELECT id, n + 1 AS m FROM t WHERE n > 5 AND s IN ('a', 'b') ORDER BY m DESC LIMIT 3 OFFSET 1",
    "SELECT id FROM t WHERE n BETWEEN 1 AND 20 ORDER BY v <-> '[1,2]' LIMIT 2",
    "SELECT id, v <=> '[1,2]' AS d FROM t WHERE s IS NOT NULL AND v <-> '[0,0]' < 5 ORDER BY d",
    "SELECT s, count(*), sum(n), min(v <+> '[1,1]') FROM t GROUP BY s HAVING count(*) > 0",
    "WITH near AS (SELECT id FROM t ORDER BY v <#> '[1,0]' LIMIT 2) "
    "SELECT * FROM near JOIN t USING (id)",
    "INSERT INTO t (id, n, s, v) VALUES (5, 6, 'x', '[1,2]') "
    "ON CONFLICT (id) DO UPDATE SET n = t.n + 1",
    "UPDATE t SET n = n * 2, s = upper(s) WHERE id = 1 RETURNING id, n",
    "DELETE FROM t WHERE id = (SELECT max(id) FROM t) RETURNING *",
    "CREATE TABLE u (a INT PRIMARY KEY, b DECIMAL(10,2) DEFAULT 1.5, CHECK (b > 0), v BIT(8))",
    "ALTER TABLE t ALTER COLUMN n SET DATA TYPE TEXT USING n || 'x'",
    "ALTER TABLE t ALTER s SET NOT NULL", "ALTER TABLE t ALTER s SET DEFAULT 'a' || 'b'",
    "ALTER TABLE t ADD COLUMN z VECTOR(3) DEFAULT '[1,2,3]'", "CREATE INDEX i ON t (n, s)",
    "BEGIN; SAVEPOINT a; ROLLBACK TO a; COMMIT", "EXPLAIN ANALYZE SELECT * FROM t WHERE id = 1",
    "SET ef_search = 100; SHOW ef_search; PRAGMA integrity_check", "DESCRIBE t; SHOW TABLES",
    "SELECT CASE WHEN n > 1 THEN CAST(s AS INT) ELSE n END, t.*, (SELECT 1) FROM t AS t",
    "SELECT DATE '2020-01-01' + INTERVAL 3 DAY, X'00ff', 1e400, -9223372036854775808, $$x$$, ?, :a",
]  # fmt: skip
WORDS = [
    *sorted({word for text in STATEMENTS for word in text.split()}),
    "(", ")", "'", '"', ";", "--", "/*", "NULL", "?", "$1", ":x", "\0", "\ud800", "é",
    "99999999999999999999", "[", "]", "{", "}", "::", "<->", "JOIN", "OVER", "LATERAL", "VALUES",
    "DEFAULT", "embed('m', s)",
]  # fmt: skip
SETUP = "CREATE TABLE t (id INT PRIMARY KEY, n INT, s TEXT, v VECTOR(2)); INSERT INTO t VALUES " \
        "(1, 10, 'a', '[1,0]'), (2, NULL, 'b', '[0,1]'), (3, 30, NULL, NULL)"  # fmt: skip


SWAPS = [
    ["id", "n", "s", "v", "rowid", "nope"],
    ["'a'", "1", "NULL", "-1.5", "'[1,2]'", "TRUE", "1e400"],
    ["<->", "<#>", "<=>", "<+>", "<~>", "<%>"], ["=", "<", ">=", "<>", "+", "*", "||"],
    ["count", "sum", "min", "upper", "abs"], ["1", "0", "99", "9223372036854775807"],
]  # fmt: skip


# Statements the fuzzer found a foreign error with; each is a tarsdb error now.
ESCAPED = ["SET ef_search = 1e400", "SELECT id FROM t ORDER BY v -> '[1,0]' LIMIT 2"]


def swapped(rng: random.Random, text: str) -> str:
    """Exchange one token for another of its kind: most results still parse."""
    options = [(token, group) for group in SWAPS for token in group if token in text]
    if not options:
        return text
    token, group = rng.choice(options)
    return text.replace(token, rng.choice(group), 1)


def mutated(rng: random.Random) -> str:
    """Return a statement changed a little, a lot, or no statement at all."""
    kind = rng.random()
    if kind < 0.10:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(60))).decode("latin-1")
    if kind < 0.15:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 15)))
    text = rng.choice(STATEMENTS)
    if kind < 0.70:
        for _ in range(rng.randrange(3)):
            text = swapped(rng, text)
        return text
    if kind < 0.85:
        words = text.split(" ")
        at = rng.randrange(len(words))
        words[at : at + rng.randrange(3)] = rng.choices(WORDS, k=rng.randrange(3))
        return " ".join(words)
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(" ()'\";,.*-0a\0[]é") + text[at + rng.randrange(3) :]


def parameters_of(rng: random.Random, sql: str) -> Any:
    """Return parameters that mostly fit."""
    if rng.random() < 0.03:
        return rng.choice([(1,), {"a": 1}, (1, 2, 3), ([1.0, 2.0],)])
    if ":a" in sql:
        return {"a": 1}
    return tuple(rng.choice([1, None, "a", 2.5, [1.0, 2.0]]) for _ in range(sql.count("?")))


def hammer(path: Path, seed: int, count: int) -> int:
    """Run mutated statements; return how many ran without an error."""
    rng = random.Random(seed)
    answered = 0
    db = tarsdb.connect(path, durability="relaxed")
    try:
        db.execute(SETUP)
        db.execute("SET statement_timeout = '20s'; SET memory_limit = '256MB'")
        for _ in range(count):
            sql = mutated(rng)
            try:
                cursor = db.execute(sql, parameters_of(rng, sql))
                if cursor.description:
                    cursor.fetchall()
                answered += 1
            except tarsdb.Error as error:
                assert str(error), sql
            except BaseException as error:
                raise AssertionError(f"{sql!r}: {type(error).__name__}: {error}") from error
            if db.in_transaction and rng.random() < 0.2:
                db.rollback()
            if not db.in_transaction and rng.random() < 0.05:
                db.execute("DROP TABLE IF EXISTS t; DROP TABLE IF EXISTS u")
                db.execute(SETUP)
        db.rollback()
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        db.close()
    return answered


@pytest.mark.parametrize("sql", ESCAPED)
def test_escapes_stay_repaired(sql: str) -> None:
    with tarsdb.connect() as db:
        db.execute(SETUP)
        with pytest.raises(tarsdb.Error):
            db.execute(sql)


def test_two_thousand_statements(tmp_path: Path) -> None:
    assert hammer(tmp_path / "a.tars", 1, 2000) > 500


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(2, 27))
def test_fifty_thousand_statements(tmp_path: Path, seed: int) -> None:
    assert hammer(tmp_path / "a.tars", seed, 2000) > 500
