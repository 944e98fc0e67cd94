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
_HOW = frozenset({TokenType.DISTINCT, TokenType.ALL})
_LONGEST = 200


def select_titles(tokens: list[Any], text: str, opener: TokenType = TokenType.SELECT) -> list[str]:
    """Return the text of each item after the first ``opener`` outside brackets."""
    depth, titles = 0, []
    item: list[str] | None = None
    before, stop = None, 0
    is_on = False  # within DISTINCT ON (...)
    for token in tokens:
        kind = token.token_type
        is_from = kind is TokenType.FROM and before is TokenType.DISTINCT  # a IS DISTINCT FROM b
        ends = depth == 0 and not is_from and (kind is TokenType.COMMA or kind in _ENDS)
        depth += (kind in _OPENING) - (kind in _CLOSING)
        if depth < 0:
            break
        if item is None:
            item = [] if kind is opener and depth == 0 else None
        elif ends:
            titles.append("".join(item)[:_LONGEST])
            item = []
            if kind is not TokenType.COMMA:
                return titles
        elif is_on or (not item and not titles and (kind in _HOW or _is_on(before, kind))):
            is_on = kind not in _HOW and not (depth == 0 and kind in _CLOSING)
        else:
            gap = " " if item and token.start > stop + 1 else ""  # inside a string it stays
            item.append(gap + text[token.start : token.end + 1])
        stop, before = token.end, kind
    if item is not None:
        titles.append("".join(item)[:_LONGEST])
    return titles


def _is_on(before: TokenType | None, kind: TokenType) -> bool:
    return before is TokenType.DISTINCT and kind is TokenType.ON
