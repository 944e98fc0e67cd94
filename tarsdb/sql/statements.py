"""A parsed statement: what the parser hands the binder."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from tarsdb.records import dataclass
from tarsdb.sql.plan import Plan


@dataclass(slots=True)
class Statement:
    """One statement, its names not resolved yet.

    Attributes
    ----------
    text : str
        As given, without a trailing semicolon.
    kind : str
        'query', 'insert', 'update', 'delete' (``tree`` is sqlglot's), 'plan' (``plan`` is complete
        but for what ``inner`` gives), 'copy', 'explain', 'create_table'.
    parameters : tuple
        0-based positions or names.
    inner : Statement, optional
        The query of CREATE TABLE AS and COPY, the target of EXPLAIN.
    details : dict
        What 'copy' and 'explain' say beside their inner statement.
    """

    text: str
    kind: str
    tree: Any = None
    plan: Plan | None = None
    parameters: tuple[int | str, ...] = ()
    inner: Statement | None = None
    details: dict[str, Any] = field(default_factory=dict)
    tokens: list[Any] = field(default_factory=list)

    def take_tree(self) -> Any:
        """Return sqlglot's tree; the caller may change it (it is parsed anew next time)."""
        tree, self.tree = self.tree, None
        if tree is None:
            from tarsdb.sql.dialect import parse_tree

            tree, _ = parse_tree(self.tokens, self.text)
        return tree

    def titles(self) -> list[str]:
        """Return the source text of the outermost SELECT list's items ([] where unclear)."""
        from tarsdb.sql.titles import select_titles

        return select_titles(self.tokens, self.text)
