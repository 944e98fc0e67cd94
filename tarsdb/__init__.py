"""tarsdb: an embedded AI database. One file holds rows, vectors, models and sandboxed functions."""

from tarsdb.database import Connection, Cursor, apilevel, connect, paramstyle, threadsafety
from tarsdb.errors import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Warning,
)
from tarsdb.options import VERSION, Durability, OpenOptions

__version__ = VERSION

__all__ = [
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Durability",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OpenOptions",
    "OperationalError",
    "ProgrammingError",
    "Warning",
    "__version__",
    "apilevel",
    "connect",
    "paramstyle",
    "threadsafety",
]
