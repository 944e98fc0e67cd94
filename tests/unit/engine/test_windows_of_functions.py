"""Aggregate functions as windows, beside DuckDB's own over the same frames."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import tarsdb
from tarsdb import errors
from tests.sandbox.kinds_text import ADD, SUM, WEIGHT, aggregate, at

X = f"(f64.load {at('(i32.load offset=8 (local.get $d))', 3)})"
TOTAL = aggregate("total", X, SUM, merge=ADD)
# digits(x): 10 times what was there, plus x. It depends on the order of the rows.
DIGITS = aggregate(
    "digits", f"(f64.add (f64.mul (f64.load (local.get $p)) (f64.const 9)) {X})", SUM
)
# latest(x): the last x of a frame, whatever the order in which states are merged otherwise.
_OWN, _OTHER = at("(local.get $s)", 4), at("(local.get $o)", 4)
LATEST = aggregate(
    "latest", f"(f64.sub {X} (f64.load (local.get $p)))", SUM,
    merge=f"""(if (i64.gt_s (i64.load offset=8 {_OTHER}) (i64.const 0))
      (then (f64.store {_OWN} (f64.load {_OTHER})) (i64.store offset=8 {_OWN} (i64.const 1))))""",
)  # fmt: skip
SPOILT = aggregate("spoilt", X, SUM, merge="(unreachable)")
BOOM = aggregate("boom", "(unreachable)", SUM)
HEAD = "CREATE AGGREGATE FUNCTION {}({}) RETURNS DOUBLE LANGUAGE wasm AS '{}'"
ROWS = 300
_MODULES = (
    ("total", TOTAL), ("digits", DIGITS), ("latest", LATEST), ("boom", BOOM), ("spoilt", SPOILT),
)  # fmt: skip


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tarsdb.Connection]:
    rng = np.random.default_rng(11)
    with tarsdb.connect(tmp_path_factory.mktemp("windows") / "a.tars") as opened:
        for name, text in _MODULES:
            opened.execute(HEAD.format(name, "x DOUBLE", text))
        opened.execute(HEAD.format("weight", "t TEXT, w DOUBLE", WEIGHT))
        opened.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, g INT, n INT, x DOUBLE, word TEXT)")
        opened.table("t").insert({
            "id": np.arange(ROWS), "g": rng.integers(0, 5, ROWS), "n": rng.integers(0, 40, ROWS),
            "x": rng.integers(0, 10, ROWS).astype(float),
            "word": [None if i % 7 == 0 else "abcdef"[: i % 6] for i in range(ROWS)],
        })  # fmt: skip
        opened.execute("UPDATE t SET x = NULL WHERE id % 11 = 0")
        yield opened


def rows(db: tarsdb.Connection, sql: str) -> list[tuple[Any, ...]]:
    return db.execute(sql).fetchall()


def column(db: tarsdb.Connection, call: str, more: str = "") -> list[Any]:
    return [value for _, value in rows(db, f"SELECT id, {call} FROM t{more} ORDER BY id")]


NEAR = st.integers(0, 12)
BOUNDS = st.one_of(
    st.just((-1000, "UNBOUNDED PRECEDING")), st.just((1000, "UNBOUNDED FOLLOWING")),
    st.just((0, "CURRENT ROW")), NEAR.map(lambda n: (-n, f"{n} PRECEDING")),
    NEAR.filter(bool).map(lambda n: (n, f"{n} FOLLOWING")),
)  # fmt: skip


@st.composite
def frames(draw: st.DrawFn) -> str:
    """Return a window whose frame begins where it ends, or before."""
    first, last = sorted(draw(st.tuples(BOUNDS, BOUNDS)))
    if first[0] == 1000:
        first = (0, "CURRENT ROW")
    if last[0] == -1000:
        last = (0, "CURRENT ROW")
    if first[0] * last[0] == 0 and "CURRENT ROW" in (first[1], last[1]):
        first, last = (first, (0, "CURRENT ROW")) if first[0] < 0 else ((0, "CURRENT ROW"), last)
    partition = draw(st.sampled_from(["", "PARTITION BY g ", "PARTITION BY g, n % 2 "]))
    unit, order = draw(st.sampled_from([
        ("ROWS", "id"), ("ROWS", "n DESC, id"), ("RANGE", "n"), ("GROUPS", "n"),
    ]))  # fmt: skip
    excluded = draw(st.sampled_from(["", " EXCLUDE CURRENT ROW", " EXCLUDE TIES"]))
    between = f"BETWEEN {first[1]} AND {last[1]}"
    return f"({partition}ORDER BY {order} {unit} {between}{excluded})"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(frames(), st.sampled_from(["", " FILTER (WHERE n % 3 > 0)"]))
def test_any_frame_is_that_of_a_built_in_aggregate(
    db: tarsdb.Connection, frame: str, chosen: str
) -> None:
    over = f"{chosen} OVER {frame}"
    assert column(db, f"total(x){over}") == column(db, f"sum(x){over}")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(frames(), st.sampled_from(["total", "digits", "latest"]))
def test_placed_rows_give_what_collected_frames_do(
    db: tarsdb.Connection, frame: str, name: str
) -> None:
    if "ROWS" not in frame:  # rows of equal keys come in any order
        name = "total"
    call = f"{name}(x) OVER {frame}"
    assert column(db, call) == column(db, call, " JOIN (SELECT 1 AS one) o ON one = 1")


def test_which_windows_are_placed(db: tarsdb.Connection) -> None:
    def placed(sql: str) -> bool:
        return any("__placed_total" in str(row) for row in rows(db, f"EXPLAIN {sql}"))

    window = "total(x) OVER (ORDER BY id{})"
    assert placed(f"SELECT {window.format('')} FROM t")
    assert placed(f"SELECT max(s) FROM (SELECT {window.format('')} AS s FROM t)")
    assert placed(f"SELECT id FROM t QUALIFY {window.format('')} > 3")
    frame = " ROWS 3 PRECEDING EXCLUDE CURRENT ROW"
    assert not placed(f"SELECT {window.format(frame)} FROM t")
    assert not placed(f"SELECT {window.format('')} FROM t JOIN t AS u USING (id)")
    assert not placed(f"SELECT n + 1 AS id, {window.format('')} FROM t")
    assert not placed(f"SELECT (SELECT max(s) FROM (SELECT {window.format('')} s FROM t)) FROM t")
    cte = f"WITH w AS (SELECT {window.format('')} AS s FROM t)"
    assert not placed(f"{cte} SELECT w.s FROM w, w AS v")
    assert not placed(f"SELECT {window.format(' ROWS 9 PRECEDING')} FROM t")


def test_stars_and_names_are_the_users(db: tarsdb.Connection) -> None:
    sql = "SELECT *, {}(x) OVER (ORDER BY id) AS s FROM t AS u WHERE u.n > 5 ORDER BY u.id"
    mine, theirs = db.execute(sql.format("total")), db.execute(sql.format("sum"))
    assert [d[0] for d in mine.description] == [d[0] for d in theirs.description]
    assert mine.fetchall() == theirs.fetchall()
    sql = "SELECT u.*, {}(x) OVER (ORDER BY id) FROM (SELECT id, x FROM t WHERE id < ?) u LIMIT 5"
    assert (
        db.execute(sql.format("total"), [200]).fetchall()
        == db.execute(sql.format("sum"), [200]).fetchall()
    )


@pytest.mark.parametrize("name", ["digits", "total"])
def test_the_rows_of_a_frame_come_in_its_order(db: tarsdb.Connection, name: str) -> None:
    frame = "OVER (PARTITION BY g ORDER BY n, id DESC ROWS BETWEEN 7 PRECEDING AND 2 FOLLOWING)"
    table = rows(db, "SELECT g, n, id, x FROM t ORDER BY g, n, id DESC")
    expected = {}
    for place, (g, _, key, _) in enumerate(table):
        near = [row for row in table[max(place - 7, 0) : place + 3] if row[0] == g]
        found = [x for *_, x in near if x is not None]
        number = float("".join(str(int(x)) for x in found)) if found else None
        expected[key] = sum(found) if found and name == "total" else number
    assert column(db, f"{name}(x) {frame}") == [expected[key] for key in range(ROWS)]


@pytest.mark.parametrize(
    "call",
    [
        "{}(x) OVER ()",
        "{}(DISTINCT x) OVER (PARTITION BY g)",
        "{}(x) OVER (PARTITION BY g ORDER BY id)",
        "{}(x + n) OVER (ORDER BY id ROWS 3 PRECEDING) + n",
        "round({}(x) OVER w / 2, 1)",
        "CASE WHEN {}(x) OVER w > 20 THEN 1 ELSE 0 END",
    ],
)
def test_where_a_window_may_stand(db: tarsdb.Connection, call: str) -> None:
    named = " WINDOW w AS (PARTITION BY g ORDER BY id DESC)"
    assert column(db, call.format("total"), named) == column(db, call.format("sum"), named)


def test_over_groups_qualify_and_other_windows(db: tarsdb.Connection) -> None:
    sql = "SELECT g, {0}({0}(x)) OVER (ORDER BY g), {0}(x) FROM t GROUP BY g ORDER BY g"
    assert rows(db, sql.format("total")) == rows(db, sql.format("sum"))
    sql = "SELECT id FROM t QUALIFY {}(x) OVER (PARTITION BY g) > 200 ORDER BY id"
    assert rows(db, sql.format("total")) == rows(db, sql.format("sum"))
    sql = ("SELECT id, {}(x) OVER (PARTITION BY g), row_number() OVER (ORDER BY n, id), "
           "lag(x) OVER (ORDER BY id) FROM t ORDER BY {}(x) OVER (PARTITION BY n), id")  # fmt: skip
    assert rows(db, sql.format("total", "total")) == rows(db, sql.format("sum", "sum"))


def test_several_arguments(db: tarsdb.Connection) -> None:
    over = "OVER (PARTITION BY g ORDER BY id ROWS 4 PRECEDING)"
    expected = column(db, f"sum(length(word) * n::DOUBLE) {over}")
    assert column(db, f"weight(word, n) {over}") == expected
    assert column(db, f"weight(w => n, t => word) {over}") == expected


def test_rows_of_more_than_one_vector(db: tarsdb.Connection) -> None:
    source = "FROM (SELECT i, (i * 7919 % 101)::DOUBLE AS x FROM range(30000) r(i))"
    window = f"SELECT {{}}(x) OVER (ORDER BY i ROWS 50 PRECEDING) AS s {source}"
    sql = f"SELECT sum(s), max(s) FROM ({window})"
    assert rows(db, sql.format("total")) == rows(db, sql.format("sum"))


@pytest.mark.parametrize(
    ("sql", "error", "message"),
    [
        ("SELECT total(x) IGNORE NULLS OVER () FROM t", errors.NotSupportedError, "IGNORE NULLS"),
        ("SELECT total(x IGNORE NULLS) OVER () FROM t", errors.NotSupportedError, "IGNORE NULLS"),
        ("SELECT total(x) WITHIN GROUP (ORDER BY x) FROM t", errors.NotSupportedError, "WITHIN"),
        ("SELECT boom(x) OVER (ORDER BY id) FROM t", errors.UdfTrapError, "UNREACHABLE"),
        ("SELECT spoilt(x) OVER (ORDER BY id) FROM t", errors.UdfTrapError, "UNREACHABLE"),
        ("SELECT total(total(x) OVER ()) OVER () FROM t", errors.DatabaseError, "window"),
        ("SELECT id FROM t WHERE total(x) OVER () > 1", errors.DatabaseError, "window"),
        ("SELECT total(x) OVER (ROWS BETWEEN 1 FOLLOWING AND 1 PRECEDING) FROM t",
         errors.DatabaseError, "rame"),
        ("SELECT total(x) OVER (ORDER BY nothing) FROM t", errors.BindError, "nothing"),
        ("SELECT total(x) OVER nowhere FROM t", errors.DatabaseError, "nowhere"),
    ],
)  # fmt: skip
def test_what_is_no_window_is_refused(
    db: tarsdb.Connection, sql: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rows(db, sql)
    assert rows(db, "SELECT count(total) FROM (SELECT total(x) OVER () AS total FROM t)") == [
        (ROWS,)
    ]


def test_frames_too_large_are_a_typed_error(tmp_path: pathlib.Path) -> None:
    """Frames that cannot be placed are collected, and long ones end at DuckDB's memory limit."""
    with tarsdb.connect(tmp_path / "b.tars") as opened:
        opened.execute(HEAD.format("total", "x DOUBLE", TOTAL))
        opened.execute("SET memory_limit = '64MB'")
        sql = (
            "SELECT max(s) FROM (SELECT {}(i::DOUBLE) OVER (ORDER BY i ROWS UNBOUNDED PRECEDING{})"
            " s FROM range({}) r(i))"
        )
        exclude = " EXCLUDE CURRENT ROW"
        with pytest.raises(errors.OperationalError, match="memory"):
            rows(opened, sql.format("total", exclude, 20_000))
        for more, count in ((exclude, 500), ("", 500), ("", 20_000)):
            mine = rows(opened, sql.format("total", more, count))
            assert mine == rows(opened, sql.format("sum", more, count))


def test_a_worker_merges_states_of_frames(db: tarsdb.Connection) -> None:
    text = HEAD.format("away", "x DOUBLE", TOTAL.replace("total", "away"))
    db.execute(f"{text} WITH (backend = 'worker')")
    over = "OVER (PARTITION BY g ORDER BY id ROWS BETWEEN 60 PRECEDING AND 5 FOLLOWING)"
    assert column(db, f"away(x) {over}") == column(db, f"sum(x) {over}")


def test_running_totals_without_merge_are_bounded_too(tmp_path: pathlib.Path) -> None:
    plain = aggregate("plain", X, SUM)
    with tarsdb.connect(tmp_path / "c.tars") as opened:
        opened.execute(HEAD.format("plain", "x DOUBLE", plain))
        opened.execute("SET memory_limit = '64MB'")
        sql = "SELECT sum(s) FROM (SELECT {}(i::DOUBLE) OVER (ORDER BY i) s FROM range(6000) r(i))"
        assert rows(opened, sql.format("plain")) == rows(opened, sql.format("sum"))
