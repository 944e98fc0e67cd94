"""Parts of one search on several threads; kernels release the interpreter's lock meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Part = TypeVar("Part")


def in_threads(part: Callable[[int], Part], starts: Sequence[int], threads: int) -> list[Part]:
    """Return ``part(start)`` of every start, in their order.

    Parameters
    ----------
    part : callable
        What it raises is raised here, the error of the first start that failed.
    starts : sequence of int
    threads : int
        Threads to use at most; with one, or one start, the caller's own.
    """
    if threads < 2 or len(starts) < 2:
        return [part(at) for at in starts]
    from concurrent.futures import ThreadPoolExecutor  # not needed to open a database

    with ThreadPoolExecutor(min(threads, len(starts))) as pool:
        return list(pool.map(part, starts))
