"""pgvector's functions of vectors in relational text: arithmetic, norms, parts, sums and means.

``a + b``, ``a - b`` and ``a * b`` are of elements where a side is known to be a vector: a column of
a table, a cast, a model's vector, another of these. DuckDB's own ``+`` puts lists together, and
stays for lists. The engine registers ``__vector_<operation>``; DuckDB does what it has words for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from sqlglot import exp

from tarsdb.errors import BindError, DimensionMismatchError
from tarsdb.sql.binding import Binding, where
from tarsdb.sql.calls import resolve_call
from tarsdb.sql.function_calls import duckdb_type, rewrite_aggregate
from tarsdb.sql.scope import Scope
from tarsdb.types import Kind, SqlType, parse_type

ARITHMETIC: dict[type, tuple[str, str]] = {
    exp.Add: ("add", "+"), exp.Sub: ("subtract", "-"), exp.Mul: ("multiply", "*"),
}  # fmt: skip
AGGREGATES: dict[type, str] = {exp.Sum: "sum", exp.Avg: "avg"}
_NUMBERS = (Kind.VECTOR, Kind.HALFVEC, Kind.INT8VEC)


class _Walker(Protocol):
    binding: Binding


class VectorFunctions:
    """Rewrites operators and calls; operands are left for the walk to go on with."""

    def __init__(self, walker: _Walker) -> None:
        self.walker = walker
        self.registered: dict[str, None] = {}

    def rewrite(self, node: Any, scope: Scope) -> Any:
        """Replace an operator or a call of vectors.

        Returns
        -------
        Expr or None
            What took its place; None where it is no such thing and stays.

        Raises
        ------
        BindError
            The arguments do not fit the function.
        DimensionMismatchError
            Dimensions are known and disagree.
        """
        if type(node) in ARITHMETIC:
            return self._arithmetic(node, scope)
        if type(node) in AGGREGATES:
            return self._aggregate(node, scope)
        call = _CALLS.get(node.name.lower())
        return None if call is None else _put(node, call(self, node, scope))

    def _arithmetic(self, node: Any, scope: Scope) -> Any:
        found = self._result(node, scope)
        if found is None:
            return None
        sides = (_as(side, found) for side in (node.this, node.expression))
        return _put(node, self._own(ARITHMETIC[type(node)][0], found, *sides))

    def _aggregate(self, node: Any, scope: Scope) -> Any:
        """Rewrite ``sum(v)`` or ``avg(v)``, with DISTINCT, FILTER and OVER."""
        found = self.type_of(node, scope)
        if found is None:
            return None
        name, argument = AGGREGATES[type(node)], node.this
        call = _put(node, exp.Anonymous(this=name, expressions=[argument]))
        inner = argument.expressions[0] if isinstance(argument, exp.Distinct) else argument
        whole = rewrite_aggregate(call, name, self._name(name), _as(inner, found))
        holder = _put(whole, exp.Cast(to=_array(found)))
        holder.set("this", whole)
        return holder

    def type_of(self, node: Any, scope: Scope) -> SqlType | None:
        """Return the VECTOR type of an expression; None where it is none or nothing tells."""
        while isinstance(node, (exp.Paren, exp.Distinct)):
            node = node.this if isinstance(node, exp.Paren) else node.expressions[0]
        found: SqlType | None = None
        if isinstance(node, exp.Column):
            column = scope.resolve(node)
            found = column.type if column is not None else None
        elif isinstance(node, exp.Cast):
            found = _cast_type(node.to)
        elif type(node) in ARITHMETIC:
            return self._result(node, scope)
        elif type(node) in AGGREGATES:
            return self.type_of(node.this, scope)
        elif isinstance(node, exp.Anonymous):
            if node.name.lower() == "l2_normalize" and node.expressions:
                return self.type_of(node.expressions[0], scope)
            call = resolve_call(self.walker.binding, node)
            found = call.returns if call is not None else None
        if found is None or found.kind not in _NUMBERS or not found.dim:
            return None
        return SqlType(Kind.VECTOR, dim=found.dim)

    def _result(self, node: Any, scope: Scope) -> SqlType | None:
        """Return the type of arithmetic of vectors, None where no side is known to be one."""
        sides = (node.this, node.expression)
        left, right = (self.type_of(side, scope) for side in sides)
        if left is not None or right is not None:
            for side in sides:
                _check(ARITHMETIC[type(node)][1], side, scope)
        if left is not None and right is not None and left.dim != right.dim:
            raise DimensionMismatchError(
                f"{ARITHMETIC[type(node)][1]}: the left vector has {left.dim} dimensions, the "
                f"right one {right.dim}{where(node)}"
            )
        return left or right

    def _name(self, operation: str) -> str:
        self.registered[operation] = None
        return f"__vector_{operation}"

    def _own(self, operation: str, returns: SqlType | None, *arguments: Any) -> Any:
        call = exp.Anonymous(this=self._name(operation), expressions=list(arguments))
        return call if returns is None else _as(call, returns)

    def _norm(self, node: Any, scope: Scope) -> Any:
        return self._own("norm", None, _vector(node, scope))

    def _normalize(self, node: Any, scope: Scope) -> Any:
        vector = _vector(node, scope)
        return self._own("normalize", self.type_of(vector, scope), vector)

    def _quantize(self, node: Any, scope: Scope) -> Any:
        return self._own("signs", None, _vector(node, scope))

    def _inner_product(self, node: Any, scope: Scope) -> Any:
        negative = exp.Anonymous(this="__distance_ip", expressions=_arguments(node, 2))
        return exp.Paren(this=exp.Neg(this=negative))

    def _dims(self, node: Any, scope: Scope) -> Any:
        return exp.Anonymous(this="len", expressions=[_vector(node, scope)])

    def _part(self, node: Any, scope: Scope) -> Any:
        vector, (first, count) = _vector(node, scope, 3), node.expressions[1:]
        whole = [part for part in (first, count) if isinstance(part, exp.Literal) and part.is_int]
        if len(whole) != 2 or int(first.this) < 1 or int(count.this) < 1:
            raise BindError(
                f"subvector takes a vector, its first element from 1, and how many{where(node)}",
                hint="subvector(emb, 1, 64); the numbers are constants",
            )
        stop = int(first.this) + int(count.this) - 1
        known = self.type_of(vector, scope)
        if known is not None and stop > (known.dim or 0):
            raise DimensionMismatchError(
                f"subvector to element {stop} of a vector of {known.dim} dimensions{where(node)}"
            )
        end = exp.Literal.number(stop)
        part = exp.Anonymous(this="list_slice", expressions=[vector, first, end])
        return _as(part, SqlType(Kind.VECTOR, dim=int(count.this)))


_CALLS: dict[str, Callable[[VectorFunctions, Any, Scope], Any]] = {
    "vector_dims": VectorFunctions._dims,
    "vector_norm": VectorFunctions._norm,
    "l2_norm": VectorFunctions._norm,
    "l2_normalize": VectorFunctions._normalize,
    "inner_product": VectorFunctions._inner_product,
    "subvector": VectorFunctions._part,
    "binary_quantize": VectorFunctions._quantize,
}


def _put(node: Any, replacement: Any) -> Any:
    node.replace(replacement)
    return replacement


def _arguments(node: Any, count: int) -> list[Any]:
    found = list(node.expressions)
    if len(found) != count:
        raise BindError(f"{node.name} takes {count} arguments, not {len(found)}{where(node)}")
    return found


def _vector(node: Any, scope: Scope, count: int = 1) -> Any:
    """Return a call's first argument, which must not be known to be no vector."""
    vector = _arguments(node, count)[0]
    _check(node.name, vector, scope)
    return vector


def _check(what: str, side: Any, scope: Scope) -> None:
    while isinstance(side, exp.Paren):
        side = side.this
    column = scope.resolve(side) if isinstance(side, exp.Column) else None
    if column is not None and column.type.kind not in _NUMBERS:
        raise BindError(
            f"{what} needs vectors of numbers, column {column.name} is {column.type}{where(side)}"
        )
    if isinstance(side, exp.Literal) and not side.is_string:
        raise BindError(f"{what} needs vectors of numbers, {side.this} is a number{where(side)}")


def _array(sql_type: SqlType) -> Any:
    return exp.DataType.build(duckdb_type(sql_type), dialect="duckdb")


def _as(node: Any, sql_type: SqlType) -> Any:
    return exp.Cast(this=node, to=_array(sql_type))


def _cast_type(target: Any) -> SqlType | None:
    """Return the vector type a cast names, None for others and where it names no dimension."""
    name = "VECTOR" if target.this is exp.DType.VECTOR else target.name.upper()
    sizes = [part.name for part in target.expressions]
    if name not in ("VECTOR", "HALFVEC", "INT8VEC") or not sizes or not sizes[0].isdigit():
        return None
    return parse_type(f"{name}({sizes[0]})")
