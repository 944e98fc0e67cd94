"""TableView: the live rows of one table at one snapshot, with the transaction's own writes on top.

Values are storage values and columns; arrays may be views into the memory map, valid while the
snapshot lives. Knows no SQL.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.columns import UNCOMMITTED, Column, VectorBlock, concat, from_list
from tarsdb.records import dataclass
from tarsdb.schema import ColumnDef, IndexDef, TableDef
from tarsdb.storage import gather, scalar_index
from tarsdb.storage.own_rows import OwnBlock, OwnRows
from tarsdb.storage.own_runs import OwnRun
from tarsdb.storage.state import GroupState, TableState
from tarsdb.storage.transaction import ReadTxn

if TYPE_CHECKING:
    from tarsdb.storage.writes import WriteSet

_NO_ROWS = np.empty(0, dtype=np.int64)


@dataclass(slots=True)
class Chunk:
    """Some live rows of a table.

    Attributes
    ----------
    rowids : int64 (n,)
    columns : list of Column
        In the order asked for.
    """

    rowids: np.ndarray
    columns: list[Column]


class TableView:
    """One table at one snapshot.

    Attributes
    ----------
    table : TableDef
    writes : WriteSet or None
        The transaction whose own rows this view shows too.
    """

    __slots__ = ("_blocks", "_scalars", "state", "table", "txn", "writes")

    def __init__(
        self, txn: ReadTxn, table: TableDef, state: TableState, writes: WriteSet | None
    ) -> None:
        self.txn = txn
        self.table = table
        self.state = state
        self.writes = writes
        self._scalars: GroupState | None = None
        self._blocks: dict[int, tuple[int, list[VectorBlock]]] = {}

    def _own(self) -> OwnRows | None:
        return None if self.writes is None else self.writes.own_rows(self.table.id)

    def scalars(self) -> GroupState:
        """Return the committed state of the scalar columns (group 0)."""
        group = self._scalars
        if group is None:
            group = self._scalars = self.state.group(self.txn, 0)
        return group

    def vector_group(self, column: ColumnDef) -> GroupState:
        """Return the committed state of a vector column's group."""
        return self.state.group(self.txn, column.id, column)

    def count(self) -> int:
        """Return the number of live rows."""
        own = self._own()
        return self.state.counters.live_rows + (0 if own is None else own.live_change)

    # --- one row ---

    def row(self, rowid: int, column_ids: Sequence[int]) -> tuple[Any, ...] | None:
        """Return one row's storage values, or None when there is no such live row."""
        if self.writes is not None:
            own = self.writes.own_rows(self.table.id)
            if own is not None and own.covers(rowid):
                return self._own_row(own, rowid, column_ids)
        group = self._scalars or self.scalars()
        txn = self.txn
        hit = group.find(txn, rowid)
        if hit is None:
            return None
        segment, position = hit
        by_id = self.table.column_by_id
        values = []
        for column_id in column_ids:
            if segment is not None:
                getter = segment.getters.get(column_id)
                if getter is not None:
                    values.append(getter(position))
                    continue
            column = by_id(column_id)
            if column.type.is_vector:
                values.append(self._vector(rowid, column))
            elif segment is None:
                values.append(group.delta.value(position, column))
            else:
                values.append(segment.getter(txn, column, group.name)(position))
        return tuple(values)

    def _vector(self, rowid: int, column: ColumnDef) -> np.ndarray | None:
        group = self.vector_group(column)
        hit = group.find(self.txn, rowid)
        if hit is None:
            return None
        segment, position = hit
        if segment is None:
            values = group.delta.vectors(group.count)
        else:
            values = segment.column(self.txn, column, group.name).values
        found: np.ndarray = values[position].copy()
        return found

    def _own_row(
        self, own: OwnRows, rowid: int, column_ids: Sequence[int]
    ) -> tuple[Any, ...] | None:
        if not own.is_live(rowid):
            return None
        columns = [self.table.column_by_id(column_id) for column_id in column_ids]
        return tuple(
            own.value(rowid, c) if own.holds(rowid, c) else self._vector(rowid, c) for c in columns
        )

    # --- many rows ---

    def rows(self, rowids: np.ndarray, column_ids: Sequence[int]) -> list[Column]:
        """Return columns of the given rows in order; rows that are not live are all NULL."""
        rowids = np.asarray(rowids, dtype=np.int64)
        columns = [self.table.column_by_id(column_id) for column_id in column_ids]
        own = self._own()
        if own is not None:
            mine = own.covers_many(rowids)
            if mine.any():
                return self._mixed_rows(own, rowids, mine, columns)
        return self._base_rows(rowids, columns)

    def base_rows(self, rowids: np.ndarray, column_ids: Sequence[int]) -> list[Column]:
        """Return committed columns of rows, whatever the transaction did to them."""
        return self._base_rows(rowids, [self.table.column_by_id(c) for c in column_ids])

    def few_values(self, rowids: list[int], columns: Sequence[ColumnDef]) -> list[list[Any]] | None:
        """Return storage values of scalar columns for up to ``gather.FEW`` rows, a list a column.

        None where the transaction's own rows or the number of rows ask for :meth:`rows`.
        """
        if self._own() is not None or len(rowids) > gather.FEW:
            return None
        return gather.few_values(self.txn, self.scalars(), rowids, columns)

    def _base_rows(self, rowids: np.ndarray, columns: list[ColumnDef]) -> list[Column]:
        scalar = [column for column in columns if not column.type.is_vector]
        found = gather.gather_scalars(self.txn, self.scalars(), rowids, scalar) if scalar else []
        by_id = {column.id: values for column, values in zip(scalar, found, strict=True)}
        return [
            by_id[column.id]
            if column.id in by_id
            else gather.gather_vectors(self.txn, self.vector_group(column), rowids, column)
            for column in columns
        ]

    def _mixed_rows(
        self, own: OwnRows, rowids: np.ndarray, mine: np.ndarray, columns: list[ColumnDef]
    ) -> list[Column]:
        base = self._base_rows(rowids[~mine], columns)
        ids = [column.id for column in columns]
        none = (None,) * len(ids)
        own_rows = [self._own_row(own, rowid, ids) or none for rowid in rowids[mine].tolist()]
        back = np.empty(len(rowids), dtype=np.int64)
        back[~mine] = np.arange(len(rowids) - len(own_rows))
        back[mine] = np.arange(len(rowids) - len(own_rows), len(rowids))
        return [
            concat(c.type, [base[i], from_list(c.type, [row[i] for row in own_rows])]).take(back)
            for i, c in enumerate(columns)
        ]

    def chunks(self, column_ids: Sequence[int]) -> Iterator[Chunk]:
        """Yield every live row once: segments, then the delta, then the own writes."""
        columns = [self.table.column_by_id(column_id) for column_id in column_ids]
        own = self._own()
        hidden = None if own is None else own.hidden_rowids()
        group, txn = self.scalars(), self.txn
        name, no_vectors = group.name, not any(column.type.is_vector for column in columns)
        for segment in group.segments:
            rowids = segment.rowids(txn, name)
            live = segment.live(group.commit)
            if hidden is not None:
                live = _without(rowids, live, hidden)
            if live is None and no_vectors:  # most segments of most tables
                yield Chunk(rowids, [segment.column(txn, column, name) for column in columns])
            elif live is None or live.any():
                scalars = {
                    c.id: segment.column(self.txn, c, group.name)
                    for c in columns
                    if not c.type.is_vector
                }
                for part in self._parts(rowids, columns):
                    held = {c: column.slice(part.start, part.stop) for c, column in scalars.items()}
                    yield self._chunk(
                        rowids[part], None if live is None else live[part], held, columns
                    )
        if group.count:
            rowids = group.delta.rowids.prefix(group.count)
            live = _without(rowids, group.delta_live(), hidden)
            if live is None or live.any():
                scalars = {
                    c.id: group.delta.column(c, group.count)
                    for c in columns
                    if not c.type.is_vector
                }
                yield self._chunk(rowids, live, scalars, columns)
        if own is not None:
            yield from self._own_chunks(own, columns)

    def _parts(self, rowids: np.ndarray, columns: list[ColumnDef]) -> list[slice]:
        """Cut a segment's rows where those of its vectors begin, which are then not copied."""
        vector = next((column for column in columns if column.type.is_vector), None)
        cuts = []
        if vector is not None:
            lows = [segment.low for segment in self.vector_group(vector).segments]
            found = np.unique(np.searchsorted(rowids, lows))
            cuts = found[(found > 0) & (found < len(rowids))].tolist()
        return [slice(*ends) for ends in itertools.pairwise([0, *cuts, len(rowids)])]

    def _chunk(
        self,
        rowids: np.ndarray,
        live: np.ndarray | None,
        scalars: dict[int, Column],
        columns: list[ColumnDef],
    ) -> Chunk:
        if live is not None:
            keep = np.flatnonzero(live)
            rowids = rowids[keep]
            scalars = {column_id: column.take(keep) for column_id, column in scalars.items()}
        return Chunk(
            rowids,
            [
                gather.gather_vectors(self.txn, self.vector_group(c), rowids, c)
                if c.type.is_vector
                else scalars[c.id]
                for c in columns
            ],
        )

    def _own_chunks(self, own: OwnRows, columns: list[ColumnDef]) -> Iterator[Chunk]:
        for block in own.blocks:
            live = None if block.dead is None else ~block.dead
            if live is None or live.any():
                yield _chosen(block.rowids(), [block.column(c) for c in columns], live)
        for run in own.runs:
            if run.block is not None:
                kept = own.kept(run)
                found = [self._run_column(run, run.block, c) for c in columns]
                if kept is None or kept.any():
                    yield _chosen(run.rowids, found, kept)
        singles = list(own.rows)
        ids = [column.id for column in columns]
        for start in range(0, len(singles), 2048):
            part = singles[start : start + 2048]
            values = [self._own_row(own, rowid, ids) or () for rowid in part]
            yield Chunk(
                np.array(part, dtype=np.int64),
                [from_list(c.type, [row[i] for row in values]) for i, c in enumerate(columns)],
            )

    def _run_column(self, run: OwnRun, block: OwnBlock, column: ColumnDef) -> Column:
        """Return a column of the rows of a run, with the vectors that stay in the snapshot."""
        if not column.type.is_vector:
            return block.column(column)
        base = gather.gather_vectors(self.txn, self.vector_group(column), run.rowids, column)
        changed = run.changed.get(column.id)
        if changed is None:
            return base
        fresh = block.column(column)
        every = np.ones(len(run), dtype=bool)
        valid = [every if c.validity is None else c.validity for c in (fresh, base)]
        values = np.where(changed[:, np.newaxis], fresh.values, base.values)
        return Column(column.type, values, None, np.where(changed, *valid))

    # --- indexes ---

    def find(self, index: IndexDef, key: tuple[Any, ...]) -> np.ndarray:
        """Return the rowids of live rows with an index key, ascending."""
        return scalar_index.find(self, self._own(), index, key)

    def find_one(self, index: IndexDef, key: tuple[Any, ...]) -> int:
        """Return the rowid of the live row with a key of a unique index; -1 for none.

        The key holds no NULL.
        """
        return scalar_index.find_one(self, self._own(), index, key)

    def find_each(self, index: IndexDef, column: Column) -> np.ndarray:
        """Return the rowid of each key of a unique index of one column, -1 for none; int64 (n,)."""
        return scalar_index.find_each(self, self._own(), index, column)

    def range(
        self,
        index: IndexDef,
        low: tuple[tuple[Any, ...] | None, bool],
        high: tuple[tuple[Any, ...] | None, bool],
        most: int | None = None,
    ) -> np.ndarray:
        """Return the rowids of live rows with keys between bounds, in key order.

        A bound is a key (None: open) and whether the key itself belongs; it may name only the
        first columns of the index. Very long keys are truncated in the index, so the caller
        checks the predicate again. With any bound given, rows where the first column is NULL are
        left out; without, all rows come, NULLs last. With ``most``, an answer of more rows than
        that is cut short: a scan is better then.
        """
        codec = self.state.cache.codec(self.table, index)
        bounds = codec.bounds(low[0], high[0], low[1], high[1])
        return scalar_index.scan(self, self._own(), index, bounds, most)

    @property
    def is_unchanged(self) -> bool:
        """Whether this transaction has changed nothing of the table."""
        own = self._own()
        return own is None or own.is_untouched

    def in_order(
        self, index: IndexDef, bounds: tuple[bytes, bytes], most: int, descending: bool
    ) -> np.ndarray:
        """Return the rowids of the first rows of a range of index keys, in key order.

        Of a table this transaction has not changed; rows of one key are in no certain order.
        """
        found = scalar_index.in_order(self.txn, index, bounds, most, descending)
        return scalar_index.given_out(self, index, found)

    # --- vectors ---

    def vectors(self, column_id: int) -> list[VectorBlock]:
        """Return all live vectors of a column; the same list object while nothing changed."""
        column = self.table.column_by_id(column_id)
        base = self.vector_group(column).vector_blocks(self.txn, column)
        own = self._own()
        if own is None or own.is_untouched:
            return base
        known = self._blocks.get(column_id)
        if known is not None and known[0] == own.version:
            return known[1]
        blocks = _overlaid(base, own.hidden_rowids(column_id))
        for block in own.blocks:
            blocks.extend(_block_vectors(block.rowids(), block.column(column), block.dead))
        for run in own.runs:
            if run.block is not None and column_id in run.changed:
                kept = own.kept(run)
                dead = None if kept is None else ~kept
                blocks.extend(_block_vectors(run.rowids, run.block.column(column), dead))
        singles = [r for r in own.rows if own.rows[r].get(column_id) is not None]
        if singles:
            data = from_list(column.type, [own.rows[r][column_id] for r in singles]).values
            rowids = np.array(singles, dtype=np.int64)
            blocks.append(VectorBlock(rowids, data, None, UNCOMMITTED))
        self._blocks[column_id] = (own.version, blocks)
        return blocks


def _chosen(rowids: np.ndarray, columns: list[Column], live: np.ndarray | None) -> Chunk:
    if live is None:
        return Chunk(rowids, columns)
    keep = np.flatnonzero(live)
    return Chunk(rowids[keep], [column.take(keep) for column in columns])


def _without(
    rowids: np.ndarray, live: np.ndarray | None, hidden: np.ndarray | None
) -> np.ndarray | None:
    """Take hidden rows (ascending rowids) out of a live mask."""
    if hidden is None or not len(hidden) or not len(rowids):
        return live
    gone = np.isin(rowids, hidden)
    if not gone.any():
        return live
    return ~gone if live is None else live & ~gone


def _overlaid(base: list[VectorBlock], hidden: np.ndarray) -> list[VectorBlock]:
    if not len(hidden):
        return list(base)
    blocks = []
    for block in base:
        live = _without(block.rowids, block.live, hidden)
        if live is not block.live:
            block = dataclasses.replace(block, live=live, placed=None)
        blocks.append(block)
    return blocks


def _block_vectors(
    rowids: np.ndarray, column: Column, dead: np.ndarray | None
) -> list[VectorBlock]:
    live = column.validity
    if dead is not None:
        live = ~dead if live is None else live & ~dead
    if live is not None and live.all():
        live = None
    return [VectorBlock(rowids, column.values, live, UNCOMMITTED)] if len(rowids) else []
