"""LIKE computed here, beside DuckDB's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pytest

import tarsdb
from tarsdb import errors
from tarsdb.columns import from_list
from tarsdb.engine.reading.like import matches
from tarsdb.types import TEXT

LETTERS = "abé日\n.%_\\$\0"
PATTERNS = [
    "", "%", "%%", "_", "__", "a", "a%", "%a", "%a%", "a%b", "%a%b%", "_a%", "%\\", "\\%", "\\\\",
    "%\n\\", "a_%_b", ".%", "%$", "[a]%", "(a", "é_", "日%", "\0", "%\0%", "A%", "_" * 3000,
    "%a" * 2000 + "%", "a" * 5000, "%" + "_" * 3000 + "\\%",
]  # fmt: skip


def in_duckdb(texts: list[str | None], pattern: str) -> list[bool | None]:
    sql = "SELECT s LIKE $1 FROM (SELECT unnest($2::VARCHAR[]) AS s)"
    return [row[0] for row in duckdb.execute(sql, [pattern, texts]).fetchall()]


def texts(seed: int) -> list[str]:
    source = random.Random(seed)
    return ["".join(source.choices(LETTERS, k=source.randrange(7))) for _ in range(60)]


@pytest.mark.parametrize("seed", range(4))
def test_random_patterns(seed: int) -> None:
    source, rows = random.Random(100 + seed), texts(seed)
    column = from_list(TEXT, rows)
    seen = set()
    for _ in range(250):
        pattern = "".join(source.choices(LETTERS + "%_%_", k=source.randrange(7)))
        found = matches(column, pattern).tolist()
        assert found == in_duckdb(rows, pattern), pattern
        seen.update(found)
    assert seen == {True, False}


@pytest.mark.parametrize("number", range(len(PATTERNS)))
def test_patterns(number: int) -> None:
    rows = [*texts(9), "a" * 5000, "a", "b\\", "a\\%", "", "é", "(a", "a$", "x\n\\"]
    found = matches(from_list(TEXT, rows), PATTERNS[number]).tolist()
    assert found == in_duckdb(rows, PATTERNS[number])


@pytest.fixture(scope="module")
def db() -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(":memory:") as db:
        db.execute("CREATE TABLE t (id INT PRIMARY KEY, s TEXT, n INT, emb VECTOR(2))")
        words = ["alpha", "beta", "alphabet", "", None, "Beta", "50%", "gamma ray", "x_y"] * 50
        db.table("t").insert({
            "id": np.arange(len(words)), "s": words, "n": np.arange(len(words)) % 7,
            "emb": np.random.default_rng(3).standard_normal((len(words), 2)).astype(np.float32),
        })  # fmt: skip
        db.execute("OPTIMIZE t")
        db.execute("INSERT INTO t VALUES (1000, 'alpine', 1, '[0, 0]'), (1001, NULL, 2, NULL)")
        yield db


def rows(db: tarsdb.Connection, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return db.execute(sql, parameters).fetchall()


CONDITIONS = [
    "s LIKE 'al%'", "s NOT LIKE 'al%'", "s LIKE '%a%' AND n = 3", "s LIKE 'x_y' OR n > 5",
    "s LIKE '50%'", "s LIKE '%' AND n + 1 > 4", "(s LIKE 'a%') IS NULL",
    "NOT (s LIKE '%a' AND n > 2)",
    "s LIKE '' OR s IS NULL", "id < 400 AND s LIKE '_eta'", "s LIKE 'beta' AND s LIKE '%t%'",
    "s ILIKE 'BETA'", "s NOT ILIKE '%A%' AND n::DOUBLE < 4.5", "s ILIKE '%\u00c9%' OR n = 3",
    "lower(s) LIKE '%ETA' OR upper(s) LIKE '%ETA'",
]  # fmt: skip


@pytest.mark.parametrize("condition", CONDITIONS)
def test_conditions(db: tarsdb.Connection, condition: str) -> None:
    for head in ("SELECT id FROM t WHERE {} ORDER BY id", "SELECT count(*) FROM t WHERE {}",
                 "SELECT id FROM t WHERE {} ORDER BY emb <-> '[0.5, 0.5]' LIMIT 20"):  # fmt: skip
        sql = head.format(condition)
        assert "Relational" not in rows(db, f"EXPLAIN {sql}")[0][0]
        outside = head.format(f"({condition}) AND abs(id) >= 0")
        assert rows(db, sql) == rows(db, outside)


def test_outputs_changes_and_parameters(db: tarsdb.Connection) -> None:
    plain = rows(db, "SELECT id, s LIKE '%a%' AS x FROM t ORDER BY id")
    assert plain == rows(db, "SELECT id, (s LIKE '%a%') AND abs(1) = 1 AS x FROM t ORDER BY id")
    for given in ("al%", "%a_p%", "", None):
        sql = "SELECT count(*) FROM t WHERE s LIKE ?"
        assert rows(db, sql, given) == rows(db, f"{sql} AND abs(id) >= 0", given)
    with pytest.raises(errors.BindError, match=r"a pattern of TEXT, not b'a%' \(bytes\)"):
        rows(db, "SELECT id FROM t WHERE s LIKE ?", b"a%")
    db.execute("BEGIN")
    assert db.execute("DELETE FROM t WHERE s LIKE 'alphab%'").rowcount == 50
    assert db.execute("UPDATE t SET n = 9 WHERE s LIKE 'Bet_'").rowcount == 50
    assert rows(db, "SELECT count(*) FROM t WHERE n = 9 AND s LIKE 'B%'") == [(50,)]
    db.execute("ROLLBACK")
    db.execute("CREATE TABLE c (s TEXT CHECK (s LIKE 'a%'))")
    db.execute("INSERT INTO c VALUES ('ab'), (NULL)")
    with pytest.raises(errors.IntegrityError, match="s LIKE 'a%'"):
        db.execute("INSERT INTO c VALUES ('ba')")


@pytest.mark.parametrize(
    "condition", ["s LIKE 'a!%' ESCAPE '!'", "s ILIKE 'A!L%' ESCAPE '!'", "s ILIKE s", "s LIKE s",
                  "n::TEXT LIKE '1%'", "'alpha' LIKE s",],
)  # fmt: skip
def test_what_stays_with_duckdb(db: tarsdb.Connection, condition: str) -> None:
    explained = rows(db, f"EXPLAIN SELECT count(*) FROM t WHERE {condition}")
    assert explained[0][0].startswith("Relational")
    assert rows(db, f"SELECT count(*) FROM t WHERE {condition}")[0][0] >= 0
