"""The text of a DEFAULT, CHECK or generated column: what it may not say, and new names in it.

It is about one row. CHECK and generated columns also give the same for the same row whenever they
are computed.
"""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from tarsdb.errors import BindError
from tarsdb.sql.names import quoted
from tarsdb.sql.parser import parse_statement

_OTHERS: tuple[tuple[Any, str], ...] = (
    (exp.Query, "a query"), (exp.Window, "a window"), (exp.Explode, "unnest()"),
    (exp.Unnest, "unnest()"), (exp.Columns, "COLUMNS()"),
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


def rename_column(text: str, old: str, new: str) -> str:
    """Return a stored expression that reads a column by its new name; else it stays as written.

    Raises
    ------
    BindError
        One of the names is that of a variable in it (of a lambda function, say).
    """
    return _renamed(text, "this", old, new)


def rename_table(text: str, old: str, new: str) -> str:
    """Do as `rename_column` does with the name of the table, where columns have it before them."""
    return _renamed(text, "table", old, new)


def _renamed(text: str, part: str, old: str, new: str) -> str:
    """Give that part of columns' names another name."""
    start = "SELECT "
    tree = parse_statement(start + text).take_tree()
    named = [node.args.get(part) for node in tree.find_all(exp.Column)]
    found = [each for each in named if each is not None and each.name.lower() == old.lower()]
    if not found:
        return text
    for variable in _variables(tree):
        if variable in (old.lower(), new.lower()):
            raise BindError(f"{text!r} has a variable {variable!r}")
    places = [
        (each.meta["start"] - len(start), each.meta["end"] + 1 - len(start)) for each in found
    ]
    for first, after in sorted(places, reverse=True):
        text = text[:first] + quoted(new) + text[after:]
    return text


def _variables(tree: Any) -> set[str]:
    """Return the names, in lower case, that lambda functions and list comprehensions give."""
    found = {each.name for node in tree.find_all(exp.Lambda) for each in node.expressions}
    for node in tree.find_all(exp.Comprehension):
        variable = node.args["expression"]
        found |= {each.name for each in (variable, *variable.expressions)}
    return set(map(str.lower, found))


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
