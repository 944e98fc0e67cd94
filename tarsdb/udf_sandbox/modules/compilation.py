"""Native code of modules: compiled in a child process, because compiling is untrusted work too.

The child has limits of memory and processor time and may open nothing (``worker.main``); it serves
the compilations of a few seconds and is then let go. What it made is kept in ``artefacts``. Knows
no columns and no SQL.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import threading
from collections.abc import Iterator

from tarsdb.errors import InterruptError, UdfBackendError, UdfValidationError
from tarsdb.metrics import METRICS
from tarsdb.udf_sandbox.modules.artefacts import artefacts
from tarsdb.udf_sandbox.modules.sections import HEADER as EMPTY_MODULE
from tarsdb.udf_sandbox.stopping import stop_asked
from tarsdb.udf_sandbox.worker.messages import Status
from tarsdb.udf_sandbox.worker.pool import pool
from tarsdb.udf_sandbox.worker.process import Unanswered, WorkerProcess, unavailable

SECONDS = 30.0
"""Of wall time for one module; the worst one under the caps takes less than one."""
MAX_NATIVE_BYTES = 256 << 20
TURN_S = 0.05
LINGER_S = 5.0
COMPILATIONS = 200  # by one child


class Compiler:
    """Compiles in a child process, one module at a time; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: WorkerProcess | None = None
        self._timer: threading.Timer | None = None
        self._done = 0

    def compile(self, name: str, code: bytes) -> bytes:
        """Return a module's native code under settings of a name (see ``settings``).

        Raises
        ------
        UdfValidationError
            It does not compile, or not within the child's limits.
        UdfBackendError
            No child can be started.
        InterruptError
            The statement was asked to stop; the child is killed.
        """
        with self._turn():
            self._stop_timer()
            child = self._ready()
            try:
                reply, native = child.compile(name, code, SECONDS, MAX_NATIVE_BYTES)
            except Unanswered:
                if stop_asked():
                    raise _interrupted() from None
                raise _refused(f"takes longer than {SECONDS:.0f} s") from None
            except UdfBackendError as error:
                raise _refused(f"ended its compiler: {error.message}") from error
            except BaseException:  # Ctrl-C: it is not waited for
                self._release()
                raise
            self._done += 1
            self._linger()
        if reply.status is Status.INVALID:
            raise UdfValidationError(f"module does not compile: {reply.text[:500]}")
        if reply.status is not Status.DONE:
            raise _refused(reply.text[:500])
        return native

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other thread compiles, or this one is to stop."""
        while not self._lock.acquire(timeout=TURN_S):
            if stop_asked():
                raise _interrupted()
        try:
            yield
        finally:
            self._lock.release()

    def close(self) -> None:
        """Let the child go."""
        with self._lock:
            self._stop_timer()
            self._release()

    def _ready(self) -> WorkerProcess:
        child = self._child
        if child is None or not child.usable() or self._done >= COMPILATIONS:
            self._release()
            child = self._child = pool().take(refill=False)
            self._done = 0
        return child

    def _release(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _linger(self) -> None:
        self._timer = threading.Timer(LINGER_S, self.close)
        self._timer.daemon = True
        self._timer.start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _interrupted() -> InterruptError:
    return InterruptError("a module was being compiled when the statement was interrupted")


def _refused(why: str) -> UdfValidationError:
    return UdfValidationError(
        f"module cannot be compiled: {why}", hint="make its functions smaller, or split it"
    )


_compiler = Compiler()


def native_code(name: str, code: bytes) -> bytes:
    """Return a module's native code under settings of a name, from the cache where it is there.

    Where no child can be started (a frozen application, a Windows), this process compiles: the
    caps of a module then are all that bounds the work. Counted as ``udf.compiled_here``.

    Raises
    ------
    UdfValidationError, UdfBackendError
        As :meth:`Compiler.compile` does.
    """
    entry = hashlib.sha256(code).hexdigest() + "-" + _fingerprint(name)
    kept = artefacts().get(entry)
    if kept is not None:
        METRICS.add("udf.artefact_hits")
        return kept
    METRICS.add("udf.compilations")
    made = _compiled_here(name, code) if unavailable() else _compiler.compile(name, code)
    artefacts().put(entry, made)
    return made


@functools.cache
def _fingerprint(name: str) -> str:
    """Return a name for what native code depends on beside its module.

    An empty module's code holds the versions, the settings and the processor's features.
    """
    return hashlib.sha256(_compiled_here(name, EMPTY_MODULE)).hexdigest()[:32]


def _compiled_here(name: str, code: bytes) -> bytes:
    import wasmtime

    from tarsdb.udf_sandbox import settings

    METRICS.add("udf.compiled_here", code is not EMPTY_MODULE)
    try:
        return bytes(wasmtime.Module(settings.engine(name), code).serialize())
    except wasmtime.WasmtimeError as error:
        raise UdfValidationError(f"module does not compile: {str(error)[:500]}") from error


def _after_fork() -> None:
    global _compiler
    _compiler = Compiler()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _compiler.close())
