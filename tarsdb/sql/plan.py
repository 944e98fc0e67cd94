"""Plans: what the binder hands the engine. Data only; no I/O, no arrays.

A SELECT is one of the native plans (``PointLookup``, ``Scan``, ``Aggregate``, ``Knn``) or a
``Relational`` plan: SQL text for DuckDB over named relations, some of which may be native plans.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from tarsdb.records import dataclass
from tarsdb.schema import ColumnDef, FunctionDef, IndexDef, TableDef
from tarsdb.sql.expressions import Call, Distance, Expr, Output
from tarsdb.types import TEXT, SqlType


@dataclass(frozen=True)
class PointLookup:
    """``SELECT outputs FROM table WHERE <every column of a unique index = a value>``."""

    table: TableDef
    index: IndexDef
    key: tuple[Expr, ...]
    outputs: tuple[Output, ...]
    predicate: Expr | None = None  # what else WHERE asks
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # executor's own


@dataclass(frozen=True)
class RowKey:
    """Every column of a unique index = a parameter or literal, and what else WHERE asks."""

    index: IndexDef
    key: tuple[Expr, ...]
    rest: Expr | None = None


@dataclass(frozen=True)
class OrderBy:
    """One column of ORDER BY."""

    column: ColumnDef
    descending: bool = False
    nulls_first: bool = False


@dataclass(frozen=True)
class Scan:
    """``SELECT outputs FROM table [WHERE predicate] [LIMIT limit] [OFFSET offset]``.

    By rowid, or in the order of some columns.
    """

    table: TableDef
    outputs: tuple[Output, ...]
    predicate: Expr | None = None
    limit: Expr | None = None
    offset: Expr | None = None
    order: tuple[OrderBy, ...] = ()
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # executor's own


@dataclass(frozen=True)
class OneRow:
    """``SELECT outputs``, from no table."""

    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class AggregateCall:
    """``function`` is count_star, count, sum, avg, min or max; ``type`` is that of the operand.

    The operand is a column, or computed by a sandboxed function; None for count_star.
    """

    function: str
    operand: Expr | None
    name: str
    type: SqlType


@dataclass(frozen=True)
class Aggregate:
    """Ungrouped simple aggregates over one table."""

    table: TableDef
    calls: tuple[AggregateCall, ...]
    predicate: Expr | None = None


@dataclass(frozen=True)
class Knn:
    """Nearest neighbours of ``distance.right`` in the vector column ``distance.left`` names.

    Ascending distance, ties by rowid. ``limit`` None with ``within`` set is range search
    (``WHERE distance < within``). A (q, dim) matrix bound to the query makes a batch: limit is per
    query and a first output column ``query_no`` is added. NULL vectors are never neighbours.
    ``needs_filter_sql`` is set when part of WHERE is outside the native core: SQL text
    (see Relational) returning the rowids that pass.
    """

    table: TableDef
    column: ColumnDef
    distance: Distance
    outputs: tuple[Output, ...]  # a Distance equal to .distance means the computed distance
    limit: Expr | None
    offset: Expr | None = None
    predicate: Expr | None = None
    within: Expr | None = None
    within_inclusive: bool = False
    descending: bool = False
    needs_filter_sql: Relational | None = None
    filters: tuple[Call, ...] = ()  # functions of role 'filter', asked about candidates only
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # executor's own


@dataclass(frozen=True)
class Link:
    """Only rows whose ``column`` has a value of ``of`` in ``relation`` can matter."""

    column: ColumnDef
    relation: str
    of: ColumnDef


@dataclass(frozen=True)
class Relation:
    """One named input of a Relational plan; ``name`` is how the SQL text calls it.

    Exactly one of the sources is set. ``columns`` lists the table's columns the text reads
    (``with_rowid`` adds a ``rowid`` column); vectors appear as FLOAT[dim], TINYINT[dim], or text
    of 0/1 for BIT. ``predicate`` is a native restriction that may be applied early: the text
    applies it again, unless ``filtered`` says that it is the scan's to apply. ``computed`` are
    further columns: calls of functions, made for the rows of the scan in large batches. ``links``
    tell which rows can matter. With ``window`` the plan's answer is to have as many rows as its
    LIMIT and OFFSET ask for, and ``knn``, without a limit, finds as many as that takes.
    """

    name: str
    table: TableDef | None = None
    columns: tuple[ColumnDef, ...] = ()
    with_rowid: bool = False
    predicate: Expr | None = None
    filtered: bool = False
    computed: tuple[Output, ...] = ()
    knn: Knn | None = None
    system: str | None = None  # a tars_* table
    variable: str | None = None  # a Python variable of the caller's frame
    batch: bool = False  # the rows being written, provided by the engine (CHECK, generated, DML)
    links: tuple[Link, ...] = ()
    window: tuple[Expr, Expr | None] | None = None


@dataclass(frozen=True)
class RelationalCall:
    """A model function as the text calls it: ``name(...)`` with ``arity`` values of one type.

    ``call`` has no arguments: the text has them.
    """

    name: str
    arity: int
    call: Call
    takes: SqlType = TEXT


@dataclass(frozen=True)
class Relational:
    """SQL text in DuckDB's dialect over ``relations``.

    Parameters are written ``$p0``, ``$p1`` ... for positions and ``$name`` for names, and listed in
    ``parameters``. Calls are already renamed: ``__udf_<name>(...)`` for a catalog function,
    ``__<function>_<model>(text)`` for a model, ``__distance_<op>(a, b)`` with op one of
    l2 ip cosine l1 hamming jaccard, ``__vector_<op>(...)`` for arithmetic of vectors; the engine
    registers those in ``calls``, ``functions``, ``session_functions``, ``distances`` and
    ``vectors``. ``notes`` are lines for EXPLAIN (why exact, why here). Where a search finds the
    rows for a join (``Relation.window``) and the text calls functions or models, ``first`` gives
    the row ids of the answer in order, by no such call. ``bits`` are the parameters that are
    compared with BIT, and of what type.
    """

    sql: str
    relations: tuple[Relation, ...] = ()
    parameters: tuple[int | str, ...] = ()
    calls: tuple[RelationalCall, ...] = ()
    functions: tuple[FunctionDef, ...] = ()
    session_functions: tuple[str, ...] = ()
    distances: tuple[tuple[str, int], ...] = ()  # (operation, dim)
    vectors: tuple[str, ...] = ()  # operations: __vector_<operation>
    constants: tuple[tuple[str, Expr], ...] = ()  # $name -> native expression evaluated once
    column_types: tuple[Any, ...] = ()
    windows: tuple[FunctionDef, ...] = ()  # by number: __placed_<name> and __framed_<name>
    notes: tuple[str, ...] = ()
    first: Relational | None = None
    bits: tuple[tuple[int | str, SqlType], ...] = ()


@dataclass(frozen=True)
class VariableScan:
    """``SELECT columns FROM variable``: a Python variable of the caller's frame, as it is.

    ``columns`` None means all; names are resolved when it runs, in any case.
    """

    variable: str
    columns: tuple[str, ...] | None = None


Query = PointLookup | Scan | OneRow | Aggregate | Knn | Relational


@dataclass(frozen=True)
class OnConflict:
    """``ON CONFLICT [(columns)] DO NOTHING | DO UPDATE SET ... [WHERE ...]``.

    ``index`` None means any unique index. ``assignments`` None means DO NOTHING. An assignment
    outside the native core makes ``relational`` non-None: its text selects, from relations
    ``__new`` (excluded) and ``__old`` joined by ``__no``, column ``__no`` and one column per
    assignment in order, only for rows where WHERE holds.
    """

    index: IndexDef | None
    assignments: tuple[tuple[ColumnDef, Expr], ...] | None = None
    where: Expr | None = None
    relational: Relational | None = None
    columns: tuple[ColumnDef, ...] = ()  # targets of ``relational``


@dataclass(frozen=True)
class Insert:
    """``rows`` (VALUES, native) or ``query`` gives values for ``columns`` in order."""

    table: TableDef
    columns: tuple[ColumnDef, ...]
    rows: tuple[tuple[Expr, ...], ...] = ()
    query: Query | VariableScan | None = None
    on_conflict: OnConflict | None = None
    returning: tuple[Output, ...] | None = None
    returning_sql: Relational | None = None  # over relation __batch, when outside the core
    defaults: tuple[tuple[ColumnDef, Expr | Relational], ...] = ()  # omitted columns
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # executor's own


@dataclass(frozen=True)
class Update:
    """Native: ``predicate`` and ``assignments``. Else ``source`` selects rowid and new values.

    After these it selects ``others``, the columns of other tables that RETURNING reads. ``key`` is
    set where the predicate fixes a unique key: it says the same.
    """

    table: TableDef
    columns: tuple[ColumnDef, ...]
    assignments: tuple[Expr, ...] = ()
    predicate: Expr | None = None
    source: Relational | None = None
    returning: tuple[Output, ...] | None = None
    returning_sql: Relational | None = None
    key: RowKey | None = None
    others: tuple[ColumnDef, ...] = ()
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # executor's own


@dataclass(frozen=True)
class Delete:
    """Native: ``predicate`` (None: all rows). Else ``source`` selects the rowids.

    ``others`` and ``key`` as in `Update`.
    """

    table: TableDef
    predicate: Expr | None = None
    source: Relational | None = None
    returning: tuple[Output, ...] | None = None
    returning_sql: Relational | None = None
    key: RowKey | None = None
    others: tuple[ColumnDef, ...] = ()
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # executor's own


@dataclass(frozen=True)
class ColumnSpec:
    """A column as CREATE TABLE or ADD COLUMN wrote it."""

    name: str
    type: str
    not_null: bool = False
    default: str | None = None
    generated: str | None = None
    primary_key: bool = False
    unique: bool = False
    checks: tuple[str, ...] = ()
    identity: str = ""


@dataclass(frozen=True)
class CreateTable:
    """CREATE TABLE; ``query`` for CREATE TABLE ... AS."""

    name: str
    columns: tuple[ColumnSpec, ...]
    primary_key: tuple[str, ...] = ()
    uniques: tuple[tuple[str | None, tuple[str, ...]], ...] = ()
    checks: tuple[tuple[str | None, str], ...] = ()
    if_not_exists: bool = False
    or_replace: bool = False
    query: Query | None = None


@dataclass(frozen=True)
class AlterTable:
    """One ALTER TABLE action.

    It is add_column, drop_column, rename_column, rename, or of a column set_default, drop_default,
    set_not_null, drop_not_null, set_type.
    """

    table: str
    action: str
    column: str | None = None
    spec: ColumnSpec | None = None
    new_name: str | None = None
    if_exists: bool = False  # IF [NOT] EXISTS of the column
    expression: str | None = None  # of SET DEFAULT or USING


@dataclass(frozen=True)
class CreateIndex:
    """CREATE [UNIQUE] INDEX."""

    name: str | None
    table: str
    columns: tuple[str, ...]
    unique: bool = False
    method: str = "btree"
    options: dict[str, Any] = field(default_factory=dict)
    if_not_exists: bool = False


@dataclass(frozen=True)
class CreateModel:
    """CREATE MODEL name FROM source [WITH (...)]."""

    name: str
    source: str
    options: dict[str, Any] = field(default_factory=dict)
    if_not_exists: bool = False
    or_replace: bool = False


@dataclass(frozen=True)
class CreateModule:
    """CREATE MODULE name FROM path [WITH (sha256 = '...')]."""

    name: str
    source: str
    options: dict[str, Any] = field(default_factory=dict)
    if_not_exists: bool = False
    or_replace: bool = False


@dataclass(frozen=True)
class CreateFunction:
    """CREATE [AGGREGATE] FUNCTION: inline ``code`` (WAT text) or ``module`` + ``export``.

    ``kind`` is 'scalar', 'aggregate' or 'table'; the last has ``columns`` in place of ``returns``.
    """

    name: str
    arguments: tuple[tuple[str, str], ...]
    returns: str
    language: str
    code: str | None = None
    module: str | None = None
    export: str | None = None
    strict: bool = True
    volatility: str = "IMMUTABLE"
    options: dict[str, Any] = field(default_factory=dict)
    if_not_exists: bool = False
    or_replace: bool = False
    kind: str = "scalar"
    columns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class CreateView:
    """CREATE VIEW; ``sql`` is the query's text."""

    name: str
    columns: tuple[str, ...]
    sql: str
    if_not_exists: bool = False
    or_replace: bool = False


@dataclass(frozen=True)
class CreateTrigger:
    """CREATE TRIGGER name BEFORE | AFTER INSERT ON table CALL function."""

    name: str
    table: str
    function: str
    timing: str
    if_not_exists: bool = False


@dataclass(frozen=True)
class Drop:
    """DROP TABLE | INDEX | MODEL | MODULE | FUNCTION | TRIGGER."""

    kind: str
    name: str
    if_exists: bool = False


@dataclass(frozen=True)
class Truncate:
    """TRUNCATE TABLE."""

    name: str


@dataclass(frozen=True)
class Transaction:
    """begin, commit, rollback, savepoint, release, rollback_to."""

    action: str
    name: str | None = None


@dataclass(frozen=True)
class SetOption:
    """SET name = value; RESET name has value None."""

    name: str
    value: Any


@dataclass(frozen=True)
class Show:
    """SHOW TABLES | INDEXES | MODELS | FUNCTIONS | MODULES | ALL | <setting>."""

    what: str


@dataclass(frozen=True)
class Describe:
    """DESCRIBE table, or DESCRIBE MODEL name (kind 'model')."""

    kind: str
    name: str


@dataclass(frozen=True)
class Pragma:
    """PRAGMA name [= value]."""

    name: str
    value: Any = None


@dataclass(frozen=True)
class Maintain:
    """vacuum, optimize, reindex, checkpoint; ``name`` None means the whole database."""

    action: str
    name: str | None = None


@dataclass(frozen=True)
class Copy:
    """COPY table|(query) TO/FROM path (format by option or suffix: parquet, csv, json)."""

    direction: str  # 'to' or 'from'
    path: str
    table: TableDef | None = None
    columns: tuple[ColumnDef, ...] = ()
    query: Query | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Explain:
    """EXPLAIN [ANALYZE] of another plan."""

    target: Plan
    analyze: bool = False


Plan = (
    Query | VariableScan | Insert | Update | Delete | CreateTable | AlterTable | CreateIndex
    | CreateModel | CreateModule | CreateFunction | CreateTrigger | CreateView | Drop | Truncate
    | Transaction | SetOption | Show | Describe | Pragma | Maintain | Copy | Explain
)  # fmt: skip
