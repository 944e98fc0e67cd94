"""Functions of texts, casts, COALESCE and CASE that the engine evaluates itself, of plain types.

Plain are operands of one type, and literals that DuckDB gives that type. What may fail for a row
(arithmetic, calls) is left to DuckDB, which evaluates it for the rows that come to it only; so are
parameters as values, whose type shows at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlglot import exp

from tarsdb.sql import expressions as ex
from tarsdb.sql.kinds import is_wider, output_type
from tarsdb.types import BIGINT, BOOLEAN, DOUBLE, INT, REAL, TEXT, Kind, SqlType

_NAMES = {exp.Length: "length", exp.DPipe: "||", exp.Lower: "lower", exp.Upper: "upper"}
TEXT_FUNCTIONS = tuple(_NAMES)
_CHOSEN = frozenset(
    {Kind.TEXT, Kind.BOOLEAN, Kind.INT, Kind.BIGINT, Kind.DOUBLE, Kind.DATE, Kind.TIMESTAMP}
)
_WHOLE = {Kind.INT: 2**31, Kind.BIGINT: 2**63, Kind.DOUBLE: 2**53}
"""Absolute values below which whole literals beside a type become that type exactly."""
_NUMBERS = {
    exp.DType.INT: INT, exp.DType.BIGINT: BIGINT, exp.DType.FLOAT: REAL, exp.DType.DOUBLE: DOUBLE,
}  # fmt: skip

Operands = Sequence[ex.Expr | None]


def text_function(kind: type[Any], operands: Operands) -> ex.Scalar | None:
    """Return a function of texts; None where an operand is anything else, or all are constants."""
    known = tuple(each for each in operands if each is not None and _is_text(each))
    constant = all(isinstance(each, ex.Literal) for each in known)
    if constant or len(known) < len(operands):
        return None
    return ex.Scalar(_NAMES[kind], known, BIGINT if kind is exp.Length else TEXT)


def wider(operand: ex.Expr | None, target: Any) -> ex.Scalar | None:
    """Return the cast of a number to a type that has all its values, or the nearest of each."""
    known = None if operand is None else output_type(operand)
    wanted = _NUMBERS.get(target.this)
    if known is None or operand is None or wanted is None or target.expressions:
        return None
    return ex.Scalar("cast", (operand,), wanted) if is_wider(known, wanted) else None


def coalesce(operands: Operands) -> ex.Case | None:
    """Return COALESCE as a CASE; None where types are not plain."""
    if any(each is None or isinstance(each, ex.Literal) for each in operands[:-1]):
        return None
    tests = [ex.Not(ex.IsNull(each)) for each in operands[:-1] if each is not None]
    return case(tests, operands) if tests else None


def case(conditions: Operands, values: Operands) -> ex.Case | None:
    """Return a CASE of conditions and one value more; None where it is DuckDB's to evaluate."""
    tests = tuple(each for each in conditions if each is not None)
    chosen = tuple(each for each in values if each is not None)
    if len(tests) < len(conditions) or len(chosen) < len(values) or _may_fail(*tests, *chosen):
        return None
    returns = _common(chosen)
    return None if returns is None else ex.Case(tests, chosen, returns)


def _is_text(node: ex.Expr) -> bool:
    if isinstance(node, ex.Literal):
        return isinstance(node.value, str)
    return output_type(node) == TEXT


def _may_fail(*nodes: ex.Expr) -> bool:
    kinds = (ex.Arithmetic, ex.Call, ex.Guarded, ex.Distance)
    return any(isinstance(node, kinds) for node in ex.walk(*nodes))


def _common(values: Sequence[ex.Expr]) -> SqlType | None:
    """Return the one type of some values; None where it takes DuckDB's rules to find it."""
    literals = [each.value for each in values if isinstance(each, ex.Literal)]
    present = [value for value in literals if value is not None]
    types = {output_type(each) for each in values if not isinstance(each, ex.Literal)}
    if not types and present:
        types = {_of_literal(present[0])}
    found = types.pop() if len(types) == 1 else None
    if found is None or found.kind not in _CHOSEN:
        return None
    return found if all(_becomes(value, found) for value in present) else None


def _of_literal(value: object) -> SqlType | None:
    if isinstance(value, bool):
        return BOOLEAN
    if isinstance(value, int):
        return INT
    if isinstance(value, float):
        return DOUBLE
    return TEXT if isinstance(value, str) else None


def _becomes(value: object, sql_type: SqlType) -> bool:
    """Return True where DuckDB makes a literal a value of the type beside others of it."""
    if isinstance(value, bool):
        return sql_type.kind is Kind.BOOLEAN
    if isinstance(value, int):
        return abs(value) < _WHOLE.get(sql_type.kind, 0)
    if isinstance(value, float):
        return sql_type.kind is Kind.DOUBLE
    return isinstance(value, str) and sql_type.kind is Kind.TEXT
