"""Memory at one place, page aligned, whose bytes may later come from pages of a file.

A region begins as private memory. Pages of a file with the same bytes can take the place of its own
while others read them: the addresses stay, the private pages go back, and all processes that did
the same share what the system keeps of the file. Knows nothing about what lies in it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

CAN_OVERLAY = sys.platform == "linux"
"""Whether pages of a file can take the place of a region's own here."""
_MAP_FIXED = 0x10
_MAP_POPULATE = 0x8000
_FAILED = ctypes.c_void_p(-1).value


class Region:
    """Bytes that stay where they are while an array of them lives.

    Parameters
    ----------
    nbytes : int

    Raises
    ------
    MemoryError

    Attributes
    ----------
    array : uint8 (nbytes,)
        All of it, zeros at first. Not to be written to after :meth:`overlay`.
    address : int
    overlaid : int
        Bytes that come from a file.
    """

    def __init__(self, nbytes: int) -> None:
        size = max(-(-nbytes // mmap.PAGESIZE), 1) * mmap.PAGESIZE
        try:
            self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"{nbytes} bytes for the weights of a model") from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.array: U8 = np.frombuffer(self._memory, np.uint8, nbytes)
        self.address: int = self.array.__array_interface__["data"][0]
        self.overlaid = 0

    @property
    def read_only(self) -> U8:
        """The bytes as an array that refuses to be written to."""
        found = self.array.view()
        found.flags.writeable = False
        return found

    def overlay(self, start: int, size: int, fd: int, offset: int) -> None:
        """Let pages of a file take the place of the region's own, from ``start`` on.

        Parameters
        ----------
        start, offset : int
            In the region and in the file, multiples of the page size.
        size : int
            Bytes; the file has that many, to the end of the last page.
        fd : int
            Open for reading; may be closed afterwards.

        Raises
        ------
        OSError
        """
        flags = mmap.MAP_SHARED | _MAP_FIXED | _MAP_POPULATE
        found = _mmap()(self.address + start, size, mmap.PROT_READ, flags, fd, offset)
        if found == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.overlaid += size

    def when_gone(self, call: Callable[..., Any], *args: Any) -> None:
        """Have a function called when neither the region nor an array of it is left.

        It is not called when the process ends.
        """
        weakref.finalize(self._memory, call, *args).atexit = False


@functools.cache
def _mmap() -> Callable[..., int | None]:
    found = ctypes.CDLL(None, use_errno=True).mmap
    found.restype = ctypes.c_void_p
    found.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip
    return found
