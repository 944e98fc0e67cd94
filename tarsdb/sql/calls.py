"""Calls that are ours: of models, of sandboxed functions, of Python functions."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from tarsdb.errors import BindError, NotSupportedError
from tarsdb.records import dataclass
from tarsdb.schema import FunctionDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.binding import Binding, where
from tarsdb.sql.dialect import own_name
from tarsdb.sql.function_calls import aggregate_arguments
from tarsdb.sql.model_calls import FUNCTIONS, resolve_model_call, resolve_tokenizer_call
from tarsdb.types import TEXT, SqlType

_LATER = ("tars_ab_report", "hybrid_search", "kmeans", "knn_graph")
_IN_PLACE_OF_MODELS = {"rerank": "reranker", "tokenize": "tokenizer", "chunk": "tokenizer"}
"""The role of functions that a model function may name instead of a model."""


@dataclass(frozen=True, slots=True)
class OwnCall:
    """A call that DuckDB does not know.

    ``kind`` is 'model', 'tokenizer' (a model function by a table function in the model's place),
    'udf' (a scalar function), 'aggregate', 'table' or 'session'.
    """

    kind: str
    name: str
    target: str
    arguments: tuple[Any, ...]  # sqlglot nodes; of a model function without the model's name
    returns: SqlType | None
    function: FunctionDef | None = None
    options: tuple[tuple[str, ex.Expr], ...] = ()
    takes: SqlType = TEXT  # of a model function


def resolve_call(binding: Binding, node: Any) -> OwnCall | None:
    """Return what an Anonymous call is, or None when it is none of ours.

    Raises
    ------
    BindError
        The model does not exist, or the arguments do not fit.
    """
    name = own_name(node)
    function = binding.catalog.function(name)
    if function is not None:
        return _sandboxed(function, node, tuple(node.expressions))
    if binding.catalog.has_session_function(name):
        return OwnCall("session", name, name, tuple(node.expressions), None)
    instead = _in_place_of_model(binding, name, node)
    if instead is not None and instead.role == "reranker":
        return _sandboxed(instead, node, tuple(node.expressions[1:]))
    if instead is not None:
        by_tokens = resolve_tokenizer_call(name, node)
        if by_tokens is not None:
            return OwnCall(
                "tokenizer", name, instead.name, by_tokens.arguments, by_tokens.returns, None,
                by_tokens.options,
            )  # fmt: skip
    if name in FUNCTIONS:
        call = resolve_model_call(binding, name, node)
        target = call.model.name if call.model is not None else ""
        return OwnCall(
            "model", name, target, call.arguments, call.returns, None, call.options, call.takes
        )
    if name in _LATER:
        raise NotSupportedError(f"function {name} is not supported{where(node)}")
    return None


def refuse_in_from(node: Any) -> None:
    """Raise BindError for a call in FROM of a function of models, which gives values."""
    call = node.this if isinstance(node, exp.Table) else None
    if isinstance(call, exp.Func) and own_name(call) in FUNCTIONS:
        name = own_name(call)
        raise BindError(
            f"function {name} gives a value for each row, it cannot stand in FROM{where(node)}",
            hint="SELECT unnest(chunk(...)) makes rows of pieces" if name == "chunk" else "",
        )


def _in_place_of_model(binding: Binding, name: str, node: Any) -> FunctionDef | None:
    """Return the function that ``rerank('f', ...)`` and the like name in place of a model."""
    role = _IN_PLACE_OF_MODELS.get(name)
    first = node.expressions[0] if role and node.expressions else None
    if not isinstance(first, exp.Literal) or binding.catalog.model(first.this) is not None:
        return None
    function = binding.catalog.function(first.this)
    return function if function is not None and function.role == role else None


def _sandboxed(function: FunctionDef, node: Any, arguments: tuple[Any, ...]) -> OwnCall:
    if function.kind == "aggregate":
        arguments = aggregate_arguments(node)
    if any(isinstance(argument, exp.Star) for argument in arguments):
        raise BindError(f"function {function.name} does not take *{where(node)}")
    if any(isinstance(argument, (exp.Kwarg, exp.PropertyEQ)) for argument in arguments):
        arguments = _by_name(function, arguments, node)
    if len(arguments) != len(function.arguments):
        raise BindError(
            f"function {function.name} takes {len(function.arguments)} arguments, "
            f"{len(arguments)} are given{where(node)}"
        )
    return OwnCall(
        "udf" if function.kind == "scalar" else function.kind,
        function.name,
        function.name,
        arguments,
        function.returns,
        function=function,
    )


def _by_name(function: FunctionDef, arguments: tuple[Any, ...], node: Any) -> tuple[Any, ...]:
    """Put ``name => value`` arguments into the order of the declaration."""
    names = [name.lower() for name, _ in function.arguments]
    placed: dict[str, Any] = {}
    for position, argument in enumerate(arguments):
        named = isinstance(argument, (exp.Kwarg, exp.PropertyEQ))
        if not named and placed and position != len(placed):
            raise BindError(f"function {function.name}: a positional argument follows a named one")
        key = argument.this.name.lower() if named else names[min(position, len(names) - 1)]
        if key not in names or key in placed:
            raise BindError(
                f"function {function.name}: argument {key!r} does not fit{where(node)}",
                hint=f"its arguments are {', '.join(names)}",
            )
        placed[key] = argument.expression if named else argument
    missing = [name for name in names if name not in placed]
    if missing:
        raise BindError(f"function {function.name}: argument {missing[0]!r} is missing")
    return tuple(placed[name] for name in names)


def own_call(call: OwnCall, arguments: tuple[ex.Expr, ...]) -> ex.Call:
    """Return a call as a bound expression."""
    function = call.function
    takes = () if function is None else tuple(sql_type for _, sql_type in function.arguments)
    if call.kind == "model" and call.takes != TEXT:  # a constant in quotes is a text by itself
        takes = (call.takes,) * len(arguments)
    is_volatile = function is not None and function.volatility.upper() == "VOLATILE"
    return ex.Call(
        call.kind, call.name, call.target, arguments, call.returns, call.options, takes, is_volatile
    )
