"""SQL front end: text to statements, statements to plans. Knows no files and runs nothing.

sqlglot is imported by the first :func:`parse` or :func:`split`, not by importing this package.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tarsdb.loading import collector_paused
from tarsdb.sql.explain import explain

if TYPE_CHECKING:
    from tarsdb.schema import TableDef
    from tarsdb.sql.catalog import Catalog
    from tarsdb.sql.expressions import Expr
    from tarsdb.sql.plan import Plan, Relational
    from tarsdb.sql.statements import Statement

__all__ = [
    "bind", "bind_expression", "check_function_name", "check_stored", "explain", "parameter_keys",
    "parse", "rename_column", "rename_table", "split",
]  # fmt: skip

ParameterTypes = Mapping[int | str, Any]


def split(text: str) -> list[str]:
    """Return the statements of a script, without their semicolons; empty ones are left out.

    Raises
    ------
    SQLSyntaxError
        A string, quoted name or comment does not end.
    """
    from tarsdb.sql.dialect import split_script

    return split_script(text)


def parse(text: str) -> Statement:
    """Parse one statement.

    Raises
    ------
    SQLSyntaxError
        With line, column and excerpt.
    NotSupportedError
        The statement is understood and not done.
    """
    _load()
    from tarsdb.sql.parser import parse_statement

    return parse_statement(text)


def _load() -> None:
    """Import what parses and binds, unless a statement was parsed before."""
    if "tarsdb.sql.binder" not in sys.modules:
        with collector_paused():
            import tarsdb.sql.binder  # noqa: F401


def bind(
    statement: Statement,
    catalog: Catalog,
    parameters: ParameterTypes | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """Resolve the names of a statement and choose its plan.

    Raises
    ------
    BindError, CatalogError
        A name does not resolve; the message says where and suggests a near one.
    """
    from tarsdb.sql.binder import bind_statement

    return bind_statement(statement, catalog, parameters or {}, settings or {})


def bind_expression(text: str, table: TableDef, catalog: Catalog) -> Expr | Relational:
    """Bind the text of a DEFAULT, CHECK or generated column over the columns of a table.

    Returns a native expression, or SQL over relation ``__batch`` (the columns and ``__no``) that
    selects ``__no`` and ``value`` for every row.
    """
    from tarsdb.sql.binder import bind_table_expression

    return bind_table_expression(text, table, catalog)


def check_stored(text: str, is_default: bool) -> None:
    """Refuse the text of a DEFAULT, CHECK or generated column that is not about one row.

    Raises
    ------
    BindError
        It has a query, a window, unnest(), or, where it is no DEFAULT, random() and the like.
    """
    from tarsdb.sql import stored

    stored.check_stored(text, is_default)


def rename_column(text: str, old: str, new: str) -> str:
    """Return the text of a CHECK or generated column that reads a column by its new name.

    Raises
    ------
    BindError
        One of the names is that of a variable in it.
    """
    from tarsdb.sql import stored

    return stored.rename_column(text, old, new)


def rename_table(text: str, old: str, new: str) -> str:
    """Return the text of a CHECK or generated column with the new name of its table.

    Raises
    ------
    BindError
        One of the names is that of a variable in it.
    """
    from tarsdb.sql import stored

    return stored.rename_table(text, old, new)


def check_function_name(name: str) -> None:
    """Raise BindError for a name that queries would never look up: it is built in."""
    _load()
    from tarsdb.sql import binder

    binder.check_function_name(name)


def parameter_keys(statement: Statement) -> tuple[int | str, ...]:
    """Return the parameters a statement takes: 0-based positions, or names without prefix."""
    return statement.parameters
