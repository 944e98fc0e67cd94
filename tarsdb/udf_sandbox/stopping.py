"""How whoever prepares functions on this thread, above all by compiling, learns to stop.

Compiling happens when a function is first needed, deep below the statement that needs it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator


def _never() -> bool:
    return False


_asked: contextvars.ContextVar[Callable[[], bool]] = contextvars.ContextVar("asked", default=_never)


@contextlib.contextmanager
def stoppable(asked: Callable[[], bool]) -> Iterator[None]:
    """Let what is prepared within end with InterruptError once ``asked`` says True."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def stop_asked() -> bool:
    """Return True once the statement that this thread prepares a function for is to stop."""
    return _asked.get()()
