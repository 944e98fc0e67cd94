"""Equalities between the tables of a SELECT: which rows of one can matter, by keys of another.

``a JOIN b ON b.id = a.b_id`` needs only the rows of ``b`` whose id some row of ``a`` has. The plan
notes that as a :class:`Link` of b's relation; the engine may look such rows up once it knows the
few rows of ``a``. A link never changes an answer, as the text still has the condition. It is noted
where a row without a partner cannot be part of the answer: for conditions of inner joins, of WHERE
and of EXISTS, for ``IN (SELECT ...)``, and for the right side of a left join.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlglot import exp

from tarsdb.schema import ColumnDef
from tarsdb.sql.plan import Link
from tarsdb.sql.scope import Scope, Source, owner
from tarsdb.types import Kind

_JOINS = frozenset({("", ""), ("", "INNER"), ("", "CROSS"), ("LEFT", ""), ("LEFT", "OUTER")})
_SPECIAL = ("method", "match_condition")
_WHOLE = frozenset({Kind.SMALLINT, Kind.INT, Kind.BIGINT})
_KEYS = _WHOLE | {Kind.TEXT, Kind.UUID, Kind.BLOB}
Place = tuple[Source, ColumnDef, bool]
"""A column of a base table, and whether the table itself is in FROM, not a query that reads it."""


def link_sources(node: Any, scope: Scope) -> None:
    """Note what the joins and conditions of a SELECT, walked already, say about its tables."""
    if padded_sources(node, scope) is None:
        return
    for number, join in enumerate(node.args.get("joins") or (), start=1):
        _link_joined(join, scope, number)
    condition = node.args.get("where")
    if condition is None:
        return
    for left, right in _equal(condition.this):
        _link(_place(left, scope), _place(right, scope))
    for term in _conjuncts(condition.this):
        if isinstance(term, exp.In) and isinstance(term.args.get("query"), exp.Subquery):
            _link_members(term, scope)
        elif isinstance(term, exp.Exists) and isinstance(term.this, exp.Select):
            _link_existing(term.this, scope)


def _link_joined(join: Any, scope: Scope, number: int) -> None:
    """Link what ON and USING of the join with the source of that number say."""
    right, before = scope.sources[number], scope.sources[:number]
    only = right if join.args.get("side") else None
    for left, other in _equal(join.args.get("on")):
        _link(_place(left, scope), _place(other, scope), only)
    for name in join.args.get("using") or ():
        places = [_of(each, name.name) for each in before]
        known = [place for place in places if place is not None]
        if len(known) == 1 and all(each.table is not None for each in before):
            _link(known[0], _of(right, name.name), only)


def padded_sources(node: Any, scope: Scope) -> set[int] | None:
    """Return which sources a left join may pad with NULL, by their number in FROM.

    WHERE may run before the joins on all others. None where FROM is no list of tables and queries
    that inner and left joins connect, each a source of its own.
    """
    joins, origin = node.args.get("joins") or [], node.args.get("from_")
    if origin is None or len(scope.sources) != 1 + len(joins):
        return None
    items = [origin.this, *(join.this for join in joins)]
    if any(node.args.get(part) for part in ("laterals", "sample")) or not all(
        map(_is_plain, items)
    ):
        return None
    padded = set()
    for number, join in enumerate(joins, start=1):
        side, kind = ((join.args.get(part) or "").upper() for part in ("side", "kind"))
        if (side, kind) not in _JOINS or any(join.args.get(part) for part in _SPECIAL):
            return None
        if side:
            padded.add(number)
    return padded


def _is_plain(item: Any) -> bool:
    return isinstance(item, (exp.Table, exp.Subquery)) and not any(
        item.args.get(part) for part in ("joins", "laterals", "pivots", "sample", "ordinality")
    )


def passed(node: Any, scope: Scope | None) -> dict[str, tuple[Source, ColumnDef]]:
    """Return the columns of a SELECT's answer that are just columns of base tables, by name."""
    if scope is None or not isinstance(node, exp.Select):
        return {}
    found = {}
    for item in node.expressions:
        place = _place(item.unalias(), scope)
        if place is not None:
            found[item.alias_or_name.lower()] = place[:2]
    return found


def _link_members(term: Any, scope: Scope) -> None:
    """``column IN (SELECT column ...)``."""
    query = term.args["query"].this
    if not isinstance(query, exp.Select) or len(query.expressions) != 1:
        return
    inner = next((s for s in scope.inner if s.node is query), None)
    target, source = _place(term.this, scope), passed(query, inner)
    if target is not None and source:
        _restrict(target, (*next(iter(source.values())), False))


def _link_existing(query: Any, scope: Scope) -> None:
    """``EXISTS (SELECT ... WHERE inner.column = outer.column)``: both ways."""
    inner = next((s for s in scope.inner if s.node is query), None)
    condition = query.args.get("where")
    if inner is None or condition is None or padded_sources(query, inner) is None:
        return
    for left, right in _equal(condition.this):
        for one, other in ((left, right), (right, left)):
            if not other.args.get("table") or _place(other, inner) is not None:
                continue  # of the inner query, perhaps
            source, target = _place(one, inner), _place(other, scope)
            if source is not None and target is not None:
                _restrict(target, source)
                _restrict(source, target)


def _link(one: Place | None, other: Place | None, only: Source | None = None) -> None:
    """Link two columns that must be equal; with ``only``, just the rows of that source."""
    if one is None or other is None or one[0] is other[0]:
        return
    for target, source in ((one, other), (other, one)):
        if only is None or target[0] is only:
            _restrict(target, source)


def _restrict(target: Place, source: Place) -> None:
    kinds = target[1].type.kind, source[1].type.kind
    fits = kinds[0] is kinds[1] or set(kinds) <= _WHOLE
    if fits and kinds[0] in _KEYS and target[2]:
        target[0].links.append(Link(target[1], source[0].relation, source[1]))


def _place(column: Any, scope: Scope) -> Place | None:
    """Return the base table's column that a name means; None where that is not certain."""
    if not isinstance(column, exp.Column):
        return None
    source = owner(column, scope)
    return None if source is None else _of(source, column.name)


def _of(source: Source, name: str) -> Place | None:
    if source.table is None:
        found = source.passes.get(name.lower())
        return None if found is None else (*found, False)
    column = None if source.batch else source.table.column(name)
    return None if column is None else (source, column, True)


def _equal(condition: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the sides of the equalities that must all hold."""
    if condition is not None:
        for term in _conjuncts(condition):
            if isinstance(term, exp.EQ):
                yield term.this, term.expression


def _conjuncts(condition: Any) -> Iterator[Any]:
    stack = [condition]
    while stack:
        term = stack.pop()
        if isinstance(term, exp.Paren):
            stack.append(term.this)
        elif isinstance(term, exp.And):
            stack += [term.this, term.expression]
        else:
            yield term
