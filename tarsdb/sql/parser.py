"""Text to Statement: our own statements by recursive descent, queries and DML by sqlglot."""

from __future__ import annotations

from typing import Any

from sqlglot import exp
from sqlglot.tokenizer_core import Token, TokenType

from tarsdb.errors import NotSupportedError
from tarsdb.sql import ddl_parser, ddl_table
from tarsdb.sql.dialect import parse_tree, tokenize
from tarsdb.sql.positions import syntax_error
from tarsdb.sql.statements import Statement
from tarsdb.sql.stream import TokenStream, word_of
from tarsdb.sql.utility_parser import UNSUPPORTED, UTILITIES

_DML_WORDS = frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE"})
_KINDS: dict[type[Any], str] = {
    exp.Insert: "insert", exp.Update: "update", exp.Delete: "delete",
}  # fmt: skip
_UNSUPPORTED_ALTER = {
    "MODEL": "ALTER MODEL", "INDEX": "ALTER INDEX", "FUNCTION": "ALTER FUNCTION",
    "DATABASE": "ALTER DATABASE", "VIEW": "ALTER VIEW", "USER": "ALTER USER",
}  # fmt: skip


def parse_statement(text: str) -> Statement:
    """Parse exactly one statement; a trailing semicolon is allowed."""
    tokens = tokenize(text)
    while tokens and tokens[-1].token_type is TokenType.SEMICOLON:
        tokens.pop()
    if not tokens:
        raise syntax_error(text, 0, "the statement is empty")
    for token in tokens:
        if token.token_type is TokenType.SEMICOLON:
            raise syntax_error(
                text, token.start, "one statement at a time", hint="executescript runs several"
            )
    return parse_tokens(tokens, text)


def parse_tokens(tokens: list[Token], text: str) -> Statement:
    """Parse a statement already in tokens."""
    word = word_of(tokens[0])
    if word in ddl_parser.QUERY_WORDS or word in _DML_WORDS:
        return _foreign(tokens, text)
    stream = TokenStream(tokens, text)
    utility = UTILITIES.get(word)
    if utility is not None:
        plan = utility(stream)
        stream.finish()
        return Statement(text, "plan", plan=plan)
    if stream.accept("CREATE"):
        return _create(stream)
    if stream.accept("DROP"):
        return Statement(text, "plan", plan=ddl_parser.drop(stream))
    if stream.accept("ALTER"):
        return _alter(stream)
    if stream.accept("EXPLAIN"):
        return _explain(stream)
    if stream.accept("COPY"):
        return _copy(stream)
    if word in UNSUPPORTED:
        raise NotSupportedError(f"{UNSUPPORTED[word]} is not supported")
    raise syntax_error(text, tokens[0].start, f"unknown statement {tokens[0].text[:40]!r}")


def _foreign(tokens: list[Token], text: str) -> Statement:
    if word_of(tokens[0]) == "REPLACE":  # SQLite's short form of INSERT OR REPLACE
        first = tokens[0]
        words = (TokenType.INSERT, "INSERT"), (TokenType.OR, "OR"), (TokenType.REPLACE, "REPLACE")
        head = [Token(k, w, first.line, first.col, first.start, first.end) for k, w in words]
        tokens = [*head, *tokens[1:]]
    tree, parameters = parse_tree(tokens, text)
    kind = _KINDS.get(type(tree))
    if kind is None:
        if not isinstance(tree, (exp.Query, exp.Values)):
            name = type(tree).__name__
            raise NotSupportedError(f"{tokens[0].text.upper()} {name} is not supported")
        kind = "query"
    return Statement(text, kind, tree=tree, tokens=tokens, parameters=parameters)


def _create(stream: TokenStream) -> Statement:
    or_replace = stream.accept("OR", "REPLACE")
    if not stream.accept("TABLE"):
        plan = ddl_parser.create_object(stream, or_replace)
        return Statement(stream.text, "plan", plan=plan)
    table, is_query = ddl_table.create_table(stream, or_replace)
    if not is_query:
        return Statement(stream.text, "plan", plan=table)
    if table.columns:
        raise NotSupportedError("column definitions and AS together are not supported")
    inner = _inner_query(stream, stream.tokens[stream.index :])
    return Statement(
        stream.text, "create_table", plan=table, inner=inner, parameters=inner.parameters
    )


def _inner_query(stream: TokenStream, tokens: list[Token]) -> Statement:
    if not tokens or word_of(tokens[0]) not in ddl_parser.QUERY_WORDS:
        stream.fail("expected a query")
    return parse_tokens(tokens, stream.text)


def _alter(stream: TokenStream) -> Statement:
    if stream.accept("TABLE"):
        return Statement(stream.text, "plan", plan=ddl_table.alter_table(stream))
    if stream.peek() in _UNSUPPORTED_ALTER:
        raise NotSupportedError(f"{_UNSUPPORTED_ALTER[stream.peek()]} is not supported")
    stream.fail("expected TABLE")


def _explain(stream: TokenStream) -> Statement:
    analyze = stream.accept("ANALYZE")
    rest = stream.tokens[stream.index :]
    if not rest:
        stream.fail("expected a statement to explain")
    inner = parse_tokens(rest, stream.text)
    return Statement(
        stream.text, "explain", inner=inner, parameters=inner.parameters,
        details={"analyze": analyze},
    )  # fmt: skip


def _copy(stream: TokenStream) -> Statement:
    details: dict[str, Any] = {"columns": ()}
    inner: Statement | None = None
    if stream.peek() == "(":
        start = stream.index
        stream.bracketed()
        inner = _inner_query(stream, stream.tokens[start + 1 : stream.index - 1])
    else:
        details["table"] = stream.table_name()
        if stream.peek() == "(":
            details["columns"] = stream.names()
    details["direction"] = stream.accept_any("TO", "FROM").lower()
    if not details["direction"] or (inner is not None and details["direction"] == "from"):
        stream.fail("expected TO" if inner is not None else "expected TO or FROM")
    details["path"] = stream.string("a file name")
    details["options"] = _copy_options(stream)
    parameters = inner.parameters if inner is not None else ()
    return Statement(stream.text, "copy", inner=inner, parameters=parameters, details=details)


def _copy_options(stream: TokenStream) -> dict[str, Any]:
    """``[WITH] (format csv, header true)`` as PostgreSQL and DuckDB write it."""
    stream.accept("WITH")
    options: dict[str, Any] = {}
    if stream.accept("("):
        while not stream.accept(")"):
            if options:
                stream.expect(",")
            key = "null" if stream.accept("NULL") else stream.name("an option").lower()
            stream.accept("=")
            options[key] = True if stream.peek() in (",", ")") else stream.value()
    stream.finish()
    return options
