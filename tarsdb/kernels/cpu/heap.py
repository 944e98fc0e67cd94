"""The nearest so far as a max-heap of packed entries, int64 at an address: where they are many."""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import put_long, read_long


@linked
def sift(heap, size, entry):  # type: ignore[no-untyped-def]
    """Put an entry at the root and restore the heap."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and read_long(heap, child + 1) > read_long(heap, child):
            child += 1
        if read_long(heap, child) <= entry:
            break
        put_long(heap, at, read_long(heap, child))
        at = child
    put_long(heap, at, entry)


@linked
def offer(heap, size, limit, entry):  # type: ignore[no-untyped-def]
    """Offer an entry to the heap of the ``limit`` smallest; returns the heap's size."""
    if size == limit:
        if entry < read_long(heap, 0):
            sift(heap, size, entry)
        return size
    at = size
    while at > 0 and read_long(heap, (at - 1) >> 1) < entry:
        put_long(heap, at, read_long(heap, (at - 1) >> 1))
        at = (at - 1) >> 1
    put_long(heap, at, entry)
    return size + 1


@linked
def sort(heap, size):  # type: ignore[no-untyped-def]
    """Turn a heap into ascending entries."""
    for end in range(size - 1, 0, -1):
        entry = read_long(heap, end)
        put_long(heap, end, read_long(heap, 0))
        sift(heap, end, entry)


@linked
def order(entries, size):  # type: ignore[no-untyped-def]
    """Put entries in ascending order; those that are so already stay as they are."""
    at = 1
    while at < size and read_long(entries, at - 1) <= read_long(entries, at):
        at += 1
    if at >= size:
        return
    for end in range(1, size):
        offer(entries, end, size, read_long(entries, end))
    sort(entries, size)
