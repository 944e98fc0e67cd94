"""Functions of DuckDB give through tarsdb what they give in DuckDB, under the same names."""

from __future__ import annotations

import datetime as dt
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

import tarsdb

TABLE = (
    "CREATE TABLE t (id INT PRIMARY KEY, s TEXT, x DOUBLE, ts TIMESTAMP, d DATE, b BLOB, j JSON,"
    " l INT[])"
)
ROWS = (
    """INSERT INTO t VALUES (1, 'Hello World', 1.5, '2024-01-02 03:04:05', '2024-01-02', 'ab',"""
    """ '{"a": {"b": [1, 2]}}', [1, 2, 3]),"""
    """ (2, 'x', -2.25, '2023-05-06 07:08:09', '2023-05-06', NULL, NULL, NULL)"""
)
TEXTS = """
upper(s); lower(s); length(s); trim(s); replace(s, 'l', 'L'); substr(s, 2, 3); substring(s from
2 for 3); position('o' in s); left(s, 2); right(s, 2); reverse(s); repeat(s, 2); concat(s, '-',
id); concat_ws(',', s, id); s || id; split_part(s, ' ', 1); string_split(s, ' ');
regexp_replace(s, 'o', '0', 'g'); regexp_extract(s, 'W.*'); s LIKE 'H%'; s ILIKE 'h%'; s SIMILAR
TO 'H.*'; starts_with(s, 'He'); contains(s, 'lo'); printf('%d-%s', id, s); format('{}-{}', id,
s); lpad(s, 12, '*'); md5(s); sha256(s); levenshtein(s, 'Hallo'); ascii(s); chr(65); strpos(s,
'o'); translate(s, 'lo', '01'); bit_length(s); hex(b); octet_length(b)
"""
NUMBERS = """
abs(x); round(x); round(x, 1); ceil(x); floor(x); sqrt(abs(x)); power(x, 2); x ^ 2; x ** 2;
exp(x); ln(abs(x)); log2(abs(x)); sign(x); mod(id, 2); id % 2; id // 2; -id; greatest(id, x);
least(id, x); pi(); sin(x); atan2(x, 1); trunc(x); x::INT; TRY_CAST(s AS INT); nullif(id, 1);
coalesce(NULL, s); ifnull(NULL, 1); if(id = 1, 'a', 'b'); CASE WHEN id = 1 THEN 'a' ELSE 'b'
END; id BETWEEN 1 AND 2; id IN (1, 3); id IS DISTINCT FROM 1; bit_count(id); id & 1; id | 2; id
<< 1; gcd(id, 4); factorial(id); hash(s) IS NOT NULL; random() < 1; uuid() IS NOT NULL; 1e3;
1_000
"""
TIMES = """
year(ts); extract(year from ts); date_part('month', ts); date_trunc('month', ts); ts + INTERVAL
1 DAY; ts - INTERVAL '2 hours'; datediff('day', d, DATE '2024-03-01'); strftime(ts, '%Y');
strptime('2024', '%Y'); epoch(ts); epoch_ms(ts); make_date(2024, 1, 2); last_day(d); dayname(d);
dayofweek(d); d + 1; ts::DATE; d - DATE '2023-01-01'; INTERVAL 3 MONTH; date_add(d, INTERVAL 1
DAY); quarter(d); time_bucket(INTERVAL 1 DAY, ts); current_date = today(); current_timestamp =
now(); count(current_date) OVER (); localtime IS NULL
"""
NESTED = """
j->>'a'; j->'a'->>'b'; json_array_length(j->'a'->'b'); json_type(j->'a'); coalesce(l[9],
(j->'$.a.b[1]')::INT); json_keys(j); json_valid('{}'); concat(j->>'a', s); l[1]; l[1:2]; [s,
j->>'a']; list_contains(l, 2); len(l); list_sum(l); [x + 1 for x in l]; list_sort(l); {'a': id};
struct_pack(a := id); {'a': id}.a; list_transform(l, lambda x: x + 1)
"""
AGGREGATES = """
count(*); count(DISTINCT s); sum(x); avg(x); min(s); max(ts); stddev(x); variance(x); median(x);
quantile_cont(x, 0.5); string_agg(s, ',' ORDER BY id); array_agg(id ORDER BY id DESC); first(id
ORDER BY id); any_value(1); arg_min(s, x); max_by(s, x); bool_and(id > 0); bool_or(id > 1);
product(x); corr(id, x); count(*) FILTER (WHERE id > 1); percentile_cont(0.5) WITHIN GROUP
(ORDER BY x); count_if(id > 1)
"""
WORDS = {
    "current_date": dt.date, "CURRENT_TIMESTAMP": dt.datetime, "current_time": dt.time,
    "localtime": dt.time, "localtimestamp": dt.datetime,
}  # fmt: skip


def expressions(*texts: str) -> list[str]:
    return [" ".join(part.split()) for text in texts for part in text.split(";")]


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[tarsdb.Connection, duckdb.DuckDBPyConnection]]:
    with tarsdb.connect(":memory:") as db, duckdb.connect() as other:
        for connection in (db, other):
            connection.execute(TABLE)
            connection.execute(ROWS)
        yield db, other


@pytest.mark.parametrize("expression", expressions(TEXTS, NUMBERS, TIMES, NESTED))
def test_scalars_agree(both: tuple[Any, Any], expression: str) -> None:
    sql = f"SELECT {expression} FROM t ORDER BY id"
    ours, theirs = (connection.execute(sql) for connection in both)
    assert repr(ours.fetchall()) == repr(theirs.fetchall())
    assert ours.description[0][0].lower().replace(" ", "") == expression.lower().replace(" ", "")


@pytest.mark.parametrize("expression", expressions(AGGREGATES))
def test_aggregates_agree(both: tuple[Any, Any], expression: str) -> None:
    ours, theirs = (c.execute(f"SELECT {expression} FROM t").fetchall() for c in both)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("word", WORDS)
def test_words_for_the_time_need_no_alias(both: tuple[Any, Any], word: str) -> None:
    answer = both[0].execute(f"SELECT {word}")
    assert answer.description[0][0] == word
    assert isinstance(answer.fetchall()[0][0], WORDS[word])


def test_json_is_of_python(tmp_path: pathlib.Path) -> None:
    document = {"a": {"b": [1, 2]}}
    with tarsdb.connect(tmp_path / "j.tars") as db:
        db.execute("CREATE TABLE t (j JSON)")
        db.execute("INSERT INTO t VALUES (?)", (json.dumps(document),))
        assert db.execute("SELECT j, coalesce(j->'a', j) FROM t").fetchall() == [
            (document, document["a"])
        ]
