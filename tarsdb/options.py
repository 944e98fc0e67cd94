"""Frozen option sets: fields that change behaviour first, then fields that change only speed."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from tarsdb.errors import InterfaceError

VERSION = "0.1.0"
"""The release, as setup.cfg says."""


class Durability(enum.Enum):
    """What an acknowledged commit survives.

    FULL: power loss; commits that wait at the same time share one sync. GROUP: another name of
    FULL. RELAXED: process crash; power loss may take the last commit, never more, and never
    corrupts.
    """

    FULL = "full"
    GROUP = "group"
    RELAXED = "relaxed"


@dataclass(frozen=True)
class OpenOptions:
    """How a database file is opened.

    Parameters
    ----------
    read_only : bool
        Refuse writes; the file must exist.
    create : bool
        Create the file when it does not exist.
    durability : Durability
    check : bool
        Verify structure, headers and checksums before use, even beside other processes' readers.
    lock_timeout_s : float
        How long a commit waits for another process's writer before LockError.
    max_size_bytes : int, optional
        Quota of the data file; a commit beyond it raises StorageFullError.
    max_read_age_s : float, optional
        A read transaction older than this is ended, at work or not. None ends only one that no
        statement has used for 600 s: a forgotten one would make the file grow.
    map_size_bytes : int
        Address space to reserve; halved until the system grants it.
    delta_limit_rows : int
        Rows a table's delta may hold before merging starts; writers wait at four times as many.
    segment_rows : int
        Rows of one column block.
    background_merge : bool
    preload_functions : bool
        Load the code of all sandboxed functions at opening, compiling what this machine has not
        yet compiled, instead of each at its first call.
    """

    read_only: bool = False
    create: bool = True
    durability: Durability = Durability.FULL
    check: bool = False
    lock_timeout_s: float = 5.0
    max_size_bytes: int | None = None
    max_read_age_s: float | None = None

    map_size_bytes: int = 1 << 40
    delta_limit_rows: int = 4096
    segment_rows: int = 2048
    background_merge: bool = True
    preload_functions: bool = False

    def __post_init__(self) -> None:
        """Raise InterfaceError for a number that is none, or is below what means something."""
        if not isinstance(self.durability, Durability):
            raise InterfaceError(f"OpenOptions: durability is {self.durability!r}, no Durability")
        _require(self, ("lock_timeout_s",), (int, float), 0)
        _require(self, ("map_size_bytes", "delta_limit_rows"), int, 0)
        _require(self, ("segment_rows",), int, 1)
        if self.max_size_bytes is not None:
            _require(self, ("max_size_bytes",), int, 1)
        if self.max_read_age_s is not None:
            _require(self, ("max_read_age_s",), (int, float), 0)


def _require(options: OpenOptions, names: tuple[str, ...], kinds: Any, least: int) -> None:
    for name in names:
        value = getattr(options, name)
        if not isinstance(value, kinds) or isinstance(value, bool) or not value >= least:
            raise InterfaceError(
                f"OpenOptions: {name} is {value!r}, a number from {least} is meant"
            )


@dataclass(frozen=True)
class SandboxLimits:
    """What one statement's calls of a sandboxed function may use, and which backend runs them.

    Fuel is wasmtime's unit, about one per instruction. ``require_seccomp`` refuses to run in a
    worker whose system calls cannot be filtered. ``allow`` are the capabilities it is granted.
    """

    fuel: int = 10_000_000
    fuel_per_row: int = 100_000
    max_memory_bytes: int = 64 << 20
    timeout_ms: int = 5_000
    backend: str = "wasmtime"
    require_seccomp: bool = False
    allow: tuple[str, ...] = ()
