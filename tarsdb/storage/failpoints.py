"""Named places where a test makes the storage layer die, fail or pause.

Armed by ``TARSDB_FAILPOINTS="name=action[,name=action...]"`` in the environment of a process, or by
`arm` in a test. Actions: ``kill`` (SIGKILL to this process), ``error`` (OSError EIO), ``enospc``
(OSError ENOSPC), ``sleep:MS``; a trailing ``:N`` acts on the N-th hit only. A name says the moment,
as in ``commit.before_sync``. When nothing is armed a hit costs one global look-up.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import field

from tarsdb.records import dataclass

NAMES = (
    "open.before_verify",
    "open.before_create",
    "open.before_publish",
    "writer.taken",
    "commit.before_apply",
    "commit.after_apply",
    "commit.before_sync",
    "commit.after_write",
    "commit.after_sync",
    "stage.before_commit",
    "stage.after_commit",
    "blob.between_chunks",
    "blob.before_descriptor",
    "checkpoint.between_chunks",
    "reopen.before_open",
    "inference.before_commit",
    "packed.between_chunks",
    "packed.before_descriptor",
    "packed.before_overlay",
)


@dataclass
class _Armed:
    action: Callable[[], None]
    nth: int | None
    hits: int = field(default=0)


_armed: dict[str, _Armed] = {}
_lock = threading.Lock()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(code: int, name: str) -> Callable[[], None]:
    def act() -> None:
        raise OSError(code, f"{os.strerror(code)} (failpoint {name})")

    return act


def _parse(name: str, text: str) -> _Armed:
    word, *rest = text.split(":")
    if word == "sleep":
        pause = float(rest.pop(0)) / 1000
        action: Callable[[], None] = lambda: time.sleep(pause)  # noqa: E731 - a closure
    elif word == "kill":
        action = _kill
    elif word in ("error", "enospc"):
        action = _raise(errno.EIO if word == "error" else errno.ENOSPC, name)
    else:
        raise ValueError(f"failpoint {name}: unknown action {text!r}")
    return _Armed(action, int(rest[0]) if rest else None)


def arm(name: str, action: str | Callable[[], None], nth: int | None = None) -> None:
    """Arm one failpoint.

    Parameters
    ----------
    name : str
        A name of `NAMES`, or one of the layers above.
    action : str or callable
        As in ``TARSDB_FAILPOINTS``, or a function to call.
    nth : int, optional
        Act on this hit only (1 is the next).
    """
    armed = _parse(name, action) if isinstance(action, str) else _Armed(action, nth)
    if nth is not None:
        armed.nth = nth
    with _lock:
        _armed[name] = armed


def disarm(name: str | None = None) -> None:
    """Disarm one failpoint, or all."""
    with _lock:
        if name is None:
            _armed.clear()
        else:
            _armed.pop(name, None)


def hit(name: str) -> None:
    """Act if `name` is armed; otherwise do nothing."""
    if not _armed:
        return
    with _lock:
        armed = _armed.get(name)
        if armed is None:
            return
        armed.hits += 1
        due = armed.nth is None or armed.hits == armed.nth
    if due:
        armed.action()


def _arm_from_environment(text: str) -> None:
    for entry in filter(None, text.split(",")):
        name, _, action = entry.partition("=")
        arm(name.strip(), action.strip())


_arm_from_environment(os.environ.get("TARSDB_FAILPOINTS", ""))
