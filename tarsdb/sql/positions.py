"""Where in the text: offsets to line, column and excerpt, and the errors that carry them."""

from __future__ import annotations

from tarsdb.errors import SQLSyntaxError

_WIDTH = 76  # characters of a source line an excerpt shows


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """Return the one-based line and column of a character offset."""
    offset = max(0, min(offset, len(text)))
    before = text[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


def excerpt(text: str, offset: int) -> str:
    """Return the source line of an offset, clipped, with a caret below the position."""
    offset = max(0, min(offset, len(text)))
    start = text.rfind("\n", 0, offset) + 1
    stop = text.find("\n", offset)
    stop = len(text) if stop < 0 else stop
    low = max(start, min(offset - _WIDTH // 2, stop - _WIDTH))
    high = min(stop, low + _WIDTH)
    line = "".join(c if c.isprintable() else " " for c in text[low:high])
    head, tail = "..." if low > start else "", "..." if high < stop else ""
    return f"{head}{line}{tail}\n{' ' * (len(head) + offset - low)}^"


def syntax_error(text: str, offset: int, message: str, hint: str | None = None) -> SQLSyntaxError:
    """Return a SQLSyntaxError for a position in a statement."""
    line, column = line_and_column(text, offset)
    return SQLSyntaxError(
        message, line=line, column=column, excerpt=excerpt(text, offset), hint=hint
    )
