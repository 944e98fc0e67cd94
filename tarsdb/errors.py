"""Every exception tarsdb raises, in one tree with the PEP 249 names at the top.

::

    Error (message, hint, retryable)
    ├── InterfaceError                 closed handle, wrong thread, bad argument type
    │   └── ForkedProcessError         a connection was carried over fork()
    └── DatabaseError
        ├── ProgrammingError           the caller's statement
        │   ├── SQLSyntaxError         line, column, excerpt
        │   ├── BindError              unknown or ambiguous name, wrong types
        │   └── CatalogError           object exists already, or does not exist
        ├── DataError                  a value does not fit
        │   ├── DimensionMismatchError
        │   └── ValueRangeError
        ├── IntegrityError             UNIQUE, NOT NULL, CHECK, PRIMARY KEY
        ├── OperationalError           the environment, not the statement
        │   ├── LockError              the writer is busy (retryable)
        │   ├── ConflictError          another commit came first (retryable)
        │   ├── SnapshotExpiredError   a read transaction outlived its limit (retryable)
        │   ├── StorageFullError       disk or quota
        │   ├── ReadOnlyError
        │   ├── DeviceError            no GPU, or one that cannot be used
        │   ├── QueueFullError         too many texts wait for a model (retryable)
        │   ├── InterruptError         interrupt() or Ctrl-C
        │   └── StatementTimeoutError  statement_timeout
        ├── InternalError
        │   ├── CorruptionError        damaged source data, names table and rows
        │   └── FormatVersionError     file written by another format version
        ├── NotSupportedError          valid SQL that tarsdb does not do
        ├── ModelError
        │   └── ModelFormatError       a directory or file that is no usable model
        └── UdfError
            ├── UdfValidationError     a module that does not validate or match its declaration
            ├── UdfTrapError           the guest trapped
            ├── UdfLimitError          fuel, memory or time ran out
            └── UdfBackendError        a backend that is not available here, or whose process died
"""

from __future__ import annotations


class Error(Exception):
    """Root of all tarsdb errors.

    Parameters
    ----------
    message : str
        Names the object and the values that disagree.
    hint : str, optional
        What the caller can do about it.

    Attributes
    ----------
    retryable : bool
        True when running the same transaction again can succeed.
    """

    retryable = False

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class Warning(Exception):
    """PEP 249 warning class; tarsdb raises none of these itself."""


class InterfaceError(Error):
    """The Python interface was misused: a closed handle, a wrong argument type."""


class ForkedProcessError(InterfaceError):
    """A handle opened before ``fork()`` was used in the child process."""


class DatabaseError(Error):
    """Root of the errors that come from the database rather than from the interface."""


class ProgrammingError(DatabaseError):
    """The statement is wrong."""


class SQLSyntaxError(ProgrammingError):
    """The text is not valid SQL.

    Attributes
    ----------
    line, column : int
        One-based position of the error in the statement text.
    excerpt : str
        The source line with a caret below the position.
    """

    def __init__(
        self,
        message: str,
        *,
        line: int = 1,
        column: int = 1,
        excerpt: str = "",
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.line = line
        self.column = column
        self.excerpt = excerpt

    def __str__(self) -> str:
        where = f"{self.message} at line {self.line}, column {self.column}"
        body = f"{where}\n{self.excerpt}" if self.excerpt else where
        return f"{body}\n(hint: {self.hint})" if self.hint else body


class BindError(ProgrammingError):
    """A name or type in a statement does not resolve."""


class CatalogError(ProgrammingError):
    """An object named in a statement exists already, or does not exist."""


class DataError(DatabaseError):
    """A value does not fit its column."""


class DimensionMismatchError(DataError):
    """A vector has another dimension than its column, index or model."""


class ValueRangeError(DataError):
    """A value is outside what its type can hold (overflow, NaN or infinity in a vector)."""


class IntegrityError(DatabaseError):
    """A PRIMARY KEY, UNIQUE, NOT NULL or CHECK constraint would be violated."""


class OperationalError(DatabaseError):
    """The environment stopped the statement: locks, disk, time, memory."""


class LockError(OperationalError):
    """The writer lock was not free within the timeout."""

    retryable = True


class ConflictError(OperationalError):
    """Another transaction committed a change to the same rows or objects first."""

    retryable = True


class SnapshotExpiredError(OperationalError):
    """A read transaction lived longer than its limit and was ended."""

    retryable = True


class StorageFullError(OperationalError):
    """The disk, the quota or the address space is used up."""


class ReadOnlyError(OperationalError):
    """A write was asked of a database opened read-only."""


class DeviceError(OperationalError):
    """The GPU that was asked for is not there, or cannot be used."""


class QueueFullError(OperationalError):
    """As many texts wait for a model as may wait."""

    retryable = True


class InterruptError(OperationalError):
    """``Connection.interrupt()`` or Ctrl-C stopped the statement."""


class StatementTimeoutError(OperationalError):
    """The statement ran longer than ``statement_timeout``."""


class InternalError(DatabaseError):
    """The database file or the engine is not in the state it should be in."""


class CorruptionError(InternalError):
    """Stored source data is damaged; the message names the table and the rows."""


class FormatVersionError(InternalError):
    """The file is of a format version this release cannot open."""


class NotSupportedError(DatabaseError):
    """The statement is understood and tarsdb does not do it."""


class ModelError(DatabaseError):
    """A model cannot do what it was asked."""


class ModelFormatError(ModelError):
    """A file or directory is not a usable model."""


class UdfError(DatabaseError):
    """A user function failed."""


class UdfValidationError(UdfError):
    """A module does not validate, or does not match its declaration."""


class UdfTrapError(UdfError):
    """The guest code trapped.

    Attributes
    ----------
    code : str
        Name of the trap, such as ``'INTEGER_DIVISION_BY_ZERO'``.
    """

    def __init__(self, message: str, hint: str | None = None, *, code: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


class UdfLimitError(UdfError):
    """The guest ran out of fuel, memory or time.

    Attributes
    ----------
    kind : str
        ``'fuel'``, ``'memory'`` or ``'time'``.
    """

    def __init__(self, message: str, hint: str | None = None, *, kind: str = "") -> None:
        super().__init__(message, hint)
        self.kind = kind


class UdfBackendError(UdfError):
    """What should run a function is not available on this machine, or its process died."""
