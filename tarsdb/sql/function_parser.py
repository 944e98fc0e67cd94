"""CREATE FUNCTION: scalar, aggregate and table functions."""

from __future__ import annotations

from typing import Any

from tarsdb.errors import NotSupportedError
from tarsdb.sql.ddl_table import if_not_exists, type_text
from tarsdb.sql.plan import CreateFunction
from tarsdb.sql.stream import TokenStream

_LANGUAGES = ("wasm", "python", "javascript")


def create_function(stream: TokenStream, kind: str, or_replace: bool) -> CreateFunction:
    """Parse what follows CREATE [AGGREGATE] FUNCTION; ``kind`` is 'scalar' or 'aggregate'."""
    exists_ok = if_not_exists(stream)
    name = stream.name("a function name")
    arguments = _parameters(stream, "argument")
    if kind == "aggregate" and not arguments:
        stream.fail("an aggregate function takes at least one argument")
    stream.expect("RETURNS")
    fields: dict[str, Any] = {"kind": kind, "returns": "", "language": "", "options": {}}
    if kind == "scalar" and stream.accept("TABLE"):
        fields["kind"], fields["columns"] = "table", _parameters(stream, "column")
        if not fields["columns"]:
            stream.fail("a table function returns at least one column")
    else:
        fields["returns"] = type_text(stream)
    while not stream.at_end:
        _function_clause(stream, name, fields)
    if not fields["language"]:
        stream.fail(f"expected LANGUAGE and one of {', '.join(_LANGUAGES)}")
    if (fields.get("code") is None) == (fields.get("module") is None):
        stream.fail("expected AS '<code>' or FROM module::export")
    return CreateFunction(name, arguments, if_not_exists=exists_ok, or_replace=or_replace, **fields)


def _parameters(stream: TokenStream, what: str) -> tuple[tuple[str, str], ...]:
    """Take ``(name type, ...)``."""
    stream.expect("(")
    found: list[tuple[str, str]] = []
    while not stream.accept(")"):
        if found:
            stream.expect(",")
        name = stream.name(f"the name of the {what}")
        if name.lower() in {known.lower() for known, _ in found}:
            stream.fail(f"{what} {name} is given twice")
        if stream.peek() in (",", ")"):
            stream.fail(f"{what} {name} needs a type")
        found.append((name, type_text(stream)))
    return tuple(found)


def _function_clause(stream: TokenStream, name: str, fields: dict[str, Any]) -> None:
    volatility = stream.accept_any("IMMUTABLE", "STABLE", "VOLATILE")
    if volatility:
        known = fields.setdefault("volatility", volatility)
        if known != volatility:
            stream.index -= 1
            stream.fail(f"the function is {known} already")
    elif stream.accept("STRICT") or stream.accept("RETURNS", "NULL", "ON", "NULL", "INPUT"):
        fields["strict"] = True
    elif stream.accept("CALLED", "ON", "NULL", "INPUT"):
        fields["strict"] = False
    elif stream.accept("LANGUAGE"):
        language = stream.name("a language").lower()
        if language not in _LANGUAGES:
            raise NotSupportedError(
                f"LANGUAGE {language} is not supported", hint=f"languages: {', '.join(_LANGUAGES)}"
            )
        fields["language"] = language
    elif stream.accept("AS"):
        fields["code"] = stream.string("the function's code")
        fields["export"] = name
    elif stream.accept("FROM"):
        fields["module"] = stream.name("a module name")
        stream.expect("::")
        fields["export"] = stream.name("an export")
    elif stream.accept("WITH"):
        fields["options"] = stream.options()
    else:
        stream.fail("expected LANGUAGE, AS, FROM, WITH, IMMUTABLE or STRICT")
