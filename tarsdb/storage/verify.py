"""Checks a data file before LMDB maps it: a damaged one can kill the process.

LMDB trusts its file. A fast check of our own says what is clean; all else goes to lmdb's
verifier, a pure reader of bytes, which names the damage. The answer holds only while nobody
writes, so the caller is alone or holds the writer lock. Knows nothing about tarsdb's values; their
checksums are checked at first touch.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import time
from typing import Any

from tarsdb.errors import CorruptionError, DatabaseError
from tarsdb.metrics import METRICS
from tarsdb.storage.page_check import Verdict, check_pages

LIMIT_S = 2.0
_LMDB_MAGIC = 0xBEEFC0DE
_META = struct.Struct("<IIQQI")  # at page offset 16: magic, version, address, map size, page size
_PAGE_SIZES = frozenset(1 << bits for bits in range(9, 16))
_EXTENT = re.compile(r"overflow page \d+ header mp_pages (\d+) != OVPAGES\(\d+\)=(\d+)$")
_LEAK = re.compile(r"(\d+) page\(s\) are neither reachable nor in the freeDB -- a leak ")
_COUNTER = re.compile(r"walked (\d+) overflow pages, record says (\d+)$")
# of databases whose keys hold several values
_MISCOUNT = re.compile(
    r"main/index DB(: walked \d+ (branch|leaf) pages( \(\d+ with dup sub-trees\))?, record says "
    r"\d+| is empty \(no root\) but has nonzero counters)$"
)


class _OutOfTime(Exception):
    pass


class _TimedFile:
    """A binary file whose reads stop at a deadline."""

    def __init__(self, file: Any, limit_s: float | None) -> None:
        self._file = file
        self._deadline = None if limit_s is None else time.monotonic() + limit_s

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def read(self, size: int) -> bytes:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise _OutOfTime
        return bytes(self._file.read(size))


def check_start(fd: int, path: str) -> None:
    """Raise unless the first two pages look like meta pages of the engine we use."""
    first = os.pread(fd, 64, 0)
    psize = page_size(first)
    second = os.pread(fd, 64, psize or mmap.PAGESIZE)
    found = [_META.unpack_from(page, 16)[:2] for page in (first, second) if len(page) >= 44]
    magics = [magic == _LMDB_MAGIC for magic, _ in found]
    if not any(magics):
        if len(first) >= 28 and struct.unpack_from("<I", first, 24)[0] == _LMDB_MAGIC:
            raise CorruptionError(f"{path}: written by another LMDB engine (1.0), expected 0.9")
        raise DatabaseError(
            f"{path}: not a tarsdb database; it starts with {first[:8]!r}",
            hint="check the file name",
        )
    whole = len(found) == 2 and all(magics) and psize == page_size(second)
    if not whole or not psize or any(version != 1 for _, version in found):
        raise CorruptionError(
            f"{path}: the meta pages are damaged or from another LMDB engine",
            hint="restore from a backup",
        )


def page_size(start: bytes) -> int:
    """Return the page size a meta page names, 0 when it is none of LMDB's.

    It is the system's where the file was made: 4 KiB, or 16 KiB on Apple's processors.
    """
    if len(start) < 44:
        return 0
    size = int(_META.unpack_from(start, 16)[4])
    return size if size in _PAGE_SIZES else 0


def check_structure(path: str, limit_s: float | None) -> bool:
    """Verify pages, trees and free lists; return False when the time ran out before the end.

    Raises
    ------
    CorruptionError
        With the first findings and their number.
    """
    begun = time.monotonic()
    if check_pages(path, limit_s) is Verdict.CLEAN:
        return True
    left = None if limit_s is None else max(limit_s - (time.monotonic() - begun), 0.0)
    problems, finished = find_problems(path, left)
    if not finished and _is_short(path):
        problems, finished = find_problems(path, None)
    problems = without_false_alarms(problems)
    if problems:
        raise CorruptionError(
            f"{path}: {len(problems)} structural problems, first: {problems[0]}",
            hint="restore from a backup",
        )
    if not finished:
        METRICS.add("storage.verify_skipped")
    return finished


def _is_short(path: str) -> bool:
    """Return whether the file ends before the last page its meta pages count."""
    with open(path, "rb") as file:
        psize = page_size(file.read(64)) or mmap.PAGESIZE
        starts = []
        for page in (0, 1):
            file.seek(page * psize)
            starts.append(file.read(psize))
        size = file.seek(0, os.SEEK_END)
    # a meta page: 16 bytes of page header, then at 120 the last page number, at 128 the txn id
    metas = [struct.unpack_from("<QQ", page, 16 + 120) for page in starts]
    last_page, _ = max(metas, key=lambda meta: meta[1])
    return bool(size < (last_page + 1) * psize)


def find_problems(path: str, limit_s: float | None) -> tuple[list[str], bool]:
    """Return the verifier's findings and whether it came to its end."""
    from lmdb import verify

    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        maker: Any = verify._Verifier
        checker = maker(_TimedFile(file, limit_s), size)
        try:
            return [*checker.verify(), *_beyond_end(checker, size)], True
        except _OutOfTime:
            return list(checker.errors), False
        except verify.VerifyError as error:
            return [str(error)], True
        except Exception as error:  # damage can take the walker anywhere
            return [*checker.errors, f"{type(error).__name__}: {error}"], True


def _beyond_end(checker: Any, size: int) -> list[str]:
    """Find values cut off by truncation; the verifier reads only the first page of a value."""
    last = checker.live.rfind(1)
    if last < 0 or (last + 1) * checker.psize <= size:
        return []
    return [f"page {last} is in use, the file ends at {size} bytes"]


def without_false_alarms(problems: list[str]) -> list[str]:
    """Drop the findings lmdb's verifier raises on healthy files.

    LMDB keeps the larger page extent of a value that was replaced by a shorter one in the same
    transaction. The verifier reports the extent, and its spare pages as a leak. Both are dropped
    when the numbers agree exactly and nothing else was found. And it miscounts the pages of a
    database when it deletes from a key with so many values that they fill a tree of their own;
    that count serves statistics only, and each page is still looked for in trees and free lists.
    """
    problems = [problem for problem in problems if not _MISCOUNT.match(problem)]
    spare = leaked = recorded = 0
    for problem in problems:
        extent = _EXTENT.search(problem)
        leak = _LEAK.match(problem)
        counter = _COUNTER.search(problem)
        if extent and int(extent[1]) > int(extent[2]):
            spare += int(extent[1]) - int(extent[2])
        elif leak:
            leaked = int(leak[1])
        elif counter:
            recorded += int(counter[2]) - int(counter[1])
        else:
            return problems
    return [] if spare and spare == leaked == recorded else problems
