"""pgvector's operators: what they are, what they are not, and how they bind (PostgreSQL's rules).

PostgreSQL: ``+ -`` bind tighter than "any other operator" (the distances, ``||``), which binds
tighter than BETWEEN, IN, LIKE, then comparisons, IS, NOT, AND, OR. Other operators associate left.
"""

from __future__ import annotations

import pytest

from tarsdb.sql.dialect import OPERATORS, generate
from tarsdb.sql.parser import parse_statement


def text_of(expression: str) -> str:
    return generate(parse_statement(f"SELECT {expression}").take_tree())[len("SELECT ") :]


@pytest.mark.parametrize("symbol", sorted(OPERATORS))
def test_every_operator_is_its_own_function(symbol: str) -> None:
    assert text_of(f"a {symbol} b") == f"__distance_{OPERATORS[symbol]}(a, b)"


@pytest.mark.parametrize("symbol", sorted(OPERATORS))
@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a - b {op} c", "{f}(a - b, c)"),
        ("a {op} b - c", "{f}(a, b - c)"),
        ("a * b {op} c", "{f}(a * b, c)"),
        ("a {op} b + c * d", "{f}(a, b + c * d)"),
        ("- a {op} b", "{f}(-a, b)"),
        ("a {op} b < 1", "{f}(a, b) < 1"),
        ("1 > a {op} b", "1 > {f}(a, b)"),
        ("a {op} b = c {op} d", "{f}(a, b) = {f}(c, d)"),
        ("a {op} b {op} c", "{f}({f}(a, b), c)"),
        ("a {op} b || c", "{f}(a, b) || c"),
        ("a || b {op} c", "{f}(a || b, c)"),
        ("a {op} b BETWEEN 1 AND 2", "{f}(a, b) BETWEEN 1 AND 2"),
        ("a {op} b IN (1, 2)", "{f}(a, b) IN (1, 2)"),
        ("a {op} b IS NULL", "{f}(a, b) IS NULL"),
        ("NOT a {op} b < 1", "NOT {f}(a, b) < 1"),
        ("a {op} b < 1 AND c {op} d < 2", "{f}(a, b) < 1 AND {f}(c, d) < 2"),
        ("a {op} b::vector", "{f}(a, CAST(b AS VECTOR))"),
        ("1 - (a {op} b)", "1 - ({f}(a, b))"),
    ],
)
def test_binds_like_postgresql(symbol: str, expression: str, expected: str) -> None:
    function = f"__distance_{OPERATORS[symbol]}"
    assert text_of(expression.format(op=symbol)) == expected.format(f=function)


def test_spaces_are_not_needed() -> None:
    assert text_of("a<=>b") == "__distance_cosine(a, b)"
    assert text_of("a<->?") == "__distance_l2(a, $1)"


@pytest.mark.parametrize("symbol", sorted(OPERATORS))
def test_strings_names_and_comments_are_left_alone(symbol: str) -> None:
    assert text_of(f"'a {symbol} b'") == f"'a {symbol} b'"
    assert text_of(f'"a {symbol} b"') == f'"a {symbol} b"'
    assert text_of(f"a -- {symbol}") == "a"
    assert text_of(f"a /* {symbol} */ + b") == "a + b"
    assert text_of(f"$$a {symbol} b$$") == f"'a {symbol} b'"


def test_neighbours_of_the_operators_keep_their_meaning() -> None:
    assert text_of("a <= b") == "a <= b"
    assert text_of("a < -b") == "a < -b"
    assert text_of("a <> b") == "a <> b"
    assert text_of("a & b") == "a & b"
    assert text_of("a & 1 & b") == "a & 1 & b"
    assert text_of("a IS NOT DISTINCT FROM b") == "a IS NOT DISTINCT FROM b"
    assert text_of("a % b") == "a % b"
