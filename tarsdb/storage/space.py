"""How full a file and its disk may get: the last part is kept for what makes room.

LMDB never overwrites a page that a reader may see, so even a DELETE needs pages to write to. Writes
that add data are therefore refused a little before quota or disk are used up, and writes that free
space are not. Knows LMDB's page counts; nothing about what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tarsdb.errors import StorageFullError
from tarsdb.options import OpenOptions
from tarsdb.storage import filesystems

_MARGIN_BYTES = 1 << 20
_SPARE_BYTES = 1 << 18  # unused pages inside the file that let a write pass on a full disk
_KINDS = ("branch_pages", "leaf_pages", "overflow_pages")


def fill_limit(options: OpenOptions) -> int | None:
    """Return how many bytes of a quota may be in use; None without a quota."""
    quota = options.max_size_bytes
    return None if quota is None else quota - max(quota // 8, 1 << 16)


def looks_full(fd: int) -> bool:
    """Return whether disk or file size limit explain a failed write; LMDB reports EIO for both."""
    return filesystems.room(fd)[0] < _MARGIN_BYTES


def is_nearly_full(fd: int) -> bool:
    """Return whether the room left is the last megabyte, or the last eighth of a small disk."""
    left, total = filesystems.room(fd)
    return left < min(_MARGIN_BYTES, total // 8)


def used_bytes(stats: Iterable[Mapping[str, int]]) -> int:
    """Return the size of the pages in use, of LMDB's figures of every database."""
    return sum(stat[kind] * stat["psize"] for stat in stats for kind in _KINDS)


def require_quota(path: str, options: OpenOptions, used: int) -> None:
    """Raise StorageFullError when a write leaves more in use than a quota allows."""
    limit = fill_limit(options)
    if limit is not None and used > limit:
        raise StorageFullError(
            f"{path}: the size limit of the file is reached: {used} bytes in use after this, "
            f"{limit} of max_size_bytes={options.max_size_bytes} may be",
            hint="raise max_size_bytes, or DELETE and VACUUM",
        )


def require_room(path: str, size: int, used: int) -> None:
    """On a nearly full disk: raise StorageFullError unless the file itself has pages to spare."""
    if size - used < _SPARE_BYTES:
        raise StorageFullError(
            f"{path}: the disk is nearly full, and what is left is kept for deleting",
            hint="free disk space, or DELETE and VACUUM",
        )
