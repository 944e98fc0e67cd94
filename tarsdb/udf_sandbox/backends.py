"""What runs sandboxed functions: the interface every backend has, and the backends by name.

A function names its backend (``WITH (backend = 'worker')``) and gets that one or an error, never
another. Nothing here runs code: a backend's module is imported when a function asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from tarsdb.errors import BindError, UdfBackendError
from tarsdb.options import SandboxLimits
from tarsdb.records import dataclass
from tarsdb.types import SqlType

if TYPE_CHECKING:
    from tarsdb.columns import Column
    from tarsdb.udf_sandbox.abi import WritableMemory
    from tarsdb.udf_sandbox.limits import Call

NAMES = ("wasmtime", "worker", "hyperlight")

T = TypeVar("T")
Place: TypeAlias = tuple[int, int, int, int, int, int]
"""What compiled code calls a guest by: a function of C, its first three arguments (addresses), the
fourth (a number) and the fifth, where it leaves a trap."""


@dataclass(frozen=True)
class Program:
    """A function's code, signature and limits: all a backend needs, none of it compiled.

    Attributes
    ----------
    code : bytes
        The user's module, inspected.
    sha256 : str
        Of ``code``, hexadecimal.
    driver : bytes, optional
        Of bare scalar exports: the module that loops over ``export`` (see ``driver``).
    reusable : bool
        Nothing a batch leaves behind can reach the next one.
    resettable : bool
        The module exports ``tars_reset``.
    kind : str
        ``'scalar'``, ``'aggregate'`` or ``'table'``: how ``export`` is called.
    columns : tuple of SqlType
        Of a table function: the columns of its rows.
    language : str
        ``'wasm'``, or that of ``code`` as source text: ``'python'``, ``'javascript'``.
    """

    code: bytes
    sha256: str
    driver: bytes | None
    export: str
    arguments: tuple[SqlType, ...]
    returns: SqlType
    limits: SandboxLimits
    reusable: bool
    resettable: bool
    kind: str = "scalar"
    columns: tuple[SqlType, ...] = ()
    language: str = "wasm"


class Instance(Protocol):
    """A module's instance at the level of WebAssembly, used by one thread at a time.

    Backends whose guests have a memory the host can see implement this and leave the columnar
    interface to ``guests``; a backend may as well implement :class:`Guest` itself.
    """

    def begin(self, call: Call) -> bool:
        """Give the instance the fuel and the time of a call; False when it is gone meanwhile."""

    def invoke(self, export: str, call: Call, *arguments: int) -> int:
        """Call an export that takes i32 values and returns one or nothing (then undefined).

        Raises
        ------
        UdfTrapError, UdfLimitError, InterruptError, UdfBackendError
            The instance must then be closed.
        """

    def lend(self, export: str, call: Call) -> tuple[Place, Callable[[int], None]] | None:
        """Return by what compiled code calls an export without parameters; None where it cannot.

        And a function that takes what such a call returned and raises as :meth:`invoke` does.
        """

    def memory(self) -> WritableMemory:
        """Return the memory as bytes, the driver's where there is one; untrusted.

        It is valid until the guest next runs, for growth may move it; of a program with a driver
        it is an array.
        """

    def end(self, call: Call) -> int:
        """Return the fuel the call used."""

    def close(self) -> None:
        """Free the instance; views of its memory are invalid from here on."""


class Guest(Protocol):
    """One instance of a function, called with whole batches; used by one thread at a time."""

    def begin(self, call: Call) -> bool:
        """Give a guest that was used before the fuel and the time of a call; False: it is gone."""

    def batch(self, columns: Sequence[Column], rows: int, call: Call) -> Column:
        """Return the results of ``rows`` rows, checked. After any error the guest is closed."""

    def end(self, call: Call) -> int:
        """Return the fuel the call used."""

    def footprint(self) -> int:
        """Return the bytes of memory the guest holds while idle."""

    def close(self) -> None:
        """Free the guest."""


class CompiledProgram(Protocol):
    """A program that a backend has prepared; safe to use from several threads."""

    def guest(self, call: Call, watched: bool) -> Guest:
        """Make a guest, and begin the call: its module's start function runs under its limits."""

    def close(self) -> None:
        """Free what the program holds; guests are closed by their owner."""


class Backend(Protocol):
    """A way to run programs."""

    name: str

    def unavailable(self) -> str:
        """Return why this machine cannot run it, or ``''`` when it can."""

    def compile(self, program: Program) -> CompiledProgram:
        """Prepare a program.

        Raises
        ------
        UdfValidationError
            The code does not compile.
        UdfBackendError
        """

    def run(self, batch: Callable[[bool], T], call: Call) -> T:
        """Run ``batch`` where this backend's guests may run, and return its result.

        ``batch`` is told whether its guest can be stopped before the deadline by asking
        ``call.must_stop``; a guest serves only calls of one answer.
        """


def check_name(name: str) -> str:
    """Return a backend's name in lower case, or raise BindError when there is none of that name."""
    found = str(name).lower()
    if found not in NAMES:
        raise BindError(
            f"function option backend = {name!r} is not known",
            hint=f"backends: {', '.join(NAMES)}",
        )
    return found


def backend(name: str) -> Backend:
    """Return the backend of a name.

    Raises
    ------
    UdfBackendError
        It cannot run on this machine; the message says why.
    """
    found = _LOADERS[check_name(name)]()
    reason = found.unavailable()
    if reason:
        raise _unavailable(name, reason)
    return found


def _unavailable(name: str, reason: str) -> UdfBackendError:
    return UdfBackendError(
        f"sandbox backend {name!r} is not available here: {reason}",
        hint="a function runs on the backend its WITH (backend = ...) names and on no other; "
        "create it again with one that runs here",
    )


def _wasmtime() -> Backend:
    from tarsdb.udf_sandbox.in_process.backend import InProcessBackend

    return InProcessBackend()


def _worker() -> Backend:
    from tarsdb.udf_sandbox.worker.backend import WorkerBackend

    return WorkerBackend()


def _hyperlight() -> Backend:
    from tarsdb.udf_sandbox.hyperlight.backend import HyperlightBackend

    return HyperlightBackend()


_LOADERS: dict[str, Callable[[], Backend]] = {
    "wasmtime": _wasmtime, "worker": _worker, "hyperlight": _hyperlight,
}  # fmt: skip
