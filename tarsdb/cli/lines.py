"""Where a statement ends: text typed line by line becomes whole statements.

A statement ends at a semicolon outside quotes, comments and ``$$`` bodies. Knows no more of SQL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_PIECES = re.compile(
    r"""
      (?P<comment> --[^\n]*(?:\n|$) | /\*.*?\*/ )
    | (?P<quoted>  '(?:[^']|'')*' | "(?:[^"]|"")*" | (?P<tag>\$\w*\$).*?(?P=tag) )
    | (?P<open>    /\* | ' | " | \$[A-Za-z_]*\$ )
    | (?P<end>     ; )
    """,
    re.VERBOSE | re.DOTALL,
)


def ends_statement(text: str) -> bool:
    """Return True when the text ends with a semicolon that closes a statement."""
    rest = 0
    closed = False
    for piece in _PIECES.finditer(text):
        if text[rest : piece.start()].strip():
            closed = False
        rest = piece.end()
        if piece["open"] is not None:
            return False
        if piece["comment"] is None:
            closed = piece["end"] is not None
    return closed and not text[rest:].strip()


def is_blank(text: str) -> bool:
    """Return True when the text holds nothing but space, comments and semicolons."""
    rest = 0
    for piece in _PIECES.finditer(text):
        if text[rest : piece.start()].strip() or piece["quoted"] or piece["open"]:
            return False
        rest = piece.end()
    return not text[rest:].strip()


def statements(lines: Iterable[str]) -> Iterator[str]:
    """Yield statements and dot commands from lines of text.

    A line that starts with a dot, where no statement is open, is a command of the shell. The last
    statement needs no semicolon.
    """
    pending = ""
    for line in lines:
        if not pending.strip() and line.lstrip().startswith("."):
            yield line.strip()
            continue
        pending += line if line.endswith("\n") else line + "\n"
        if ends_statement(pending):
            if not is_blank(pending):
                yield pending.strip()
            pending = ""
    if pending.strip() and not is_blank(pending):
        yield pending.strip()
