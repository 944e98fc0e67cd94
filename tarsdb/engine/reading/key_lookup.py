"""The row a key of a unique index names, in as little Python as it takes."""

from __future__ import annotations

from collections.abc import Sequence

from tarsdb.engine.reading import access
from tarsdb.engine.reading.evaluate import Calls
from tarsdb.schema import IndexDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.storage import TableView
from tarsdb.types import Kind

# Kinds whose Python integers are storage values already: least and greatest.
_PLAIN: dict[Kind, tuple[int, int]] = {
    Kind.INT: (-(2**31), 2**31 - 1),
    Kind.BIGINT: (-(2**63), 2**63 - 1),
}


class KeyLookup:
    """``WHERE <every column of a unique index = a value>``; worked out once a plan.

    Parameters
    ----------
    table : TableDef
    index : IndexDef
        Unique.
    key : sequence of Expr
        A parameter or literal for each column of the index.
    """

    __slots__ = ("_index", "_parts", "_table")

    def __init__(self, table: TableDef, index: IndexDef, key: Sequence[ex.Expr]) -> None:
        self._table, self._index = table, index
        columns = [ex.ColumnRef(table.column_by_id(each)) for each in index.column_ids]
        self._parts = [
            (node, column, _PLAIN.get(column.column.type.kind))
            for node, column in zip(key, columns, strict=True)
        ]

    def rowid(self, calls: Calls, view: TableView) -> int:
        """Return the rowid of the live row with the key; -1 where there is none.

        Raises
        ------
        access.NoKey
            A value has no exact form in its column's type: it is to be compared with every row.
        CorruptionError
            The index leads to a row that has not this key.
        """
        key = []
        for node, column, plain in self._parts:
            item = calls.parameter(node.key) if isinstance(node, ex.Parameter) else _literal(node)
            if plain is None or type(item) is not int or not plain[0] <= item <= plain[1]:
                item = access.exact_key(item, column)
            key.append(item)
        return -1 if None in key else view.find_one(self._index, tuple(key))

    def terms(self) -> ex.Expr:
        """Return the key as a predicate."""
        terms: list[ex.Expr] = [ex.Compare("=", column, node) for node, column, _ in self._parts]
        return ex.And(tuple(terms)) if len(terms) > 1 else terms[0]


def _literal(node: ex.Expr) -> object:
    if not isinstance(node, ex.Literal):
        raise access.NoKey
    return node.value
