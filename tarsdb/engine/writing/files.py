"""Parquet, CSV and JSON files to Arrow and back, for COPY.

A DuckDB of its own, open only for the one call, may touch files; the connection's stays caged.
CSV and JSON values are read as text and converted to the column they go to, so ``007`` stays
``007`` in a TEXT column.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import duckdb
import pyarrow as pa

from tarsdb.engine.by_duckdb.duckdb_errors import convert
from tarsdb.errors import NotSupportedError, OperationalError, ProgrammingError

_SUFFIXES = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json",
    ".ndjson": "json",
}  # fmt: skip
_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_ALIASES = {"delim": "delimiter", "sep": "delimiter", "nullstr": "null"}
_KNOWN = {
    "parquet": {"compression"},
    "csv": {"header", "delimiter", "quote", "escape", "null", "compression"},
    "json": {"array", "compression"},
}
_BATCH_ROWS = 65_536
_ROWS_BETWEEN = 2048  # rows written between two looks whether to stop: DuckDB's own step


def write(
    table: pa.Table,
    path: str,
    options: Mapping[str, Any] | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> int:
    """Write a table to a file, replacing it; return the number of rows.

    Parameters
    ----------
    table : pyarrow.Table
    path : str
    options : mapping, optional
        ``format`` (else from the suffix), ``header``, ``delimiter``, ``quote``, ``escape``,
        ``null``, ``compression``, ``array`` (JSON: one array instead of one object a line).
    check_stop : callable, optional
        Asked before every few rows; what it raises ends the writing and is raised.

    Raises
    ------
    NotSupportedError, ProgrammingError
        The format or an option is unknown.
    OperationalError
        The file cannot be written.
    """
    kind, chosen = _settle(path, options)
    if kind == "csv":
        chosen.setdefault("header", True)
    given = [f"FORMAT {kind}", *(f"{key.upper()} {_literal(v)}" for key, v in chosen.items())]
    with _errors(path), contextlib.closing(_connect()) as connection:
        rows = _Heeding(table, check_stop)
        connection.register("__copied", rows.reader)
        source = _with_json_lists(table) if kind == "csv" else _with_exact_decimals(table, kind)
        try:
            connection.execute(f"COPY ({source}) TO {_literal(str(path))} ({', '.join(given)})")
        except duckdb.Error:
            if rows.stopped is not None:
                raise rows.stopped from None
            raise
        connection.unregister("__copied")
    return int(table.num_rows)


class _Heeding:
    """The rows of a table for DuckDB to read, a few at a time, and what ended the reading.

    DuckDB, when its source fails, removes what it wrote and leaves a file that was there before.
    """

    def __init__(self, table: pa.Table, check_stop: Callable[[], None]) -> None:
        self.stopped: BaseException | None = None
        self.reader = pa.RecordBatchReader.from_batches(table.schema, self._rows(table, check_stop))

    def _rows(self, table: pa.Table, check_stop: Callable[[], None]) -> Iterator[pa.RecordBatch]:
        for batch in table.to_batches(max_chunksize=_ROWS_BETWEEN):
            try:
                check_stop()
            except BaseException as reason:
                self.stopped = reason
                raise
            yield batch


def _with_json_lists(table: pa.Table) -> str:
    """Return SQL that writes lists and vectors as JSON, which :func:`read` gives back as text."""
    items = []
    for field in table.schema:
        name = '"' + field.name.replace('"', '""') + '"'
        nested = pa.types.is_nested(field.type)
        items.append(f"to_json({name})::TEXT AS {name}" if nested else name)
    return f"SELECT {', '.join(items)} FROM __copied"


def _with_exact_decimals(table: pa.Table, kind: str) -> str:
    """Return SQL that writes long decimals to JSON as text: its readers make a DOUBLE of them."""
    items = []
    for field in table.schema:
        name = '"' + field.name.replace('"', '""') + '"'
        long = kind == "json" and pa.types.is_decimal(field.type) and field.type.precision > 15
        items.append(f"{name}::TEXT AS {name}" if long else name)
    return f"SELECT {', '.join(items)} FROM __copied"


def read(path: str, options: Mapping[str, Any] | None = None) -> Iterator[pa.Table]:
    """Yield a file's rows as tables of some ten thousand rows, in file order.

    Parquet keeps its types; columns of CSV and JSON are text.

    Raises
    ------
    NotSupportedError, ProgrammingError
        The format or an option is unknown.
    OperationalError, DataError
        The file cannot be read, or is not what its format says.
    """
    kind, chosen = _settle(path, options)
    with _errors(path), contextlib.closing(_connect()) as connection:
        sql = _QUERIES[kind](_literal(str(path)), chosen, connection)
        with connection.sql(sql).to_arrow_reader(_BATCH_ROWS) as reader:
            empty = True
            for batch in reader:
                empty = False
                yield pa.Table.from_batches([batch])
            if empty:
                yield reader.schema.empty_table()


def _settle(path: str, options: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Return the format and the remaining options under their full names."""
    chosen = {_ALIASES.get(key.lower(), key.lower()): v for key, v in (options or {}).items()}
    suffixes = [suffix.lower() for suffix in PurePath(path).suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        chosen.setdefault("compression", _COMPRESSED[suffixes.pop()])
    suffix = suffixes[-1] if suffixes else ""
    kind = str(chosen.pop("format", _SUFFIXES.get(suffix, ""))).lower()
    if kind not in _KNOWN:
        raise NotSupportedError(
            f"COPY {path}: format {kind or suffix or 'of a file without suffix'!r} is not known",
            hint="WITH (FORMAT parquet), csv or json",
        )
    if suffix == ".tsv":
        chosen.setdefault("delimiter", "\t")
    unknown = set(chosen) - _KNOWN[kind]
    if unknown:
        raise ProgrammingError(
            f"COPY {path}: {kind} has no option {', '.join(sorted(unknown))}",
            hint=f"options: {', '.join(sorted(_KNOWN[kind]))}",
        )
    return kind, chosen


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "'" + str(value).replace("'", "''") + "'"


def _parquet(path: str, options: Mapping[str, Any], connection: Any) -> str:
    return f"SELECT * FROM read_parquet({path})"


def _csv(path: str, options: Mapping[str, Any], connection: Any) -> str:
    # nothing is guessed: a ragged file is an error, not another dialect
    given = {"header": True, "delimiter": ",", "quote": '"', "escape": '"', **options}
    if "null" in given:
        given["nullstr"] = given.pop("null")
    if "delimiter" in given:
        given["delim"] = given.pop("delimiter")
    arguments = "".join(f", {key} = {_literal(value)}" for key, value in given.items())
    fixed = "all_varchar = true, allow_quoted_nulls = false, skip = 0"
    return f"SELECT * FROM read_csv({path}, {fixed}{arguments})"


def _json(path: str, options: Mapping[str, Any], connection: Any) -> str:
    compression = options.get("compression")
    more = f", compression = {_literal(compression)}" if compression else ""
    source = f"read_json({path}, maximum_depth = 1{more})"
    described = connection.sql(f"DESCRIBE SELECT * FROM {source}").fetchall()
    names = [str(row[0]) for row in described]
    # read as JSON text: a guessed DOUBLE would round long decimals
    kinds = ", ".join(f"{_literal(name)}: 'JSON'" for name in names)
    quoted = [name.replace('"', '""') for name in names]
    texts = ", ".join(f'"{name}"->>\'$\' AS "{name}"' for name in quoted)
    return f"SELECT {texts} FROM read_json({path}, columns = {{{kinds}}}{more})"


_QUERIES = {"parquet": _parquet, "csv": _csv, "json": _json}


def _connect() -> Any:
    config: dict[str, Any] = {
        "python_enable_replacements": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_persistent_secrets": "false",
        "arrow_lossless_conversion": "true",
        "temp_directory": "",
        "memory_limit": "2GB",
        "threads": "2",
    }
    connection = duckdb.connect(":memory:", config=config)
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET lock_configuration = true")
    return connection


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, pa.ArrowException) as error:
        raise convert(error, {"__copied": "the rows"}) from error
    except OSError as error:
        raise OperationalError(f"COPY {path}: {error}") from error
