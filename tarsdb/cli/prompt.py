"""The prompt a person types at: history, completion, colours, statements over several lines.

Uses prompt_toolkit; where it is missing, plain ``input()`` with the same meaning. Knows the shell
only as something that runs a text.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarsdb.cli import catalog_text, dot_commands
from tarsdb.cli.lines import ends_statement, is_blank
from tarsdb.cli.shell import Shell

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyPressEvent

KEYWORDS = (
    "ALTER ANALYZE AND AS ASC BEGIN BETWEEN BY CASE CHECKPOINT COLUMN COMMIT COPY COUNT CREATE "
    "CROSS DEFAULT DELETE DESC DESCRIBE DISTINCT DROP ELSE EMBED END EXISTS EXPLAIN FALSE FROM "
    "FULL FUNCTION GENERATED GROUP HAVING IN INDEX INNER INSERT INTERSECT INTO IS JOIN LANGUAGE "
    "LEFT LIKE LIMIT MODEL MODULE NOT NULL OFFSET ON OPTIMIZE OR ORDER OUTER OVER PARTITION PRAGMA "
    "PRIMARY KEY REFERENCES REINDEX RELEASE RETURNING RIGHT ROLLBACK SAVEPOINT SELECT SET SHOW "
    "STORED TABLE THEN TO TRUE UNION UNIQUE UPDATE USING VACUUM VALUES WHEN WHERE WITH "
    "BIGINT BIT BLOB BOOLEAN DATE DECIMAL DOUBLE HALFVEC INT INT8VEC INTERVAL JSON REAL TEXT TIME "
    "TIMESTAMP UUID VECTOR"
).split()
_WORD = re.compile(r"[\w.]*$")
MAIN_PROMPT = "tarsdb> "
MORE_PROMPT = "   ...> "


def converse(shell: Shell, path: str, version: str) -> None:
    """Read statements from a person until Ctrl-D or ``.quit``."""
    shell.out.write(f"tarsdb {version} on {path}. .help lists commands, Ctrl-D leaves.\n")
    shell.out.flush()
    for text in _reader(shell):
        if not is_blank(text) and not shell.run_one(text.strip()):
            return


def _reader(shell: Shell) -> Iterator[str]:
    try:
        session = _make_session(shell)
    except ImportError:
        yield from read_plainly(input)
        return
    while True:
        try:
            yield session.prompt(MAIN_PROMPT)
        except KeyboardInterrupt:
            continue  # drops the line being typed
        except EOFError:
            return


def read_plainly(ask: Callable[[str], str]) -> Iterator[str]:
    """Yield statements typed at a function like ``input``; Ctrl-C drops what is pending."""
    pending = ""
    while True:
        try:
            line = ask(MORE_PROMPT if pending else MAIN_PROMPT)
        except KeyboardInterrupt:
            pending = ""
            sys.stdout.write("\n")
            continue
        except EOFError:
            break
        pending += line + "\n"
        if is_complete(pending):
            yield pending
            pending = ""
    if not is_blank(pending):
        yield pending


def is_complete(text: str) -> bool:
    """Return True when Enter should run the text rather than start another line."""
    return text.lstrip().startswith(".") or is_blank(text) or ends_statement(text)


def _make_session(shell: Shell) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and not is_complete(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    return PromptSession(
        history=_history(),
        completer=_completer(shell),
        complete_while_typing=False,
        auto_suggest=AutoSuggestFromHistory(),
        multiline=True,
        prompt_continuation=_continuation,
        key_bindings=keys,
        lexer=_lexer(),
        enable_history_search=True,
    )


def _continuation(width: int, line_number: int, is_soft_wrap: int) -> str:
    return "" if is_soft_wrap else MORE_PROMPT


def history_path() -> Path:
    """Return where typed statements are kept: the user's state folder."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "tarsdb" / "history"


def _history() -> History:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_path()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return FileHistory(str(path))
    return InMemoryHistory()


def _lexer() -> Any:
    try:
        from prompt_toolkit.lexers import PygmentsLexer
        from pygments.lexers.sql import PostgresLexer
    except ImportError:
        return None
    return PygmentsLexer(PostgresLexer)


def candidates(text: str, tables: dict[str, list[str]]) -> list[str]:
    """Return the words that may stand at the end of the text, best first.

    After ``table.`` its columns; after FROM, INTO and the like tables; else columns of the tables
    named so far, tables, then keywords in the case the word was begun in.
    """
    if text.startswith(".") and " " not in text:
        return [f".{name}" for name in dot_commands.COMMANDS if f".{name}".startswith(text)]
    word = _word_at_end(text)
    before = text[: len(text) - len(word)].split()
    owner, dot, rest = word.rpartition(".")
    if dot:
        columns = next((c for t, c in tables.items() if t.lower() == owner.lower()), [])
        return [f"{owner}.{c}" for c in columns if c.lower().startswith(rest.lower())]
    wanted_table = before and before[-1].upper() in ("FROM", "JOIN", "INTO", "UPDATE", "TABLE")
    named = {part.strip("(),;").lower() for part in text.split()}
    columns = [c for t, cs in tables.items() if t.lower() in named for c in cs]
    pool = [*tables] if wanted_table or text.startswith(".") else [*columns, *tables]
    found = [name for name in dict.fromkeys(pool) if name.lower().startswith(word.lower())]
    if word and not wanted_table and not text.startswith("."):
        keywords = [k for k in KEYWORDS if k.startswith(word.upper())]
        found += keywords if word[0].isupper() else [k.lower() for k in keywords]
    return found


def _word_at_end(text: str) -> str:
    match = _WORD.search(text)
    return match[0] if match else ""


def _completer(shell: Shell) -> Completer:
    from prompt_toolkit.completion import Completer, Completion

    class SqlCompleter(Completer):
        """Completes names of the open database and SQL words."""

        def get_completions(self, document: Document, event: Any) -> Iterator[Completion]:
            text = document.text_before_cursor
            word = text if text.startswith(".") and " " not in text else _word_at_end(text)
            for candidate in candidates(text, catalog_text.names(shell.db)):
                yield Completion(candidate, start_position=-len(word))

    return SqlCompleter()
