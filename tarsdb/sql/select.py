"""A SELECT over one table, taken apart: what the plan rules look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any

from sqlglot import exp

from tarsdb.records import dataclass
from tarsdb.schema import TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.binding import Binding, table_name
from tarsdb.sql.calls import own_call, resolve_call
from tarsdb.sql.core import Core
from tarsdb.sql.dialect import OPERATOR_OF
from tarsdb.sql.expressions import Output
from tarsdb.sql.kinds import constant_type, output_type
from tarsdb.types import Kind, SqlType

_PARTS = frozenset({"expressions", "from_", "where", "order", "limit", "offset"})
_TABLE_PARTS = frozenset({"this", "alias", "db"})
_WHOLE = (Kind.SMALLINT, Kind.INT, Kind.BIGINT)


@dataclass(slots=True)
class Item:
    """One expression of the SELECT list; ``expr`` is None when it is outside the core."""

    name: str
    node: Any
    expr: ex.Expr | None


@dataclass
class TableSelect:
    """SELECT items FROM table WHERE conjuncts ORDER BY order LIMIT limit OFFSET offset."""

    binding: Binding
    table: TableDef
    alias: str
    node: Any
    core: Core = field(init=False)
    aliases: dict[str, Any] = field(default_factory=dict)
    conjuncts: list[Any] = field(default_factory=list)
    order: list[Any] = field(default_factory=list)
    limit: ex.Expr | None = None
    offset: ex.Expr | None = None
    titles: Callable[[], list[str]] = list
    _resolving: set[str] = field(default_factory=set)
    _items: list[Item] | None = None

    def __post_init__(self) -> None:
        self.core = Core(self.binding, self.lookup, functions=True)

    @property
    def items(self) -> list[Item]:
        """The SELECT list with stars expanded."""
        if self._items is None:
            self._items = list(self._expand())
        return self._items

    def outputs(self, known: ex.Distance | None = None) -> tuple[Output, ...] | None:
        """Return the SELECT list as native outputs, or None when part of it is outside.

        A distance that is ``known`` for each row may be part of a larger expression.
        """
        found = []
        for item in self.items:
            if item.expr is None:
                return None
            sql_type = output_type(item.expr) or constant_type(item.expr)
            if sql_type is None or _nested_distance(item.expr, known):
                return None
            found.append(Output(item.name, item.expr, sql_type))
        return tuple(found)

    def filter_call(self, node: Any) -> ex.Call | None:
        """Return a call of a sandboxed filter over columns and constants, None for all else."""
        if not isinstance(node, exp.Anonymous) or OPERATOR_OF.get(node.name) is not None:
            return None
        call = resolve_call(self.binding, node)
        if call is None or call.function is None or call.function.role != "filter":
            return None
        found: list[ex.Expr] = []
        for each, (_, sql_type) in zip(call.arguments, call.function.arguments, strict=True):
            argument = self.core.expr(each)
            if isinstance(argument, ex.ColumnRef) and not _widens(argument.column.type, sql_type):
                return None
            if not isinstance(argument, (ex.ColumnRef, ex.Literal, ex.Parameter)):
                return None
            found.append(argument)
        return own_call(call, tuple(found))

    def predicates(self) -> list[ex.Expr] | None:
        """Return WHERE as native terms, or None when part of it is outside."""
        found = []
        for node in self.conjuncts:
            term = self.core.condition(node)
            if term is None:
                return None
            found.append(term)
        return found

    def lookup(self, node: Any) -> ex.Expr | None:
        """Resolve a column: of the table, its rowid, or an alias of the SELECT list."""
        qualifier = node.args.get("table")
        if node.args.get("db") is not None or isinstance(node.this, exp.Star):
            return None
        if qualifier is not None and qualifier.name.lower() != self.alias:
            return None
        column = self.table.column(node.name)
        if column is not None:
            return ex.ColumnRef(column)
        key = node.name.lower()
        if qualifier is None and key in self.aliases and key not in self._resolving:
            self._resolving.add(key)
            try:
                return self.core.expr(self.aliases[key])
            finally:
                self._resolving.discard(key)
        return ex.RowidRef() if key == ex.ROWID else None

    def _expand(self) -> list[Item]:
        items: list[Item] = []
        for position, node in enumerate(self.node.expressions):
            if isinstance(node, exp.Star) or (
                isinstance(node, exp.Column) and isinstance(node.this, exp.Star)
            ):
                items.extend(self._star(node))
            elif isinstance(node, exp.Alias):
                items.append(Item(node.alias, node.this, self.core.expr(node.this)))
            else:
                expr = self.core.expr(node)
                items.append(Item(self._title(position, node, expr), node, expr))
        return items

    def _star(self, node: Any) -> list[Item]:
        star = node if isinstance(node, exp.Star) else node.this
        qualifier = node.args.get("table") if isinstance(node, exp.Column) else None
        if any(star.args.values()) or (
            qualifier is not None and qualifier.name.lower() != self.alias
        ):
            return [Item("*", node, None)]
        return [Item(c.name, exp.column(c.name), ex.ColumnRef(c)) for c in self.table.columns]

    def _title(self, position: int, node: Any, expr: ex.Expr | None) -> str:
        if isinstance(expr, ex.ColumnRef) and isinstance(node, exp.Column):
            return expr.column.name
        if isinstance(node, exp.Column):
            return str(node.name)
        titles = self.titles()
        known = len(titles) == len(self.node.expressions)
        return titles[position] if known else f"column{position}"


def _nested_distance(expr: ex.Expr, known: ex.Distance | None) -> bool:
    """Return True for a distance inside an expression: the relational engine computes that."""
    if isinstance(expr, (ex.Distance, ex.ColumnRef, ex.RowidRef, ex.Call)):
        return False
    nodes = ex.walk(expr, known=known)
    return any(isinstance(node, (ex.Distance, ex.Parameter)) for node in nodes)


def take_apart(
    binding: Binding, node: Any, hidden: frozenset[str] = frozenset()
) -> TableSelect | None:
    """Return the parts of a SELECT over one base table, or None when it is anything else.

    ``hidden`` are names of CTEs in sight, which shadow tables.
    """
    if not isinstance(node, exp.Select):
        return None
    for part, value in node.args.items():
        if value and part not in _PARTS:
            return None
    origin = node.args.get("from_")
    source = None if origin is None else origin.this
    if not isinstance(source, exp.Table) or not isinstance(source.this, exp.Identifier):
        return None
    if any(value and part not in _TABLE_PARTS for part, value in source.args.items()):
        return None
    name = table_name(source)
    if name.lower() in hidden and source.args.get("db") is None:
        return None
    table = binding.catalog.table(name)
    named = source.args.get("alias")
    if table is None or (named is not None and named.args.get("columns")) or not node.expressions:
        return None
    alias = (named.name if named is not None else table.name).lower()
    return _fill(TableSelect(binding, table, alias, node))


def _fill(select: TableSelect) -> TableSelect | None:
    node = select.node
    select.aliases = {
        item.alias.lower(): item.this for item in node.expressions if isinstance(item, exp.Alias)
    }
    condition = node.args.get("where")
    if condition is not None:
        select.conjuncts = select.core.conjuncts(condition.this)
    ordering = node.args.get("order")
    if ordering is not None:
        if ordering.args.get("siblings"):
            return None
        select.order = list(ordering.expressions)
    found = window_of(select.core, node)
    if found is None:
        return None
    select.limit, select.offset = found
    return select


def window_of(core: Core, node: Any) -> tuple[ex.Expr | None, ex.Expr | None] | None:
    """Return LIMIT and OFFSET, literals or parameters; None where one is anything else."""
    found: list[ex.Expr | None] = []
    for part in ("limit", "offset"):
        clause = node.args.get(part)
        if clause is None:
            found.append(None)
            continue
        if any(value for key, value in clause.args.items() if key != "expression"):
            return None
        bound = core.constant(clause.expression) if clause.expression else None
        if isinstance(bound, ex.Literal) and (
            not isinstance(bound.value, int) or isinstance(bound.value, bool)
        ):
            return None
        if not isinstance(bound, (ex.Literal, ex.Parameter)):
            return None
        found.append(bound)
    return found[0], found[1]


def _widens(given: SqlType, wanted: SqlType) -> bool:
    """Return whether a type is another one, or a shorter whole number than it."""
    if given.kind in _WHOLE and wanted.kind in _WHOLE:
        return given.dtype.itemsize <= wanted.dtype.itemsize
    return given == wanted
