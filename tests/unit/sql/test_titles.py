"""Names of columns that a SELECT gives none are its text."""

from __future__ import annotations

import pytest

from tarsdb.sql import parse
from tarsdb.sql.titles import select_titles


@pytest.mark.parametrize(
    ("sql", "titles"),
    [
        ("SELECT a, b  +\n 1 FROM t", ["a", "b + 1"]),
        ("SELECT 'a  b', length( 'x  y' ) FROM t", ["'a  b'", "length( 'x  y' )"]),
        ("SELECT 'it''s', \"x  y\", $$a  b$$", ["'it''s'", '"x  y"', "$$a  b$$"]),
        ("SELECT DISTINCT upper(a), b FROM t", ["upper(a)", "b"]),
        ("SELECT ALL a + 1", ["a + 1"]),
        ("SELECT DISTINCT ON (a, (b)) a + b, c FROM t", ["a + b", "c"]),
        ("SELECT DISTINCT (a), count(DISTINCT b)", ["(a)", "count(DISTINCT b)"]),
        ("SELECT a IS DISTINCT FROM b, c FROM t", ["a IS DISTINCT FROM b", "c"]),
        ("SELECT (SELECT 1 FROM u), f(a, b)[1] WHERE true", ["(SELECT 1 FROM u)", "f(a, b)[1]"]),
        ("SELECT a /* one */ + 1 -- two\n, b", ["a + 1", "b"]),
    ],
)
def test_text_of_each_item(sql: str, titles: list[str]) -> None:
    statement = parse(sql)
    assert select_titles(statement.tokens, statement.text) == titles
