"""LMDB's and the operating system's errors, turned into tarsdb's.

Knows nothing about recovery: whether an error leaves the environment usable is decided where it is
caught.
"""

from __future__ import annotations

import errno

import lmdb

from tarsdb.errors import (
    CorruptionError,
    DatabaseError,
    Error,
    InterfaceError,
    OperationalError,
    ReadOnlyError,
    StorageFullError,
)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.CursorFullError,
    lmdb.PageFullError,
)
_CLOSED = "closed/deleted/dropped"


def convert(error: BaseException, where: str) -> Error:
    """Return the tarsdb error for an exception of lmdb or of a system call.

    Parameters
    ----------
    error : BaseException
        A tarsdb error is returned unchanged.
    where : str
        The file, named first in the message.
    """
    if isinstance(error, Error):
        return error
    if isinstance(error, lmdb.MapFullError):
        return StorageFullError(
            f"{where}: the size limit of the file is reached",
            hint="raise max_size_bytes (or the address-space limit of the process), "
            "or DELETE (fewer rows at a time) and VACUUM",
        )
    if isinstance(error, _DAMAGE):
        return CorruptionError(f"{where}: {error}", hint="restore from a backup")
    if isinstance(error, lmdb.ReadonlyError):
        return ReadOnlyError(f"{where}: opened read-only")
    if isinstance(error, lmdb.Error):
        return _convert_lmdb(error, where)
    if isinstance(error, PermissionError):
        return OperationalError(f"{where}: permission denied", hint="check the file's owner")
    if isinstance(error, OSError):
        return _convert_code(error.errno or 0, str(error), where)
    return DatabaseError(f"{where}: {error}")


def _convert_lmdb(error: lmdb.Error, where: str) -> Error:
    text = str(error)
    if _CLOSED in text:
        return InterfaceError(f"{where}: transaction is closed")
    return _convert_code(getattr(error, "code", 0) or 0, text, where)


def _convert_code(code: int, text: str, where: str) -> Error:
    if code in _FULL or "No space left" in text:
        return StorageFullError(f"{where}: {text}", hint="free disk space and run it again")
    if code == errno.EROFS:
        return ReadOnlyError(f"{where}: {text}")
    return OperationalError(f"{where}: {text}")
