"""Expressions over rows in memory: defaults, CHECK, generated columns, RETURNING, ON CONFLICT.

Natively where they fit the core, else as SQL over relations the engine provides: ``__batch`` (the
rows being written), ``__new`` and ``__old`` (the two sides of a conflict), joined by ``__no``.
"""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from tarsdb.schema import TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.binding import Binding, require_column, where
from tarsdb.sql.core import Core
from tarsdb.sql.expressions import Expr, Output
from tarsdb.sql.kinds import output_type
from tarsdb.sql.plan import Relational
from tarsdb.sql.relational import Rewriter
from tarsdb.sql.scope import Scope, Source
from tarsdb.sql.select import TableSelect

NUMBER = "__no"
BATCH, NEW, OLD = "__batch", "__new", "__old"


def batch_expression(binding: Binding, table: TableDef, node: Any) -> Expr | Relational:
    """Bind one expression over the columns of rows being written."""
    row = TableSelect(binding, table, table.name.lower(), exp.Select(expressions=[node]))
    core = Core(binding, _no_rowid(row), calls=True)
    native = core.expr(node)
    if native is not None:
        return native
    return batch_query(binding, table, table.name, [node], ["value"])


def _no_rowid(row: TableSelect) -> Any:
    def lookup(node: Any) -> ex.Expr | None:
        found = row.lookup(node)
        return None if isinstance(found, ex.RowidRef) else found

    return lookup


def batch_query(
    binding: Binding,
    table: TableDef,
    alias: str,
    nodes: list[Any],
    names: list[str],
    numbered: bool = True,
) -> Relational:
    """Return SQL with the expressions for each row of ``__batch``, in its order.

    ``numbered`` puts ``__no`` before them; ``alias`` is what they call the table.
    """
    number = exp.column(NUMBER, table=alias)
    items: list[Any] = [number.copy()] if numbered else []
    items += [
        node if isinstance(node, exp.Star)
        else exp.Alias(this=node.copy(), alias=exp.to_identifier(name, quoted=True))
        for node, name in zip(nodes, names, strict=True)
    ]  # fmt: skip
    rewriter = Rewriter(binding)
    tree = exp.Select(expressions=items)
    source = Source(alias.lower(), table, BATCH, batch=True, extra=frozenset({NUMBER}))
    rewriter.sources.append(source)
    scope = rewriter.new_scope(None, frozenset())
    scope.sources.append(source)
    for item in list(tree.expressions):
        rewriter.walk(item, scope)
    tree.set("from_", exp.From(this=relation_node(BATCH, alias)))
    tree.set("order", exp.Order(expressions=[exp.Ordered(this=number, nulls_first=False)]))
    return rewriter.finish(tree)


def relation_node(relation: str, alias: str) -> Any:
    """Return a FROM item."""
    return exp.Table(
        this=exp.to_identifier(relation), alias=exp.TableAlias(this=exp.to_identifier(alias))
    )


def bind_returning(
    binding: Binding,
    table: TableDef,
    alias: str,
    clause: Any,
    titles: list[str],
    is_typed: bool = True,
) -> tuple[tuple[Output, ...] | None, Relational | None]:
    """Return RETURNING as native outputs, or as SQL over ``__batch``.

    Always the latter where not all types of the columns are known.
    """
    if clause is None:
        return None, None
    select = TableSelect(binding, table, alias, exp.Select(expressions=clause.expressions))
    select.titles = lambda: titles
    found = []
    for item in select.items:
        sql_type = output_type(item.expr) if item.expr is not None else None
        if item.expr is None or sql_type is None or not is_typed:
            break
        found.append(Output(item.name, item.expr, sql_type))
    else:
        return tuple(found), None
    nodes = [item.node for item in select.items]
    names = [item.name for item in select.items]
    return None, batch_query(binding, table, alias, nodes, names, numbered=False)


def conflict_query(
    binding: Binding, table: TableDef, alias: str, values: list[Any], condition: Any
) -> Relational:
    """Return SQL over ``__new`` and ``__old`` giving ``__no`` and the new values."""
    rewriter = Rewriter(binding)
    marks = frozenset({NUMBER})
    old = Source(alias, table, OLD, batch=True, extra=marks)
    new = Source("excluded", table, NEW, batch=True, extra=marks)
    rewriter.sources += [old, new]
    scope: Scope = rewriter.new_scope(None, frozenset())
    nodes = [exp.Paren(this=value.copy()) for value in values]
    checked = exp.Paren(this=condition.copy()) if condition is not None else None
    for node in [*nodes, *([checked] if checked is not None else [])]:
        _qualify(node, table, alias)
    scope.sources += [old, new]
    for node in [*nodes, *([checked] if checked is not None else [])]:
        rewriter.walk(node, scope)
    items: list[Any] = [exp.column(NUMBER, table="excluded")]
    items += [
        exp.Alias(this=node, alias=exp.to_identifier(f"v{position}"))
        for position, node in enumerate(nodes)
    ]
    on = exp.EQ(
        this=exp.column(NUMBER, table=alias), expression=exp.column(NUMBER, table="excluded")
    )
    tree = exp.Select(
        expressions=items,
        from_=exp.From(this=relation_node(OLD, alias)),
        joins=[exp.Join(this=relation_node(NEW, "excluded"), on=on)],
        where=exp.Where(this=checked) if checked is not None else None,
    )
    return rewriter.finish(tree)


def _qualify(node: Any, table: TableDef, alias: str) -> None:
    """Bare column names in DO UPDATE mean the row that is there."""
    for column in list(node.find_all(exp.Column)):
        inside = column.find_ancestor(exp.Query) is not None
        if column.args.get("table") is None and not inside and table.column(column.name):
            column.set("table", exp.to_identifier(alias))


def column_names(table: TableDef, nodes: list[Any]) -> list[Any]:
    """Return the columns a list of names stands for; none may appear twice."""
    from tarsdb.errors import BindError

    found = []
    for node in nodes:
        column = require_column(table, node)
        if column in found:
            raise BindError(f"column {column.name} is listed twice{where(node)}")
        found.append(column)
    return found
