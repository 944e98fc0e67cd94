"""pgvector's functions of vectors through SQL, beside NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import tarsdb
from tarsdb import errors

ROWS, DIM = 5000, 16  # more rows than DuckDB hands over at once
RNG = np.random.default_rng(11)
E = RNG.standard_normal((ROWS, DIM)).astype(np.float32)
H = RNG.standard_normal((ROWS, DIM)).astype(np.float16)
G = RNG.integers(-100, 100, (ROWS, DIM)).astype(np.int8)
CATEGORY = RNG.integers(0, 7, ROWS)
KNOWN = np.arange(ROWS) % 11 != 3
"""Rows whose ``e`` is not NULL."""


@pytest.fixture(scope="module")
def db() -> Iterator[tarsdb.Connection]:
    connection = tarsdb.connect(":memory:")
    connection.execute(
        f"CREATE TABLE t (id BIGINT PRIMARY KEY, c INT, e VECTOR({DIM}), h HALFVEC({DIM}),"
        f" g INT8VEC({DIM}), b BIT(4))"
    )
    rows = {"id": np.arange(ROWS), "c": CATEGORY, "e": E, "h": H, "g": G}
    connection.table("t").insert(rows)
    connection.execute("UPDATE t SET e = NULL WHERE id % 11 = 3")
    yield connection
    connection.close()


def column(db: tarsdb.Connection, sql: str, *parameters: object) -> list[object]:
    return [row[0] for row in db.execute(sql, parameters).fetchall()]


def assert_rows(found: list[object], wanted: np.ndarray, known: np.ndarray) -> None:
    assert [value is not None for value in found] == known.tolist()
    got = np.array([value for value in found if value is not None])
    np.testing.assert_allclose(got, wanted[known], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "wanted", "nulls"),
    [
        ("e + h", E + H.astype(np.float32), True),
        ("h - g", H.astype(np.float32) - G, False),
        ("(e * g) + e", E * G + E, True),
        ("e - $1", E - np.arange(DIM, dtype=np.float32), True),
        ("l2_norm(e)", np.linalg.norm(E.astype(np.float64), axis=1), True),
        ("vector_norm(g)", np.linalg.norm(G.astype(np.float64), axis=1), False),
        ("l2_normalize(e)", E / np.linalg.norm(E, axis=1, keepdims=True), True),
        ("subvector(e, 3, 5)", E[:, 2:7], True),
        ("vector_dims(e)", np.full(ROWS, DIM), True),
        ("inner_product(e, e)", (E * E).sum(axis=1), True),
    ],
)
def test_functions_of_rows_equal_numpy(
    db: tarsdb.Connection, text: str, wanted: np.ndarray, nulls: bool
) -> None:
    parameters = (np.arange(DIM, dtype=np.float32),) if "$1" in text else ()
    found = column(db, f"SELECT {text} FROM t ORDER BY id", *parameters)
    assert_rows(found, wanted, KNOWN if nulls else np.ones(ROWS, bool))


@pytest.mark.parametrize("name", ["sum", "avg"])
def test_aggregates_of_groups_equal_numpy(db: tarsdb.Connection, name: str) -> None:
    found = db.execute(f"SELECT c, {name}(e) FROM t GROUP BY c ORDER BY c").fetchall()
    reduce = np.sum if name == "sum" else np.mean
    for category, vector in found:
        wanted = reduce(E[KNOWN & (category == CATEGORY)].astype(np.float64), axis=0)
        np.testing.assert_allclose(vector, wanted, rtol=1e-5, atol=1e-6)
    assert len(found) == 7


def test_aggregates_take_filter_distinct_over_and_expressions(db: tarsdb.Connection) -> None:
    (filtered,) = column(db, "SELECT avg(e + e) FILTER (WHERE c = 2) FROM t")
    chosen = KNOWN & (CATEGORY == 2)
    np.testing.assert_allclose(filtered, 2 * E[chosen].mean(axis=0), rtol=1e-5, atol=1e-6)
    (twice,) = column(db, "SELECT sum(DISTINCT g) FROM t WHERE id < 50")
    np.testing.assert_allclose(twice, np.unique(G[:50], axis=0).sum(axis=0), rtol=1e-6)
    running = column(db, "SELECT sum(e) OVER (ORDER BY id) FROM t WHERE id < 3 ORDER BY id")
    np.testing.assert_allclose(running[-1], E[:3].sum(axis=0), rtol=1e-5, atol=1e-6)


def test_no_rows_and_only_nulls_give_null(db: tarsdb.Connection) -> None:
    assert column(db, "SELECT sum(e) FROM t WHERE id < 0") == [None]
    assert column(db, "SELECT avg(e) FROM t WHERE id = 3") == [None]


def test_a_centroid_is_a_query(db: tarsdb.Connection) -> None:
    found = column(db, "SELECT id FROM t ORDER BY e <-> (SELECT avg(e) FROM t WHERE c = 1) LIMIT 5")
    centre = E[KNOWN & (CATEGORY == 1)].astype(np.float64).mean(axis=0)
    far = np.where(KNOWN, ((E - centre) ** 2).sum(axis=1), np.inf)
    assert found == np.argsort(far)[:5].tolist()


def test_a_zero_vector_stays_zero(db: tarsdb.Connection) -> None:
    (found,) = column(db, "SELECT l2_normalize('[0, 0]'::VECTOR(2)) FROM t WHERE id = 1")
    assert np.asarray(found).tolist() == [0, 0]


def test_signs_are_bits(db: tarsdb.Connection) -> None:
    found = column(db, "SELECT binary_quantize(e) FROM t WHERE id < 3 ORDER BY id")
    assert found == ["".join("01"[int(x > 0)] for x in row) for row in E[:3]]


@pytest.mark.parametrize("name", ["l2", "cosine", "l1"])
def test_distances_by_name_are_the_operators(db: tarsdb.Connection, name: str) -> None:
    symbol = {"l2": "<->", "cosine": "<=>", "l1": "<+>"}[name]
    by_name = f"SELECT id FROM t ORDER BY {name.upper()}_distance(e, $1) LIMIT 7"
    by_operator = f"SELECT id FROM t ORDER BY e {symbol} $1 LIMIT 7"
    assert column(db, by_name, E[9]) == column(db, by_operator, E[9])
    plan = "\n".join(map(str, column(db, f"EXPLAIN {by_name}", E[9])))
    assert plan.startswith(f"Knn t.e {symbol} $1, k=7")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("e + '[1]'::VECTOR(1)", errors.DimensionMismatchError, "16 dimensions, the right one 1"),
        ("e * 2", errors.BindError, "2 is a number"),
        ("e + id", errors.BindError, "column id is BIGINT"),
        ("l2_norm(c)", errors.BindError, "l2_norm needs vectors of numbers, column c is INT"),
        ("l2_normalize(b)", errors.BindError, "column b is BIT"),
        ("l2_norm(e, e)", errors.BindError, "takes 1 arguments, not 2"),
        ("l2_distance(e)", errors.BindError, "takes two vectors, not 1"),
        ("subvector(e, 10, 8)", errors.DimensionMismatchError, "element 17 of a vector of 16"),
        ("subvector(e, 0, 8)", errors.BindError, "its first element from 1"),
        ("e + '[1, 2]'", errors.DataError, r"can't be cast"),
    ],
)
def test_what_does_not_fit_is_refused(
    db: tarsdb.Connection, text: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        db.execute(f"SELECT {text} FROM t").fetchall()


def test_an_overflow_is_an_error(db: tarsdb.Connection) -> None:
    huge = np.full(DIM, 3e38, np.float32)
    for text in ("$1::VECTOR(16) + $1::VECTOR(16)", "sum($1::VECTOR(16))"):
        with pytest.raises(errors.ValueRangeError, match="beyond what float32 holds"):
            db.execute(f"SELECT {text} FROM t WHERE id < 2", [huge]).fetchall()


def test_numbers_and_lists_keep_their_operators(db: tarsdb.Connection) -> None:
    assert column(db, "SELECT sum(c) + avg(id) * 2 FROM t") == [CATEGORY.sum() + ROWS - 1]
    assert column(db, "SELECT [1, 2] || [3]") == [[1, 2, 3]]


def test_the_names_of_distances_are_taken(db: tarsdb.Connection) -> None:
    with pytest.raises(errors.BindError, match="'l1_distance' is built in"):
        db.execute(
            "CREATE FUNCTION l1_distance(x BIGINT) RETURNS BIGINT LANGUAGE wasm AS '(module)'"
        )
