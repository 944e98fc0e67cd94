"""Time that compiled kernels take, by layer and stage, of the calls of a thread that asks for it.

Kernels that models use know no clock; while a thread asks, its calls go to variants of them that
are compiled with marks between the stages (``kernels/cpu/stages.py``) and compute the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tarsdb.errors import InternalError
from tarsdb.kernels.forms import CompiledKinds
from tarsdb.kernels.native import address

_asking = threading.local()


class _Kernel(Protocol):
    @property
    def variant(self) -> str: ...


Kernel = TypeVar("Kernel", bound=_Kernel)


class StageTimes:
    """What the calls of one thread took.

    Parameters
    ----------
    marked : bool
        Let kernels with marks compute; else calls are only timed as a whole.

    Attributes
    ----------
    calls : int
    seconds : float
        Of all calls.
    outside, stages : list of str
        Stages that belong to no layer, and those of a layer.
    """

    def __init__(self, marked: bool) -> None:
        self.marked = marked
        self.calls, self.seconds = 0, 0.0
        self.outside: list[str] = []
        self.stages: list[str] = []
        self._marks = np.zeros(2, np.int64)
        self._ends: list[tuple[int, float]] = []  # the clock's count and the time, first and last

    def marks(self, layout: ModuleType, layers: int) -> int:
        """Return the address of the marks of a kernel that a module of ``kernels/cpu`` makes."""
        if not self.stages:
            from tarsdb.kernels.cpu.stages import COUNTS, stages_of

            self.outside, self.stages = stages_of(layout)
            size = COUNTS + len(self.outside) + layers * len(self.stages)
            self._marks = np.zeros(size, np.int64)
        return address(self._marks)

    def run(self, call: Callable[[], None]) -> None:
        """Make a call of a kernel."""
        self._marks[1] = 0  # before the first layer
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        self.calls += 1
        self.seconds += end - start
        self._ends[1:] = [(int(self._marks[0]), end)]

    def found(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return seconds of ``outside`` and (layers, stages); two calls tell the clock's pace."""
        (count, start), (last, end) = self._ends
        seconds = np.asarray(self._marks[2:] * ((end - start) / (last - count)), np.float64)
        seconds[0] = 0  # between the calls
        outside = len(self.outside)
        return seconds[:outside], seconds[outside:].reshape(-1, len(self.stages))


@contextmanager
def timing(marked: bool = True) -> Iterator[StageTimes]:
    """Time the calls of this thread."""
    _asking.times = StageTimes(marked)
    try:
        yield _asking.times
    finally:
        _asking.times = None


def asked() -> StageTimes | None:
    """Return where this thread's calls are timed; None, as a rule, if they are not."""
    return getattr(_asking, "times", None)


def run(call: Callable[[], None]) -> None:
    """Make a call of a kernel, timed where this thread asks for it."""
    times = asked()
    if times is None:
        call()
    else:
        times.run(call)


def with_marks(kinds: CompiledKinds[Kernel], usual: Kernel) -> Kernel:
    """Return the kernel with marks that computes what the usual one does."""
    found = kinds.wait(usual.variant.partition("/")[0])
    if found is None or found.variant != usual.variant:
        raise InternalError(f"the kernel {usual.variant} cannot be compiled with marks")
    return found
