"""Name resolution inside a query that becomes SQL text: sources, scopes, and who uses what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace
from typing import Any

from sqlglot import exp

from tarsdb.errors import BindError
from tarsdb.records import dataclass
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.binding import no_column, suggestion, where
from tarsdb.sql.plan import Knn, Link, Relation

DISTANCE = "__distance"
KNN_ROWID = "__rowid"


@dataclass(eq=False)
class Source:
    """One thing in FROM. ``table`` None means its columns are not known here.

    Of a query, ``passes`` are the columns that it only passes on from base tables.
    """

    alias: str
    table: TableDef | None = None
    relation: str = ""
    used: dict[int, ColumnDef] = field(default_factory=dict)
    rowid: bool = False
    batch: bool = False
    extra: frozenset[str] = frozenset()  # columns beside the table's: __no, __distance
    terms: list[ex.Expr] = field(default_factory=list)
    filtered: bool = False
    computed: tuple[ex.Output, ...] = ()
    knn: Any = None  # function of the outputs giving the Knn
    window: tuple[ex.Expr, ex.Expr | None] | None = None
    links: list[Link] = field(default_factory=list)
    passes: dict[str, tuple[Source, ColumnDef]] = field(default_factory=dict)
    system: str | None = None
    variable: str | None = None

    def has(self, name: str) -> bool:
        """Return True when the name is certainly one of its columns."""
        return self.table is not None and (
            self.table.column(name) is not None or name.lower() in self.extra
        )

    def use(self, name: str) -> ColumnDef | None:
        """Note that a column is read, and return it."""
        column = self.table.column(name) if self.table is not None else None
        if column is not None:
            self.used[column.id] = column
        return column

    def use_all(self) -> None:
        """Note that every column is read."""
        if self.table is not None:
            self.used.update((column.id, column) for column in self.table.columns)

    def hidden(self) -> list[str]:
        """Return the columns the relation has that ``*`` must not show."""
        names = sorted(self.extra)
        return [*names, ex.ROWID] if self.rowid else names

    def build(self) -> Relation:
        """Return the relation of the plan."""
        if self.table is None:
            return Relation(self.relation, system=self.system, variable=self.variable)
        columns = tuple(column for column in self.table.columns if column.id in self.used)
        if self.batch:
            return Relation(self.relation, columns=columns, batch=True)
        knn: Knn | None = None
        if self.knn is not None:
            knn = self.knn(columns, self.rowid)
        predicate = None
        if self.terms:
            predicate = self.terms[0] if len(self.terms) == 1 else ex.And(tuple(self.terms))
        links = tuple(dict.fromkeys(self.links))
        if knn is not None:
            if self.window is not None:
                knn = replace(knn, predicate=predicate)
            return Relation(
                self.relation, columns=columns, knn=knn, links=links, window=self.window
            )
        rowid = self.rowid or not columns  # a scan needs some column
        return Relation(
            self.relation, self.table, columns, rowid, predicate, self.filtered, self.computed,
            links=links,
        )  # fmt: skip


@dataclass(eq=False)
class Scope:
    """The sources one SELECT sees; ``parent`` is the query around it, ``inner`` those inside."""

    parent: Scope | None = None
    ctes: frozenset[str] = frozenset()
    sources: list[Source] = field(default_factory=list)
    aliases: frozenset[str] = frozenset()
    stars: list[Any] = field(default_factory=list)
    node: Any = None
    inner: list[Scope] = field(default_factory=list)

    def chain(self) -> Iterator[Scope]:
        """Yield this scope and those around it."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def source(self, alias: str) -> Source | None:
        """Return the source of that alias, innermost first."""
        wanted = alias.lower()
        for scope in self.chain():
            for source in scope.sources:
                if source.alias == wanted:
                    return source
        return None

    def open_ended(self) -> bool:
        """Return True when some source in sight has columns that are not known here."""
        return any(source.table is None for scope in self.chain() for source in scope.sources)

    def resolve(self, node: Any) -> ColumnDef | None:
        """Note what a column reference reads; return the column where it is a table's.

        Raises
        ------
        BindError
            The name cannot be anything.
        """
        qualifier = node.args.get("table")
        if qualifier is None:
            return self._unqualified(node)
        for part in (node.args.get("db"), qualifier):  # schema.table.column, table.column.field
            source = self.source(part.name) if part is not None else None
            if source is None:
                continue
            name = node.name if part is qualifier else qualifier.name
            return self._of(source, name, node)
        if self._unqualified_name(qualifier.name, node)[0]:  # a field of a column
            return None
        if self.open_ended():
            return None
        names = [source.alias for scope in self.chain() for source in scope.sources]
        raise BindError(
            f"table {qualifier.name!r} is not in FROM{where(node)}",
            hint=suggestion(qualifier.name, names),
        )

    def _of(self, source: Source, name: str, node: Any) -> ColumnDef | None:
        if source.table is None or name.lower() in source.extra:
            return None
        column = source.use(name)
        if column is None:
            if name.lower() != ex.ROWID or source.batch:
                raise no_column(node, name, [source.table])
            source.rowid = True
        return column

    def _unqualified(self, node: Any) -> ColumnDef | None:
        found, column = self._unqualified_name(node.name, node)
        if found or self.open_ended():
            return column
        tables = [s.table for scope in self.chain() for s in scope.sources if s.table is not None]
        if not tables:
            raise BindError(f"column {node.name!r}: there is no table to read{where(node)}")
        raise no_column(node, node.name, tables)

    def _unqualified_name(self, name: str, node: Any) -> tuple[bool, ColumnDef | None]:
        key = name.lower()
        for scope in self.chain():
            owners = [source for source in scope.sources if source.has(name)]
            columns = [owner.use(name) for owner in owners]
            if owners:
                return True, columns[0] if len(columns) == 1 else None
            if key in scope.aliases:
                return True, None
            whole = next((source for source in scope.sources if source.alias == key), None)
            if whole is not None:  # a table's name as a value is the whole row
                whole.use_all()
                return True, None
            if key == ex.ROWID:
                for source in scope.sources:
                    if source.table is not None and not source.batch:
                        source.rowid = True
                        return True, None
            if any(source.table is None for source in scope.sources):
                return False, None
        return False, None


def owner(column: Any, scope: Scope) -> Source | None:
    """Return the source of a scope a column belongs to, None where that is not certain."""
    if column.args.get("db") is not None or isinstance(column.this, exp.Star):
        return None
    qualifier = column.args.get("table")
    if qualifier is not None:
        name = qualifier.name.lower()
        return next((source for source in scope.sources if source.alias == name), None)
    owners = [source for source in scope.sources if source.has(column.name)]
    return owners[0] if len(owners) == 1 else None


def hide_from_stars(scope: Scope) -> None:
    """Add EXCLUDE to the stars of a scope whose relations carry columns of ours."""
    for star, qualifier in scope.stars:
        names = [
            name
            for source in scope.sources
            if qualifier is None or source.alias == qualifier
            for name in source.hidden()
        ]
        if names:
            kept = list(star.args.get("except_") or [])
            star.set("except_", kept + [exp.column(name) for name in dict.fromkeys(names)])
