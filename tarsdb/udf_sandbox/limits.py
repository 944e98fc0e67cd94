"""Limits of sandboxed functions: parsing them, and what a statement has left of them.

Knows no WebAssembly: fuel is a number, time is ``time.monotonic``.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from tarsdb.errors import BindError, InterruptError, UdfError, UdfLimitError, UdfTrapError
from tarsdb.options import SandboxLimits
from tarsdb.records import dataclass
from tarsdb.udf_sandbox.backends import check_name
from tarsdb.udf_sandbox.capabilities import grants
from tarsdb.udf_sandbox.figures import Figures

MAX_FUEL = 2**62
MAX_MEMORY_BYTES = 4 << 30
HYPERLIGHT_MEMORY_BYTES = 4 << 20
MAX_TIMEOUT_MS = 24 * 3600 * 1000
WASM_PAGE = 65_536

_UNITS = {"": 1, "B": 1, "KB": 10, "K": 10, "KIB": 10, "MB": 20, "M": 20, "MIB": 20,
          "GB": 30, "G": 30, "GIB": 30}  # fmt: skip


def limits_from_options(options: Mapping[str, Any]) -> SandboxLimits:
    """Return the limits a ``WITH (...)`` clause asks for; missing ones keep their defaults.

    Parameters
    ----------
    options : mapping
        ``fuel``, ``fuel_per_row``, ``max_memory`` (bytes, or text such as ``'16MB'``; units are
        powers of 1024), ``timeout_ms``, ``backend`` (see ``backends``), ``require_seccomp`` (of
        the worker backend), ``allow`` (see ``capabilities``). Names ignore case.

    Raises
    ------
    BindError
        An option is unknown, or its value is not a number in range.
    """
    defaults = SandboxLimits()
    found = {
        "fuel": defaults.fuel,
        "fuel_per_row": defaults.fuel_per_row,
        "max_memory": defaults.max_memory_bytes,
        "timeout_ms": defaults.timeout_ms,
    }
    backend, require_seccomp, allow = defaults.backend, False, defaults.allow
    for name, value in options.items():
        key = name.lower()
        if key == "backend":
            backend = check_name(value)
        elif key == "require_seccomp":
            require_seccomp = _boolean(value, name)
        elif key == "allow":
            allow = grants(value)
        elif key == "max_memory":
            found[key] = _bounded(name, parse_size(value, name), WASM_PAGE, MAX_MEMORY_BYTES)
        elif key in found:
            low, high = (1, MAX_TIMEOUT_MS) if key == "timeout_ms" else (0, MAX_FUEL)
            found[key] = _bounded(name, _integer(value, name), low, high)
        else:
            raise BindError(
                f"function option {name!r} is not known",
                hint=f"options: {', '.join(sorted(found))}, allow, backend, cache, embed, lookup, "
                "require_seccomp, role",
            )
    if backend == "hyperlight":
        _fit_hyperlight(options, found)
    if require_seccomp and backend != "worker":
        raise BindError(
            f"function option require_seccomp is of backend = 'worker', not {backend!r}",
            hint="only a process of its own can have its system calls filtered",
        )
    if allow and backend == "hyperlight":
        raise BindError(
            f"function option allow = {', '.join(allow)!r} needs backend = 'wasmtime' or 'worker', "
            f"not {backend!r}",
            hint="its virtual machine has no way back into the database",
        )
    return SandboxLimits(
        fuel=found["fuel"], fuel_per_row=found["fuel_per_row"],
        max_memory_bytes=found["max_memory"], timeout_ms=found["timeout_ms"], backend=backend,
        require_seccomp=require_seccomp, allow=allow,
    )  # fmt: skip


def _fit_hyperlight(options: Mapping[str, Any], found: dict[str, int]) -> None:
    """Refuse what Hyperlight cannot limit; its memory is set aside, so its default is small."""
    given = {name.lower() for name in options}
    if given & {"fuel", "fuel_per_row"}:
        raise BindError(
            "function option fuel is not counted on backend 'hyperlight'",
            hint="timeout_ms and max_memory are its limits",
        )
    if "max_memory" not in given:
        found["max_memory"] = HYPERLIGHT_MEMORY_BYTES


def _boolean(value: Any, name: str) -> bool:
    found = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
    if found is None:
        raise BindError(f"option {name}: {value!r} is neither true nor false")
    return found


def parse_size(value: Any, name: str = "size") -> int:
    """Return a number of bytes from an int or text such as ``'16MB'``."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]*)\s*", value)
        if match is None or match[2].upper() not in _UNITS:
            raise BindError(f"option {name}: {value!r} is not a size", hint="write '16MB'")
        shift = _UNITS[match[2].upper()]
        return int(match[1]) << shift if shift > 1 else int(match[1])
    return _integer(value, name)


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise BindError(f"option {name}: {value!r} is not a whole number")
    try:
        number = int(value)
    except (ValueError, OverflowError) as error:
        raise BindError(f"option {name}: {value!r} is not a whole number") from error
    if isinstance(value, float) and number != value:
        raise BindError(f"option {name}: {value!r} is not a whole number")
    return number


def _bounded(name: str, number: int, low: int, high: int) -> int:
    if not low <= number <= high:
        raise BindError(f"option {name}: {number} is outside {low}..{high}")
    return number


@dataclass(slots=True)
class _Spent:
    rows: int = 0
    fuel: int = 0
    seconds: float = 0.0


@dataclass
class Budget:
    """What the sandboxed functions of one statement may still use, and its stop switch.

    One budget is shared by all calls of a statement, from any thread. Fuel and time are counted
    per function: ``fuel + fuel_per_row * rows so far``, and ``timeout_ms`` of time inside the
    function. Calls that run at the same moment each see what was left when they began.
    """

    figures: dict[str, Figures] = field(default_factory=dict)
    """What each function did for the statement, by name."""
    lookup: Callable[[str, str], bytes | None] | None = None
    """Value of a key for a function that may look it up, by the names of both; from the engine."""
    embed: Callable[[str, str], bytes | None] | None = None
    """Vector of a text for a function that may ask for it, float32; from the engine."""
    _asked: dict[tuple[str, str], int] = field(default_factory=dict)
    _spent: dict[int, _Spent] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _interrupted: threading.Event = field(default_factory=threading.Event)

    def interrupt(self) -> None:
        """End the running calls of this statement, and every later one, with InterruptError."""
        self._interrupted.set()

    @property
    def interrupted(self) -> bool:
        """True after :meth:`interrupt`."""
        return self._interrupted.is_set()

    def check(self, function: str) -> None:
        """Raise InterruptError when the statement was interrupted."""
        if self._interrupted.is_set():
            raise InterruptError(f"function {function}: interrupted")

    def begin(self, key: int, rows: int, limits: SandboxLimits) -> tuple[int, float]:
        """Count the rows of a call; return the (fuel, seconds) it may use."""
        with self._lock:
            spent = self._spent.setdefault(key, _Spent())
            spent.rows += rows
            granted = limits.fuel + limits.fuel_per_row * spent.rows
            fuel = min(max(granted - spent.fuel, 0), MAX_FUEL)
            return fuel, limits.timeout_ms / 1000 - spent.seconds

    def end(self, key: int, fuel: int, seconds: float, spared: int = 0) -> None:
        """Count the fuel and time a call has used; ``spared`` rows were not passed after all."""
        with self._lock:
            spent = self._spent.setdefault(key, _Spent())
            spent.rows -= spared
            spent.fuel += fuel
            spent.seconds += seconds

    def count(self, function: str, capability: str) -> int:
        """Count a call of the host by a function; return how many it made."""
        with self._lock:
            self._asked[function, capability] = self._asked.get((function, capability), 0) + 1
            return self._asked[function, capability]

    def figures_of(self, function: str) -> Figures:
        """Return what a function did for the statement, to add to."""
        with self._lock:
            found = self.figures.get(function)
            if found is None:
                found = self.figures[function] = Figures()
            return found


@dataclass(slots=True, eq=False)
class Call:
    """One running call: when it must end, why it was stopped, and what it took."""

    function: str
    limits: SandboxLimits
    budget: Budget
    fuel: int
    deadline: float
    likely_fuel: int = MAX_FUEL  # by earlier calls; of a call that may be begun twice
    stopped: str = ""  # '', 'time' or 'interrupt'
    interrupted: bool = False
    used: int = 0  # fuel, known at the end
    fuel_taken: int = 0  # what was left when the guest was ended for want of it, and is not used
    transitions: int = 0  # calls of guest code from the host
    confinement: str = ""  # of the process it ran in, where that was another
    waited: float = 0.0  # seconds that are not the guest's: its process had to be started
    rows: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    memory: int = 0  # bytes the guest had at the end
    reused: bool = False  # the guest served a call before
    failed: BaseException | None = None  # what went wrong in the host while it served the guest

    def raise_failed(self) -> None:
        """Raise what went wrong in the host while it served the guest, if anything did; once."""
        if self.failed is not None:
            try:
                raise self.failed
            finally:
                self.failed = None  # it holds the frames of this call

    def interrupt(self) -> None:
        """Let the call end with InterruptError."""
        self.interrupted = True

    def wait(self, seconds: float) -> None:
        """Take no account of the time something else than the guest took."""
        self.waited += seconds
        self.deadline += seconds

    def is_interrupted(self) -> bool:
        """Return True when the call or its statement was interrupted."""
        return self.interrupted or self.budget.interrupted

    def must_stop(self) -> bool:
        """Decide at every tick whether to stop, and remember the reason."""
        if self.is_interrupted():
            self.stopped = "interrupt"
        elif time.monotonic() >= self.deadline:
            self.stopped = "time"
        return bool(self.stopped)


def stop_error(
    call: Call, code: str, place: str, memory_size: int | None
) -> UdfError | InterruptError:
    """Return the error for a call that the guest or the clock ended.

    Parameters
    ----------
    call : Call
    code : str
        The trap's name.
    place : str
        The guest function it happened in, ``''`` when unknown.
    memory_size : int, optional
        Of the guest's memory then.
    """
    if call.stopped == "interrupt":
        return InterruptError(f"function {call.function}: interrupted")
    if call.stopped == "time" or code == "INTERRUPT":
        return time_error(call)
    if code == "OUT_OF_FUEL":
        return fuel_error(call)
    hint, limit = None, call.limits.max_memory_bytes
    if memory_size is not None and memory_size > limit - (1 << 20):
        hint = f"its memory is at {memory_size} of max_memory = {limit} bytes"
    where = f" in {place!r}" if place else ""
    return UdfTrapError(f"function {call.function}: trap {code}{where}", hint=hint, code=code)


def fuel_error(call: Call) -> UdfLimitError:
    """Return the error for a call that used up its fuel."""
    limits = call.limits
    return UdfLimitError(
        f"function {call.function}: out of fuel (limit {limits.fuel} + "
        f"{limits.fuel_per_row} per row)",
        hint="it may loop forever; otherwise raise fuel or fuel_per_row in WITH (...)",
        kind="fuel",
    )


def time_error(call: Call) -> UdfLimitError:
    """Return the error for a call that ran too long."""
    return UdfLimitError(
        f"function {call.function}: ran longer than timeout_ms = {call.limits.timeout_ms} "
        "in one statement",
        hint="raise timeout_ms in WITH (...), or call it for fewer rows",
        kind="time",
    )


def memory_error(function: str, limits: SandboxLimits, what: str) -> UdfLimitError:
    """Return the error for a function that needs more memory than its limit."""
    return UdfLimitError(
        f"function {function}: {what} (limit max_memory = {limits.max_memory_bytes} bytes)",
        hint="raise max_memory in WITH (...), or free memory in tars_reset",
        kind="memory",
    )
