"""Calls of model functions: which there are, what they take, what they return.

A function takes a model's name in quotes, then columns (any expressions), then constants given by
name: ``embed('minilm', body, dimensions => 128)``. Whether a value suits an option is the engine's
to say when it runs; what decides the type of the result is checked here. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sqlglot import exp

from tarsdb.errors import BindError
from tarsdb.records import dataclass
from tarsdb.schema import ModelDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.binding import Binding, suggestion, where
from tarsdb.types import DOUBLE, INT, TEXT, Kind, SqlType

_NAMED = (exp.Kwarg, exp.PropertyEQ)
Options = Mapping[str, ex.Expr]


@dataclass(frozen=True)
class ModelFunction:
    """One function in the table below.

    Parameters
    ----------
    arguments : tuple of str
        What follows the model; each may be any expression.
    returns : callable
        Type of the result, by the model and the options.
    tasks : tuple of str
        Tasks of the models it runs on; empty: it takes no model's name.
    optional : int
        How many of the last arguments may be left out.
    options : tuple of str
        Constants given by name.
    in_order : int
        How many of the options may also be given by position, behind the arguments.
    """

    arguments: tuple[str, ...]
    returns: Callable[[ModelDef | None, Options], SqlType]
    tasks: tuple[str, ...] = ()
    optional: int = 0
    options: tuple[str, ...] = ()
    in_order: int = 0


def _always(sql_type: SqlType) -> Callable[[ModelDef | None, Options], SqlType]:
    return lambda model, options: sql_type


def _vector(model: ModelDef | None, options: Options) -> SqlType:
    width = model.dim if model is not None else 0
    wanted = options.get("dimensions")
    if wanted is None:
        return SqlType(Kind.VECTOR, dim=width)
    value = wanted.value if isinstance(wanted, ex.Literal) else None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= width:
        shown = repr(value) if isinstance(wanted, ex.Literal) else "a parameter"
        name = model.name if model is not None else ""
        raise BindError(
            f"embed: dimensions is {shown}, model {name} has {width} dimensions",
            hint=f"write a whole number from 1 to {width}",
        )
    return SqlType(Kind.VECTOR, dim=value)


_FEATURES = SqlType(Kind.ARRAY, element=DOUBLE)
_TEXTS = SqlType(Kind.ARRAY, element=TEXT)
_CLASSES = ("classify", "rerank")
_READING = ("embed", *_CLASSES, "generate")

FUNCTIONS: dict[str, ModelFunction] = {
    "embed": ModelFunction(("text",), _vector, ("embed",), options=("dimensions", "kind", "cache")),
    "classify": ModelFunction(
        ("text", "second"), _always(TEXT), ("classify",), optional=1, options=("cache",)
    ),
    "score": ModelFunction(
        ("text", "second"), _always(DOUBLE), _CLASSES, optional=1,
        options=("label", "cache"),
    ),
    "rerank": ModelFunction(
        ("query", "text"), _always(DOUBLE), ("rerank",), options=("cache",)
    ),
    "predict": ModelFunction(
        ("text", "second"), _always(SqlType(Kind.JSON)), (*_CLASSES, "predict"), optional=1,
        options=("cache",),
    ),
    "tokenize": ModelFunction(
        ("text",), _always(SqlType(Kind.ARRAY, element=INT)), _READING
    ),
    "generate": ModelFunction(
        ("prompt",), _always(TEXT), ("generate",),
        options=(
            "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
            "logit_bias", "seed", "stop", "regex", "json_schema", "choice", "grammar", "system",
            "chat", "special_tokens", "speculate", "draft", "priority", "timeout", "cache",
        ),
    ),
    "chunk": ModelFunction(
        ("text",), _always(_TEXTS), options=("size", "overlap", "by"), in_order=2
    ),
}  # fmt: skip
_CHUNK_OF_MODEL = ModelFunction(("text",), _always(_TEXTS), _READING, options=("size", "overlap"))
_INSTEAD = {
    "embed": "embed(model, text)", "classify": "classify(model, text)",
    "rerank": "rerank(model, query, text)", "generate": "generate(model, prompt)",
    "predict": "predict(model, features)",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A call that was found valid: sqlglot arguments, bound options."""

    name: str
    model: ModelDef | None
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, ex.Expr], ...]
    returns: SqlType

    @property
    def takes(self) -> SqlType:
        """Type of its arguments: texts, or lists of numbers of a model of another maker."""
        is_numeric = self.model is not None and self.model.task == "predict"
        return _FEATURES if is_numeric else TEXT


def resolve_model_call(binding: Binding, name: str, node: Any) -> ModelCall:
    """Return what a call of a model function means.

    Raises
    ------
    BindError
        The model does not exist or does something else, or the arguments do not fit.
    """
    positional, named = _divided(name, node)
    function, model = FUNCTIONS[name], None
    if name == "chunk" and _is_by_tokens(positional, named):
        function = _CHUNK_OF_MODEL
    if function.tasks:
        model = _model(binding, name, positional, node)
        _check_task(name, function, model, node)
        positional = positional[1:]
        if name == model.task == "predict":  # a list of features for each of its inputs
            features = ("list of features",) * max(1, len(positional))
            function = replace(function, arguments=features, optional=0)
    arguments, bound = _fitted(name, function, positional, named, node)
    return ModelCall(
        name, model, arguments, tuple(sorted(bound.items())), function.returns(model, bound)
    )


def resolve_tokenizer_call(name: str, node: Any) -> ModelCall | None:
    """Return what ``tokenize`` or ``chunk`` by a function of role 'tokenizer' means.

    None where the call names no model: ``chunk('five words of a text', 2)``.

    Raises
    ------
    BindError
        The arguments do not fit.
    """
    positional, named = _divided(name, node)
    if name == "chunk" and not _is_by_tokens(positional, named):
        return None
    function = _CHUNK_OF_MODEL if name == "chunk" else FUNCTIONS[name]
    arguments, bound = _fitted(name, function, positional[1:], named, node)
    return ModelCall(name, None, arguments, tuple(sorted(bound.items())), _TEXTS)


def _divided(name: str, node: Any) -> tuple[list[Any], list[Any]]:
    """Return a call's positional arguments and its named ones."""
    positional = [item for item in node.expressions if not isinstance(item, _NAMED)]
    named = node.expressions[len(positional) :]
    if not all(isinstance(item, _NAMED) for item in named):
        raise BindError(f"{name}: a positional argument follows a named one{where(node)}")
    return positional, named


def _is_by_tokens(positional: list[Any], named: list[Any]) -> bool:
    """Return whether a call of ``chunk`` begins with what makes the tokens."""
    return len(positional) == 2 and "size" in map(_key, named)


def _fitted(
    name: str, function: ModelFunction, positional: list[Any], named: list[Any], node: Any
) -> tuple[tuple[Any, ...], dict[str, ex.Expr]]:
    """Return the arguments behind the model's name, and the bound options."""
    known = len(function.arguments)
    options = dict(zip(function.options[: function.in_order], positional[known:], strict=False))
    arguments = tuple(positional[:known])
    lacking = len(arguments) < known - function.optional
    if lacking or len(positional) > known + function.in_order:
        raise BindError(
            f"{name} takes {_signature(function)}, {len(node.expressions)} arguments are "
            f"given{where(node)}"
        )
    for item in named:
        key = _key(item)
        if key not in function.options or key in options:
            raise BindError(
                f"{name}: option {key!r} {'is given twice' if key in options else 'is not known'}"
                f"{where(item)}",
                hint=suggestion(key, function.options) or _known_options(function),
            )
        options[key] = item.expression
    return arguments, {key: _constant(name, key, value) for key, value in options.items()}


def _key(item: Any) -> str:
    key: str = item.this.name.lower()
    return key


def _model(binding: Binding, name: str, arguments: list[Any], node: Any) -> ModelDef:
    named = arguments[0] if arguments else None
    if not isinstance(named, exp.Literal) or not named.is_string:
        raise BindError(f"{name}: the model must be a name in quotes{where(node)}")
    model = binding.catalog.model(named.this)
    if model is None:
        raise BindError(
            f"model {named.this!r} does not exist{where(node)}",
            hint=f"CREATE MODEL {named.this or 'name'} FROM '<directory>' first",
        )
    return model


def _check_task(name: str, function: ModelFunction, model: ModelDef, node: Any) -> None:
    if model.task not in function.tasks:
        instead = _INSTEAD.get(model.task)
        raise BindError(
            f"model {model.name} does {model.task}, not {name}{where(node)}",
            hint=f"write {instead}" if instead else None,
        )


def _signature(function: ModelFunction) -> str:
    arguments = [f"a {argument}" for argument in function.arguments]
    for place in range(len(arguments) - function.optional, len(arguments)):
        arguments[place] = f"optionally {arguments[place]}"
    parts = (["a model"] if function.tasks else []) + arguments
    parts += [f"optionally {option}" for option in function.options[: function.in_order]]
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _known_options(function: ModelFunction) -> str:
    if not function.options:
        return "it takes no options"
    return "its options are " + ", ".join(function.options)


def _constant(name: str, key: str, node: Any) -> ex.Expr:
    """Bind the value of an option: a literal, a list of literals, or a parameter."""
    bound = _literal(node)
    if bound is None:
        raise BindError(
            f"{name}: {key} must be a constant{where(node)}", hint="a literal or a parameter"
        )
    return bound


def _literal(node: Any) -> ex.Expr | None:
    from tarsdb.sql.core import number, parameter_key

    match node:
        case exp.Paren():
            return _literal(node.this)
        case exp.Parameter() | exp.Placeholder():
            return ex.Parameter(parameter_key(node))
        case exp.Null():
            return ex.Literal(None)
        case exp.Boolean():
            return ex.Literal(bool(node.this))
        case exp.Literal():
            return ex.Literal(node.this) if node.is_string else number(node.this)
        case exp.Neg():
            inner = number(node.this.this) if isinstance(node.this, exp.Literal) else None
            return None if inner is None else ex.Literal(-inner.value)
        case exp.Array():
            items = [_literal(item) for item in node.expressions]
            values = tuple(item.value for item in items if isinstance(item, ex.Literal))
            return ex.Literal(values) if len(values) == len(items) else None
        case _:
            return None
