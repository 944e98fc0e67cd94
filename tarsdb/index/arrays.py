"""Named arrays as one run of bytes, and back: how an index leaves and enters memory.

A header of JSON (name, dtype, shape, offset), then the arrays, each at a multiple of 64 bytes. What
is read is checked for bounds before an array is made of it; whether its numbers make sense is the
index's own check. No code is ever read.
"""

from __future__ import annotations

import contextlib
import json
import mmap
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tarsdb.errors import CorruptionError

_ALIGN = 64
_HUGE = 1 << 21
_MAGIC = b"TARRAYS1"
_KINDS = frozenset("biuf")


def pack(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of arrays in pieces; memory beyond the arrays is small."""
    header: list[list[Any]] = []
    offset = 0
    kept = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    for name, array in kept.items():
        header.append([name, array.dtype.str, list(array.shape), offset])
        offset += -(-array.nbytes // _ALIGN) * _ALIGN
    text = json.dumps(header, separators=(",", ":")).encode()
    start = _MAGIC + len(text).to_bytes(8, "little") + text
    yield start + bytes(-len(start) % _ALIGN)
    for array in kept.values():
        if array.nbytes:
            yield array.reshape(-1).view(np.uint8).data
            yield bytes(-array.nbytes % _ALIGN)


def unpack(data: bytearray | bytes | memoryview) -> dict[str, np.ndarray]:
    """Return the arrays as views of ``data``.

    Raises
    ------
    CorruptionError
        The bytes are no packed arrays, or a shape reaches beyond them.
    """
    whole = memoryview(data)
    if bytes(whole[:8]) != _MAGIC or len(whole) < 16:
        raise CorruptionError(f"packed arrays start with {bytes(whole[:8])!r}, expected {_MAGIC!r}")
    length = int.from_bytes(whole[8:16], "little")
    start = -(-(16 + length) // _ALIGN) * _ALIGN
    try:
        header = json.loads(bytes(whole[16 : 16 + length]))
        return {str(name): _array(whole, start, field) for name, *field in header}
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptionError(f"packed arrays do not read: {error}") from error


def private(array: np.ndarray) -> np.ndarray:
    """Return a copy at a multiple of 64 bytes; a large one in huge pages where there are any."""
    if array.nbytes < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        memory = np.empty(array.nbytes + _ALIGN, dtype=np.uint8)
        first = -int(memory.__array_interface__["data"][0]) % _ALIGN
    else:
        mapped = mmap.mmap(-1, array.nbytes + _HUGE)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapped.madvise(mmap.MADV_HUGEPAGE)
        memory = np.frombuffer(mapped, dtype=np.uint8)
        first = -int(memory.__array_interface__["data"][0]) % _HUGE
    copy = memory[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _array(whole: memoryview, start: int, field: list[Any]) -> np.ndarray:
    kind, shape, offset = field
    dtype = np.dtype(kind)
    count = 1
    for size in shape:
        if not isinstance(size, int) or size < 0:
            raise ValueError(f"size {size!r}")
        count *= size
    first = start + int(offset)
    if dtype.kind not in _KINDS or int(offset) < 0 or first + count * dtype.itemsize > len(whole):
        raise ValueError(f"an array of {count} {kind} at {first} in {len(whole)} bytes")
    return np.frombuffer(whole, dtype, count, first).reshape(shape)
