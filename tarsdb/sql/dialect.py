"""The one place that adapts sqlglot: DuckDB's dialect with pgvector's operators and our parameters.

Only ``Dialect`` and ``Tokenizer`` are subclassed: a Python subclass of sqlglot's Parser, Generator
or Expression cannot exist beside the compiled sqlglotc. What the parser does not know is expressed
in the token stream instead: ``a <=> b`` is handed to it as ``a & <marker> & b``, which has the
precedence PostgreSQL gives these operators, and the tree is mended afterwards.
"""

from __future__ import annotations

import functools
import logging
import re
from typing import Any, ClassVar

from sqlglot import exp
from sqlglot.errors import ErrorLevel, ParseError, TokenError
from sqlglot.tokenizer_core import Token, TokenType

from tarsdb.errors import NotSupportedError, SQLSyntaxError
from tarsdb.sql.duckdb_settings import DuckDBSettings
from tarsdb.sql.positions import syntax_error

OPERATORS = {
    "<->": "l2", "<#>": "ip", "<=>": "cosine", "<+>": "l1", "<~>": "hamming", "<%>": "jaccard",
}  # fmt: skip
_TAKEN = frozenset({"predict"})  # sqlglot reads it as another dialect's function
_OWN = "__"
OPERATOR_OF = {f"__distance_{name}": symbol for symbol, name in OPERATORS.items()}
DISTANCE_NAMES = {
    f"{name}_distance": f"__distance_{name}" for name in OPERATORS.values() if name != "ip"
}  # fmt: skip
"""pgvector's names of the operators, ``l2_distance`` and so on, but for the inner product's."""
NO_TIME_TRAVEL = "FOR SYSTEM_TIME AS OF is not supported"
MAX_LENGTH = 16 * 2**20  # characters of one statement
MAX_DEPTH = 200  # open brackets; Python's recursion limit usually comes first
MAX_PREFIXES = 200  # NOT NOT NOT ..., - - - ...
MAX_CHAIN = 20_000  # operators in one bracket: a chain is a left-deep tree
_DOLLAR = "\ue0d0"  # stands for the dollar of a parameter, which sqlglot may take for a quote's
_PARAMETER = re.compile(r"(?<![\w$])\$(?=\w+(?![\w$]))")
_DROPPED = frozenset({TokenType.BLOCK_START, TokenType.BLOCK_END, TokenType.COMMAND})
_DROPPED_TEXTS = frozenset({"?::", "??", "<<->>", "-|-", "&<", "&>", "/*+"})
_OPENING = frozenset({TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE, TokenType.CASE})
_CLOSING = frozenset({TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE, TokenType.END})
_PREFIXES = frozenset({TokenType.NOT, TokenType.DASH, TokenType.PLUS, TokenType.TILDE})
_BEFORE_OPERAND = frozenset(
    {
        TokenType.SELECT, TokenType.DISTINCT, TokenType.WHERE, TokenType.AND, TokenType.OR,
        TokenType.NOT, TokenType.ON, TokenType.HAVING, TokenType.LIMIT, TokenType.OFFSET,
        TokenType.BETWEEN, TokenType.LIKE, TokenType.ILIKE, TokenType.IN, TokenType.WHEN,
        TokenType.THEN, TokenType.ELSE, TokenType.CASE, TokenType.ORDER_BY, TokenType.GROUP_BY,
        TokenType.RETURNING, TokenType.COMMA, TokenType.L_PAREN, TokenType.EQ, TokenType.NEQ,
        TokenType.LT, TokenType.LTE, TokenType.GT, TokenType.GTE, TokenType.PLUS, TokenType.DASH,
        TokenType.STAR, TokenType.SLASH, TokenType.DIV, TokenType.MOD, TokenType.DPIPE,
        TokenType.LR_ARROW, TokenType.AMP, TokenType.PIPE, TokenType.FARROW, TokenType.ARROW,
        TokenType.DARROW, TokenType.IS, TokenType.QUALIFY,
    }
)  # fmt: skip
_NAMED = frozenset({TokenType.COLON, TokenType.PARAMETER})
_PARSER_FAULTS = (  # what sqlglot's parser lets out on broken input
    ValueError, TypeError, LookupError, AttributeError, NotImplementedError, AssertionError,
)  # fmt: skip
_BREAKS = frozenset({TokenType.COMMA, TokenType.AND, TokenType.OR, TokenType.SEMICOLON})


class TarsDB(DuckDBSettings):
    """DuckDB's dialect as tarsdb reads it."""

    class Tokenizer(DuckDBSettings.Tokenizer):
        """DuckDB's tokens, pgvector's operators, X'..' strings, no commands, no templates."""

        HEX_STRINGS: ClassVar[list[str | tuple[str, str]]] = [("x'", "'"), ("X'", "'")]
        COMMANDS: ClassVar[set[TokenType]] = set()
        SINGLE_TOKENS: ClassVar[dict[str, TokenType]] = {
            **DuckDBSettings.Tokenizer.SINGLE_TOKENS, _DOLLAR: TokenType.PARAMETER,
        }  # fmt: skip
        KEYWORDS: ClassVar[dict[str, TokenType]] = {
            **{
                text: kind
                for text, kind in DuckDBSettings.Tokenizer.KEYWORDS.items()
                if kind not in _DROPPED and text not in _DROPPED_TEXTS
            },
            **dict.fromkeys(OPERATORS, TokenType.LR_ARROW),
        }


logging.getLogger("sqlglot").addHandler(logging.NullHandler())  # else it writes to stderr
TarsDB.Tokenizer._COMMENTS.pop("{#", None)  # sqlglot reads Jinja comments in every dialect


@functools.cache
def dialect() -> TarsDB:
    """Return the one instance."""
    return TarsDB()


def tokenize(text: str) -> list[Token]:
    """Return the tokens of a script; SQLSyntaxError where one does not end."""
    if len(text) > MAX_LENGTH:
        raise syntax_error(text, 0, f"a statement may have {MAX_LENGTH} characters")
    zero = text.find("\0")
    if zero >= 0:
        raise syntax_error(text, zero, "a NUL character cannot be part of a statement")
    half = None if text.isascii() else _SURROGATE.search(text)
    if half is not None:
        message = f"half of a character, {half.group()!r}, cannot be part of a statement"
        raise syntax_error(text, half.start(), message)
    try:
        tokens = _dollars_read(text) if "$" in text else dialect().tokenize(text)
    except TokenError as error:
        raise _token_error(text) from error
    except (RecursionError, ValueError, IndexError, UnicodeError) as error:
        raise syntax_error(text, 0, f"cannot read the statement: {error}") from error
    return tokens


def _dollars_read(text: str) -> list[Token]:
    """Return the tokens of a text with dollars.

    sqlglot reads ``$1,$`` of ``($1,$2)`` as the beginning of a quoted text. So another character
    stands for the dollar of whatever looks like a parameter, inside quotes too, until it is read.
    """
    if _DOLLAR in text:
        return list(dialect().tokenize(text))
    tokens: list[Token] = dialect().tokenize(_PARAMETER.sub(_DOLLAR, text))
    return [
        _like(token, token.token_type, token.text.replace(_DOLLAR, "$"))
        if _DOLLAR in token.text
        else token
        for token in tokens
    ]


_SURROGATE = re.compile("[\ud800-\udfff]")
_QUOTED = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|\$(\w*)\$.*?\$\1\$|('|"|/\*|\$\w*\$)""",
    re.DOTALL,
)


def _token_error(text: str) -> SQLSyntaxError:
    """Find the quote or comment that does not end (sqlglot tells only when it is not compiled)."""
    for match in _QUOTED.finditer(text):
        if match[2]:
            return syntax_error(text, match.start(), f"this {match[2]} is never closed")
    return syntax_error(text, len(text), "cannot read the end of the statement")


def split_script(text: str) -> list[str]:
    """Return the statements between semicolons."""
    statements, start = [], 0
    begin: int | None = None
    stop = 0
    for token in tokenize(text):
        if token.token_type is TokenType.SEMICOLON:
            if begin is not None:
                statements.append(text[start : token.start].strip())
            start, begin = token.end + 1, None
        else:
            begin, stop = token.start if begin is None else begin, token.end + 1
    if begin is not None:
        statements.append(text[start:stop].strip())
    return statements


def guard(tokens: list[Token], text: str) -> None:
    """Refuse what would overflow a recursive parser's stack, with a position."""
    depth = prefixes = 0
    chains = [0]
    for token in tokens:
        kind = token.token_type
        if kind in _OPENING:
            depth += 1
            chains.append(0)
        elif kind in _CLOSING and len(chains) > 1:
            depth -= 1
            chains.pop()
        prefixes = prefixes + 1 if kind in _PREFIXES else 0
        chains[-1] = 0 if kind in _BREAKS else chains[-1] + 1
        if depth > MAX_DEPTH or prefixes > MAX_PREFIXES or chains[-1] > MAX_CHAIN:
            raise too_deep(text, token.start)


def too_deep(text: str, offset: int = 0) -> SQLSyntaxError:
    """Return the error for a statement nested beyond what the parser takes."""
    return syntax_error(text, offset, "the statement is nested too deeply")


def for_parser(tokens: list[Token], text: str) -> tuple[list[Token], int, bool]:
    """Rewrite our operators and parameters into what sqlglot's parser reads.

    Returns
    -------
    tokens : list of Token
    positional : int
        How many positional parameters the statement takes.
    distances : bool
        True when :func:`mend` has markers to replace.
    """
    out: list[Token] = []
    positional = skip = 0
    distances = False
    for number, token in enumerate(tokens):
        kind = token.token_type
        if skip:
            skip -= 1
        elif kind is TokenType.LR_ARROW:
            distances = True
            out += _marker(token)
        elif kind is TokenType.PLACEHOLDER:
            digits = _adjacent_number(tokens, number)
            positional = max(positional, int(digits)) if digits else positional + 1
            skip = 1 if digits else 0
            out += _positional(token, digits or str(positional))
        elif kind is TokenType.PARAMETER:
            digits = _adjacent_number(tokens, number)
            positional = max(positional, int(digits or 0))
            _check_parameter(tokens, number, text)
            skip = 1
            out += _positional(token, digits) if digits else _named(token, tokens[number + 1])
        elif kind is TokenType.COLON and _starts_name(tokens, number):
            skip = 1
            out += _named(token, tokens[number + 1])
        elif kind is TokenType.ARROW and _reads_json(tokens, number):
            name = out.pop()
            skip = 1
            out += [_like(name, TokenType.L_PAREN, "("), name, token, tokens[number + 1]]
            out.append(_like(tokens[number + 1], TokenType.R_PAREN, ")"))
        elif kind is TokenType.VAR and _is_call(tokens, number):
            out.append(_like(token, kind, _own_call(token.text)))
        else:
            out.append(token)
    return out, positional, distances


def _reads_json(tokens: list[Token], number: int) -> bool:
    """Return True for the arrow of ``f(j -> 'key')``, which the parser takes for a lambda's."""
    before = tokens[number - 2].token_type if number > 1 else None
    named = tokens[number - 1].token_type in (TokenType.VAR, TokenType.IDENTIFIER)
    text = number + 1 < len(tokens) and tokens[number + 1].token_type is TokenType.STRING
    return named and text and before in (TokenType.L_PAREN, TokenType.COMMA)


def _is_call(tokens: list[Token], number: int) -> bool:
    return number + 1 < len(tokens) and tokens[number + 1].token_type is TokenType.L_PAREN


def _own_call(name: str) -> str:
    """Return what the parser is to read for a function's name: ours where it would read another."""
    lower = name.lower()
    return DISTANCE_NAMES.get(lower) or (_OWN + name if lower in _TAKEN else name)


def own_name(node: Any) -> str:
    """Return the name of a call in lower case, as the user wrote it."""
    name: str = node.name.lower()
    plain = name.removeprefix(_OWN)
    return plain if plain in _TAKEN else name


def _like(token: Token, kind: TokenType, text: str) -> Token:
    return Token(kind, text, token.line, token.col, token.start, token.end)


def _marker(token: Token) -> list[Token]:
    return [
        _like(token, TokenType.AMP, "&"),
        _like(token, TokenType.NUMBER, token.text),  # no NUMBER a user writes reads '<=>'
        _like(token, TokenType.AMP, "&"),
    ]


def _positional(token: Token, digits: str) -> list[Token]:
    return [_like(token, TokenType.PARAMETER, "$"), _like(token, TokenType.NUMBER, digits)]


def _named(token: Token, name: Token) -> list[Token]:
    return [_like(token, TokenType.PARAMETER, "$"), _like(name, TokenType.VAR, name.text)]


def _starts_name(tokens: list[Token], number: int) -> bool:
    """Return True for the colon of ``:name``, False for that of a slice, a struct or an alias."""
    before = tokens[number - 1].token_type if number else TokenType.COMMA
    follower = tokens[number + 1] if number + 1 < len(tokens) else None
    if before not in _BEFORE_OPERAND or follower is None:
        return False
    return follower.start == tokens[number].end + 1 and follower.text.isidentifier()


def _adjacent_number(tokens: list[Token], number: int) -> str:
    follower = tokens[number + 1] if number + 1 < len(tokens) else None
    if follower is None or follower.start != tokens[number].end + 1:
        return ""
    digits = follower.text if follower.token_type is TokenType.NUMBER else ""
    return digits if digits.isascii() and digits.isdigit() and len(digits) < 6 else ""


def _check_parameter(tokens: list[Token], number: int, text: str) -> None:
    token = tokens[number]
    follower = tokens[number + 1] if number + 1 < len(tokens) else None
    if follower is None or follower.start != token.end + 1:
        raise syntax_error(text, token.start, f"no parameter name after {token.text!r}")
    digits = follower.text if follower.token_type is TokenType.NUMBER else "1"
    if not digits.isdigit() or not 1 <= int(digits) < 100_000:
        raise syntax_error(text, token.start, f"parameter {token.text}{digits} is out of range")


def parse_tree(tokens: list[Token], text: str) -> tuple[Any, tuple[int | str, ...]]:
    """Parse tokens to one sqlglot tree; returns it and the parameters it takes."""
    guard(tokens, text)
    ready, positional, distances = for_parser(tokens, text)
    parser = dialect().parser(
        error_level=ErrorLevel.IMMEDIATE,
        error_message_context=MAX_LENGTH,
        max_nodes=2000 + 100 * len(ready),  # it backtracks: JOINs without ON double the work each
    )
    try:
        trees = parser.parse(ready, text)
        tree = next((tree for tree in trees if tree is not None), None)
        named = any(token.token_type in _NAMED for token in ready)
        found = collect(tree) if tree is not None and (distances or named) else ([], [])
        tree = mend(tree, found[0])
    except ParseError as error:
        if any(token.text.upper() == "SYSTEM_TIME" for token in tokens):
            raise NotSupportedError(NO_TIME_TRAVEL) from error
        raise _parse_error(text, error) from error
    except RecursionError as error:
        raise too_deep(text) from error
    except _PARSER_FAULTS as error:
        raise syntax_error(text, 0, "the statement is not valid SQL") from error
    if tree is None:
        raise syntax_error(text, 0, "the statement is empty")
    return tree, _parameters(found[1], positional, text)


def _parameters(nodes: list[Any], positional: int, text: str) -> tuple[int | str, ...]:
    names = {name: None for name in map(parameter_name, nodes) if not name.isdigit()}
    if names and positional:
        raise syntax_error(
            text, 0, "the statement mixes positional and named parameters", hint="use one kind"
        )
    return tuple(names) if names else tuple(range(positional))


def parameter_name(node: Any) -> str:
    """Return the name (or the one-based position) a parameter node carries."""
    this = node.this
    return this if isinstance(this, str) else str(getattr(this, "this", ""))


def collect(tree: Any) -> tuple[list[Any], list[Any]]:
    """Return the bitwise ANDs and the parameters of a tree, in the order of the text."""
    bitwise, parameters, stack = [], [], [tree]
    while stack:
        node = stack.pop()
        kind = type(node)
        if kind is exp.BitwiseAnd:
            bitwise.append(node)
        elif kind is exp.Placeholder or kind is exp.Parameter:
            parameters.append(node)
        children: list[Any] = []
        for value in node.args.values():
            if isinstance(value, list):
                children += [child for child in value if isinstance(child, exp.Expr)]
            elif isinstance(value, exp.Expr):
                children.append(value)
        stack.extend(reversed(children))
    return bitwise, parameters


def _parse_error(text: str, error: ParseError) -> SQLSyntaxError:
    first = error.errors[0] if error.errors else {}
    description = str(first.get("description") or "syntax error")
    found = str(first.get("highlight") or "")
    offset = len(str(first.get("start_context") or ""))
    if description.startswith("Required keyword"):
        return syntax_error(text, offset, f"an operand or name is missing near {found!r}")
    if description.startswith("Maximum number"):
        return syntax_error(text, offset, "the statement cannot be parsed: it is ambiguous")
    if "Unexpected token" in description:
        return syntax_error(text, offset, f"unexpected {found!r}" if found else "unexpected end")
    description = description.partition(" but got ")[0]  # what it got is one of sqlglot's tokens
    return syntax_error(text, offset, f"{description} near {found!r}" if found else description)


def mend(tree: Any, candidates: list[Any]) -> Any:
    """Replace ``(a & marker) & b`` by a call of ``__distance_<name>(a, b)``."""
    for node in candidates:
        inner = node.this
        if isinstance(inner, exp.BitwiseAnd) and is_marker(inner.expression):
            name = f"__distance_{OPERATORS[inner.expression.this]}"
            call = exp.Anonymous(this=name, expressions=[inner.this, node.expression])
            if node is tree:
                tree = call
            else:
                node.replace(call)
    return tree


def is_marker(node: Any) -> bool:
    """Return True for the stand-in of an operator in a parsed tree."""
    return isinstance(node, exp.Literal) and not node.is_string and node.this in OPERATORS


def generate(tree: Any) -> str:
    """Return DuckDB's text of a tree.

    Raises
    ------
    NotSupportedError
        sqlglot parsed something it has no DuckDB text for.
    """
    generator = dialect().generator(normalize_functions=False, comments=False)
    try:
        text: str = generator.generate(tree, copy=False)
    except ValueError as error:  # "Unsupported expression type ...", and nothing more specific
        raise NotSupportedError(f"this expression is not supported: {error}") from error
    return text
