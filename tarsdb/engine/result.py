"""What a statement returns: named, typed columns that leave as rows, NumPy, Arrow, pandas, Polars.

Everything in a result is copied out of the memory map; it stays valid after the transaction, the
connection and the file are gone.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.columns import Column
from tarsdb.errors import InterfaceError, ProgrammingError
from tarsdb.types import SqlType, presenter

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa


class Result:
    """Columns of one statement's answer, from whichever form the executor made.

    Parameters
    ----------
    names : sequence of str
    types : sequence of SqlType or None
        None where only the relational engine knows the type.
    rows : list of tuple, optional
        Python values, ready to hand out.
    columns : list of Column, optional
        Storage values, owned (no views of the map).
    table : pyarrow.Table, optional
    changed : int
        Rows a write touched; -1 where the statement was no write.

    Attributes
    ----------
    last_id : int or None
        What an INSERT's last row has in the column that numbers rows.
    """

    __slots__ = ("_columns", "_rows", "_stored", "_table", "changed", "last_id", "names", "types")

    def __init__(
        self,
        names: Sequence[str] = (),
        types: Sequence[SqlType | None] = (),
        *,
        rows: list[tuple[Any, ...]] | None = None,
        columns: list[Column] | None = None,
        table: pa.Table | None = None,
        changed: int = -1,
    ) -> None:
        self.names = tuple(names)
        self.types = tuple(types)
        self._rows = rows
        self._stored: list[list[Any]] | None = None
        self._columns = columns
        self._table = table
        self.changed = changed
        self.last_id: int | None = None

    @classmethod
    def short(
        cls,
        names: Sequence[str],
        types: Sequence[SqlType | None],
        rows: list[tuple[Any, ...]],
        stored: list[list[Any]],
    ) -> Result:
        """Return a result of rows and the storage values behind them, a list for each column.

        What a reader sees of a value may be less than what is stored: an interval's months, the
        text of JSON. Arrow and NumPy are made of what is stored.
        """
        result = cls(names, types, rows=rows)
        result._stored = stored
        return result

    @property
    def has_rows(self) -> bool:
        """True for a statement that returns rows, even none."""
        return bool(self.names)

    def __len__(self) -> int:
        if self._rows is not None:
            return len(self._rows)
        if self._table is not None:
            return int(self._table.num_rows)
        return len(self._columns[0]) if self._columns else 0

    def rows(self) -> list[tuple[Any, ...]]:
        """Return all rows as tuples of Python values."""
        if self._rows is None:
            self._rows = self._make_rows()
        return self._rows

    def _make_rows(self) -> list[tuple[Any, ...]]:
        columns = self._columns
        if columns is None:
            if self._table is None:
                return []
            columns = self._columns_of_table()
        return list(zip(*(present(column) for column in columns), strict=True))

    def _columns_of_table(self) -> list[Column]:
        from tarsdb.engine.arrow_input import from_arrow

        assert self._table is not None
        return [
            from_arrow(self._table.column(i), self._require_type(i), name)
            for i, name in enumerate(self.names)
        ]

    def _require_type(self, position: int) -> SqlType:
        known = self.types[position]
        if known is not None:
            return known
        from tarsdb.engine.arrow import sql_type_of

        assert self._table is not None
        return sql_type_of(self._table.schema.field(position).type)

    def arrow(self) -> pa.Table:
        """Return the result as a ``pyarrow.Table``."""
        self._require_rows()
        if self._table is None:
            self._table = self._make_table()
        return self._table

    def _make_table(self) -> pa.Table:
        import pyarrow as pa

        from tarsdb.engine.arrow import to_arrow

        self._settle()
        if self._columns is not None:
            arrays = [to_arrow(column) for column in self._columns]
        else:
            rows = self._rows or []
            arrays = [
                _arrow_of_values([row[i] for row in rows], self.types[i], self.names[i])
                for i in range(len(self.names))
            ]
        return pa.Table.from_arrays(arrays, names=list(self.names))

    def numpy(self) -> dict[str, np.ndarray]:
        """Return a dict of name to array: vectors as (rows, dim), text and NULLs as objects."""
        self._require_rows()
        self._require_names()
        self._settle()
        if self._columns is None and self._table is not None:
            self._columns = self._columns_of_table()
        if self._columns is not None:
            pairs = zip(self.names, self._columns, strict=True)
            return {name: _array(column) for name, column in pairs}
        rows = self._rows or []
        return {
            name: _array_of_values([row[i] for row in rows]) for i, name in enumerate(self.names)
        }

    def _settle(self) -> None:
        """Make columns of stored values."""
        if self._columns is None and self._stored is not None:
            from tarsdb.columns import from_list

            pairs = enumerate(self._stored)
            self._columns = [from_list(self._require_type(i), values) for i, values in pairs]

    def df(self) -> pd.DataFrame:
        """Return the result as a pandas DataFrame (needs pandas)."""
        return self.arrow().to_pandas()

    def pl(self) -> pl.DataFrame:
        """Return the result as a Polars DataFrame (needs polars)."""
        import polars

        self._require_rows()
        self._require_names()
        return polars.from_arrow(_without_intervals(self.arrow()))  # type: ignore[return-value] # a table gives a frame

    def _require_rows(self) -> None:
        if not self.has_rows:
            raise InterfaceError("this statement returned no rows")

    def _require_names(self) -> None:
        """Refuse names that stand for two columns, where columns are found by name."""
        doubled = next((name for name in self.names if self.names.count(name) > 1), None)
        if doubled is not None:
            raise ProgrammingError(
                f"two columns of the result are named {doubled!r}",
                hint="name them apart: SELECT a.id AS a_id, ...; or read rows, arrow() or df()",
            )


def _without_intervals(table: pa.Table) -> pa.Table:
    """Return intervals as durations, months of 30 days: Polars has no months, and panics."""
    import pyarrow as pa

    for position, field in enumerate(table.schema):
        if field.type == pa.month_day_nano_interval():
            items = table.column(position).to_pylist()
            spans = [None if item is None else _span(item) for item in items]
            durations = pa.array(spans, pa.duration("us"))
            table = table.set_column(position, field.name, durations)
    return table


def _span(item: Any) -> dt.timedelta:
    return dt.timedelta(item.days + 30 * item.months, microseconds=item.nanoseconds // 1000)


def present(column: Column) -> list[Any]:
    """Return a column's values as the Python values a user sees."""
    items = column.to_list()
    show = presenter(column.type)
    return items if show is None else [show(item) for item in items]


def _array(column: Column) -> np.ndarray:
    plain = column.type.dtype.kind in "iuf" and not column.type.is_variable
    if plain and column.validity is None:
        show = presenter(column.type)
        if show is None or (column.type.is_vector and column.type.kind.value != "BIT"):
            wanted = np.float32 if column.type.kind.value == "HALFVEC" else column.type.dtype
            return np.array(column.values, dtype=wanted)
    return _array_of_values(present(column))


def _array_of_values(values: list[Any]) -> np.ndarray:
    if values and isinstance(values[0], np.ndarray):
        if all(isinstance(value, np.ndarray) for value in values):
            return np.stack(values)
    elif values and all(type(value) in (int, float, bool) for value in values):
        return np.array(values)
    result = np.empty(len(values), dtype=object)
    result[:] = values
    return result


def _arrow_of_values(values: list[Any], sql_type: SqlType | None, name: str) -> pa.Array:
    import pyarrow as pa

    if sql_type is None:
        return pa.array([v.tolist() if isinstance(v, np.ndarray) else v for v in values])
    from tarsdb.columns import from_list
    from tarsdb.engine.arrow import to_arrow
    from tarsdb.types import to_storage

    return to_arrow(from_list(sql_type, [to_storage(v, sql_type, name) for v in values]))
