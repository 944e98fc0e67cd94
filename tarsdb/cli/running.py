"""Run a statement so that Ctrl-C stops the statement and not the session.

The statement runs in a thread of its own: the main thread stays free to receive the signal while
native code works, and asks the connection to interrupt.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

from tarsdb.database import Connection

T = TypeVar("T")


def interruptibly(db: Connection, work: Callable[[], T]) -> T:
    """Return what ``work`` returns; Ctrl-C meanwhile interrupts the connection's statement.

    Raises
    ------
    Error
        Whatever ``work`` raises; InterruptError when it was stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = work()
        except BaseException as error:  # handed to the main thread below
            outcome["error"] = error

    worker = threading.Thread(target=run, name="tarsdb-statement", daemon=True)
    with _on_interrupt(db.interrupt):
        worker.start()
        while worker.is_alive():
            worker.join(0.1)
    if "error" in outcome:
        raise outcome["error"]
    value: T = outcome["value"]
    return value


@contextlib.contextmanager
def _on_interrupt(action: Callable[[], None]) -> Iterator[None]:
    def receive(signum: int, frame: FrameType | None) -> None:
        action()

    before = signal.signal(signal.SIGINT, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
