"""UPDATE and DELETE to plans, and what INSERT shares with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlglot import exp
from sqlglot.tokenizer_core import TokenType

from tarsdb.errors import BindError, NotSupportedError
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.batch import batch_expression, bind_returning
from tarsdb.sql.binding import Binding, require_column, where
from tarsdb.sql.core import Core, conjunction
from tarsdb.sql.insert import bind_insert
from tarsdb.sql.other_columns import OtherColumns
from tarsdb.sql.parser import parse_statement
from tarsdb.sql.plan import Delete, Relational, Update
from tarsdb.sql.relational import Rewriter
from tarsdb.sql.rules.point_lookup import row_key
from tarsdb.sql.select import TableSelect
from tarsdb.sql.statements import Statement
from tarsdb.sql.titles import select_titles
from tarsdb.sql.values import check_targets, is_default, reject_parts
from tarsdb.sql.views import expand

__all__ = ["batch_expression", "bind_delete", "bind_insert", "bind_update", "check_targets"]


def bind_update(binding: Binding, statement: Statement) -> Update:
    """UPDATE table SET ... [FROM ...] [WHERE ...] [RETURNING ...]."""
    tree = statement.take_tree()
    expand(binding.catalog, tree)
    reject_parts(tree, {"this", "expressions", "from_", "where", "returning", "with_"})
    table, alias = _target(binding, tree)
    columns, values = _assignments(table, tree, alias)
    check_targets(table, columns)
    others, outputs, output_sql = _returning(binding, statement, table, alias, tree)
    row = TableSelect(binding, table, alias, tree)
    core = Core(binding, row.lookup, calls=True)
    values = [
        _default(column) if is_default(value) else value
        for column, value in zip(columns, values, strict=True)
    ]
    if not tree.args.get("from_") and not tree.args.get("with_"):
        native = [core.expr(value) for value in values]
        predicate = _native_predicate(row, tree)
        if predicate is not None and all(value is not None for value in native):
            known = tuple(value for value in native if value is not None)
            return Update(
                table, tuple(columns), known, conjunction(predicate), None, outputs, output_sql,
                row_key(table, predicate),
            )  # fmt: skip
    source = _rows_query(binding, tree, alias, [*values, *others.nodes], [tree.args.get("from_")])
    return Update(
        table, tuple(columns), (), None, source, outputs, output_sql, others=tuple(others.columns)
    )


def bind_delete(binding: Binding, statement: Statement) -> Delete:
    """DELETE FROM table [USING ...] [WHERE ...] [RETURNING ...]."""
    tree = statement.take_tree()
    expand(binding.catalog, tree)
    reject_parts(tree, {"this", "using", "where", "returning", "with_"})
    table, alias = _target(binding, tree)
    others, outputs, output_sql = _returning(binding, statement, table, alias, tree)
    row = TableSelect(binding, table, alias, tree)
    if not tree.args.get("using") and not tree.args.get("with_"):
        predicate = _native_predicate(row, tree)
        if predicate is not None:
            key = row_key(table, predicate)
            return Delete(table, conjunction(predicate), None, outputs, output_sql, key)
    source = _rows_query(binding, tree, alias, others.nodes, tree.args.get("using") or [])
    return Delete(table, None, source, outputs, output_sql, others=tuple(others.columns))


def _returning(
    binding: Binding, statement: Statement, table: TableDef, alias: str, tree: Any
) -> tuple[OtherColumns, tuple[ex.Output, ...] | None, Relational | None]:
    """Bind RETURNING; what it reads of other tables becomes part of the row."""
    clause = tree.args.get("returning")
    titles = select_titles(statement.tokens, statement.text, TokenType.RETURNING)
    others = OtherColumns(binding, table, alias, tree)
    if clause is not None:
        titles = others.take(clause, titles)
    bound = bind_returning(binding, others.row, alias, clause, titles, others.is_typed)
    return others, *bound


def _target(binding: Binding, tree: Any) -> tuple[TableDef, str]:
    node = tree.this
    if not isinstance(node, exp.Table):
        raise NotSupportedError(f"{type(tree).__name__.upper()} needs one table{where(node)}")
    table = binding.require_table(node)
    return table, (node.alias or table.name).lower()


def _assignments(table: TableDef, tree: Any, alias: str) -> tuple[list[ColumnDef], list[Any]]:
    columns: list[ColumnDef] = []
    values: list[Any] = []
    for node in tree.expressions:
        for target, value in _pairs(node):
            qualifier = target.args.get("table")
            if qualifier is not None and qualifier.name.lower() not in (alias, table.name.lower()):
                raise BindError(f"table {qualifier.name!r} is not updated{where(target)}")
            column = require_column(table, target)
            if column in columns:
                raise BindError(f"column {column.name} is set twice{where(target)}")
            columns.append(column)
            values.append(value)
    return columns, values


def _pairs(node: Any) -> Iterable[tuple[Any, Any]]:
    """Yield ``column, value`` of ``a = 1`` and ``(a, b) = (1, 2)``."""
    if not isinstance(node, exp.EQ):
        raise BindError(f"SET needs column = value{where(node)}")
    left = node.this
    if isinstance(left, exp.Column):
        return [(left, node.expression)]
    targets = left.expressions if isinstance(left, exp.Tuple) else [left.this]
    right = node.expression
    values = right.expressions if isinstance(right, exp.Tuple) else [right]
    if isinstance(right, (exp.Query, exp.Subquery)):
        raise NotSupportedError(f"SET (a, b) = (SELECT ...) is not supported{where(left)}")
    if len(targets) != len(values) or not all(isinstance(t, exp.Column) for t in targets):
        raise BindError(f"{len(targets)} columns are set to {len(values)} values{where(left)}")
    return list(zip(targets, values, strict=True))


def _default(column: ColumnDef) -> Any:
    if column.default is None:
        return exp.Null()
    tree = parse_statement(f"SELECT {column.default}").take_tree()
    return exp.Paren(this=tree.expressions[0].unalias())


def _native_predicate(row: TableSelect, tree: Any) -> list[ex.Expr] | None:
    condition = tree.args.get("where")
    if condition is not None:
        row.conjuncts = row.core.conjuncts(condition.this)
    return row.predicates()


def _rows_query(
    binding: Binding, tree: Any, alias: str, values: list[Any], others: list[Any]
) -> Relational:
    """Return SQL giving the rowid and the values, new or of other tables, of the rows to change."""
    items = [exp.Alias(this=exp.column(ex.ROWID, table=alias), alias=exp.to_identifier("__rowid"))]
    items += [
        exp.Alias(this=value, alias=exp.to_identifier(f"__v{position}"))
        for position, value in enumerate(values)
    ]
    target = tree.this
    target.set("alias", exp.TableAlias(this=exp.to_identifier(alias)))
    joins = []
    for other in others:
        node = other.this if isinstance(other, exp.From) else other
        if node is not None:
            joins.append(exp.Join(this=node, kind="CROSS"))
    query = exp.Select(
        expressions=items,
        from_=exp.From(this=target),
        joins=joins,
        where=tree.args.get("where"),
        with_=tree.args.get("with_"),
        distinct=None if values else exp.Distinct(),
    )
    return Rewriter(binding).rewrite(query)
