"""The user's cache directory: where machine code is kept, which must be nobody else's.

What lies there is derived and may vanish. Code from it runs in this process, so a folder counts
only when it belongs to this user and nobody else can write to it. Knows not what is kept.
"""

from __future__ import annotations

import os
import pathlib
import stat
import sys

FOLDER_VARIABLE = "TARSDB_CACHE_DIR"


def private_folder(*names: str) -> pathlib.Path | None:
    """Return a folder of the cache, made where it is missing.

    Parameters
    ----------
    *names : str
        The way to it from the cache's root, which is ``$TARSDB_CACHE_DIR`` or the user's own.

    Returns
    -------
    pathlib.Path, optional
        None where there is none to trust: nowhere to write, or a folder on the way that belongs
        to another user, is a link, or that others may write to.
    """
    try:
        path = _root()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = path.resolve()
        if not _is_ours(path):
            return None
        for name in names:
            path = path / name
            path.mkdir(mode=0o700, exist_ok=True)
            if not _is_ours(path):
                return None
            path.chmod(0o700)
    except (OSError, RuntimeError):  # read-only, or no home directory
        return None
    return path


def is_private(status: os.stat_result) -> bool:
    """Return True for a file or folder of this user that no other can write to."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _is_ours(path: pathlib.Path) -> bool:
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and is_private(status)


def _root() -> pathlib.Path:
    chosen = os.environ.get(FOLDER_VARIABLE)
    return pathlib.Path(chosen) if chosen else _user_folder() / "tarsdb"


def _user_folder() -> pathlib.Path:
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return pathlib.Path(os.environ["LOCALAPPDATA"])
    if sys.platform == "darwin":
        return pathlib.Path.home() / "Library" / "Caches"
    chosen = os.environ.get("XDG_CACHE_HOME")
    return pathlib.Path(chosen) if chosen else pathlib.Path.home() / ".cache"
