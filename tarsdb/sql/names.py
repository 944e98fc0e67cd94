"""Names as SQL text."""

from __future__ import annotations

import re

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*\Z")
_PARTS = frozenset({
    "check", "constraint", "foreign", "group", "order", "partition", "primary", "references",
})  # fmt: skip
"""Words the tokenizer takes for names, because they are keywords only beside others."""


def quoted(name: str) -> str:
    """Return a name as a statement writes it: in quotes only where it must be."""
    if _PLAIN.match(name) and name not in _PARTS:
        from sqlglot.tokenizer_core import TokenType  # slow to import, and seldom needed

        from tarsdb.sql.dialect import tokenize

        (token,) = tokenize(name)
        if token.token_type is TokenType.VAR:
            return name
    return '"' + name.replace('"', '""') + '"'
