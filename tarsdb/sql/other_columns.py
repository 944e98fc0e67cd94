"""RETURNING of UPDATE ... FROM and DELETE ... USING: what it reads of the other tables.

Each such column becomes one more of the changed table's row, under a name that no user's column
can have; the query that finds the rows gives its values after the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sqlglot import exp

from tarsdb.errors import BindError
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.binding import Binding, table_name, where
from tarsdb.types import TEXT

_FIRST_ID = 1 << 40  # above every column's


class OtherColumns:
    """The columns of other tables that a RETURNING clause reads.

    Parameters
    ----------
    binding : Binding
    table : TableDef
        The changed one.
    alias : str
        Its name in the statement, in lower case.
    tree : exp.Update or exp.Delete

    Attributes
    ----------
    columns : list of ColumnDef
    nodes : list
        The columns as the query that finds the rows names them.
    is_typed : bool
        Whether all types are known; those of queries' columns are not.
    """

    def __init__(self, binding: Binding, table: TableDef, alias: str, tree: Any) -> None:
        self.columns: list[ColumnDef] = []
        self.nodes: list[Any] = []
        self.is_typed = True
        self._table, self._alias = table, alias
        self._sources = dict(_sources(binding, tree))
        self._known: dict[tuple[str | None, str], ColumnDef] = {}

    @property
    def row(self) -> TableDef:
        """The changed table with these columns as its last."""
        return replace(self._table, columns=(*self._table.columns, *self.columns))

    def take(self, clause: Any, titles: list[str]) -> list[str]:
        """Put these columns into a RETURNING clause; return the titles of its items."""
        items = [self._star(node) for node in clause.expressions]
        clause.set("expressions", [node for found in items for node in found])
        for column in list(_outside_queries(clause, exp.Column)):
            self._replace(column, clause)
        hidden = [exp.column(each.name) for each in self.columns]
        for star in list(_outside_queries(clause, exp.Star)):  # with REPLACE, or of COLUMNS
            if hidden and not isinstance(star.parent, exp.Count):
                star.set("except_", [*(star.args.get("except_") or []), *hidden])
        if len(titles) != len(items):
            return titles
        return [title for title, found in zip(titles, items, strict=True) for _ in found]

    def _star(self, node: Any) -> list[Any]:
        """Return a star as the columns of the one table it stands for; else the node."""
        star = node.this if isinstance(node, exp.Column) else node
        if not self._sources or not isinstance(star, exp.Star):
            return [node]
        given = {part: value for part, value in star.args.items() if value}
        excluded = {each.name.lower() for each in given.pop("except_", ())}
        qualifier = node.args.get("table")
        name = self._alias if qualifier is None else qualifier.name.lower()
        of = self._table if name == self._alias else self._sources.get(name)
        names = [] if of is None else [each.name for each in of.columns]
        kept = [each for each in names if each.lower() not in excluded]
        if given or not kept or len(kept) + len(excluded) != len(names):
            return [node]
        return [exp.column(each, table=name, quoted=True) for each in kept]

    def _replace(self, node: Any, clause: Any) -> None:
        found = self._source(node)
        if found is None:
            return
        source, of = found
        key = source, node.name.lower()
        column = self._known.get(key)
        if column is None:
            known = None if of is None else of.column(node.name)
            self.is_typed = self.is_typed and known is not None
            number = len(self.columns)
            column = self._known[key] = ColumnDef(
                _FIRST_ID + number, f"__v{number}", TEXT if known is None else known.type
            )
            self.columns.append(column)
            self.nodes.append(node.copy())
        name, is_item = node.name, node.parent is clause
        own = exp.column(column.name)
        node.replace(exp.alias_(own, name, quoted=True) if is_item else own)

    def _source(self, node: Any) -> tuple[str | None, TableDef | None] | None:
        """Return which source a column is of, None as its table where that is not known."""
        qualifier = node.args.get("table")
        if isinstance(node.this, exp.Star) or node.args.get("db") is not None:
            return None
        if qualifier is not None:
            name = qualifier.name.lower()
            if name == self._alias or name not in self._sources:
                return None
            return name, self._sources[name]
        if self._table.column(node.name) is not None or node.name.lower() == ex.ROWID:
            return None
        owners = [(name, of) for name, of in self._sources.items() if of and of.column(node.name)]
        if len(owners) > 1:
            names = " and ".join(name for name, _ in owners)
            raise BindError(f"column {node.name!r} is in {names}{where(node)}")
        if owners:
            return owners[0]
        return (None, None) if None in self._sources.values() else None


def _outside_queries(clause: Any, kind: type[Any]) -> Iterator[Any]:
    """Yield the nodes of a kind in a clause but not in queries inside it."""
    for node in clause.walk(prune=lambda each: isinstance(each, exp.Query)):
        if isinstance(node, kind):
            yield node


def _sources(binding: Binding, tree: Any) -> Iterator[tuple[str, TableDef | None]]:
    """Yield the names of what FROM or USING lists, and the base tables they stand for."""
    clause = tree.args.get("with_")
    hidden = {cte.alias.lower() for cte in clause.expressions} if clause is not None else set()
    others = tree.args.get("using") or [tree.args.get("from_")]
    for other in others:
        if other is None:
            continue
        for node in other.walk(prune=lambda each: isinstance(each, exp.Query)):
            if isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier):
                named = node.args.get("alias")
                is_base = not (named is not None and named.args.get("columns"))
                is_base = is_base and node.name.lower() not in hidden
                table = binding.catalog.table(table_name(node)) if is_base else None
                yield (node.alias or node.name).lower(), table
            elif isinstance(node.args.get("alias"), exp.TableAlias):
                yield node.alias.lower(), None
