"""Errors that cross DuckDB: its own become tarsdb errors, ours come out as they went in.

A Python exception raised inside a scan or a function reaches us as text in a DuckDB error. So it
is kept here under a number, the text carries the number, and the original object is raised again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import duckdb

from tarsdb import errors
from tarsdb.sql.model_calls import FUNCTIONS

_CARRIED = re.compile(r"tarsdb-carried-(\d+)")
_PREFIX = re.compile(r"^(?:[A-Za-z]+(?: [A-Za-z]+)* Error|INTERRUPT Error): ")
_ADVICE = re.compile(
    r"\s*(?:Use TRY\(|Use \"?SET |You might need to|Candidate functions:|or SET ).*", re.S
)
_MODEL_CALL = re.compile(rf"__({'|'.join(FUNCTIONS)})(?:_(\w+))?\(([^()]*)\)")
_LINE = re.compile(r"\n+LINE \d+:.*", re.S)

_CLASSES: tuple[tuple[str, type[errors.Error], str | None], ...] = (
    ("ParserException", errors.SQLSyntaxError, None),
    ("SyntaxException", errors.SQLSyntaxError, None),
    ("BinderException", errors.BindError, None),
    ("CatalogException", errors.BindError, None),
    ("InvalidTypeException", errors.BindError, None),
    ("OutOfRangeException", errors.ValueRangeError, None),
    ("ConversionException", errors.DataError, None),
    ("TypeMismatchException", errors.DataError, None),
    ("InvalidInputException", errors.DataError, None),
    ("ConstraintException", errors.IntegrityError, None),
    ("OutOfMemoryException", errors.OperationalError, "SET memory_limit = '4GB' allows more"),
    ("InterruptException", errors.InterruptError, None),
    ("PermissionException", errors.OperationalError, "SET file_access = on allows reading files"),
    ("HTTPException", errors.OperationalError, None),
    ("IOException", errors.OperationalError, None),
    ("NotImplementedException", errors.NotSupportedError, None),
    ("InternalException", errors.InternalError, None),
    ("FatalException", errors.InternalError, None),
)


class CarriedError(Exception):
    """Stands for another exception while it travels through DuckDB."""


class ErrorCarrier:
    """Keeps the exceptions of one statement's scans and functions."""

    def __init__(self) -> None:
        self._held: list[BaseException] = []

    def wrap(self, error: BaseException) -> CarriedError:
        """Keep an exception; raise the returned one in its place."""
        self._held.append(error)
        return CarriedError(f"tarsdb-carried-{len(self._held) - 1}")

    def original(self, error: BaseException) -> BaseException | None:
        """Return the kept exception an error's text tells of, if it does."""
        found = _CARRIED.search(str(error))
        return self._held[int(found[1])] if found else None


def convert(error: BaseException, names: Mapping[str, str]) -> errors.Error:
    """Return the tarsdb error for an exception of duckdb or pyarrow.

    Parameters
    ----------
    error : BaseException
    names : mapping of str to str
        Generated names and what the user calls them.
    """
    text = str(error)
    if isinstance(error, KeyboardInterrupt) or text == "Query interrupted":
        return errors.InterruptError("the statement was interrupted")
    message = _readable(text, names)
    for name, kind, hint in _CLASSES:
        if isinstance(error, getattr(duckdb, name)):
            if kind is errors.InterruptError:
                return errors.InterruptError("the statement was interrupted")
            return kind(message, hint=hint)
    if isinstance(error, duckdb.Error):
        return errors.OperationalError(message)
    return errors.DataError(message)


def _readable(text: str, names: Mapping[str, str]) -> str:
    text = _PREFIX.sub("", _LINE.sub("", text), count=1)
    text = _ADVICE.sub("", text).strip()
    for generated in sorted(names, key=len, reverse=True):
        text = re.sub(rf"\"?{re.escape(generated)}\b\"?", names[generated].replace("\\", ""), text)
    text = _MODEL_CALL.sub(_as_written, text)
    return re.sub(rf"__(?:udf|distance|{'|'.join(FUNCTIONS)})_", "", text)


def _as_written(call: re.Match[str]) -> str:
    name, model, arguments = call.groups()
    return f"{name}({', '.join(filter(None, (model and repr(model), arguments)))})"
