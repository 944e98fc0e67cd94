"""Claims of a running process on data no commit refers to yet.

A large load stages its blocks before the commit that publishes them. A lease says whose they are: a
record in ``meta`` with the process (id, start time, boot) and one empty entry per name held.
Collection keeps what a live lease holds and takes what a dead one left.

Keys in ``meta``: ``lease/`` + 16-byte token -> JSON of the process; ``lease/`` + token + ``/`` +
name -> empty. Knows nothing about what the names mean.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from tarsdb.storage.transaction import ReadTxn, WriteTxn

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

_PREFIX = b"lease/"
_END = b"lease0"
_TOKEN = 16


class Held(NamedTuple):
    """One name under a lease."""

    token: bytes
    name: bytes
    is_live: bool


class Lease:
    """The claim of this process; made by ``Environment.lease``, a context manager.

    Use `hold` in the same staging transaction that writes the data, and `drop` (or `release`) in or
    after the commit that refers to it.
    """

    def __init__(self, env: Environment) -> None:
        self._env = env
        self.token = secrets.token_bytes(_TOKEN)
        self._is_used = False

    def hold(self, txn: WriteTxn, name: bytes) -> None:
        """Claim a name (at most 400 bytes)."""
        record = _PREFIX + self.token
        if txn.get("meta", record) is None:
            txn.put("meta", record, json.dumps(_process(os.getpid())).encode())
        txn.put("meta", record + b"/" + name, b"")
        self._is_used = True

    def drop(self, txn: WriteTxn, name: bytes) -> None:
        """Give up one name."""
        txn.delete("meta", _PREFIX + self.token + b"/" + name)

    def drop_all(self, txn: WriteTxn) -> None:
        """Give up everything, inside a transaction of the caller."""
        forget(txn, self.token)
        self._is_used = False

    def release(self) -> None:
        """Give up everything, in a transaction of its own."""
        if self._is_used:
            self._env.stage(self.drop_all, frees_space=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def held(txn: ReadTxn) -> Iterator[Held]:
    """Yield every name under a lease and whether its process still runs."""
    alive: dict[bytes, bool] = {}
    for key, value in txn.range("meta", _PREFIX, _END):
        token, name = key[6 : 6 + _TOKEN], key[7 + _TOKEN :]
        if len(key) == 6 + _TOKEN:
            alive[token] = is_running(bytes(value))
        else:
            yield Held(token, name, alive.get(token, False))


def dead_tokens(txn: ReadTxn) -> list[bytes]:
    """Return the tokens of leases whose process is gone."""
    return [
        key[6:]
        for key, value in txn.range("meta", _PREFIX, _END)
        if len(key) == 6 + _TOKEN and not is_running(bytes(value))
    ]


def forget(txn: WriteTxn, token: bytes) -> None:
    """Delete a lease and all its names."""
    start = _PREFIX + token
    keys = [key for key, _ in txn.range("meta", start, start + b"0")]
    for key in keys:
        txn.delete("meta", key)


# --- processes ---


@functools.lru_cache(maxsize=1)
def boot_id() -> str:
    """Return an id of this boot of the machine, or '' where there is none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _start_time(pid: int) -> str | None:
    """Return when a process started, '' when that cannot be told, None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return None
    except OSError:
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""


def _process(pid: int) -> dict[str, str | int]:
    return {"pid": pid, "boot": boot_id(), "start": _start_time(pid) or ""}


def is_running(record: bytes) -> bool:
    """Return whether the process of a lease record still runs; a damaged record is a dead one."""
    try:
        process = json.loads(record)
        pid, boot, start = int(process["pid"]), process["boot"], process["start"]
    except (ValueError, KeyError, TypeError):
        return False
    if boot != boot_id():
        return False
    now = _start_time(pid)
    return now is not None and (not start or not now or now == start)
