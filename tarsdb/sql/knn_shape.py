"""Recognises ``ORDER BY column <op> q LIMIT k`` and range search ``WHERE column <op> q < r``.

A similarity counts as the distance it is made of: ``ORDER BY 1 - (emb <=> q) DESC`` too.
"""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from tarsdb.records import dataclass
from tarsdb.sql import expressions as ex
from tarsdb.sql.core import Core, conjunction
from tarsdb.sql.expressions import Output
from tarsdb.sql.plan import Knn, Relational
from tarsdb.sql.select import TableSelect


@dataclass(slots=True)
class KnnShape:
    """A nearest-neighbour search recognised in a SELECT."""

    distance: ex.Distance
    descending: bool = False
    within: ex.Expr | None = None
    within_inclusive: bool = False
    predicate: ex.Expr | None = None
    residue: tuple[Any, ...] = ()  # conditions outside the core, sqlglot nodes
    filters: tuple[ex.Call, ...] = ()  # sandboxed functions of role 'filter'


def find(select: TableSelect) -> KnnShape | None:
    """Return the search a SELECT is, whatever its SELECT list holds, or None."""
    ordered = _ordering(select)
    if select.order and ordered is None:
        return None
    if ordered is None and not _mentions_distance(select.conjuncts):
        return None
    terms: list[ex.Expr] = []
    residue: list[Any] = []
    filters: list[ex.Call] = []
    for node in select.conjuncts:
        called = select.filter_call(node)
        term = select.core.condition(node) if called is None else None
        if called is not None:
            filters.append(called)
        elif term is None or ex.calls(term):
            residue.append(node)
        else:
            terms.append(term)
    shape = KnnShape(*ordered) if ordered is not None else None
    radius = next((t for t in terms if _is_radius(t, shape)), None)
    if isinstance(radius, ex.Compare):
        assert isinstance(radius.left, ex.Distance)
        shape = shape or KnnShape(radius.left)
        shape.within, shape.within_inclusive = radius.right, radius.op == "<="
        terms.remove(radius)
    if shape is None or (select.limit is None and shape.within is None):
        return None
    if shape.distance.function and (shape.descending or shape.within is not None):
        return None  # a sandboxed metric finds the nearest
    shape.predicate, shape.residue = conjunction(terms), tuple(residue)
    shape.filters = tuple(filters)
    return shape


def _ordering(select: TableSelect) -> tuple[ex.Distance, bool] | None:
    """Return the distance ORDER BY asks for; a second key may only be the rowid, ascending."""
    if not select.order:
        return None
    first, *others = select.order
    for other in others:
        column = select.core.expr(other.this) if isinstance(other.this, exp.Column) else None
        if not isinstance(column, ex.RowidRef) or other.args.get("desc"):
            return None
    return ordered_distance(select.core, ordered_node(select, first), first)


def ordered_distance(core: Core, node: Any, key: Any) -> tuple[ex.Distance, bool] | None:
    """Return the distance an ORDER BY key asks for, and whether descending; None for others.

    ``node`` is what the key stands for.
    """
    found = _distance_of(core, node)
    if found is None or not is_query(found[0].right) or key.args.get("nulls_first"):
        return None
    distance, falls = found
    return distance, bool(key.args.get("desc")) != falls


def _distance_of(core: Core, node: Any) -> tuple[ex.Distance, bool] | None:
    """Return the distance a key rises with, and whether it falls with it instead; None for others.

    Understood are a distance and what adding, subtracting, multiplying and dividing by numbers
    make of it, and ``number / (number + distance)`` where no distance is negative.
    """
    match node:
        case exp.Paren():
            return _distance_of(core, node.this)
        case exp.Neg():
            return _turned(_distance_of(core, node.this), True)
        case exp.Add() | exp.Sub() | exp.Mul() | exp.Div():
            return _distance_beside(core, node)
    match core.expr(node):
        case ex.Distance() as distance:
            return distance, False
        case ex.Arithmetic("*", ex.Literal(-1), ex.Distance() as distance):  # inner_product
            return distance, True
    return None


def _distance_beside(core: Core, node: Any) -> tuple[ex.Distance, bool] | None:
    left, right = _number(node.this), _number(node.expression)
    if (left is None) == (right is None):
        return None
    if right is not None:
        found = _distance_of(core, node.this)
        scale = right if isinstance(node, (exp.Mul, exp.Div)) else 1
        return None if scale == 0 else _turned(found, scale < 0)
    assert left is not None
    if isinstance(node, exp.Div):
        return _turned(_above_zero(core, node.expression), left > 0) if left else None
    found = _distance_of(core, node.expression)
    if isinstance(node, exp.Mul):
        return None if left == 0 else _turned(found, left < 0)
    return _turned(found, isinstance(node, exp.Sub))


def _above_zero(core: Core, node: Any) -> tuple[ex.Distance, bool] | None:
    """Return the distance in ``number + distance`` where that is always above zero."""
    node = node.unnest()
    if not isinstance(node, exp.Add):
        return None
    number = _number(node.this)
    inner = node.expression if number is not None else node.this
    number = number if number is not None else _number(node.expression)
    distance = core.expr(inner.unnest())
    if not isinstance(distance, ex.Distance) or distance.function or distance.op == "<#>":
        return None
    return (distance, False) if number is not None and number > 0 else None


def _turned(found: tuple[ex.Distance, bool] | None, turns: bool) -> tuple[ex.Distance, bool] | None:
    return None if found is None else (found[0], found[1] != turns)


def _number(node: Any) -> float | None:
    """Return a number that is written out; None for anything else."""
    node = node.unnest()
    if isinstance(node, exp.Neg):
        inner = _number(node.this)
        return None if inner is None else -inner
    if not isinstance(node, exp.Literal) or node.is_string:
        return None
    try:
        return float(node.this)
    except ValueError:  # 1e400.5 passes for one; who runs the statement refuses it
        return None


def ordered_node(select: TableSelect, ordered: Any) -> Any:
    """Return what an ORDER BY key stands for: an item of the SELECT list, or itself."""
    return meant(ordered.this, select.aliases, select.node.expressions)


def meant(node: Any, aliases: dict[str, Any], items: list[Any]) -> Any:
    """Return the item of a SELECT list that a name or a number in ORDER BY means, or itself."""
    if isinstance(node, exp.Column) and node.args.get("table") is None:
        return aliases.get(node.name.lower(), node)
    if isinstance(node, exp.Literal) and not node.is_string and node.this.isdigit():
        position = int(node.this) - 1
        if 0 <= position < len(items):
            return items[position].unalias()
    return node


def is_query(expr: ex.Expr) -> bool:
    """Return True for what can be a query vector: it depends on no row."""
    return isinstance(expr, (ex.Literal, ex.Parameter, ex.Call))


def _mentions_distance(conjuncts: list[Any]) -> bool:
    return any(
        isinstance(side, (exp.Anonymous, exp.Column))
        for node in conjuncts
        for side in (node.args.get("this"), node.args.get("expression"))
        if isinstance(node, (exp.LT, exp.LTE, exp.GT, exp.GTE))
    )


def _is_radius(term: ex.Expr, shape: KnnShape | None) -> bool:
    if not isinstance(term, ex.Compare) or term.op not in ("<", "<="):
        return False
    left = term.left
    if not isinstance(left, ex.Distance) or not isinstance(term.right, (ex.Literal, ex.Parameter)):
        return False
    if shape is not None:
        return left == shape.distance
    return is_query(left.right)


def radius_of(core: Core, nodes: list[Any], distance: ex.Distance) -> tuple[ex.Expr | None, bool]:
    """Return how far rows may be by conditions that must all hold, and whether that far is near."""
    for node in nodes:
        term = core.condition(node)
        if term is not None and _is_radius(term, KnnShape(distance)):
            assert isinstance(term, ex.Compare)
            return term.right, term.op == "<="
    return None, False


def make_knn(
    select: TableSelect,
    shape: KnnShape,
    outputs: tuple[Output, ...],
    filter_sql: Relational | None = None,
) -> Knn:
    """Return the plan of a recognised search."""
    left = shape.distance.left
    assert isinstance(left, ex.ColumnRef)
    return Knn(
        select.table, left.column, shape.distance, outputs, select.limit, select.offset,
        shape.predicate, shape.within, shape.within_inclusive, shape.descending, filter_sql,
        shape.filters,
    )  # fmt: skip
