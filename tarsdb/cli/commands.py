"""What each command does, given its parsed arguments; every function returns an exit code.

Everything goes through SQL on a connection, so a command can do nothing that a statement cannot;
only :mod:`tarsdb.cli.bench` asks the engine itself, to time it without the statement around it.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from tarsdb.cli.progress import watched
from tarsdb.cli.running import interruptibly
from tarsdb.cli.shell import Shell, duration
from tarsdb.database import Connection, connect
from tarsdb.errors import DataError, OperationalError, ReadOnlyError
from tarsdb.loading import collector_paused
from tarsdb.sql.names import quoted


def version() -> str:
    """Return the installed version."""
    try:
        return importlib.metadata.version("tarsdb")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def shell(arguments: argparse.Namespace) -> int:
    """Open the shell; without a terminal, run the statements on stdin."""
    with connect(
        arguments.file, read_only=arguments.read_only, check=arguments.check, file_access=True
    ) as db:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            session = Shell(db, sys.stdout, sys.stderr)
            session.run(sys.stdin)
            return 1 if session.failures else 0
        from tarsdb.cli.prompt import converse

        converse(Shell(db, sys.stdout, sys.stderr, interactive=True), arguments.file, version())
    return 0


def query(arguments: argparse.Namespace) -> int:
    """Run statements and print the rows of each."""
    text = sys.stdin.read() if arguments.sql == "-" else arguments.sql
    with connect(arguments.file, read_only=arguments.read_only, file_access=True) as db:
        session = Shell(db, sys.stdout, sys.stderr)
        session.mode = arguments.format
        if arguments.param:
            parameters = parse_parameters(arguments.param, text)
            with watched(db, sys.stderr):
                cursor = interruptibly(db, lambda: db.execute(text, parameters))
            if cursor.description:
                session.print_rows(cursor)
            return 0
        session.run(text.splitlines(keepends=True))
        return 1 if session.failures else 0


def parse_parameters(given: Iterable[str], sql: str) -> list[Any] | dict[str, Any]:
    """Return the values of ``--param``: a list for ``?``, a dict for named placeholders.

    Raises
    ------
    DataError
        Named and unnamed ones are mixed.
    """
    named: dict[str, Any] = {}
    positional: list[Any] = []
    for text in given:
        match = re.match(r"([A-Za-z_]\w*)=(.*)", text, re.DOTALL)
        if match and re.search(rf"[:$]{match[1]}\b", sql):
            named[match[1]] = parse_value(match[2])
        else:
            positional.append(parse_value(text))
    if named and positional:
        raise DataError(
            f"--param gives {len(named)} named and {len(positional)} unnamed values",
            hint="name all of them or none",
        )
    return named or positional


def parse_value(text: str) -> Any:
    """Read a value as JSON where it is JSON, else as text; ``'"7"'`` is the text 7."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def import_data(arguments: argparse.Namespace) -> int:
    """Append a data file to a table, creating the table from the data when it is absent."""
    path = _existing(arguments.data)
    start = time.perf_counter()
    with connect(arguments.file, file_access=True) as db:
        sql = _import_statement(db, arguments.table, path, arguments.by_position)
        with watched(db, sys.stderr):
            cursor = interruptibly(db, lambda: db.execute(sql))
        rows = cursor.rowcount
        if rows < 0:
            rows = db.execute(f"SELECT count(*) FROM {quoted(arguments.table)}").fetchall()[0][0]
    took = duration(time.perf_counter() - start)
    sys.stderr.write(f"{rows:,} rows into {arguments.table} in {took}\n")
    return 0


def _import_statement(db: Connection, table: str, path: str, by_position: bool) -> str:
    target, source = quoted(table), _literal(path)
    columns = _columns(db, table)
    if not columns:
        return f"CREATE TABLE {target} AS SELECT * FROM {source}"
    if by_position:
        return f"COPY {target} FROM {source}"
    cursor = db.execute(f"SELECT * FROM {source} LIMIT 0")
    header = [column[0] for column in cursor.description or ()]
    unknown = [name for name in header if name.lower() not in columns]
    if unknown:
        raise DataError(
            f"{path} has columns that table {table!r} has not: {', '.join(unknown)}",
            hint=f"the table has {', '.join(columns)}; --by-position ignores the names",
        )
    return f"COPY {target} ({', '.join(map(quoted, header))}) FROM {source}"


def _columns(db: Connection, table: str) -> list[str]:
    rows = db.execute(
        "SELECT name FROM tars_columns WHERE lower(table_name) = ?", [table.lower()]
    ).fetchall()
    return [name.lower() for (name,) in rows]


def export_data(arguments: argparse.Namespace) -> int:
    """Write a table or a query to a data file."""
    with connect(_existing(arguments.file), read_only=True) as db:
        text = arguments.what.strip().rstrip(";")
        is_query = re.match(r"(select|with|values|from|\()\b", text, re.IGNORECASE)
        source = f"({text})" if is_query else quoted(text)
        sql = f"COPY {source} TO {_literal(arguments.data)}"
        cursor = interruptibly(db, lambda: db.execute(sql))
    sys.stderr.write(f"{cursor.rowcount:,} rows into {arguments.data}\n")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Print what a check finds; exit code 1 when that is not just ``ok``."""
    pragma = "quick_check" if arguments.quick else "integrity_check"
    with connect(_existing(arguments.file), read_only=True) as db:
        rows = interruptibly(db, lambda: db.execute(f"PRAGMA {pragma}").fetchall())
    findings = [str(row[0]) for row in rows]
    for finding in findings:
        print(finding)
    return 0 if findings == ["ok"] else 1


def warmup(arguments: argparse.Namespace) -> int:
    """Compile every kernel, so that no query waits for a compiler.

    Of models' kernels those for float32, and those that the models of a file need; the file gets
    the packed weights of its models.
    """
    from tarsdb.kernels import decoder, dispatch, encoder, graph, ivf

    rooms: dict[str, Callable[[str], object]] = {"encoder": encoder.wait, "decoder": decoder.wait}
    needed = {(room, "f32") for room in rooms} | _kinds_of(arguments.file)
    start = time.perf_counter()
    sys.stderr.write("compiling kernels ...\n")
    with collector_paused():
        dispatch.warmup(lambda line: print(f"  {line}", file=sys.stderr))
        waits: dict[str, Callable[[], object]] = {
            f"{room} {kind}": functools.partial(rooms[room], kind) for room, kind in sorted(needed)
        }
        waits.update(graph=graph.wait, lists=ivf.wait)
        for name, wait in waits.items():
            began = time.perf_counter()
            wait()
            sys.stderr.write(f"  {name}: {duration(time.perf_counter() - began)}\n")
    if arguments.file is not None:
        _pack_models(arguments.file)
    sys.stderr.write(f"done in {duration(time.perf_counter() - start)}\n")
    return 0


def _pack_models(file: str) -> None:
    """Put the packed weights of a file's models into it, where it can be written to."""
    try:
        with connect(file) as db:
            rows = interruptibly(db, lambda: db.execute("PRAGMA pack_models").fetchall())
    except ReadOnlyError as error:
        sys.stderr.write(f"  packed weights: {error.message}\n")
        return
    for name, nbytes in rows:
        sys.stderr.write(f"  packed weights of {name}: {nbytes:,} bytes\n")


def _kinds_of(file: str | None) -> set[tuple[str, str]]:
    """Return which kernels the models of a file need: encoder or decoder, and a kind of weights."""
    if file is None:
        return set()
    with connect(_existing(file), read_only=True) as db:
        models = db.execute("SELECT task, numeric_mode FROM tars_models").fetchall()
    return {
        ("decoder" if task == "generate" else "encoder", "f32" if mode == "fp32" else str(mode))
        for task, mode in models
        if task != "predict"  # onnxruntime's
    }


def demo(arguments: argparse.Namespace) -> int:
    """Run the demonstration."""
    os.execv(sys.executable, [sys.executable, "-m", "tarsdb.demo", *arguments.arguments])


def _existing(path: str) -> str:
    if not os.path.exists(path):
        raise OperationalError(f"{path!r} does not exist", hint="check the path")
    return path


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
