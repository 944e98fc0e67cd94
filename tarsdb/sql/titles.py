"""Names of result columns that were given none: their source text, as SQLite does."""

from __future__ import annotations

from typing import Any

from sqlglot.tokenizer_core import TokenType

_OPENING = frozenset({TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE})
_CLOSING = frozenset({TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE})
_ENDS = frozenset(
    {
        TokenType.FROM, TokenType.WHERE, TokenType.GROUP_BY, TokenType.ORDER_BY, TokenType.HAVING,
        TokenType.LIMIT, TokenType.OFFSET, TokenType.UNION, TokenType.EXCEPT, TokenType.INTERSECT,
        TokenType.WINDOW, TokenType.QUALIFY, TokenType.RETURNING,
    }
)  # fmt: skip


def select_titles(tokens: list[Any], text: str, opener: TokenType = TokenType.SELECT) -> list[str]:
    """Return the text of each item after the first ``opener`` outside brackets."""
    depth, titles = 0, []
    start: int | None = None
    before = None
    stop = 0
    for token in tokens:
        kind = token.token_type
        if start is None:
            if kind is opener and depth == 0:
                start = token.end + 1
        elif kind is TokenType.FROM and before is TokenType.DISTINCT:
            pass  # a IS DISTINCT FROM b
        elif depth == 0 and (kind is TokenType.COMMA or kind in _ENDS):
            titles.append(_tidy(text[start : stop + 1]))
            start = token.end + 1
            if kind is not TokenType.COMMA:
                return titles
        depth += (kind in _OPENING) - (kind in _CLOSING)
        if depth < 0:
            break
        stop, before = token.end, kind
    if start is not None:
        titles.append(_tidy(text[start : stop + 1]))
    return titles


def _tidy(text: str) -> str:
    return " ".join(text.split())[:200]
