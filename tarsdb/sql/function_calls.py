"""Calls of aggregate and table functions as text DuckDB runs.

DuckDB takes only scalar functions from outside. An aggregate function becomes a scalar one over
``list(...)`` of its group, so that DISTINCT, FILTER, ORDER BY and grouping stay DuckDB's; a table
function one that returns a list of structs, which ``unnest`` takes apart.
"""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from tarsdb.errors import BindError, NotSupportedError
from tarsdb.schema import FunctionDef
from tarsdb.sql.binding import where
from tarsdb.sql.catalog import Catalog
from tarsdb.types import TEXT, Kind, SqlType

BITS_TYPE = "VARCHAR"
_UNFIT: dict[type, str] = {
    exp.WithinGroup: "WITHIN GROUP", exp.IgnoreNulls: "IGNORE NULLS",
    exp.RespectNulls: "RESPECT NULLS",
}  # fmt: skip
"""Clauses of a call that an aggregate function of ours cannot have."""


def duckdb_type(sql_type: SqlType) -> str:
    """Return DuckDB's name of the type a SQL type travels as."""
    if sql_type.kind in (Kind.VECTOR, Kind.HALFVEC):
        return f"FLOAT[{sql_type.dim}]"
    if sql_type.kind is Kind.INT8VEC:
        return f"TINYINT[{sql_type.dim}]"
    if sql_type.kind is Kind.BIT:
        return BITS_TYPE
    if sql_type.kind is Kind.ARRAY:
        return f"{duckdb_type(sql_type.element or TEXT)}[]"
    return str(sql_type)


def has_aggregate(node: Any, catalog: Catalog) -> bool:
    """Return True when an expression aggregates rows, subqueries included."""
    if node.find(exp.AggFunc):
        return True
    found = (catalog.function(call.name) for call in node.find_all(exp.Anonymous))
    return any(function is not None and function.kind == "aggregate" for function in found)


def own_nodes(parts: list[Any]) -> list[Any]:
    """Return what stands in parts of a SELECT, but for nested queries and bodies of lambdas."""
    found, stack = [], list(parts)
    while stack:
        node = stack.pop()
        if not isinstance(node, (exp.Query, exp.Lambda)):
            found.append(node)
            stack.extend(node.iter_expressions())
    return found


def aggregate_arguments(node: Any) -> tuple[Any, ...]:
    """Return the arguments of an aggregate call without DISTINCT and ORDER BY."""
    found = list(node.expressions)
    if found and isinstance(found[-1], exp.Order):
        found[-1] = found[-1].this
    if len(found) == 1 and isinstance(found[0], exp.Distinct):
        found = found[0].expressions
    return tuple(found)


def rewrite_aggregate(node: Any, called: str, name: str, inner: Any) -> Any:
    """Turn ``f(x) [FILTER ...] [OVER ...]`` into ``name(list(x) [FILTER ...] [OVER ...])``.

    In place. ``called`` is the name the user wrote, ``inner`` the call's arguments as one value.

    Returns
    -------
    Expr
        What took the call's place, clauses included.

    Raises
    ------
    NotSupportedError
        The call has a clause that only ordered-set aggregates have.
    """
    last = node.expressions[-1]
    order = last if isinstance(last, exp.Order) else None
    first = order.this if order is not None else last
    if isinstance(first, exp.Distinct):
        inner = exp.Distinct(expressions=[inner])
    if order is not None:
        inner = exp.Order(this=inner, expressions=order.expressions)
    outer = node.parent if isinstance(node.parent, exp.Filter) else node
    if isinstance(outer.parent, exp.Window) and outer.arg_key == "this":
        outer = outer.parent  # the frame's rows are the list
    clause = _UNFIT.get(type(outer.parent)) if outer.arg_key == "this" else None
    clause = clause or _UNFIT.get(type(first))
    if clause is not None:
        raise NotSupportedError(
            f"aggregate function {called} with {clause} is not supported{where(node)}",
            hint="use it with GROUP BY or OVER (...)",
        )
    node.set("this", "list")
    node.set("expressions", [inner])
    call = exp.Anonymous(this=name)
    outer.replace(call)
    call.set("expressions", [outer])
    return call


def one_value(function: FunctionDef, arguments: tuple[Any, ...]) -> Any:
    """Return the arguments, in the order of the declaration, as one value that stays together."""
    if len(arguments) == 1:
        return arguments[0]
    return exp.Struct(
        expressions=[
            exp.PropertyEQ(
                this=exp.to_identifier(name, quoted=True),
                expression=exp.Cast(
                    this=argument, to=exp.DataType.build(duckdb_type(sql_type), dialect="duckdb")
                ),
            )
            for argument, (name, sql_type) in zip(arguments, function.arguments, strict=True)
        ]
    )


def table_function(node: Any, catalog: Catalog) -> FunctionDef | None:
    """Return the function of ours that stands in FROM, None when it is none.

    Raises
    ------
    BindError
        It returns no table.
    """
    call = node.this if isinstance(node, (exp.Table, exp.Lateral)) else None
    if not isinstance(call, exp.Anonymous):
        return None
    function = catalog.function(call.name)
    if function is not None and function.kind != "table":
        raise BindError(
            f"function {function.name} returns {function.result}, no table{where(call)}",
            hint=f"SELECT {function.name}(...)",
        )
    return function


def rewrite_table(node: Any, name: str, arguments: tuple[Any, ...]) -> Any:
    """Turn ``f(x) AS t`` in FROM into ``(SELECT unnest(name(x), max_depth := 2)) AS t``.

    Returns
    -------
    Expr
        The call, whose arguments are still to be walked.
    """
    call = exp.Anonymous(this=name, expressions=list(arguments))
    depth = exp.PropertyEQ(this=exp.to_identifier("max_depth"), expression=exp.Literal.number(2))
    rows = exp.Select(expressions=[exp.Anonymous(this="unnest", expressions=[call, depth])])
    alias = node.args.get("alias") or exp.TableAlias(this=exp.to_identifier(node.this.name))
    subquery = exp.Subquery(this=rows)
    if isinstance(node, exp.Lateral):
        node.set("this", subquery)
        node.set("alias", alias)
        return call
    subquery.set("alias", alias)
    for part in ("joins", "laterals", "pivots"):
        if node.args.get(part):
            subquery.set(part, node.args[part])
    node.replace(subquery)
    return call
