"""Names: whether one is free, and what table definitions mention and so may not vanish or change.

Looks at bound expressions only; runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tarsdb.engine.context import Context
from tarsdb.engine.inference.loaded_models import adapted_model
from tarsdb.errors import CatalogError
from tarsdb.schema import ColumnDef, FunctionDef, TableDef
from tarsdb.sql import bind_expression
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Relational
from tarsdb.types import Kind


def may_create(context: Context, kind: str, plan: Any) -> bool:
    """Return whether CREATE goes on: its name is free, or OR REPLACE was said.

    Raises
    ------
    CatalogError
        The name is taken, and nothing was said about that.
    """
    existing = getattr(context.catalog, kind)(plan.name)
    if existing is None or plan.or_replace:
        return True
    if plan.if_not_exists:
        return False
    raise CatalogError(f"{kind} {plan.name!r} exists already")


def refuse_dependents(context: Context, kind: str, name: str, verb: str = "drop") -> None:
    """Raise CatalogError where something still needs a module, model or function.

    An adapter needs a model to adapt; whether it fits that model is seen when it is loaded.
    """
    for function in context.catalog.functions() if kind == "module" else ():
        if (function.module or "").lower() == name.lower():
            raise CatalogError(f"cannot {verb} module {name}: function {function.name} uses it")
    for model in context.catalog.models() if (kind, verb) == ("model", "drop") else ():
        if adapted_model(model).lower() == name.lower():
            raise CatalogError(f"cannot {verb} model {name}: model {model.name} adapts it")
    for table in context.catalog.tables() if kind != "module" else ():
        if kind == "function":
            _refuse_users(table, name, verb)
        for place, text in _texts(table):
            names = mentioned(bind_expression(text, table, context.catalog), kind)
            if name.lower() in names:
                raise CatalogError(
                    f"cannot {verb} {kind} {name}: table {table.name} uses it in {text}",
                    hint=f"{place} of {table.name} would change its meaning",
                )


def _refuse_users(table: TableDef, name: str, verb: str) -> None:
    """Raise CatalogError where an index or a trigger of a table calls a function."""
    for index in table.indexes:
        if index.function.lower() == name.lower():
            raise CatalogError(
                f"cannot {verb} function {name}: index {index.name} compares by it",
                hint=f"DROP INDEX {index.name} first",
            )
    for trigger in table.triggers:
        if trigger.function.lower() == name.lower():
            raise CatalogError(
                f"cannot {verb} function {name}: trigger {trigger.name} calls it",
                hint=f"DROP TRIGGER {trigger.name} first",
            )


def pin_functions(context: Context, table: TableDef) -> None:
    """Check the functions a table's CHECKs and generated columns call, and hold on to all.

    A commit that drops or replaces one of them meanwhile, and this one, conflict.

    Raises
    ------
    CatalogError
        One is not IMMUTABLE.
    """
    for place, text in _texts(table):
        expression = bind_expression(text, table, context.catalog)
        for name in sorted(mentioned(expression, "function")):
            function = context.catalog.function(name)
            if function is None:
                continue
            if function.volatility.upper() != "IMMUTABLE" and not place.startswith("DEFAULT"):
                raise CatalogError(
                    f"{place} of table {table.name} calls {function.name}, which is "
                    f"{function.volatility.upper()}, not IMMUTABLE",
                    hint="what is stored must follow from the row alone",
                )
            context.require_writes().put_object("function", function.name, function)
    context.refresh()


def pinned_metric(
    context: Context, options: dict[str, Any], column: ColumnDef, name: str
) -> FunctionDef | None:
    """Return the sandboxed metric an index's options name, and hold on to it.

    None where the metric is built in. A commit that drops or replaces the function meanwhile, and
    this one, conflict.

    Raises
    ------
    CatalogError
        The function is no metric of the column's dimension, or not IMMUTABLE.
    """
    function = context.catalog.function(str(options.get("metric", "")))
    if function is None or function.role != "metric":
        return None
    _, wanted = function.arguments[0]
    if column.type.dim != wanted.dim or column.type.kind is Kind.BIT:
        raise CatalogError(
            f"index {name}: metric {function.name} compares {wanted}, "
            f"{column.name} is {column.type}"
        )
    if function.volatility.upper() != "IMMUTABLE":
        raise CatalogError(
            f"index {name}: metric {function.name} is {function.volatility.upper()}, not IMMUTABLE"
        )
    context.require_writes().put_object("function", function.name, function)
    return function


def _texts(table: TableDef) -> Iterator[tuple[str, str]]:
    """Yield what an expression of a definition is for, and its text."""
    for column in table.columns:
        if column.default is not None:
            yield f"DEFAULT {column.name}", column.default
        if column.generated is not None:
            yield f"generated column {column.name}", column.generated
    for name, text in table.checks:
        yield f"CHECK {name}", text


def mentioned(expression: ex.Expr | Relational, kind: str) -> set[str]:
    """Return the names, in lower case, of what an expression calls.

    Parameters
    ----------
    expression : Expr or Relational
    kind : str
        ``'function'`` (sandboxed) or ``'model'``.
    """
    wanted = ("udf", "tokenizer") if kind == "function" else (kind,)
    if isinstance(expression, Relational):
        found = [call.call.target for call in expression.calls if call.call.kind in wanted]
        if kind == "function":
            found += [function.name for function in expression.functions]
        inside = [node for _, node in expression.constants]
        for relation in expression.relations:
            inside += [output.expr for output in relation.computed]
            inside += [] if relation.predicate is None else [relation.predicate]
        return set(map(str.lower, found)).union(*(mentioned(node, kind) for node in inside))
    names: set[str] = set()
    for node in ex.walk(expression):
        if isinstance(node, ex.Call) and node.kind in wanted and node.target:
            names.add(node.target.lower())
        if isinstance(node, ex.Distance) and node.function and kind == "function":
            names.add(node.function.lower())
    return names
