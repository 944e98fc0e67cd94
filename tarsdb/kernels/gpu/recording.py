"""Work of fixed shapes that a device repeats: recorded once as a CUDA graph, launched as a whole.

Without a device it is done anew each time, by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tarsdb.metrics import METRICS

Work = Callable[[], Any]
"""Reads arrays of the device that are the same ones each time; returns an array of it."""


class Recorder:
    """A stream of a device, and the memory of what is recorded there.

    What temporary arrays of recorded work lie in is never given to others: a graph writes there
    again. Recordings of one recorder may share it, as one runs at a time.

    Parameters
    ----------
    xp : module
        CuPy, or a namespace without ``cuda``.
    """

    def __init__(self, xp: Any) -> None:
        self._cuda = getattr(xp, "cuda", None)
        if self._cuda is not None:
            self._stream = self._cuda.Stream(non_blocking=True)
            self._pool = self._cuda.MemoryPool()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Let what is launched meanwhile follow in order what was recorded, and the reverse."""
        if self._cuda is None:
            yield
            return
        with self._stream:
            yield
            self._stream.synchronize()

    def record(self, work: Work) -> Work:
        """Do work once, and return what repeats it.

        The array that is returned is the same one each time. Where work cannot be recorded it is
        repeated as it is, which is counted (``generate.unrecorded``).
        """
        if self._cuda is None:
            return work
        with self._stream, self._cuda.using_allocator(self._pool.malloc):
            work()  # compiles kernels and plans products: not allowed while it is recorded
            try:
                self._stream.begin_capture()
                try:
                    found = work()
                finally:
                    graph = self._stream.end_capture()
            except Exception:  # the driver's and the compiler's are many
                METRICS.add("generate.unrecorded")
                return work

        def repeat() -> Any:
            graph.launch(self._stream)
            return found

        return repeat
