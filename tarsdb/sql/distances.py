"""Distance operators in relational text: names, operand types, which ones must be registered."""

from __future__ import annotations

from typing import Any, Protocol

from sqlglot import exp

from tarsdb.schema import ColumnDef
from tarsdb.sql.binding import Binding, distance_sides, where
from tarsdb.sql.calls import resolve_call
from tarsdb.sql.core import parameter_key
from tarsdb.sql.dialect import OPERATOR_OF
from tarsdb.sql.kinds import check_operator
from tarsdb.sql.scope import Scope
from tarsdb.types import Kind, SqlType

_ARRAY_TYPES = {"HALFVEC": "FLOAT", "INT8VEC": "TINYINT"}


class _Walker(Protocol):
    binding: Binding

    def walk(self, root: Any, scope: Scope) -> None: ...


class Distances:
    """Rewrites ``__distance_<op>(a, b)`` so that both sides are FLOAT[dim] (text for BIT)."""

    def __init__(self, walker: _Walker) -> None:
        self.walker = walker
        self.registered: dict[tuple[str, int], None] = {}
        self.bits: dict[int | str, SqlType] = {}
        """Parameters whose values are BIT, which DuckDB knows as text only."""

    def rewrite(self, node: Any, scope: Scope) -> None:
        """Rewrite one call; operands are walked."""
        operator = OPERATOR_OF[node.name]
        sides = list(distance_sides(node))
        columns = [_column(side, scope) for side in sides]
        types = [self._embedded(side) for side in sides]
        for position, column in enumerate(columns):
            if column is not None:
                check_operator(operator, column, where(node))
                types[position] = column.type
        sql_type = next((known for known in types if known is not None), None)
        dim = sql_type.dim or 0 if sql_type is not None else 0
        for side in sides:
            if sql_type is not None and sql_type.kind is Kind.BIT:
                self._note_bits(side, sql_type)
            self.walker.walk(side, scope)
        if sql_type is not None:
            typed = [
                _cast(side, sql_type) if _needs_cast(known, side) else side
                for side, known in zip(node.expressions, types, strict=True)
            ]
            node.set("expressions", typed)
        self.registered[(node.name.removeprefix("__distance_"), dim)] = None

    def _note_bits(self, side: Any, sql_type: SqlType) -> None:
        while isinstance(side, exp.Paren):
            side = side.this
        if isinstance(side, exp.Placeholder):
            self.bits[parameter_key(side)] = sql_type

    def _embedded(self, side: Any) -> SqlType | None:
        call = resolve_call(self.walker.binding, side) if isinstance(side, exp.Anonymous) else None
        known = call is not None and call.returns is not None and call.returns.is_vector
        return call.returns if call is not None and known else None

    def rewrite_cast(self, node: Any) -> None:
        """Turn CAST(x AS VECTOR(3)) into CAST(x AS FLOAT[3])."""
        target = node.to
        name = "VECTOR" if target.this is exp.DType.VECTOR else target.name.upper()
        if name != "VECTOR" and name not in _ARRAY_TYPES:
            return
        sizes = [part.name for part in target.expressions]
        size = sizes[0] if sizes and sizes[0].isdigit() else ""
        element = _ARRAY_TYPES.get(name, "FLOAT")
        node.set("to", exp.DataType.build(f"{element}[{size}]", dialect="duckdb"))


def _column(node: Any, scope: Scope) -> ColumnDef | None:
    while isinstance(node, exp.Paren):
        node = node.this
    return scope.resolve(node) if isinstance(node, exp.Column) else None


def _needs_cast(known: SqlType | None, side: Any) -> bool:
    return known is None or known.kind is Kind.INT8VEC or isinstance(side, exp.Placeholder)


def _cast(side: Any, sql_type: SqlType) -> Any:
    if sql_type.kind is Kind.BIT:
        return side
    array = exp.DataType.build(f"FLOAT[{sql_type.dim}]", dialect="duckdb")
    return exp.Cast(this=side, to=array)
