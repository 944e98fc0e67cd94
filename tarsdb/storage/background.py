"""Work behind the writers: one thread of a name at a time, which keeps the environment open.

Knows nothing about the work. A thread is no daemon: the process ends after it, so long work looks
whether the interpreter ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment


def is_busy(env: Environment, name: str) -> bool:
    """Return whether a thread of that name runs."""
    return name in env.caches


def start(env: Environment, name: str, work: Callable[[], None]) -> bool:
    """Run work in a thread; False when the environment is closed or no thread can be had."""
    if not env.retain():
        return False

    def run() -> None:
        try:
            work()
        finally:
            env.caches.pop(name, None)
            env.release()

    thread = threading.Thread(target=run, name=f"tarsdb-{name}")
    env.caches[name] = thread
    try:
        thread.start()
    except RuntimeError:  # no more threads, or the interpreter ends: a later writer tries again
        env.caches.pop(name, None)
        env.release()
        return False
    return True


def wait(env: Environment, name: str) -> None:
    """Return when no thread of that name runs."""
    thread = env.caches.get(name)
    if thread is not None and thread is not threading.current_thread():
        thread.join()
