"""Statement to plan: native where a rule matches, relational SQL text for the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sqlglot import exp
from sqlglot.errors import SqlglotError

from tarsdb.errors import BindError, InternalError, NotSupportedError, SQLSyntaxError
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql import dml
from tarsdb.sql.binding import Binding, require_column
from tarsdb.sql.catalog import Catalog
from tarsdb.sql.dialect import DISTANCE_NAMES
from tarsdb.sql.expressions import Expr
from tarsdb.sql.function_calls import has_aggregate
from tarsdb.sql.model_calls import FUNCTIONS as MODEL_FUNCTIONS
from tarsdb.sql.plan import Copy, CreateFunction, CreateTable, Explain, Plan, Query, Relational
from tarsdb.sql.relational import Rewriter
from tarsdb.sql.rules import RULES, one_row
from tarsdb.sql.select import take_apart
from tarsdb.sql.statements import Statement
from tarsdb.sql.views import expand

_TREE_FAULTS = (AttributeError, LookupError, TypeError)  # a tree of a shape nobody foresaw


def bind_statement(
    statement: Statement,
    catalog: Catalog,
    parameters: Mapping[int | str, Any],
    settings: Mapping[str, Any],
) -> Plan:
    """Bind one statement."""
    binding = Binding(catalog, parameters, settings)
    try:
        return _BINDERS[statement.kind](binding, statement)
    except RecursionError as error:
        from tarsdb.sql.dialect import too_deep

        raise too_deep(statement.text) from error
    except SqlglotError as error:
        raise NotSupportedError(f"the statement cannot be translated: {error}") from error
    except _TREE_FAULTS as error:
        raise NotSupportedError("the statement has a form that is not supported") from error


def bind_table_expression(text: str, table: TableDef, catalog: Catalog) -> Expr | Relational:
    """Bind DEFAULT, CHECK or GENERATED text over the columns of a table."""
    from tarsdb.sql.parser import parse_statement

    try:
        statement = parse_statement(f"SELECT {text}")
    except SQLSyntaxError as error:
        raise BindError(f"{text!r} is not one expression: {error.message}") from error
    tree = statement.take_tree()
    for node in tree.walk():
        if node._meta:
            node.meta.clear()  # positions in a text nobody wrote
    if not isinstance(tree, exp.Select) or len(tree.expressions) != 1 or tree.args.get("from_"):
        raise BindError(f"{text!r} is not one expression")
    if statement.parameters:
        raise BindError(f"{text!r}: a stored expression cannot have parameters")
    if has_aggregate(tree, catalog):
        raise BindError(f"{text!r} aggregates rows, a stored expression is about one row")
    return dml.batch_expression(Binding(catalog), table, tree.expressions[0].unalias())


def bind_query(binding: Binding, statement: Statement) -> Query:
    """Bind a SELECT or any other query."""
    tree = statement.take_tree()
    is_kept = not expand(binding.catalog, tree)  # what a view stands for may change
    select = take_apart(binding, tree)
    if select is not None:
        select.titles = statement.titles
        for rule in RULES:
            plan = rule(select)
            if plan is not None:
                statement.tree = tree if is_kept else None  # rules only read it
                return plan
    calls = one_row.match(binding, tree, statement.titles)
    if calls is not None:
        statement.tree = tree if is_kept else None
        return calls
    return Rewriter(binding).rewrite(tree, statement.titles)


def _plan(binding: Binding, statement: Statement) -> Plan:
    plan = statement.plan
    if plan is None:
        raise InternalError("a statement without a plan")
    if isinstance(plan, CreateFunction):
        check_function_name(plan.name)
    return plan


def check_function_name(name: str) -> None:
    """Raise BindError for a name that queries would never look up: it is built in."""
    from sqlglot.parsers.duckdb import DuckDBParser

    own = name.lower() in MODEL_FUNCTIONS or name.lower() in DISTANCE_NAMES
    if own or name.upper() in DuckDBParser.FUNCTIONS:
        raise BindError(f"function {name!r} is built in", hint="give yours another name")


def _create_table(binding: Binding, statement: Statement) -> Plan:
    if statement.inner is None or not isinstance(statement.plan, CreateTable):
        raise InternalError("CREATE TABLE AS without a query")
    return dataclasses.replace(statement.plan, query=bind_query(binding, statement.inner))


def _explain(binding: Binding, statement: Statement) -> Plan:
    if statement.inner is None:
        raise InternalError("EXPLAIN without a statement")
    target = _BINDERS[statement.inner.kind](binding, statement.inner)
    return Explain(target, statement.details["analyze"])


def _copy(binding: Binding, statement: Statement) -> Plan:
    details = statement.details
    table = query = None
    columns: tuple[ColumnDef, ...] = ()
    if statement.inner is not None:
        query = bind_query(binding, statement.inner)
    else:
        table = binding.named_table(details["table"])
        columns = tuple(require_column(table, exp.to_identifier(n)) for n in details["columns"])
        if not columns and details["direction"] == "to":
            columns = table.columns
        elif not columns:
            columns = tuple(c for c in table.columns if not c.is_derived)
        if details["direction"] == "from":
            dml.check_targets(table, columns)
    return Copy(details["direction"], details["path"], table, columns, query, details["options"])


_BINDERS: dict[str, Callable[[Binding, Statement], Plan]] = {
    "query": bind_query,
    "plan": _plan,
    "create_table": _create_table,
    "explain": _explain,
    "copy": _copy,
    "insert": dml.bind_insert,
    "update": dml.bind_update,
    "delete": dml.bind_delete,
}
