"""Definitions of the named objects a database holds: tables, indexes, models, modules, functions.

Frozen dataclasses, shared by the SQL layer (which resolves names to them) and storage (which
keeps them as JSON). They describe; they hold no data and do no I/O.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from functools import cached_property
from typing import Any

import numpy as np

from tarsdb.errors import NotSupportedError
from tarsdb.records import dataclass
from tarsdb.types import SqlType, parse_type


@dataclass(frozen=True)
class ColumnDef:
    """One column of a table.

    Parameters
    ----------
    id : int
        Never reused within the table; names blocks on disk.
    name : str
        As written; compared case-insensitively.
    type : SqlType
    not_null : bool
    default : str, optional
        SQL expression text used when an INSERT omits the column.
    generated : str, optional
        SQL expression text of ``GENERATED ALWAYS AS (...) STORED``.
    identity : str
        ``'ALWAYS'`` or ``'BY DEFAULT'`` where the table numbers its rows in this column, else
        empty.
    missing : object, optional
        JSON-able storage value (bytes as hex) of rows older than the column (ADD COLUMN DEFAULT).
    """

    id: int
    name: str
    type: SqlType
    not_null: bool = False
    default: str | None = None
    generated: str | None = None
    missing: Any = None
    identity: str = ""

    @property
    def is_derived(self) -> bool:
        """Whether nobody may write it: the table always computes or numbers it."""
        return self.generated is not None or self.identity == "ALWAYS"


@dataclass(frozen=True)
class IndexDef:
    """An index over columns of one table.

    ``method`` is ``'btree'`` here (ordered scalar index); vector methods come with their issue.
    ``origin`` is ``'primary key'``, ``'unique'`` (constraint) or ``'create index'``. ``function``
    is the sandboxed metric that compares what a vector index finds, ``digest`` that of its code.
    """

    id: int
    name: str
    table: str
    column_ids: tuple[int, ...]
    unique: bool = False
    method: str = "btree"
    origin: str = "create index"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    function: str = ""
    digest: str = ""


@dataclass(frozen=True)
class TriggerDef:
    """A sandboxed function that is asked about each row of an INSERT, and may reject it.

    ``timing`` is 'BEFORE' constraints are checked, or 'AFTER' the row was stored.
    """

    name: str
    function: str
    timing: str = "AFTER"


@dataclass(frozen=True)
class TableDef:
    """A table: columns in order, constraints and indexes.

    ``version`` is the number of the commit that last changed this definition; a transaction that
    wrote under an older version conflicts.
    """

    id: int
    name: str
    columns: tuple[ColumnDef, ...]
    primary_key: tuple[int, ...] = ()
    checks: tuple[tuple[str, str], ...] = ()  # (name, SQL text)
    indexes: tuple[IndexDef, ...] = ()
    next_column_id: int = 1
    version: int = 0
    triggers: tuple[TriggerDef, ...] = ()

    @cached_property
    def _by_name(self) -> dict[str, ColumnDef]:
        return {column.name.lower(): column for column in self.columns}

    @cached_property
    def _by_id(self) -> dict[int, ColumnDef]:
        return {column.id: column for column in self.columns}

    @cached_property
    def ordinals(self) -> dict[int, int]:
        """Column id -> position in ``columns``."""
        return {column.id: position for position, column in enumerate(self.columns)}

    def column(self, name: str) -> ColumnDef | None:
        """Return the column of that name (any case), or None."""
        return self._by_name.get(name.lower())

    def column_by_id(self, column_id: int) -> ColumnDef:
        """Return the column with that id."""
        return self._by_id[column_id]

    @cached_property
    def scalar_columns(self) -> tuple[ColumnDef, ...]:
        """Columns that are not vectors: stored together (column group 0)."""
        return tuple(column for column in self.columns if not column.type.is_vector)

    @cached_property
    def vector_columns(self) -> tuple[ColumnDef, ...]:
        """Vector columns: each a column group of its own, with its own versions."""
        return tuple(column for column in self.columns if column.type.is_vector)

    @cached_property
    def identity(self) -> ColumnDef | None:
        """The column in which the table numbers its rows, if there is one."""
        return next((column for column in self.columns if column.identity), None)

    @cached_property
    def primary_index(self) -> IndexDef | None:
        """The index behind PRIMARY KEY, if there is one."""
        return next((index for index in self.indexes if index.origin == "primary key"), None)


@dataclass(frozen=True)
class ViewDef:
    """A name for a query.

    Parameters
    ----------
    name : str
    sql : str
        The query, without parameters.
    columns : tuple of str
        What its columns are called; empty: as the query calls them.
    """

    name: str
    sql: str
    columns: tuple[str, ...] = ()
    version: int = 0


BFLOAT16 = "bfloat16"
"""The type of a tensor that NumPy has no name for; its bits are kept, as uint16."""
BLOCKS = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176),
    "Q6_K": (256, 210), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136),
}  # fmt: skip
"""Types of tensors kept as a GGUF file has them: elements of a row, and bytes, of each block."""


def stored_type(dtype: str) -> np.dtype[Any]:
    """Return the NumPy type that the elements of a tensor are kept as, of blocks their bytes.

    Raises
    ------
    NotSupportedError
        A type of a later release.
    """
    if dtype in BLOCKS:
        return np.dtype(np.uint8)
    try:
        return np.dtype("<u2" if dtype == BFLOAT16 else dtype)
    except TypeError:
        raise NotSupportedError(
            f"a tensor is stored as {dtype!r:.60}, which this release does not read",
            "the model was imported by a later release",
        ) from None


def stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes that a tensor takes in the file; raises as :func:`stored_type`."""
    elements, nbytes = BLOCKS.get(dtype, (1, stored_type(dtype).itemsize))
    return math.prod(shape) // elements * nbytes


@dataclass(frozen=True)
class ModelVersion:
    """One immutable version of a model: content-addressed files, never changed after creation.

    ``files`` maps a file name of the Hugging Face layout (``config.json``, ``tokenizer.json``) to
    the digest of its bytes; ``tensors`` maps a tensor name to ``(dtype, shape, digest)``, the dtype
    as NumPy writes it, BFLOAT16 or one of BLOCKS.
    """

    name: str
    commit: int
    files: dict[str, str]
    tensors: dict[str, tuple[str, tuple[int, ...], str]]
    lineage: str = ""

    @cached_property
    def elements(self) -> int:
        """Numbers that all tensors have together."""
        return sum(math.prod(shape) for _, shape, _ in self.tensors.values())

    @cached_property
    def weights_digest(self) -> bytes:
        """16 bytes that stand for the content of all files and tensors, whatever the name."""
        content = [sorted(self.files.items()), sorted(self.tensors.items())]
        return hashlib.sha256(json.dumps(content).encode()).digest()[:16]


@dataclass(frozen=True)
class ModelDef:
    """A model and its versions.

    Parameters
    ----------
    task : str
        ``'embed'`` so far.
    dim : int
        Output dimension of the default version, 0 where it has none.
    default_version : str
    """

    id: int
    name: str
    task: str
    dim: int
    default_version: str
    versions: tuple[ModelVersion, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    version: int = 0

    def find_version(self, name: str | None = None) -> ModelVersion | None:
        """Return the named version (default version when None)."""
        wanted = name or self.default_version
        return next((v for v in self.versions if v.name == wanted), None)

    def computes_as(self, other: ModelDef) -> bool:
        """Return whether both give the same results: the same content, task and options.

        ``quantize`` that is not there, as in older files, is 'none'.
        """
        mine, others = self.find_version(), other.find_version()
        if mine is None or others is None or mine.weights_digest != others.weights_digest:
            return False
        ways = [
            {"quantize": "none", **model.options, "task": model.task} for model in (self, other)
        ]
        return ways[0] == ways[1]


@dataclass(frozen=True)
class ModuleDef:
    """A WebAssembly module stored in the database by content."""

    id: int
    name: str
    digest: str  # of the blob
    sha256: str
    size: int
    version: int = 0


ROLES = ("metric", "filter", "reranker", "tokenizer")


@dataclass(frozen=True)
class FunctionDef:
    """A sandboxed function: signature, where its code is, limits.

    Parameters
    ----------
    returns : SqlType
        Of a table function: the type of its first column.
    kind : str
        ``'scalar'``, ``'aggregate'`` or ``'table'``.
    columns : tuple of (str, SqlType)
        Of a table function: what its rows hold.
    role : str
        ``''``, or what it is to the engine besides: one of :data:`ROLES`.
    lookup : (str, str, str), or ()
        Table, key column and value column it may look up, where it is granted that.
    embed : str
        Model whose vectors it may ask for, where it is granted that.
    is_cached : bool
        Whether its results are kept in the file.
    """

    id: int
    name: str
    arguments: tuple[tuple[str, SqlType], ...]
    returns: SqlType
    language: str
    module: str | None  # name of a ModuleDef, or None for inline code
    export: str
    digest: str  # blob of the wasm bytes that run
    strict: bool = True
    volatility: str = "IMMUTABLE"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    version: int = 0
    kind: str = "scalar"
    columns: tuple[tuple[str, SqlType], ...] = ()
    role: str = ""
    lookup: tuple[str, ...] = ()
    embed: str = ""
    is_cached: bool = False

    @cached_property
    def result(self) -> str:
        """What it returns, as SQL writes it."""
        if self.kind != "table":
            return str(self.returns)
        return f"TABLE ({', '.join(f'{name} {sql_type}' for name, sql_type in self.columns)})"


CatalogObject = TableDef | ViewDef | ModelDef | ModuleDef | FunctionDef
KINDS: dict[str, type[CatalogObject]] = {
    "table": TableDef, "view": ViewDef, "model": ModelDef, "module": ModuleDef,
    "function": FunctionDef,
}  # fmt: skip


def to_json(definition: CatalogObject) -> dict[str, Any]:
    """Return a JSON-able dict of a definition; :func:`from_json` reads it back."""
    plain: dict[str, Any] = _plain(definition)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, SqlType):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def from_json(kind: str, data: dict[str, Any]) -> CatalogObject:
    """Rebuild the definition of a kind from :func:`to_json`'s dict."""
    definition: CatalogObject = _READERS[kind](data)
    return definition


def _table(data: dict[str, Any]) -> TableDef:
    columns = [ColumnDef(**{**c, "type": parse_type(c["type"])}) for c in data["columns"]]
    return TableDef(
        **{
            **data,
            "columns": tuple(columns),
            "primary_key": tuple(data["primary_key"]),
            "checks": tuple((name, text) for name, text in data["checks"]),
            "indexes": tuple(
                IndexDef(**{**i, "column_ids": tuple(i["column_ids"])}) for i in data["indexes"]
            ),
            "triggers": tuple(TriggerDef(**t) for t in data.get("triggers", ())),
        }
    )


def _model(data: dict[str, Any]) -> ModelDef:
    versions = tuple(
        ModelVersion(
            **{
                **v,
                "tensors": {n: (t[0], tuple(t[1]), t[2]) for n, t in v["tensors"].items()},
            }
        )
        for v in data["versions"]
    )
    return ModelDef(**{**data, "versions": versions})


def _function(data: dict[str, Any]) -> FunctionDef:
    pairs = {
        key: tuple((name, parse_type(text)) for name, text in data.get(key, ()))
        for key in ("arguments", "columns")
    }
    pairs["lookup"] = tuple(data.get("lookup", ()))
    return FunctionDef(**{**data, **pairs, "returns": parse_type(data["returns"])})


_READERS: dict[str, Any] = {
    "table": _table, "model": _model, "module": lambda data: ModuleDef(**data),
    "function": _function,
    "view": lambda data: ViewDef(**{**data, "columns": tuple(data["columns"])}),
}  # fmt: skip
