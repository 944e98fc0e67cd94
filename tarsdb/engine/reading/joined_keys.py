"""Which rows of joined tables can matter: keys of a few rows are looked up in the other tables.

What a plan's relations are linked by (see ``sql.plan.Link``) only says where rows without a partner
may be left out. Here the rows that a predicate finds by an index, or that a search found, give
their keys to the tables linked to them, whose indexes find the partners; these give theirs on.
Tables none of whose rows are found so are read as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tarsdb.columns import Column
from tarsdb.engine.context import Context
from tarsdb.engine.reading import access, batches
from tarsdb.schema import TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Link, Relation
from tarsdb.types import presenter

FEW = 1000
"""Rows up to which a relation gives its keys to others."""
SHARE = 100
"""Rows whose reading costs what looking a key up does: a table has more of them for each key."""
SCANNED_ROWS = 100_000
"""Rows up to which a table's predicate is evaluated for its keys where no index answers it."""
COMPARED_ROWS = 10_000
"""Rows of the searched table up to which all that keys leave are compared."""
Keys = tuple[ex.Literal, ...]


class FoundRows:
    """The rows of a statement's tables that can matter, where these are known to be few.

    Parameters
    ----------
    context : Context
    relations : sequence of Relation
        All that a plan reads.
    """

    def __init__(self, context: Context, relations: Sequence[Relation]) -> None:
        self._context = context
        self._relations = {each.name: each for each in relations}
        self._rowids: dict[str, np.ndarray] = {}
        self._given: dict[str, Mapping[str, Column]] = {}  # answers of searches
        self._linked = [(each, link) for each in relations for link in each.links]
        sources = {link.relation for _, link in self._linked}
        for each in relations:
            if each.name in sources or each.links:
                self._find(each)
        self._spread(list(self._rowids))

    def of(self, relation: Relation) -> np.ndarray | None:
        """Return the row ids, ascending, that can matter of a table; None where that is unknown."""
        return self._rowids.get(relation.name)

    def searches(self) -> list[Relation]:
        """Return the searches whose answers give keys to tables."""
        named = {link.relation for _, link in self._linked}
        return [r for r in self._relations.values() if r.knn is not None and r.name in named]

    def narrowed(self, relation: Relation) -> ex.Expr | None:
        """Return a searched table's predicate with what other tables' keys leave of its rows."""
        assert relation.knn is not None
        knn = relation.knn
        for link in relation.links:
            keys = self._keys(link)
            if keys is None:
                continue
            asked = _among(link, keys)
            rowids = self._lookup(knn.table, asked)
            if rowids is not None and len(rowids) <= COMPARED_ROWS:
                return asked if knn.predicate is None else ex.And((knn.predicate, asked))
        return knn.predicate

    def give(self, relation: Relation, columns: Mapping[str, Column]) -> None:
        """Tell what a search found, before the tables linked to it are asked for."""
        self._given[relation.name] = columns
        self._spread([relation.name])

    def _find(self, relation: Relation) -> None:
        """Find a table's rows by its predicate, where they are few."""
        table = relation.table
        if table is None or relation.predicate is None or relation.filtered:
            return
        view = self._context.view(table)
        found = access.choose(table, relation.predicate, view, self._context)
        if found is not None:
            self._rowids[relation.name] = found.rowids
        elif view.count() <= SCANNED_ROWS and not ex.calls(relation.predicate):
            read = batches.scanned(self._context, view, relation.predicate, (ex.RowidRef(),))
            found_rows = [batch.rowids for batch in read if batch.rowids is not None]
            rowids = np.concatenate(found_rows) if found_rows else np.empty(0, np.int64)
            if len(rowids) <= min(FEW, view.count() * access.MAX_SELECTIVITY):
                self._rowids[relation.name] = rowids

    def _spread(self, names: list[str]) -> None:
        """Give keys on from relation to relation, each found once."""
        while names:
            name = names.pop(0)
            for relation, link in self._linked:
                if link.relation != name or relation.name in self._rowids or not relation.table:
                    continue
                keys = self._keys(link)
                rows = self._context.view(relation.table).count()
                if keys is None or len(keys) * SHARE > rows:
                    continue
                rowids = self._lookup(relation.table, _among(link, keys))
                if rowids is not None:
                    self._rowids[relation.name] = rowids
                    names.append(relation.name)

    def _lookup(self, table: TableDef, asked: ex.InList) -> np.ndarray | None:
        if not asked.items:
            return np.empty(0, np.int64)
        found = access.choose(table, asked, self._context.view(table), self._context)
        return None if found is None else found.rowids

    def _keys(self, link: Link) -> Keys | None:
        """Return the values a link leaves, each once; None where they are many or unknown."""
        given = self._given.get(link.relation)
        if given is not None:
            column = given[link.of.name]
        else:
            rowids, source = self._rowids.get(link.relation), self._relations[link.relation]
            if rowids is None or len(rowids) > FEW or source.table is None:
                return None
            column = self._context.view(source.table).rows(rowids, [link.of.id])[0]
        if len(column) > FEW:
            return None
        show = presenter(link.of.type)
        values = [v for v in dict.fromkeys(column.to_list()) if v is not None]
        return tuple(ex.Literal(v if show is None else show(v)) for v in values)


def _among(link: Link, keys: Keys) -> ex.InList:
    return ex.InList(ex.ColumnRef(link.column), keys)
