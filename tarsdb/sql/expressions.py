"""Bound expressions the engine evaluates itself: the small core of SQL the fast path needs.

An expression outside this core stays SQL text and goes to the relational engine. Names are
resolved: a ``ColumnRef`` carries the column's definition. NULL follows three-valued logic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tarsdb.records import dataclass
from tarsdb.schema import ColumnDef
from tarsdb.types import SqlType

ROWID = "rowid"


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant: None, bool, int, float, Decimal, str, bytes, date or datetime."""

    value: Any


@dataclass(frozen=True, slots=True)
class Parameter:
    """A bound parameter: zero-based position, or name without its prefix."""

    key: int | str


@dataclass(frozen=True, slots=True)
class ColumnRef:
    """A column of the statement's one table."""

    column: ColumnDef


@dataclass(frozen=True, slots=True)
class RowidRef:
    """The 64-bit row id of the statement's one table."""


@dataclass(frozen=True, slots=True)
class Excluded:
    """``excluded.column`` of ON CONFLICT DO UPDATE."""

    column: ColumnDef


@dataclass(frozen=True, slots=True)
class Compare:
    """``left op right``; op is one of ``= <> < <= > >=``."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class And:
    """All of the terms."""

    terms: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Any of the terms."""

    terms: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Negation; NULL stays NULL."""

    operand: Expr


@dataclass(frozen=True, slots=True)
class IsNull:
    """``operand IS NULL`` (IS NOT NULL is Not of it)."""

    operand: Expr


@dataclass(frozen=True, slots=True)
class InList:
    """``operand IN (items)``; a NULL item makes a miss NULL."""

    operand: Expr
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Like:
    """``operand LIKE pattern``, or ILIKE: a column of texts, and a text for all rows."""

    operand: Expr
    pattern: Expr
    ignores_case: bool = False


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """``left op right`` of numbers; op is one of ``+ - *``. Integer overflow is a DataError."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Scalar:
    """Function ``name`` of texts (``length``, ``||``, ...), or ``cast`` of a number to a wider one.

    NULL gives NULL.
    """

    name: str
    args: tuple[Expr, ...]
    returns: SqlType


@dataclass(frozen=True, slots=True)
class Case:
    """The value of the first condition that is true, else the last value.

    There is one value more than there are conditions, all of type ``returns``. All of them are
    evaluated for every row, so none may fail.
    """

    conditions: tuple[Expr, ...]
    values: tuple[Expr, ...]
    returns: SqlType


@dataclass(frozen=True, slots=True)
class Distance:
    """``left op right`` of vectors; op is one of ``<-> <#> <=> <+> <~> <%>``.

    With ``function`` set it is a call of that sandboxed metric, whose name ``op`` is too. ``left``
    is a column, the function's second argument where ``is_swapped``.
    """

    op: str
    left: Expr
    right: Expr
    function: str = ""
    is_swapped: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """Call of a model function (``embed``) or of a catalog or session function.

    ``target`` is the catalog name for ``kind`` 'udf' and 'tokenizer' and the model's name for
    ``kind`` 'model' (empty for a function without a model). ``options`` are constants by name, of
    models and tokenizers only; a value is a Literal (of a tuple for a list) or a Parameter.
    ``takes`` are the types that constants are converted to: the declared ones of a catalog
    function's arguments, lists of numbers of a model that
    takes these; ``is_volatile`` says that two equal calls may differ.
    """

    kind: str
    name: str
    target: str
    args: tuple[Expr, ...]
    returns: SqlType | None = None
    options: tuple[tuple[str, Expr], ...] = ()
    takes: tuple[SqlType, ...] = ()
    is_volatile: bool = False


@dataclass(frozen=True, slots=True)
class Guarded:
    """A call, made for the rows where a condition is true; NULL in the others."""

    condition: Expr
    call: Call


Expr = (
    Literal | Parameter | ColumnRef | RowidRef | Excluded | Compare | And | Or | Not | IsNull
    | InList | Like | Arithmetic | Scalar | Case | Distance | Call | Guarded
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Output:
    """One result column: its name, its expression, and its type where the binder knows it."""

    name: str
    expr: Expr
    type: SqlType | None = None


def children(node: Expr) -> Sequence[Expr]:
    """Return the operands of an expression."""
    match node:
        case Compare() | Arithmetic() | Distance():
            return (node.left, node.right)
        case And() | Or():
            return node.terms
        case Not() | IsNull():
            return (node.operand,)
        case InList():
            return (node.operand, *node.items)
        case Like():
            return (node.operand, node.pattern)
        case Call() | Scalar():
            return node.args
        case Case():
            return (*node.conditions, *node.values)
        case Guarded():
            return (node.condition, node.call)
        case _:
            return ()


def walk(*expressions: Expr | None, known: Expr | None = None) -> Iterator[Expr]:
    """Yield every node of some expressions, each before its operands; not what is ``known``."""
    stack = [expression for expression in expressions if expression is not None]
    while stack:
        node = stack.pop()
        if known is not None and node == known:
            continue
        yield node
        stack.extend(children(node))


def calls(*expressions: Expr | None) -> list[Call]:
    """Return the calls in some expressions, the outer before the inner ones."""
    return [node for node in walk(*expressions) if isinstance(node, Call)]
