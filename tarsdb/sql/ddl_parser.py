"""CREATE and DROP of everything but tables: indexes, models, modules; functions have their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tarsdb.errors import NotSupportedError
from tarsdb.sql.ddl_table import if_not_exists
from tarsdb.sql.function_parser import create_function
from tarsdb.sql.plan import (
    CreateIndex,
    CreateModel,
    CreateModule,
    CreateTrigger,
    CreateView,
    Drop,
    Plan,
)
from tarsdb.sql.stream import TokenStream

METHODS = ("btree", "hnsw", "ivf", "fts", "auto")
_METRIC_OF = {
    "l2": "l2", "ip": "ip", "cosine": "cosine", "l1": "l1", "hamming": "hamming",
    "jaccard": "jaccard",
}  # fmt: skip
QUERY_WORDS = frozenset({"SELECT", "WITH", "VALUES", "FROM", "TABLE", "("})
"""Words a query begins with."""
_KINDS = ("TABLE", "INDEX", "MODEL", "MODULE", "FUNCTION", "TRIGGER", "VIEW")
_UNSUPPORTED_CREATE = (
    "SEQUENCE", "SCHEMA", "DATABASE", "TYPE", "USER", "ROLE", "POLICY", "MACRO",
    "AGGREGATE", "PROCEDURE", "EXTENSION", "TEMP", "TEMPORARY", "MATERIALIZED", "VIRTUAL", "SECRET",
)  # fmt: skip


def create_object(stream: TokenStream, or_replace: bool) -> Plan:
    """Parse what follows CREATE [OR REPLACE] when it is no table."""
    if stream.accept("UNIQUE"):
        stream.expect("INDEX")
        return _create_index(stream, unique=True)
    if stream.accept("INDEX"):
        if or_replace:
            raise NotSupportedError("CREATE OR REPLACE INDEX is not supported", hint="DROP it")
        return _create_index(stream, unique=False)
    if stream.accept("FUNCTION"):
        return create_function(stream, "scalar", or_replace)
    if stream.accept("AGGREGATE", "FUNCTION"):
        return create_function(stream, "aggregate", or_replace)
    for word, parse in _PARSERS.items():
        if stream.accept(word):
            return parse(stream, or_replace)
    if stream.peek() in _UNSUPPORTED_CREATE:
        raise NotSupportedError(f"CREATE {stream.peek()} is not supported")
    stream.fail("expected TABLE, VIEW, INDEX, MODEL, MODULE, FUNCTION or TRIGGER")


def _create_index(stream: TokenStream, unique: bool) -> CreateIndex:
    exists_ok = if_not_exists(stream)
    name = None if stream.peek() == "ON" else stream.name("an index name")
    stream.expect("ON")
    table = stream.table_name()
    method = "btree"
    if stream.accept("USING"):
        method = stream.name("an index method").lower()
        if method not in METHODS:
            stream.index -= 1
            stream.fail(f"expected an index method: {', '.join(METHODS)}")
    stream.expect("(")
    options: dict[str, Any] = {}
    columns = [_index_column(stream, method, options)]
    while stream.accept(","):
        columns.append(_index_column(stream, method, options))
    stream.expect(")")
    if stream.accept("WITH"):
        options = {**options, **stream.options()}
    if stream.peek() == "WHERE":
        raise NotSupportedError("a partial index (CREATE INDEX ... WHERE) is not supported")
    stream.finish()
    return CreateIndex(name, table, tuple(columns), unique, method, options, exists_ok)


def _index_column(stream: TokenStream, method: str, options: dict[str, Any]) -> str:
    if stream.peek() == "(" or stream.peek(1) == "(":
        raise NotSupportedError("an index over an expression is not supported")
    column = stream.name("a column name")
    if method != "btree" and stream.peek() not in (",", ")", ""):
        opclass = stream.name("an operator class").lower()
        metric = opclass.removesuffix("_ops").rsplit("_", 1)[-1]
        if not opclass.endswith("_ops") or metric not in _METRIC_OF:
            stream.index -= 1
            stream.fail("expected an operator class such as vector_cosine_ops")
        options["metric"] = metric
        options["opclass"] = opclass
    direction = stream.accept_any("ASC", "DESC")
    if direction == "DESC":
        raise NotSupportedError("a descending index column is not supported", hint="leave DESC out")
    return column


def _create_model(stream: TokenStream, or_replace: bool) -> CreateModel:
    exists_ok = if_not_exists(stream)
    name = stream.name("a model name")
    stream.expect("FROM")
    source = stream.string("the model's directory")
    options = stream.options() if stream.accept("WITH") else {}
    stream.finish()
    return CreateModel(name, source, options, exists_ok, or_replace)


def _create_module(stream: TokenStream, or_replace: bool) -> CreateModule:
    exists_ok = if_not_exists(stream)
    name = stream.name("a module name")
    stream.expect("FROM")
    source = stream.string("the module's path")
    options = stream.options() if stream.accept("WITH") else {}
    stream.finish()
    return CreateModule(name, source, options, exists_ok, or_replace)


def _create_view(stream: TokenStream, or_replace: bool) -> CreateView:
    exists_ok = if_not_exists(stream)
    name = stream.table_name("a view name")
    columns = stream.names() if stream.peek() == "(" else ()
    stream.expect("AS")
    if stream.peek() not in QUERY_WORDS:
        stream.fail("expected a query")
    text = stream.text[stream.tokens[stream.index].start : stream.tokens[-1].end + 1]
    stream.index = len(stream.tokens)
    return CreateView(name, columns, text, exists_ok, or_replace)


def _create_trigger(stream: TokenStream, or_replace: bool) -> CreateTrigger:
    if or_replace:
        raise NotSupportedError("CREATE OR REPLACE TRIGGER is not supported", hint="DROP it")
    exists_ok = if_not_exists(stream)
    name = stream.name("a trigger name")
    timing = next((t for t in ("BEFORE", "AFTER") if stream.accept(t, "INSERT")), None)
    if timing is None:
        if stream.peek() in ("BEFORE", "AFTER", "INSTEAD"):
            when = f"{stream.peek()} {stream.peek(1)}"
            hint = "BEFORE INSERT or AFTER INSERT"
            raise NotSupportedError(f"trigger {name}: {when} is not supported", hint=hint)
        stream.fail("expected BEFORE INSERT or AFTER INSERT")
    stream.expect("ON")
    table = stream.table_name()
    if stream.peek() in ("FOR", "WHEN", "BEGIN"):
        raise NotSupportedError(
            f"trigger {name}: {stream.peek()} is not supported, a trigger calls a function",
            hint=f"CREATE TRIGGER {name} {timing} INSERT ON {table} CALL function",
        )
    stream.expect("CALL")
    function = stream.name("a function name")
    stream.finish()
    return CreateTrigger(name, table, function, timing, exists_ok)


def drop(stream: TokenStream) -> Drop:
    """Parse what follows DROP."""
    kind = stream.accept_any(*_KINDS)
    if not kind:
        if stream.peek() in _UNSUPPORTED_CREATE:
            raise NotSupportedError(f"DROP {stream.peek()} is not supported")
        stream.fail(f"expected one of {', '.join(_KINDS)}")
    missing_ok = stream.accept("IF", "EXISTS")
    name = stream.table_name(f"a {kind.lower()} name")
    if stream.peek() == "CASCADE":
        raise NotSupportedError("DROP ... CASCADE is not supported")
    stream.accept("RESTRICT")
    stream.finish()
    return Drop(kind.lower(), name, missing_ok)


_PARSERS: dict[str, Callable[[TokenStream, bool], Plan]] = {
    "VIEW": _create_view, "MODEL": _create_model, "MODULE": _create_module,
    "TRIGGER": _create_trigger,
}  # fmt: skip
