"""Linear memories of guests in memory that the database shares, so that no batch is sent.

Uses wasmtime's memory creator through its C binding. Two memories at most: slot 0 is the module's,
slot 1 the driver's. Each lies in its own part of one shared file, at the start of a reservation so
large that no address of 32 bits leads out of it; what a guest may not reach is not accessible, so
code needs no bounds checks: an access there is a trap.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import wasmtime
from wasmtime import _bindings as c_api

from tarsdb.udf_sandbox.settings import GUARD_BYTES, RESERVED_BYTES

RESERVATION = RESERVED_BYTES + 2 * GUARD_BYTES
"""Address space each memory takes."""

_PROT_NONE, _PROT_RW = 0, 3
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED = mmap.MAP_SHARED, mmap.MAP_PRIVATE, 0x10
_MADV_REMOVE = 9  # Linux: give the pages back, so that they read as zeros
_FAILED = ctypes.c_void_p(-1).value


class _Slot:
    """One memory's part of the file: its address here, its bound, and how much is in use."""

    def __init__(self, address: int, capacity: int) -> None:
        self.address = address
        self.capacity = capacity
        self.size = 0


class Memories:
    """The memories of one process; :meth:`install` before an engine is made, then :meth:`map`."""

    def __init__(self) -> None:
        self._slots: list[_Slot] = []
        self._next = 0
        self._new = c_api.wasmtime_new_memory_callback_t(self._create)
        self._get = c_api.wasmtime_memory_get_callback_t(self._where)
        self._grow = c_api.wasmtime_memory_grow_callback_t(self._resize)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
            ctypes.c_int64,
        ]  # fmt: skip
        self._libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def install(self, config: wasmtime.Config) -> None:
        """Let engines of this configuration ask here for their memories."""
        creator = c_api.wasmtime_memory_creator(None, self._new)
        c_api.wasmtime_config_host_memory_creator_set(config.ptr(), ctypes.byref(creator))

    def map(self, descriptor: int, sizes: tuple[int, ...]) -> None:
        """Map the parts of the shared file, each with its guards."""
        offset = 0
        for size in sizes:
            around = self._mapped(None, RESERVATION, _PROT_NONE, _MAP_PRIVATE, -1, 0)
            place = around + GUARD_BYTES
            self._mapped(place, size, _PROT_NONE, _MAP_SHARED | _MAP_FIXED, descriptor, offset)
            self._slots.append(_Slot(place, size))
            offset += size

    def _mapped(
        self, address: int | None, size: int, protection: int, flags: int, *file: int
    ) -> int:
        if file[0] < 0:
            flags |= mmap.MAP_ANONYMOUS
        found = self._libc.mmap(address, size, protection, flags, *file)
        if found in (None, _FAILED):
            raise OSError(ctypes.get_errno(), f"cannot map {size} bytes of memory")
        return int(found)

    def begin(self, slot: int) -> None:
        """Say whose memory is made next."""
        self._next = slot

    def size(self, slot: int) -> int:
        """Return the bytes of a memory now; 0 when it was not made."""
        return self._slots[slot].size

    def clear(self) -> None:
        """Make all memories read as zeros and forget their sizes; no instance may live."""
        for slot in self._slots:
            used, slot.size = slot.size, 0
            if used:
                if self._libc.madvise(slot.address, used, _MADV_REMOVE) != 0:
                    ctypes.memset(slot.address, 0, used)
                if not self._protected(slot, used, _PROT_NONE):
                    raise OSError(ctypes.get_errno(), f"cannot protect {used} bytes of memory")

    def _protected(self, slot: _Slot, size: int, protection: int) -> bool:
        return size == 0 or self._libc.mprotect(slot.address, size, protection) == 0

    def _create(self, *arguments: Any) -> int:
        """Make a memory: (env, type, minimum, maximum, reserved, guard, where to put it)."""
        minimum, reserved, guard, made = arguments[2], *arguments[4:6], arguments[6].contents
        if reserved > RESERVED_BYTES or guard > GUARD_BYTES:
            return _error(f"a reservation of {reserved} and {guard} bytes is not there")
        if self._next >= len(self._slots) or minimum > self._slots[self._next].capacity:
            return _error("the shared memory is too small")
        if not self._protected(self._slots[self._next], minimum, _PROT_RW):
            return _error(f"cannot make {minimum} bytes of memory accessible")
        self._slots[self._next].size = minimum
        made.env = self._next + 1  # NULL would be slot -1
        made.get_memory = self._get
        made.grow_memory = self._grow
        return 0

    def _where(self, env: int, size: Any, capacity: Any) -> int:
        slot = self._slots[env - 1]
        size[0] = slot.size
        capacity[0] = slot.capacity
        return slot.address

    def _resize(self, env: int, size: int) -> int:
        slot = self._slots[env - 1]
        if size > slot.capacity:
            return _error(f"a memory of {size} bytes, at most {slot.capacity}")
        if not self._protected(slot, size, _PROT_RW):
            return _error(f"cannot make {size} bytes of memory accessible")
        slot.size = size
        return 0


def _error(text: str) -> int:
    made = wasmtime.WasmtimeError(text)._consume()
    return int(ctypes.cast(made, ctypes.c_void_p).value or 0)
