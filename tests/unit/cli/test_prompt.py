"""What the prompt offers and when Enter runs a text."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tarsdb.cli import prompt

TABLES = {"docs": ["id", "body", "lang"], "users": ["id", "name"]}


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("SELECT * FROM d", ["docs"]),
        ("SELECT * FROM ", ["docs", "users"]),
        ("insert into us", ["users"]),
        ("SELECT docs.b", ["docs.body"]),
        ("SELECT * FROM docs WHERE la", ["lang", "language"]),
        ("sel", ["select"]),
        ("SEL", ["SELECT"]),
        (".ta", [".tables"]),
        (".schema us", ["users"]),
    ],
)
def test_candidates(text: str, offered: list[str]) -> None:
    assert prompt.candidates(text, TABLES) == offered


def test_columns_of_other_tables_are_not_offered() -> None:
    assert "name" not in prompt.candidates("SELECT * FROM docs WHERE n", TABLES)


def asking(*lines: str | type[BaseException]) -> Callable[[str], str]:
    answers = iter(lines)

    def ask(_: str) -> str:
        answer = next(answers)
        if isinstance(answer, str):
            return answer
        raise answer

    return ask


def test_plain_reader_joins_lines_until_a_semicolon() -> None:
    read = list(prompt.read_plainly(asking("SELECT", "1;", ".tables", "", "SELECT 2", EOFError)))
    assert read == ["SELECT\n1;\n", ".tables\n", "\n", "SELECT 2\n"]


def test_interrupt_drops_what_is_pending() -> None:
    read = list(prompt.read_plainly(asking("SELECT", KeyboardInterrupt, "SELECT 3;", EOFError)))
    assert read == ["SELECT 3;\n"]


def test_history_lies_in_the_users_state_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert prompt.history_path().is_relative_to(str(tmp_path))
