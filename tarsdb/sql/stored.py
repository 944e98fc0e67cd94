"""What the text of a DEFAULT, CHECK or generated column may not say: it is about one row.

CHECK and generated columns also give the same for the same row whenever they are computed.
"""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from tarsdb.errors import BindError
from tarsdb.sql.parser import parse_statement

_OTHERS: tuple[tuple[Any, str], ...] = (
    (exp.Query, "a query"), (exp.Window, "a window"), (exp.Explode, "unnest()"),
    (exp.Unnest, "unnest()"),
)  # fmt: skip
_DIFFER = (
    exp.Rand, exp.Uuid, exp.CurrentDate, exp.CurrentTime, exp.CurrentTimestamp,
    exp.Localtime, exp.Localtimestamp,
)  # fmt: skip
_MOMENTS = (exp.Datetime, exp.Date, exp.Time)
_NAMES = frozenset(
    "now transaction_timestamp get_current_time get_current_timestamp current_localtime nextval "
    "current_localtimestamp uuidv4 uuidv7 setseed txid_current current_query currval".split()
)


def check_stored(text: str, is_default: bool) -> None:
    """Refuse what a stored expression cannot be; its names are bound elsewhere.

    Raises
    ------
    BindError
        It asks other rows, gives several values, or, unless it is a DEFAULT, differs by the moment.
    """
    tree = parse_statement(f"SELECT {text}").take_tree()
    for node in tree.expressions[0].walk():
        for kind, what in _OTHERS:
            if isinstance(node, kind):
                raise BindError(f"{text!r} has {what}, a stored expression is about one row")
        if not is_default and _differs(node):
            raise BindError(
                f"{text!r} gives another value each time it is computed",
                hint="a DEFAULT may; CHECK and generated columns depend on the row only",
            )


def _differs(node: Any) -> bool:
    """Return True for a call that gives another value each time."""
    if isinstance(node, _DIFFER):
        return True
    if isinstance(node, _MOMENTS):
        what = node.this
        return isinstance(what, exp.Literal) and what.is_string and what.name.lower() == "now"
    if not isinstance(node, exp.Anonymous):
        return False
    name = str(node.name).lower()
    return name in _NAMES or (name == "age" and len(node.expressions) == 1)  # since today
