"""A progress line with rate and remaining time; on a pipe, a line now and then.

:func:`watched` shows one for what a statement does; :class:`Progress` counts anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from tarsdb.database import Connection

if TYPE_CHECKING:
    from tarsdb.engine.progress import Work

_EVERY_S = 0.2
_EVERY_S_ON_A_PIPE = 10.0


class Progress:
    """Shows how far a long job is.

    Parameters
    ----------
    total : int
    unit : str
        What is counted, in the plural.
    out : TextIO
    """

    def __init__(self, total: int, unit: str, out: TextIO) -> None:
        self.total = total
        self.unit = unit
        self.out = out
        self.done = 0
        self._start = self._shown = time.perf_counter()
        self._live = out.isatty()
        self.is_begun = False
        """Whether anything was written."""

    def show(self, done: int) -> None:
        """Note that ``done`` of ``total`` are done; print when it is time to."""
        self.done = max(self.done, done)
        now = time.perf_counter()
        if now - self._shown >= (_EVERY_S if self._live else _EVERY_S_ON_A_PIPE):
            self._shown = now
            self._write(now)

    def end(self) -> None:
        """Print the last line."""
        self._write(time.perf_counter(), last=True)

    def _write(self, now: float, *, last: bool = False) -> None:
        self.is_begun = True
        rate = self.done / max(now - self._start, 1e-9)
        took = f"{now - self._start:.1f} s"
        left = f"about {(self.total - self.done) / rate:.0f} s left" if rate else ""
        text = (
            f"  {self.done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s, "
            f"{took if last else left}"
        )
        if self._live:
            self.out.write(f"\r{text:<70}" + ("\n" if last else ""))
        else:
            self.out.write(text + "\n")
        self.out.flush()


@contextmanager
def watched(db: Connection, err: TextIO) -> Iterator[None]:
    """Show on a terminal how far the statements run inside are, and what they will take.

    Where ``err`` is no terminal nothing is written.
    """
    if not err.isatty():
        yield
        return
    line = _Line(err)
    db.on_progress(line.show, line.begin)
    try:
        yield
    finally:
        line.end()
        db.on_progress(None)


class _Line:
    """The progress line of one statement: announces each piece of work and ends each line."""

    def __init__(self, err: TextIO) -> None:
        self._err = err
        self._progress: Progress | None = None

    def begin(self, work: Work) -> None:
        """Announce a piece of work; small texts to embed are not worth a line."""
        self.end()
        if work.memory_bytes or work.disk_bytes:
            self._err.write(
                f"{work.what}: {work.total:,} {work.unit}, about {size(work.memory_bytes)} of "
                f"memory, {size(work.disk_bytes)} of disk\n"
                + (f"  {work.why}\n" if work.why else "")
            )
            self._err.flush()
        self._progress = Progress(work.total, work.unit, self._err)

    def show(self, done: int, total: int) -> None:
        """Note how far it is."""
        if self._progress is not None:
            self._progress.show(done)
            if done >= total:
                self.end()

    def end(self) -> None:
        """End a line that was begun, however its work ended."""
        progress, self._progress = self._progress, None
        if progress is not None and progress.is_begun:
            progress.end()


def size(nbytes: int) -> str:
    """Return a number of bytes in the unit a reader expects (powers of 1000)."""
    amount = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
