"""How long work in the storage hears that it is to stop: by a function of the caller that raises.

The storage knows no connections and no statements; whoever starts long work says whom it asks. What
such a function raises passes through: a write transaction is rolled back by it, and reads just end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
CheckStop = Callable[[], None]
"""Raises when the work is to end."""
STEP = 4096
"""Keys or entries between two questions: some milliseconds of work."""


def never() -> None:
    """Ask nobody."""


def heeding(items: Iterable[T], check_stop: CheckStop, step: int = STEP) -> Iterator[T]:
    """Yield items, and ask before the first of every ``step`` of them whether to stop."""
    for at, item in enumerate(items):
        if at % step == 0:
            check_stop()
        yield item
