"""sqlglot expressions to bound expressions of the native core; None for what lies outside it.

Outside is anything whose meaning could differ from DuckDB's: division, most casts and functions,
comparisons across kinds of types. Those stay SQL text.
"""

from __future__ import annotations

import datetime as dt
import decimal
import re
from collections.abc import Callable
from typing import Any

from sqlglot import exp

from tarsdb.errors import BindError
from tarsdb.schema import FunctionDef
from tarsdb.sql import expressions as ex
from tarsdb.sql import scalars
from tarsdb.sql.binding import Binding, distance_sides, where
from tarsdb.sql.calls import own_call, resolve_call
from tarsdb.sql.dialect import OPERATOR_OF, parameter_name
from tarsdb.sql.kinds import BOOLEAN_NODES, category, check_operator, fits_declaration, output_type
from tarsdb.types import BIGINT, DOUBLE, INT, Kind

Lookup = Callable[[Any], ex.Expr | None]

_COMPARE = {exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">="}
_ARITHMETIC = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*"}
MAX_INT = 2**63 - 1


class Core:
    """Converts expressions over one row source.

    Parameters
    ----------
    binding : Binding
    lookup : callable
        sqlglot Column -> ColumnRef, Excluded, RowidRef, an aliased expression, or None (outside).
    calls : bool
        Whether all calls of models and functions are inside (they are for constants, defaults,
        generated columns and assignments).
    functions : bool
        Whether calls of sandboxed functions over columns are, where the arguments fit the
        declaration without casts of DuckDB's; a SELECT sends all others to the relational engine.
    """

    def __init__(
        self, binding: Binding, lookup: Lookup, *, calls: bool = False, functions: bool = False
    ) -> None:
        self.binding = binding
        self.lookup = lookup
        self.calls = calls
        self.functions = functions

    def expr(self, node: Any) -> ex.Expr | None:
        """Convert an expression; None when it is outside the core."""
        convert = _CONVERT.get(type(node))
        return None if convert is None else convert(self, node)

    def conjuncts(self, node: Any) -> list[Any]:
        """Return the terms of a condition joined by AND."""
        return flatten(node, exp.And)

    def column(self, node: Any) -> ex.Expr | None:
        """Convert a column reference."""
        return self.lookup(node)

    def constant(self, node: Any) -> ex.Expr | None:
        """Convert an expression without columns; model and function calls are allowed."""
        inner = Core(self.binding, _no_columns, calls=True)
        return inner.expr(node)

    def compare(self, node: Any) -> ex.Expr | None:
        """Convert a comparison of operands that compare without ambiguity."""
        left, right = self.expr(node.this), self.expr(node.expression)
        return make_compare(_COMPARE[type(node)], left, right)

    def connect(self, node: Any) -> ex.Expr | None:
        """Convert AND or OR."""
        kind = type(node)
        terms = [self.condition(term) for term in flatten(node, kind)]
        if any(term is None for term in terms):
            return None
        known = tuple(term for term in terms if term is not None)
        return ex.And(known) if kind is exp.And else ex.Or(known)

    def condition(self, node: Any) -> ex.Expr | None:
        """Convert an expression used as a truth value."""
        converted = self.expr(node)
        if converted is None or isinstance(converted, BOOLEAN_NODES):
            return converted
        return converted if category(converted) in ("bool", "null") else None

    def negation(self, node: Any) -> ex.Expr | None:
        """Convert NOT."""
        operand = self.condition(node.this)
        return None if operand is None else ex.Not(operand)

    def is_null(self, node: Any) -> ex.Expr | None:
        """Convert IS [NOT] NULL (other IS forms are outside)."""
        if not isinstance(node.expression, exp.Null):
            return None
        operand = self.expr(node.this)
        if operand is None or isinstance(operand, (ex.Parameter, ex.Literal)):
            return None
        if category(operand) == "vector":
            return None
        return ex.Not(ex.IsNull(operand)) if node.args.get("negate") else ex.IsNull(operand)

    def between(self, node: Any) -> ex.Expr | None:
        """Convert BETWEEN to two comparisons."""
        if node.args.get("symmetric"):
            return None
        operand = self.expr(node.this)
        low = make_compare(">=", operand, self.expr(node.args["low"]))
        high = make_compare("<=", operand, self.expr(node.args["high"]))
        return None if low is None or high is None else ex.And((low, high))

    def in_list(self, node: Any) -> ex.Expr | None:
        """Convert IN (constants)."""
        items = node.args.get("expressions")
        if not items or node.args.get("query") or node.args.get("unnest") or node.args.get("field"):
            return None
        operand = self.expr(node.this)
        if not isinstance(operand, ex.ColumnRef):
            return None
        converted = [self.expr(item) for item in items]
        for item in converted:
            if not isinstance(item, (ex.Literal, ex.Parameter)):
                return None
            if make_compare("=", operand, item) is None:
                return None
        return ex.InList(operand, tuple(item for item in converted if item is not None))

    def like(self, node: Any) -> ex.Expr | None:
        """Convert [NOT] LIKE of texts and a constant pattern; only a SELECT has ILIKE inside."""
        ignores_case = isinstance(node, exp.ILike)
        operand, pattern = self.expr(node.this), self.expr(node.expression)
        if not isinstance(operand, (ex.ColumnRef, ex.Excluded, ex.Scalar)):
            return None
        if category(operand) != "text" or (ignores_case and not self.functions):
            return None
        is_text = isinstance(pattern, ex.Literal) and isinstance(pattern.value, str)
        if pattern is None or not (is_text or isinstance(pattern, ex.Parameter)):
            return None
        found = ex.Like(operand, pattern, ignores_case)
        return ex.Not(found) if node.args.get("negate") else found

    def arithmetic(self, node: Any) -> ex.Expr | None:
        """Convert + - * of plain numbers."""
        left, right = self.expr(node.this), self.expr(node.expression)
        if left is None or right is None:
            return None
        kinds = {category(left), category(right)}
        if "number" not in kinds or kinds - {"number", "param"}:
            return None
        result = ex.Arithmetic(_ARITHMETIC[type(node)], left, right)
        if "param" in kinds:
            known = output_type(right if isinstance(left, ex.Parameter) else left)
            return result if known in (None, INT, BIGINT, DOUBLE) else None
        return None if output_type(result) is None and not self.calls else result

    def negative(self, node: Any) -> ex.Expr | None:
        """Convert unary minus; a literal is folded."""
        operand = self.expr(node.this)
        if isinstance(operand, ex.Literal) and category(operand) == "number":
            return ex.Literal(-operand.value)
        if operand is None or category(operand) != "number":
            return None
        result = ex.Arithmetic("*", ex.Literal(-1), operand)
        return None if output_type(result) is None else result

    def literal(self, node: Any) -> ex.Expr | None:
        """Convert a string or a number."""
        if node.is_string:
            return ex.Literal(node.this)
        return number(node.this)

    def cast(self, node: Any) -> ex.Expr | None:
        """Convert DATE '...' , TIMESTAMP '...', '[...]'::vector, and in a SELECT wider numbers."""
        kind = node.to.this
        operand = self.expr(node.this)
        if kind is exp.DType.VECTOR or node.to.name.upper() in ("HALFVEC", "INT8VEC"):
            return operand if isinstance(operand, (ex.Literal, ex.Parameter)) else None
        if isinstance(operand, ex.Literal) and isinstance(operand.value, str):
            if kind is exp.DType.DATE and is_date(operand.value):
                return ex.Literal(dt.date.fromisoformat(operand.value))
            stamps = (exp.DType.TIMESTAMP, exp.DType.TIMESTAMPNTZ)
            if kind in stamps and is_timestamp(operand.value):
                return ex.Literal(dt.datetime.fromisoformat(operand.value))
        return scalars.wider(operand, node.to) if self.functions else None

    def array(self, node: Any) -> ex.Expr | None:
        """Convert ``[1, 2, 3]`` of numbers to vector text."""
        items = [self.expr(item) for item in node.expressions]
        values = [item.value for item in items if isinstance(item, ex.Literal)]
        if len(values) != len(items) or not all(_is_number(value) for value in values):
            return None
        return ex.Literal("[" + ",".join(str(value) for value in values) + "]")

    def parameter(self, node: Any) -> ex.Expr | None:
        """Convert a parameter."""
        return ex.Parameter(parameter_key(node))

    def call(self, node: Any) -> ex.Expr | None:
        """Convert a distance, or a call of a model or function where calls are inside."""
        operator = OPERATOR_OF.get(node.name)
        if operator is not None:
            return self.distance(node, operator)
        call = resolve_call(self.binding, node)
        if call is None and node.name.lower() == "inner_product":
            negative = self.distance(node, "<#>")
            return ex.Arithmetic("*", ex.Literal(-1), negative) if negative is not None else None
        if call is not None and call.function is not None and call.function.role == "metric":
            metric = self.metric(call.function, call.arguments)
            if metric is not None:
                return metric
        if call is None or call.kind in ("aggregate", "table"):
            return None
        if not self.calls and not (self.functions and call.kind == "udf"):
            return None
        arguments = [self.expr(argument) for argument in call.arguments]
        known = tuple(argument for argument in arguments if argument is not None)
        if len(known) < len(arguments):
            return None
        converted = own_call(call, known)
        return converted if self.calls or fits_declaration(converted) else None

    def text_function(self, node: Any) -> ex.Expr | None:
        """Convert a function of texts; only a SELECT has them inside."""
        if not self.functions:
            return None
        operands = [node.this] if isinstance(node, exp.Func) else flatten(node, exp.DPipe)
        return scalars.text_function(type(node), [self.expr(operand) for operand in operands])

    def coalesce(self, node: Any) -> ex.Expr | None:
        """Convert COALESCE and IFNULL; only a SELECT has them inside."""
        if not self.functions:
            return None
        return scalars.coalesce([self.expr(each) for each in (node.this, *node.expressions)])

    def case(self, node: Any) -> ex.Expr | None:
        """Convert CASE; only a SELECT has it inside."""
        if not self.functions:
            return None
        subject = None if node.this is None else self.expr(node.this)
        if node.this is not None and subject is None:
            return None
        conditions = [
            self.condition(each.this)
            if subject is None
            else make_compare("=", subject, self.expr(each.this))
            for each in node.args["ifs"]
        ]
        values = [self.expr(each.args["true"]) for each in node.args["ifs"]]
        default = node.args.get("default")
        values.append(ex.Literal(None) if default is None else self.expr(default))
        return scalars.case(conditions, values)

    def distance(self, node: Any, operator: str) -> ex.Expr | None:
        """Convert ``a <op> b``; a column stands left, a constant right."""
        left, right = map(self.vector, distance_sides(node))
        if left is None or right is None:
            return None
        if not isinstance(left, ex.ColumnRef):
            left, right = right, left
        if not isinstance(left, ex.ColumnRef):
            return None
        check_operator(operator, left.column, where(node))
        if isinstance(right, ex.ColumnRef):
            check_operator(operator, right.column, where(node))
            if right.column.type != left.column.type:
                raise BindError(
                    f"{left.column.name} {operator} {right.column.name}: {left.column.type} and "
                    f"{right.column.type} differ{where(node)}"
                )
        return ex.Distance(operator, left, right)

    def metric(self, function: FunctionDef, arguments: tuple[Any, ...]) -> ex.Expr | None:
        """Convert a sandboxed metric of a vector column and a constant; None for other calls."""
        sides = [self.vector(side) for side in arguments]
        is_swapped = isinstance(sides[1], ex.ColumnRef)
        column, query = sides[::-1] if is_swapped else sides
        if not isinstance(column, ex.ColumnRef) or query is None:
            return None
        sql_type, (_, wanted) = column.column.type, function.arguments[0]
        if isinstance(query, ex.ColumnRef) or sql_type.kind is Kind.BIT:
            return None
        if not sql_type.is_vector or sql_type.dim != wanted.dim:
            return None
        return ex.Distance(function.name, column, query, function.name, is_swapped)

    def vector(self, node: Any) -> ex.Expr | None:
        """Convert an operand of a distance: a column, or a constant of any form."""
        while isinstance(node, exp.Paren):
            node = node.this
        if isinstance(node, exp.Column):
            found = self.lookup(node)
            return found if isinstance(found, ex.ColumnRef) else None
        return self.constant(node)


def _no_columns(node: Any) -> ex.Expr | None:
    return None


def flatten(node: Any, kind: type[Any]) -> list[Any]:
    """Return the operands of a chain of AND or OR in order, without recursion."""
    terms, stack = [], [node]
    while stack:
        top = stack.pop()
        while isinstance(top, exp.Paren) and isinstance(top.this, kind):
            top = top.this
        if isinstance(top, kind):
            stack.append(top.expression)
            stack.append(top.this)
        else:
            terms.append(top)
    return terms


def conjunction(terms: list[ex.Expr]) -> ex.Expr | None:
    """Return the terms joined by AND (None for none)."""
    if not terms:
        return None
    flat: list[ex.Expr] = []
    for term in terms:
        flat.extend(term.terms if isinstance(term, ex.And) else (term,))
    return flat[0] if len(flat) == 1 else ex.And(tuple(flat))


def make_compare(op: str, left: ex.Expr | None, right: ex.Expr | None) -> ex.Expr | None:
    """Return a comparison, or None when its meaning depends on casts."""
    if left is None or right is None:
        return None
    if isinstance(left, (ex.Literal, ex.Parameter)) and not isinstance(
        right, (ex.Literal, ex.Parameter)
    ):
        flipped = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(op, op)
        return make_compare(flipped, right, left)
    return ex.Compare(op, left, right) if _comparable(op, left, right) else None


def _comparable(op: str, left: ex.Expr, right: ex.Expr) -> bool:
    first, second = category(left), category(right)
    if first in ("param", "null"):
        return False
    if second in ("param", "null"):
        usable = ("number", "text", "bool", "date", "timestamp", "decimal")
        return first in usable or (first == "uuid" and op in ("=", "<>"))
    if first == second:
        return first in ("number", "text", "bool", "date", "timestamp")
    if first == "decimal":
        return second == "number" and isinstance(right, ex.Literal)
    text = right.value if isinstance(right, ex.Literal) else None
    if not isinstance(text, str):
        return False
    return (
        (first == "date" and is_date(text))
        or (first == "timestamp" and is_timestamp(text))
        or (first == "uuid" and op in ("=", "<>") and _UUID.fullmatch(text) is not None)
    )


_UUID = re.compile(r"[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])")
_TIME = re.compile(r"([ T]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?)?")


def is_date(text: str) -> bool:
    """Return True for a date every reader reads alike (29..31 go the long way)."""
    return _DATE.fullmatch(text) is not None


def is_timestamp(text: str) -> bool:
    """Return True for a timestamp every reader reads alike."""
    return _DATE.fullmatch(text[:10]) is not None and _TIME.fullmatch(text[10:]) is not None


def number(text: str) -> ex.Literal | None:
    """Return the literal of a number's text: int, Decimal for 1.5, float for 1e5."""
    plain = text.replace("_", "")
    try:
        if plain.isdigit():
            value = int(plain)
            return ex.Literal(value) if value <= MAX_INT else None
        if "e" in plain.lower():
            return ex.Literal(float(plain))
        return ex.Literal(decimal.Decimal(plain))
    except (ValueError, decimal.InvalidOperation):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, decimal.Decimal)) and not isinstance(value, bool)


def parameter_key(node: Any) -> int | str:
    """Return the key of a parameter node: a 0-based position or a name."""
    name = parameter_name(node)
    return int(name) - 1 if name.isdigit() else name


_CONVERT: dict[type[Any], Callable[[Core, Any], ex.Expr | None]] = {
    exp.Column: Core.column,
    exp.Literal: Core.literal,
    exp.Placeholder: Core.parameter,
    exp.Parameter: Core.parameter,
    exp.And: Core.connect,
    exp.Or: Core.connect,
    exp.Not: Core.negation,
    exp.Is: Core.is_null,
    exp.In: Core.in_list,
    exp.Between: Core.between,
    exp.Like: Core.like,
    exp.ILike: Core.like,
    exp.Neg: Core.negative,
    exp.Cast: Core.cast,
    exp.Array: Core.array,
    exp.Anonymous: Core.call,
    exp.Coalesce: Core.coalesce,
    exp.Case: Core.case,
    **dict.fromkeys(scalars.TEXT_FUNCTIONS, Core.text_function),
    exp.Paren: lambda self, node: self.expr(node.this),
    exp.Null: lambda self, node: ex.Literal(None),
    exp.Boolean: lambda self, node: ex.Literal(bool(node.this)),
    exp.HexString: lambda self, node: ex.Literal(bytes.fromhex(node.this)),
    exp.RawString: lambda self, node: ex.Literal(node.this),
    **dict.fromkeys(_COMPARE, Core.compare),
    **dict.fromkeys(_ARITHMETIC, Core.arithmetic),
}
