"""Relations a relational plan reads: tables, kNN answers, system tables, variables, row batches.

Each gives its Arrow schema and record batches on demand. Batches of a table may view the memory
map: they are consumed inside the statement's read transaction and never kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tarsdb.columns import Column, concat
from tarsdb.engine.arrow import to_arrow
from tarsdb.engine.arrow_input import dump_json
from tarsdb.engine.context import Context
from tarsdb.engine.reading import access, batches, project
from tarsdb.errors import BindError, DataError, Error
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Relation
from tarsdb.storage import Chunk, TableView
from tarsdb.types import BIGINT, arrow_type

SMALL_ROWS = 20_000


def is_small(view: TableView, columns: Iterable[ColumnDef]) -> bool:
    """Return whether columns of a table are read whole, and kept while it is unchanged."""
    return view.count() <= SMALL_ROWS and not any(c.type.is_vector for c in columns)


class TableScan:
    """A table as one statement sees it; vectors are read only when asked for.

    With ``at_once`` all of it is read when :meth:`table` is called, and the snapshot may go; with
    ``rowids`` just these rows are.
    """

    def __init__(
        self,
        view: TableView,
        relation: Relation,
        context: Context,
        cache: dict[Any, Any] | None,
        at_once: bool = False,
        rowids: np.ndarray | None = None,
    ) -> None:
        self._view = view
        self._columns = {column.name: column for column in relation.columns}
        self._with_rowid = relation.with_rowid
        self._predicate = relation.predicate
        self._context = context
        self._cache = cache
        self._at_once = at_once
        self._rowids = rowids
        self.is_kept = False
        fields = [pa.field(c.name, arrow_type(c.type)) for c in relation.columns]
        if relation.with_rowid:
            fields.append(pa.field(ex.ROWID, pa.int64()))
        self.schema = pa.schema(fields)

    def table(self) -> pa.Table | None:
        """Return the whole relation, kept while the table is unchanged; None for a large one."""
        wanted = list(self._columns.values())
        if self._cache is None or not is_small(self._view, wanted):
            at_once = self._at_once or self._rowids is not None
            return self._copy(self._chunks(wanted)) if at_once else None
        self.is_kept = True
        ids = [column.id for column in wanted]
        key = (self._view.table.id, self._view.table.version, tuple(self.schema.names))
        held = self._cache.get(key)
        if held is None or held[0] is not self._view.state:
            held = self._cache[key] = (self._view.state, self._copy(self._view.chunks(ids)))
        table: pa.Table = held[1]
        return table

    def _copy(self, found: Iterator[Chunk]) -> pa.Table:
        chunks = list(found)
        arrays = [
            to_arrow(concat(column.type, [chunk.columns[i] for chunk in chunks]))
            for i, column in enumerate(self._columns.values())
        ]
        if self._with_rowid:
            parts = [chunk.rowids for chunk in chunks]
            arrays.append(pa.array(np.concatenate(parts) if parts else np.empty(0, np.int64)))
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the named columns of live rows."""
        wanted = [self._columns[name] for name in columns if name in self._columns]
        schema = pa.schema([self.schema.field(name) for name in columns])
        for chunk in self._chunks(wanted):
            self._context.engines.interrupt.check()
            named = dict(zip((c.name for c in wanted), chunk.columns, strict=True))
            arrays = [
                to_arrow(named[name]) if name in named else pa.array(chunk.rowids)
                for name in columns
            ]
            if arrays:
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _chunks(self, wanted: list[ColumnDef]) -> Iterator[Chunk]:
        ids = [column.id for column in wanted]
        if self._rowids is not None:
            yield Chunk(self._rowids, self._view.rows(self._rowids, ids))
            return
        if self._predicate is not None:
            found = access.choose(self._view.table, self._predicate, self._view, self._context)
            if found is not None:
                yield Chunk(found.rowids, self._view.rows(found.rowids, ids))
                return
        yield from self._view.chunks(ids)


class ComputingScan:
    """A table whose rows are filtered here, with columns that functions compute.

    Functions are called for many rows at once, and for columns that are asked for only. With
    ``at_once`` all of it is read when :meth:`table` is called, and the snapshot may go.
    """

    is_kept = False

    def __init__(
        self, view: TableView, relation: Relation, context: Context, at_once: bool = False
    ) -> None:
        self._view = view
        self._predicate = relation.predicate
        self._context = context
        self._at_once = at_once
        outputs = [ex.Output(c.name, ex.ColumnRef(c), c.type) for c in relation.columns]
        if relation.with_rowid:
            outputs.append(ex.Output(ex.ROWID, ex.RowidRef(), BIGINT))
        self._outputs = {output.name: output for output in (*outputs, *relation.computed)}
        self.schema = pa.schema(
            [pa.field(o.name, arrow_type(o.type)) for o in self._outputs.values() if o.type]
        )

    def table(self) -> pa.Table | None:
        """Return the whole relation where it must be read at once, else None."""
        if not self._at_once:
            return None
        return pa.Table.from_batches(self.batches(self.schema.names), self.schema)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the named columns of the rows that pass."""
        wanted = [self._outputs[name] for name in columns]
        schema = pa.schema([self.schema.field(name) for name in columns])
        read = [output.expr for output in wanted]
        for batch in batches.passing(self._context, self._view, self._predicate, read):
            found = project.evaluate_outputs(wanted, batch)
            if found:
                arrays = [to_arrow(column) for column in found]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)


class ColumnsScan:
    """Columns already in memory: a kNN answer, a system table, the rows being written."""

    is_kept = False

    def __init__(self, names: Sequence[str], columns: Sequence[Column]) -> None:
        self.schema = pa.schema(
            [pa.field(n, arrow_type(c.type)) for n, c in zip(names, columns, strict=True)]
        )
        self._columns = list(columns)

    def table(self) -> pa.Table:
        """Return the relation as a table."""
        return pa.Table.from_arrays([to_arrow(c) for c in self._columns], schema=self.schema)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the named columns."""
        yield from self.table().select(list(columns)).to_batches()


class VariableScan:
    """A Python variable of the caller: Arrow, pandas, Polars, NumPy, or a dict of columns."""

    is_kept = True

    def __init__(self, name: str, variable: Any) -> None:
        self._table = table_of(name, variable)
        self.schema = self._table.schema

    def table(self) -> pa.Table:
        """Return the relation as a table."""
        return self._table

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the named columns."""
        yield from self._table.select(list(columns)).to_batches()


_NUMBERS = re.compile(r"__index_level_\d+__")


def is_table_like(variable: Any) -> bool:
    """Return True for what :func:`table_of` takes."""
    if isinstance(variable, np.ndarray):
        return variable.ndim in (1, 2) or variable.dtype.names is not None
    if isinstance(variable, dict):
        return bool(variable) and all(isinstance(v, np.ndarray) for v in variable.values())
    return hasattr(variable, "__arrow_c_stream__") or hasattr(variable, "__arrow_c_array__")


def table_of(name: str, variable: Any) -> pa.Table:
    """Return a ``pyarrow.Table`` of a Python object's columns, without copying where possible.

    Raises
    ------
    BindError
        It is no table.
    DataError
        Its columns differ in length, or one mixes types.
    """
    if isinstance(variable, pa.Table):
        return variable
    try:
        return _table_of(name, variable)
    except Error:
        raise
    except Exception as error:  # pyarrow's, or those of the library whose object it is
        raise DataError(f"{name} ({type(variable).__name__}) is not a table: {error}") from error


def _table_of(name: str, variable: Any) -> pa.Table:
    if isinstance(variable, pa.RecordBatch):
        return pa.Table.from_batches([variable])
    if isinstance(variable, np.ndarray) and variable.dtype.names is not None:
        variable = {field: variable[field] for field in variable.dtype.names}
    if isinstance(variable, np.ndarray):
        return pa.table({"column0": array_of("column0", variable)})
    if isinstance(variable, dict):
        return pa.table({key: array_of(key, value) for key, value in variable.items()})
    if isinstance(variable, pa.RecordBatchReader):
        raise DataError(
            f"{name} is a RecordBatchReader, read only once", hint="name its read_all()"
        )
    if hasattr(variable, "__arrow_c_stream__"):
        schema = getattr(variable, "schema", None)
        kinds = schema if isinstance(schema, Mapping) else {}
        opaque = [key for key, kind in kinds.items() if str(kind) == "Object"]
        if opaque:  # of Polars, which exports addresses of them
            raise DataError(f"{name}: column {opaque[0]} holds Python objects of no one type")
        table = pa.table(variable)
        # pandas' numbers of rows, once some were left out; an index with a name is a column
        return table.drop_columns([n for n in table.column_names if _NUMBERS.fullmatch(n)])
    raise BindError(f"variable {name} ({type(variable).__name__}) is not a table")


def array_of(name: str, values: Any) -> pa.Array:
    """Return a column of Python or NumPy values; dicts, which have no one shape, as JSON text."""
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    try:
        array = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if _holds_dict(values):  # of shapes that Arrow cannot make one of
            return _json_array(values)
        raise DataError(f"column {name}: its values are not of one type ({error})") from error
    return _json_array(values) if pa.types.is_struct(array.type) else array


def _holds_dict(values: Any) -> bool:
    return any(isinstance(item, dict) for item in _items(values))


def _json_array(values: Any) -> pa.Array:
    if not _holds_dict(values):
        return pa.array(values)
    texts = [None if item is None else dump_json(item) for item in _items(values)]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))


def _items(values: Any) -> Sequence[Any]:
    """Return Python values where there are any; numbers of an array are none."""
    boxed = isinstance(values, np.ndarray) and values.dtype.hasobject
    items = values.tolist() if boxed else values
    return items if isinstance(items, (list, tuple)) else ()


def rowid_column(rowids: np.ndarray) -> Column:
    """Return row ids as a BIGINT column."""
    return Column(BIGINT, rowids)


def batch_scan(
    table: TableDef, columns: dict[int, Column], rows: int, number: str = "__no"
) -> ColumnsScan:
    """Return the rows being written as a relation with a running number."""
    names = [column.name for column in table.columns if column.id in columns]
    values = [columns[column.id] for column in table.columns if column.id in columns]
    return ColumnsScan([*names, number], [*values, rowid_column(np.arange(rows))])
