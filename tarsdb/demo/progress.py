"""A progress line with rate and remaining time; on a pipe, a line now and then."""

from __future__ import annotations

import time
from typing import TextIO

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
