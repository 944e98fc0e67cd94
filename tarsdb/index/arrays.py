"""Named arrays as one run of bytes, and back: how an index leaves and enters memory.

The bytes may come back in several runs of somebody else's memory, such as a memory map; arrays that
are not to be copied then stay where they lie, as :class:`Runs`.

A header of JSON (name, dtype, shape, offset), then the arrays, each at a multiple of 64 bytes. What
is read is checked for bounds before an array is made of it; whether its numbers make sense is the
index's own check. No code is ever read.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tarsdb.errors import CorruptionError
from tarsdb.kernels.native import address
from tarsdb.records import dataclass

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


@dataclass(frozen=True)
class Runs:
    """An array left where its bytes lie: in several runs of memory that somebody else owns.

    Attributes
    ----------
    dtype : dtype
    shape : tuple of int
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    _runs: tuple[np.ndarray, ...]  # uint8 each, together the bytes of the array

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return sum(len(run) for run in self._runs)

    @property
    def runs(self) -> tuple[np.ndarray, ...]:
        """The bytes, run by run; uint8."""
        return self._runs

    def places(self, cuts: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return where each of some parts of the array lies in one piece.

        Parameters
        ----------
        cuts : int64 (n + 1,)
            First byte of each part, ascending, and the end.

        Returns
        -------
        addresses : int64 (n,)
            Valid as long as the runs' owner keeps them.
        copies : list of uint8 arrays
            The parts a run's end cuts, copied: to be kept as long as the addresses.
        """
        sizes = np.array([len(run) for run in self._runs], np.int64)
        bases = np.array([address(run) for run in self._runs], np.int64)
        ends = np.cumsum(sizes)
        run = np.minimum(np.searchsorted(ends, cuts[:-1], "right"), len(ends) - 1)
        found = bases[run] + cuts[:-1] - (ends - sizes)[run]
        copies = []
        for part in np.flatnonzero(cuts[1:] > ends[run]).tolist():
            copies.append(private(_joined(self._runs, int(cuts[part]), int(cuts[part + 1]))))
            found[part] = address(copies[-1])
        return found, copies


def unpack(data: bytearray | bytes | memoryview) -> dict[str, np.ndarray]:
    """Return the arrays as views of ``data``.

    Raises
    ------
    CorruptionError
        The bytes are no packed arrays, or a shape reaches beyond them.
    """
    whole = memoryview(data)
    return {
        name: np.frombuffer(whole, dtype, math.prod(shape), first).reshape(shape)
        for name, (dtype, shape, first) in _fields(lambda a, b: bytes(whole[a:b]), len(whole))
    }


def unpack_runs(
    runs: Sequence[memoryview], left: Collection[str]
) -> tuple[dict[str, np.ndarray], dict[str, Runs]]:
    """Return copies of the arrays whose bytes lie in several runs, and some left where they lie.

    Parameters
    ----------
    runs : sequence of memoryview
    left : collection of str
        Names of arrays that are not copied.

    Raises
    ------
    CorruptionError
        The bytes are no packed arrays, or a shape reaches beyond them.
    """
    views = [np.frombuffer(run, np.uint8) for run in runs]
    copied, kept = {}, {}
    size = sum(map(len, views))
    for name, (dtype, shape, first) in _fields(lambda a, b: _joined(views, a, b).tobytes(), size):
        stop = first + math.prod(shape) * dtype.itemsize
        if name in left:
            kept[name] = Runs(dtype, shape, tuple(_cut(views, first, stop)))
        else:
            copied[name] = _joined(views, first, stop).view(dtype).reshape(shape)
    return copied, kept


def _joined(runs: Sequence[np.ndarray], start: int, stop: int) -> np.ndarray:
    """Return a copy of some bytes of runs."""
    return np.concatenate([np.empty(0, np.uint8), *_cut(runs, start, stop)])


def _cut(runs: Sequence[np.ndarray], start: int, stop: int) -> Iterator[np.ndarray]:
    """Yield the parts of runs that are within some bytes of all of them."""
    at = 0
    for run in runs:
        if at < stop and at + len(run) > start:
            yield run[max(start - at, 0) : stop - at]
        at += len(run)


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


def _fields(
    read: Callable[[int, int], bytes], size: int
) -> Iterator[tuple[str, tuple[np.dtype[Any], tuple[int, ...], int]]]:
    """Yield name, dtype, shape and first byte of each array of some bytes, all within them."""
    magic = read(0, 16)
    if magic[:8] != _MAGIC or len(magic) < 16:
        raise CorruptionError(f"packed arrays start with {magic[:8]!r}, expected {_MAGIC!r}")
    length = int.from_bytes(magic[8:], "little")
    start = -(-(16 + length) // _ALIGN) * _ALIGN
    try:
        for name, *field in json.loads(read(16, min(16 + length, size))):
            yield str(name), _field(field, start, size)
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptionError(f"packed arrays do not read: {error}") from error


def _field(field: list[Any], start: int, size: int) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    kind, shape, offset = field
    dtype = np.dtype(kind)
    count = 1
    for length in shape:
        if not isinstance(length, int) or length < 0:
            raise ValueError(f"size {length!r}")
        count *= length
    first = start + int(offset)
    if dtype.kind not in _KINDS or int(offset) < 0 or first + count * dtype.itemsize > size:
        raise ValueError(f"an array of {count} {kind} at {first} in {size} bytes")
    return dtype, tuple(shape), first
