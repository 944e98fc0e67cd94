"""One worker process as the database sees it: start it, ask it, kill it.

Whatever the process sends is checked before use. A process that does not answer in time, or whose
answer makes no sense, is killed; there is no other way to stop one. Used by one thread at a time.
Knows no columns.
"""

from __future__ import annotations

import contextlib
import importlib.util
import mmap
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import numpy as np

from tarsdb.errors import InterruptError, UdfBackendError
from tarsdb.udf_sandbox.stopping import stop_asked
from tarsdb.udf_sandbox.worker.messages import (
    Kind,
    LoadBody,
    Reply,
    Request,
    Status,
    read_reply,
)

PREPARE_SECONDS = 60.0  # of a machine that is very busy
POLL_SECONDS = 0.005
LIFETIME_S = 600.0
"""Of work; then a process is replaced, so that its processor time can be bounded."""
_PASSED_ON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


def unavailable() -> str:
    """Return why no worker can be started here, or ``''``."""
    if os.name != "posix":
        return f"it needs a Unix, this is {sys.platform}"
    if not sys.executable or getattr(sys, "frozen", False):
        return "there is no Python interpreter to start"
    return ""


def _never() -> bool:
    return False


class Unanswered(Exception):
    """The process was killed because it did not answer in time, or was told to stop."""


class WorkerProcess:
    """A started process, not confined until it is told what to do.

    Attributes
    ----------
    unfiltered : str
        Why its system calls are not filtered, ``''`` when they are.
    memory : ndarray of uint8
        Once loaded: the shared memories, one after the other.

    Notes
    -----
    The socket's other end is all it inherits; it gets a session of its own, so that Ctrl-C in a
    terminal does not reach it, and no environment.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.unfiltered = "it is not loaded"
        self._worked = 0.0
        self._asked = True  # nothing can be asked while an answer is due; the first says: ready
        self._shared: mmap.mmap | None = None
        self._channel, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    _command(theirs.fileno()), stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
                    env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                    pass_fds=(theirs.fileno(),), start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                self._channel.close()
                raise UdfBackendError(
                    f"a worker process cannot be started: {error}",
                    hint=f"it runs {sys.executable!r}",
                ) from error
        self._poll = select.poll()
        self._poll.register(self._channel, select.POLLIN)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def usable(self) -> bool:
        """Return True while it is this process's child, runs, is not worn and owes no answer."""
        return (
            self.owner == os.getpid()
            and not self._asked
            and self._worked < LIFETIME_S
            and self._channel.fileno() >= 0
            and not self._poll.poll(0)  # nothing was asked: what is there to read is its end
            and self._process.poll() is None
        )

    def wait_until_ready(self) -> None:
        """Wait for a new process to have imported what it needs.

        Raises
        ------
        UdfBackendError
        InterruptError
            This thread is to stop (``stopping``); the process is killed.
        """
        self._prepared(lambda end: self._answer(end, stop_asked))

    def load(self, body: LoadBody) -> None:
        """Make it the worker of one program; its memories are shared from here on."""
        size = body.memory_bytes + body.driver_bytes
        with contextlib.ExitStack() as stack:
            descriptor = _shared_file(size, stack)
            self._shared = mmap.mmap(descriptor, size)
            payload = body.pack()
            request = Request(Kind.LOAD, size=len(payload)).pack()

            def ask(end: float) -> Reply:
                self._send(request + payload, end, descriptor)
                return self._answer(end, stop_asked)

            reply = self._prepared(ask)
        if reply.status is not Status.DONE:
            raise self._broken(f"could not load the module: {reply.text}")
        self.unfiltered = reply.text
        self.memory = np.frombuffer(self._shared, dtype=np.uint8)

    def _prepared(self, step: Callable[[float], Reply]) -> Reply:
        """Take a step in which no guest runs, so that to be late is no guest's fault."""
        try:
            return step(time.monotonic() + PREPARE_SECONDS)
        except Unanswered:
            if stop_asked():
                what = f"worker process {self.pid} was being started when the statement was"
                raise InterruptError(f"{what} interrupted") from None
            raise UdfBackendError(
                f"worker process {self.pid} was not ready after {PREPARE_SECONDS:.0f} s",
                hint="the machine may be too busy",
            ) from None

    def ask(
        self, request: Request, payload: bytes, seconds: float, stop: Callable[[], bool]
    ) -> Reply:
        """Send a request and wait for its reply; one that asks wants an answer as next request.

        Parameters
        ----------
        request : Request
        payload : bytes
        seconds : float
            After which the process is killed.
        stop : callable
            Asked every few milliseconds; the process is killed once it says True.

        Raises
        ------
        Unanswered
        UdfBackendError
            The process died, or its reply is none.
        """
        end = time.monotonic() + seconds
        self._send(request.pack() + payload, end)
        return self._answer(end, stop)

    def compile(self, name: str, code: bytes, seconds: float, most: int) -> tuple[Reply, bytes]:
        """Compile a module under settings of a name; return the reply and the native code.

        The process is killed when it takes longer, or this thread is to stop (``stopping``).

        Raises
        ------
        Unanswered, UdfBackendError
        """
        payload = name.encode() + b"\0" + code
        end = time.monotonic() + seconds
        self._send(Request(Kind.COMPILE, size=len(payload)).pack() + payload, end)
        reply = self._answer(end, stop_asked, most)
        return reply, self._read(reply.size, end, stop_asked)

    def kill(self) -> None:
        """End the process now; in a forked child only forget it.

        Its memory may take a while to go: another thread waits for that.
        """
        if self._channel.fileno() < 0:
            return
        self._channel.close()
        if self.owner == os.getpid():
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            try:
                threading.Thread(target=self._process.wait, daemon=True).start()
            except RuntimeError:  # at the interpreter's end no thread starts
                self._process.wait()
        else:
            self._process.returncode = 0  # it is not ours to wait for

    def _send(self, data: bytes, end: float, descriptor: int | None = None) -> None:
        self._asked = True
        try:
            self._channel.settimeout(max(end - time.monotonic(), POLL_SECONDS))
            self._channel.sendall(data)
            if descriptor is not None:
                socket.send_fds(self._channel, [b"\0"], [descriptor])
        except TimeoutError:
            self.kill()
            raise Unanswered from None
        except OSError as error:
            raise self._broken(str(error)) from error

    def _answer(self, end: float, stop: Callable[[], bool] = _never, most: int = 0) -> Reply:
        began = time.monotonic()
        try:
            reply = read_reply(lambda size: self._read(size, end, stop), most)
        except ValueError as error:
            raise self._broken(str(error)) from error
        self._asked = reply.status is Status.ASKS  # it waits for what comes next
        self._worked += time.monotonic() - began
        return reply

    def _read(self, size: int, end: float, stop: Callable[[], bool] = _never) -> bytes:
        """Return so many bytes; a process that gives them too slowly is killed, too."""
        parts = []
        while size:
            if not self._poll.poll(POLL_SECONDS * 1000):
                if stop() or time.monotonic() >= end:
                    self.kill()
                    raise Unanswered
                continue
            try:
                part = self._channel.recv(min(size, 1 << 20))
            except OSError as error:
                raise self._broken(str(error)) from error
            if not part:
                raise self._broken("it closed its socket")
            if time.monotonic() >= end + POLL_SECONDS and len(part) < size:
                self.kill()
                raise Unanswered
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _broken(self, why: str) -> UdfBackendError:
        """Kill the process and return the error that says how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.05)  # it may be dying by itself: its signal is worth knowing
        self.kill()
        code = self._process.wait()
        if code == -signal.SIGKILL:
            why = f"{why} (killed)"
        elif code < 0:
            why = f"signal {signal.Signals(-code).name}"
        return UdfBackendError(
            f"its worker process {self.pid} died: {why}",
            hint="the next call gets a new process; what the statement did is rolled back",
        )


def _command(descriptor: int) -> list[str]:
    found = importlib.util.find_spec("wasmtime")
    if found is None or found.origin is None:
        raise UdfBackendError("a worker process needs wasmtime")
    wasmtime_folder = pathlib.Path(found.origin).parents[1]
    here = pathlib.Path(__file__).resolve().parent
    return [
        sys.executable, "-I", "-S", str(here / "main.py"), str(descriptor), str(os.getpid()),
        str(wasmtime_folder), str(here.parents[1]),
    ]  # fmt: skip


def _shared_file(size: int, stack: contextlib.ExitStack) -> int:
    """Return a descriptor of a nameless file of zeros, whose size nobody can change."""
    if not hasattr(os, "memfd_create"):
        descriptor, path = tempfile.mkstemp()
        stack.callback(os.close, descriptor)
        os.unlink(path)
        os.ftruncate(descriptor, size)
        return descriptor
    import fcntl

    descriptor = os.memfd_create("tarsdb-sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, descriptor)
    os.ftruncate(descriptor, size)
    fixed = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fixed)
    return descriptor
