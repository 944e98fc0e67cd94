"""The time and the version, as standard SQL and SQLite (``datetime('now')``) ask for them."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from tarsdb.errors import NotSupportedError
from tarsdb.options import VERSION
from tarsdb.sql.binding import where

_WORDS: dict[type[Any], str] = {
    exp.CurrentDate: "today", exp.CurrentTime: "current_localtime", exp.CurrentTimestamp: "now",
    exp.Localtime: "current_localtime", exp.Localtimestamp: "current_localtimestamp",
}  # fmt: skip
"""Functions for words without brackets, which DuckDB takes for an item of that name."""
_OF_SQLITE: dict[type[Any], str] = {
    exp.Datetime: "TIMESTAMP", exp.Date: "DATE", exp.Time: "TIME",
}  # fmt: skip
_UTC = "make_timestamp(epoch_us(now()))"
KINDS = (*_WORDS, *_OF_SQLITE, exp.CurrentVersion)


def rewritten(node: Any) -> Any:
    """Return what DuckDB is asked instead of a node of ``KINDS``, or the node as it is.

    Raises
    ------
    NotSupportedError
        It has modifiers, as in ``date('now', '-1 day')``.
    """
    others = [name for name, value in node.args.items() if value and name != "this"]
    if type(node) is exp.CurrentVersion:
        return exp.Literal.string(f"tarsdb {VERSION}")
    if type(node) in _WORDS:
        return exp.Anonymous(this=_WORDS[type(node)]) if not any(node.args.values()) else node
    kind, what = _OF_SQLITE[type(node)], node.this
    is_now = isinstance(what, exp.Literal) and what.is_string and what.name.lower() == "now"
    if others and (is_now or kind == "TIMESTAMP"):
        name = type(node).__name__.lower()
        raise NotSupportedError(
            f"{name}() with modifiers is not supported{where(node)}",
            hint="add an interval: now() + INTERVAL '1 day', now() - INTERVAL '2 hours'",
        )
    if is_now:
        what = exp.maybe_parse(_UTC)
    elif kind != "TIMESTAMP" or what is None:
        return node
    return exp.Cast(this=what, to=exp.DataType.build(kind))
