"""Rows of a predicate are kept between searches: never past a change, never for other values."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

import tarsdb

SEARCH = "SELECT id FROM t WHERE kind = ? ORDER BY emb <-> ? LIMIT 100"
QUERY = np.zeros(4, np.float32)


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute("CREATE TABLE t (id INT PRIMARY KEY, kind INT, emb VECTOR(4))")
        db.execute("CREATE INDEX tk ON t (kind)")
        rows = [(i, i % 5, [float(i)] * 4) for i in range(300)]
        db.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
        yield db


def found(db: tarsdb.Connection, kind: object) -> set[int]:
    return {row[0] for row in db.execute(SEARCH, (kind, QUERY)).fetchall()}


def kept(db: tarsdb.Connection) -> object:
    session = db._require_session()
    prepared = session._prepare(SEARCH)
    assert not isinstance(prepared, list)
    return prepared.plan.memo.get("positions")  # type: ignore[union-attr]


def test_the_answer_is_kept_and_found_again(db: tarsdb.Connection) -> None:
    first = found(db, 1)
    assert first == set(range(1, 300, 5))
    before = kept(db)
    assert before is not None
    assert found(db, 1) == first
    assert kept(db) is before


def test_other_values_are_other_answers(db: tarsdb.Connection) -> None:
    assert found(db, 1) != found(db, 2)
    assert found(db, True) == found(db, 1)
    assert found(db, None) == set()
    assert found(db, 2) == set(range(2, 300, 5))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("UPDATE t SET kind = 1 WHERE id = 0", {0, *range(1, 300, 5)}),
        ("UPDATE t SET kind = 9 WHERE id = 1", set(range(6, 300, 5))),
        ("DELETE FROM t WHERE id = 6", set(range(1, 300, 5)) - {6}),
        ("INSERT INTO t VALUES (1000, 1, [0, 0, 0, 0])", {1000, *range(1, 300, 5)}),
        ("UPDATE t SET emb = [1, 1, 1, 1] WHERE id = 11", set(range(1, 300, 5))),
    ],
)
def test_a_change_is_seen_by_everyone(
    db: tarsdb.Connection, tmp_path: pathlib.Path, change: str, expected: set[int]
) -> None:
    before = found(db, 1)
    with tarsdb.connect(tmp_path / "a.tars") as other:
        assert found(other, 1) == before
        db.execute("BEGIN")
        db.execute(change)
        assert found(db, 1) == expected
        assert found(other, 1) == before
        db.execute("ROLLBACK")
        assert found(db, 1) == before
        other.execute(change)
        assert found(db, 1) == expected
        assert found(other, 1) == expected


def test_a_function_is_called_each_time(db: tarsdb.Connection) -> None:
    calls = []

    def odd(value: int) -> bool:
        calls.append(value)
        return value % 2 == len(calls) % 2

    db.create_function("odd", odd, ["INT"], "BOOLEAN")
    sql = "SELECT id FROM t WHERE odd(id) ORDER BY emb <-> ? LIMIT 5"
    db.execute(sql, (QUERY,)).fetchall()
    asked = len(calls)
    db.execute(sql, (QUERY,)).fetchall()
    assert len(calls) == 2 * asked > 0
