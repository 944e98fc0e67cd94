"""INSERT to its plan: VALUES natively, queries, ON CONFLICT, DEFAULT, RETURNING."""

from __future__ import annotations

from typing import Any

from sqlglot import exp
from sqlglot.tokenizer_core import TokenType

from tarsdb.errors import BindError, NotSupportedError
from tarsdb.schema import ColumnDef, IndexDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.batch import batch_expression, bind_returning, column_names, conflict_query
from tarsdb.sql.binding import SYSTEM_TABLES, Binding, require_column, table_name, where
from tarsdb.sql.core import Core
from tarsdb.sql.plan import Insert, OnConflict, Query, Relational, VariableScan
from tarsdb.sql.positions import syntax_error
from tarsdb.sql.relational import Rewriter
from tarsdb.sql.rules import RULES
from tarsdb.sql.select import TableSelect, take_apart
from tarsdb.sql.statements import Statement
from tarsdb.sql.titles import select_titles
from tarsdb.sql.values import check_targets, fits, is_default, reject_parts
from tarsdb.sql.views import expand
from tarsdb.types import Kind, bytes_of

_KNOWN = {
    "this", "expression", "conflict", "returning", "default", "alternative", "ignore", "with_",
}  # fmt: skip
_PLAIN = frozenset({"kind", "expressions", "from_"})
Rows = tuple[tuple[ex.Expr, ...], ...]


def bind_insert(binding: Binding, statement: Statement) -> Insert:
    """INSERT INTO table [(columns)] VALUES | query | DEFAULT VALUES [ON CONFLICT] [RETURNING]."""
    tree = statement.take_tree()
    expand(binding.catalog, tree)
    reject_parts(tree, _KNOWN)
    table, alias, columns = _target(binding, tree)
    rows: Rows = ()
    query: Query | VariableScan | None = None
    body = tree.expression
    if tree.args.get("default"):
        columns = []
        rows = ((),)
    elif isinstance(body, exp.Values):
        columns, bound = _values(binding, table, columns, body)
        rows, query = (bound, None) if isinstance(bound, tuple) else ((), bound)
    elif body is None:
        end = len(statement.text)
        raise syntax_error(statement.text, end, "expected VALUES or a query")
    else:
        query = _query(binding, tree, body)
        _check_arity(table, columns, query)
    check_targets(table, columns)
    titles = select_titles(statement.tokens, statement.text, TokenType.RETURNING)
    outputs, output_sql = bind_returning(binding, table, alias, tree.args.get("returning"), titles)
    return Insert(
        table, tuple(columns), rows, query, _on_conflict(binding, table, alias, columns, tree),
        outputs, output_sql, _defaults(binding, table, columns),
    )  # fmt: skip


def _target(binding: Binding, tree: Any) -> tuple[TableDef, str, list[ColumnDef]]:
    node = tree.this
    listed = None
    if isinstance(node, exp.Schema):
        listed, node = node.expressions, node.this
    if not isinstance(node, exp.Table) or not isinstance(node.this, exp.Identifier):
        raise NotSupportedError(f"INSERT needs a table{where(node)}")
    table = binding.require_table(node)
    alias = (node.alias or table.name).lower()
    if listed is None:
        return table, alias, [column for column in table.columns if not column.is_derived]
    columns: list[ColumnDef] = column_names(table, listed)
    return table, alias, columns


def _values(
    binding: Binding, table: TableDef, columns: list[ColumnDef], body: Any
) -> tuple[list[ColumnDef], Rows | Relational]:
    """Bind VALUES; a column that is DEFAULT in every row is left out instead."""
    rows = [_row(node) for node in body.expressions]
    for row in rows:
        if len(row) != len(columns):
            raise BindError(
                f"table {table.name}: {len(columns)} columns, {len(row)} values{where(body)}"
            )
    left_out = {i for i in range(len(columns)) if all(is_default(row[i]) for row in rows)}
    if left_out:
        rows = [[v for i, v in enumerate(row) if i not in left_out] for row in rows]
        columns = [column for i, column in enumerate(columns) if i not in left_out]
    check_targets(table, columns)
    core = Core(binding, lambda _: None, calls=True)
    bound = []
    for row in rows:
        values = [_value(binding, table, core, c, v) for c, v in zip(columns, row, strict=True)]
        if any(value is None for value in values):
            return columns, _values_query(core, columns, rows)
        bound.append(tuple(value for value in values if value is not None))
    return columns, tuple(bound)


def _row(node: Any) -> list[Any]:
    if isinstance(node, exp.Tuple):
        return list(node.expressions)
    return [node.this if isinstance(node, exp.Paren) else node]


def _value(
    binding: Binding, table: TableDef, core: Core, column: ColumnDef, node: Any
) -> ex.Expr | None:
    if is_default(node):
        if column.default is None:
            return ex.Literal(None)
        bound = batch_expression(binding, table, _default_node(column))
        return None if isinstance(bound, Relational) else bound
    value = core.expr(node)
    if value is None and isinstance(node, exp.Column) and not isinstance(node.this, exp.Star):
        raise BindError(
            f"column {node.name!r} cannot be used in VALUES{where(node)}",
            hint="text is written in single quotes",
        )
    if value is None or not fits(value, column):
        return None
    return value


def _default_node(column: ColumnDef) -> Any:
    from tarsdb.sql.parser import parse_statement

    tree = parse_statement(f"SELECT {column.default}").take_tree()
    return tree.expressions[0].unalias()


def _values_query(core: Core, columns: list[ColumnDef], rows: list[list[Any]]) -> Relational:
    """Return SQL for VALUES that need DuckDB, each value cast to its column."""
    tuples = []
    of_bytes = {
        column.id
        for column, cells in zip(columns, zip(*rows, strict=True), strict=True)
        if column.type.kind is Kind.BLOB and any(isinstance(c, exp.HexString) for c in cells)
    }
    for row in rows:
        cells = []
        for column, node in zip(columns, row, strict=True):
            if is_default(node):
                node = exp.Null() if column.default is None else _default_node(column)
            if column.id in of_bytes and isinstance(node, exp.Literal) and node.is_string:
                node = exp.HexString(this=bytes_of(node.this).hex())  # DuckDB mixes no text in
            target = cast_target(column)
            if target is not None:
                to = exp.DataType.build(target, dialect="duckdb")
                value = core.expr(node)
                if isinstance(value, ex.Literal) and not fits(value, column):
                    node = _checked(node, to, column, value.value)
                else:
                    node = _cast(node, to)
            cells.append(node)
        tuples.append(exp.Tuple(expressions=cells))
    return Rewriter(core.binding).rewrite(exp.Values(expressions=tuples))


def _cast(node: Any, to: Any) -> Any:
    return exp.Cast(this=exp.Paren(this=node), to=to)


def _checked(node: Any, to: Any, column: ColumnDef, value: object) -> Any:
    """Return a constant cast to its column, or the error that names both where it cannot be."""
    shown = repr(value) if isinstance(value, (str, bytes)) else str(value)
    words = exp.Literal.string(f"column {column.name}: {shown} is not a {column.type}")
    refuse = exp.Anonymous(this="error", expressions=[words])
    fails = exp.Is(this=exp.TryCast(this=node.copy(), to=to.copy()), expression=exp.Null())
    return exp.Case(ifs=[exp.If(this=fails, true=refuse)], default=_cast(node, to))


def cast_target(column: ColumnDef) -> str | None:
    """Return the DuckDB type a value is cast to on its way into a column; None: as it is."""
    if column.type.is_vector or column.type.kind in (Kind.JSON, Kind.BLOB):
        return None
    if column.type.kind is Kind.ARRAY:
        return None
    return str(column.type)


def _query(binding: Binding, tree: Any, body: Any) -> Query | VariableScan:
    clause = tree.args.get("with_")
    if clause is None:
        variable = _variable_scan(binding, body)
        if variable is not None:
            return variable
    if clause is not None:
        if body.args.get("with_") is not None:
            raise NotSupportedError("WITH before INSERT and before its query")
        body.set("with_", clause)
    select = take_apart(binding, body)
    if select is not None:
        for rule in RULES:
            plan = rule(select)
            if plan is not None:
                return plan
    return Rewriter(binding).rewrite(body)


def _variable_scan(binding: Binding, body: Any) -> VariableScan | None:
    """Return ``SELECT * | columns FROM variable`` as its plan; None for anything more."""
    if not isinstance(body, exp.Select) or {k for k, v in body.args.items() if v} - _PLAIN:
        return None
    source = body.args.get("from_")
    node = source.this if source is not None else None
    if not isinstance(node, exp.Table) or not isinstance(node.this, exp.Identifier):
        return None
    if {k for k, v in node.args.items() if v} - {"this", "alias"} or _aliases_columns(node):
        return None
    name = table_name(node)
    if binding.catalog.table(name) is not None or name.lower() in SYSTEM_TABLES:
        return None
    names = _plain_columns(body.expressions, (node.alias or name).lower())
    if names == [] or not binding.catalog.has_variable(name):
        return None
    return VariableScan(name, None if names is None else tuple(names))


def _aliases_columns(node: Any) -> bool:
    alias = node.args.get("alias")
    return alias is not None and bool(alias.args.get("columns"))


def _plain_columns(items: list[Any], alias: str) -> list[str] | None:
    """Return the names of a SELECT list of columns; None for ``*``, nothing when it is neither."""
    if len(items) == 1 and isinstance(items[0], exp.Star):
        return [] if any(items[0].args.values()) else None
    names = []
    for item in items:
        if not isinstance(item, exp.Column) or not isinstance(item.this, exp.Identifier):
            return []
        if item.args.get("db") is not None or item.table.lower() not in ("", alias):
            return []
        names.append(item.name)
    return names


def _check_arity(table: TableDef, columns: list[ColumnDef], query: Query | VariableScan) -> None:
    outputs = getattr(query, "outputs", getattr(query, "columns", None))
    if outputs is not None and len(outputs) != len(columns):
        raise BindError(
            f"table {table.name}: {len(columns)} columns, the query gives {len(outputs)}"
        )


def _defaults(
    binding: Binding, table: TableDef, columns: list[ColumnDef]
) -> tuple[tuple[ColumnDef, ex.Expr | Relational], ...]:
    written = {column.id for column in columns}
    return tuple(
        (column, batch_expression(binding, table, _default_node(column)))
        for column in table.columns
        if column.id not in written and column.default is not None and column.generated is None
    )


def _on_conflict(
    binding: Binding, table: TableDef, alias: str, columns: list[ColumnDef], tree: Any
) -> OnConflict | None:
    clause = tree.args.get("conflict")
    alternative = str(tree.args.get("alternative") or "").lower()
    if clause is None:
        if tree.args.get("ignore") or alternative == "ignore":
            return OnConflict(None)
        if alternative == "replace":
            return _replace(table)
        if alternative:
            raise NotSupportedError(f"INSERT OR {alternative.upper()} is not supported")
        return None
    if alternative or tree.args.get("ignore"):
        raise BindError("INSERT OR ... and ON CONFLICT cannot be used together")
    index = _conflict_index(table, clause)
    action = clause.args["action"].name.upper() if clause.args.get("action") else ""
    if action == "DO NOTHING":
        return OnConflict(index)
    if action != "DO UPDATE":
        raise NotSupportedError(f"ON CONFLICT {action} is not supported{where(clause)}")
    return _do_update(binding, table, alias, index, clause)


def _replace(table: TableDef) -> OnConflict | None:
    """INSERT OR REPLACE: every column of the row that is there takes the new value."""
    unique = [index for index in table.indexes if index.unique]
    if not unique:
        return None
    index = table.primary_index or unique[0]
    columns = [c for c in table.columns if c.id not in index.column_ids and c.generated is None]
    return OnConflict(
        index if len(unique) == 1 else table.primary_index,
        tuple((column, ex.Excluded(column)) for column in columns),
    )


def _conflict_index(table: TableDef, clause: Any) -> IndexDef | None:
    constraint = clause.args.get("constraint")
    if constraint is not None:
        name = constraint.name.lower()
        for index in table.indexes:
            if index.name.lower() == name and index.unique:
                return index
        raise BindError(f"constraint {constraint.name!r} does not exist{where(constraint)}")
    keys = clause.args.get("conflict_keys")
    if not keys:
        unique = [index for index in table.indexes if index.unique]
        needs_one = clause.args["action"].name.upper() == "DO UPDATE"
        if needs_one and len(unique) != 1:
            raise BindError(
                f"ON CONFLICT DO UPDATE: table {table.name} has {len(unique)} unique constraints",
                hint="name the columns: ON CONFLICT (id) DO UPDATE ...",
            )
        return unique[0] if needs_one else None
    nodes = [key.this if isinstance(key, exp.Ordered) else key for key in keys]
    wanted = {column.id for column in column_names(table, nodes)}
    for index in table.indexes:
        if index.unique and set(index.column_ids) == wanted:
            return index
    names = ", ".join(node.name for node in nodes)
    raise BindError(
        f"table {table.name} has no PRIMARY KEY or UNIQUE constraint on ({names}){where(clause)}"
    )


def _do_update(
    binding: Binding, table: TableDef, alias: str, index: IndexDef | None, clause: Any
) -> OnConflict:
    columns: list[ColumnDef] = []
    values: list[Any] = []
    for node in clause.expressions:
        if not isinstance(node, exp.EQ) or not isinstance(node.this, exp.Column):
            raise BindError(f"DO UPDATE SET needs column = value{where(node)}")
        column = require_column(table, node.this)
        if column in columns:
            raise BindError(f"column {column.name} is set twice{where(node)}")
        columns.append(column)
        value = node.expression
        if is_default(value):
            value = exp.Null() if column.default is None else _default_node(column)
        values.append(value)
    check_targets(table, columns)
    condition = clause.args.get("where")
    condition = condition.this if condition is not None else None
    core = Core(binding, _conflict_lookup(binding, table, alias), calls=True)
    native = [core.expr(value) for value in values]
    checked = core.condition(condition) if condition is not None else None
    if all(v is not None for v in native) and (condition is None or checked is not None):
        pairs = zip(columns, native, strict=True)
        return OnConflict(index, tuple((c, v) for c, v in pairs if v is not None), checked)
    sql = conflict_query(binding, table, alias, values, condition)
    return OnConflict(index, None, None, sql, tuple(columns))


def _conflict_lookup(binding: Binding, table: TableDef, alias: str) -> Any:
    row = TableSelect(binding, table, alias, exp.Select())

    def lookup(node: Any) -> ex.Expr | None:
        qualifier = node.args.get("table")
        if qualifier is not None and qualifier.name.lower() == "excluded":
            return ex.Excluded(require_column(table, node))
        found = row.lookup(node)
        return None if isinstance(found, ex.RowidRef) else found

    return lookup
