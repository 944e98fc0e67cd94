"""Where statements end, in quotes, comments and bodies too."""

from __future__ import annotations

import pytest

from tarsdb.cli.lines import ends_statement, is_blank, statements


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1;",
        "SELECT 1; -- done",
        "SELECT 1;\n/* a\ncomment */\n",
        "SELECT ';';",
        'SELECT ";";',
        "SELECT 'it''s';",
        "SELECT 1 -- ;\n;",
        "CREATE FUNCTION f(t TEXT) RETURNS TEXT LANGUAGE python AS $$ a; b $$;",
        "CREATE FUNCTION f(t TEXT) RETURNS TEXT LANGUAGE x AS $body$ $$ ; $body$;",
        "SELECT 1; SELECT 2;",
    ],
)
def test_complete(text: str) -> None:
    assert ends_statement(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SELECT 1",
        "SELECT ';",
        "SELECT 'a;\n",
        'SELECT ";',
        "SELECT 1 -- ;",
        "SELECT 1 /* ;",
        "SELECT 1; SELECT 2",
        "CREATE FUNCTION f() RETURNS INT LANGUAGE x AS $$ a;",
        "CREATE FUNCTION f() RETURNS INT LANGUAGE x AS $body$ $$;",
    ],
)
def test_incomplete(text: str) -> None:
    assert not ends_statement(text)


def test_blank_is_space_comments_and_semicolons() -> None:
    assert is_blank(" ; -- nothing\n /* here */ ;;")
    assert not is_blank("SELECT")
    assert not is_blank("'text'")
    assert not is_blank("/* open")


def test_script_is_cut_into_statements_and_commands() -> None:
    script = [
        ".mode csv\n", "SELECT\n", "  1;\n", "\n", "-- note\n", ";\n", "  .tables\n",
        "SELECT '\n", ".not a command\n", "';\n", "SELECT 2",
    ]  # fmt: skip
    assert list(statements(script)) == [
        ".mode csv", "SELECT\n  1;", ".tables", "SELECT '\n.not a command\n';", "SELECT 2",
    ]  # fmt: skip
