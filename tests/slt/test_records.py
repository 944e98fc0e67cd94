"""The sqllogictest reader: records, conditions, values and verdicts."""

from __future__ import annotations

import pytest

from tests.slt import records

FILE = """\
# a comment
hash-threshold 8

statement ok
CREATE TABLE t(a INTEGER,
  b TEXT)

skipif tarsdb
statement ok
PRAGMA x

skipif postgresql # PostgreSQL has strict column usage for GROUP BY clauses
query I nosort
SELECT a FROM t GROUP BY b
----
1

onlyif mysql # DIV for integer division
query I rowsort label-1
SELECT 7 DIV 2
----
3

skipif mysql # not compatible
query IR rowsort label-1
SELECT a, b FROM t
----
1
2.500
NULL
(empty)

statement error
SELECT nothing FROM nowhere

query T nosort
SELECT 1 WHERE 1 = 2
----

halt

statement ok
never reached
"""


@pytest.fixture
def parsed() -> list[records.Record]:
    return list(records.parse(FILE))


def test_records_are_found_with_their_lines(parsed: list[records.Record]) -> None:
    assert [r.kind for r in parsed] == [
        "statement", "statement", "query", "query", "query", "statement", "query",
    ]  # fmt: skip
    assert parsed[0].sql == "CREATE TABLE t(a INTEGER,\n  b TEXT)"
    lines = FILE.split("\n")
    assert all(lines[r.line - 1].startswith(r.kind) for r in parsed)


def test_other_engines_records_are_marked(parsed: list[records.Record]) -> None:
    assert [r.runs_here for r in parsed] == [True, False, True, False, True, True, True]
    assert [r.refused_by_postgresql for r in parsed].index(True) == 2


def test_query_header_is_read(parsed: list[records.Record]) -> None:
    query = parsed[4]
    assert (query.types, query.sort, query.label) == ("IR", "rowsort", "label-1")
    assert query.expected == ("1", "2.500", "NULL", "(empty)")
    assert parsed[5].fails
    assert parsed[6].expected == ()


def test_values_are_written_as_sqlite_does() -> None:
    assert records.values([(True, 2.5, "x"), (None, None, "")], "IRT", "nosort") == [
        "1", "2.500", "x", "NULL", "NULL", "(empty)",
    ]  # fmt: skip
    assert records.values([(2, 1), (1, 2)], "II", "rowsort") == ["1", "2", "2", "1"]
    assert records.values([(2, 1), (1, 2)], "II", "valuesort") == ["1", "1", "2", "2"]
    assert records.values([("a\tb",)], "T", "nosort") == ["a@b"]


def test_mismatch_sees_values_counts_and_hashes() -> None:
    query = records.Record(1, "", "query", expected=("1", "2"))
    assert records.mismatch(query, ["1", "2"]) is None
    assert records.mismatch(query, ["1", "3"]) is not None
    assert records.mismatch(query, ["1"]) is not None
    known = "2 values hashing to " + records.digest(["1", "2"])
    hashed = records.Record(1, "", "query", expected=(known,))
    assert records.mismatch(hashed, ["1", "2"]) is None
    assert records.mismatch(hashed, ["2", "1"]) is not None
    assert records.mismatch(hashed, ["1"]) is not None


def test_hash_is_md5_of_lines() -> None:
    assert records.digest(["0"]) == "897316929176464ebc9ad085f31e7284"


def test_a_file_that_is_none_is_refused() -> None:
    with pytest.raises(records.FormatError):
        list(records.parse("statement perhaps\nSELECT 1\n"))
