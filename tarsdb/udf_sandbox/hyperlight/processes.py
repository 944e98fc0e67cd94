"""Processes that hold Hyperlight sandboxes, as their parent sees them, and the pool of them.

A process serves one caller at a time and keeps several sandboxes, so a further function costs a
sandbox and not a process. A guest that is late takes its process with it: the other sandboxes in
it were idle and are loaded again when needed. Processes are spawned, never forked.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import pathlib
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator

from tarsdb.errors import DatabaseError, InterruptError, UdfBackendError
from tarsdb.records import dataclass
from tarsdb.udf_sandbox.hyperlight import worker
from tarsdb.udf_sandbox.limits import Call, time_error

MAX_PROCESSES = 4
MAX_SANDBOXES = 8  # of one process
MAX_REPLY_BYTES = 1 << 20  # sixty times what a sandbox can print
TICK_S = 0.005
GRACE_S = 1.0  # between our kill and the process's own alarm
TRUSTED_SECONDS = 60.0  # for what runs no code of the user: starting a guest, snapshot, restore


@dataclass(frozen=True)
class SandboxSpec:
    """What a sandbox is made of.

    Attributes
    ----------
    key : str
        Equal keys are the same sandbox.
    artefact : bytes
        Native code of the component; empty when ``path`` names a file of it.
    path : str
    heap, stack : int
        MiB; hard limits of the virtual machine.
    first : str
        What the first run is given.
    definition : str, optional
        The user's source, run once before the snapshot. With it, ``first`` runs no user code.
    restored : bool
        Snapshotted when loaded, and restored before each use. Else it is used as it was left, and
        loaded again after a failure.
    """

    key: str
    artefact: bytes
    path: str
    heap: int
    stack: int
    first: str
    definition: str | None = None
    restored: bool = True


class GuestFailure(Exception):
    """A run failed inside the sandbox; the text is Hyperlight's."""


class SandboxProcess:
    """One spawned process and its sandboxes; used by one thread at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", str(pathlib.Path(worker.__file__)), *sys.path]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True, env={},
        )  # fmt: skip
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._unclean: set[int] = set()
        self._next = itertools.count(1)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """False once it was killed or died."""
        return self._process.poll() is None

    def holds(self, key: str) -> bool:
        """Return True when the sandbox is loaded here."""
        return key in self._numbers

    def ready(self, spec: SandboxSpec, call: Call) -> int:
        """Return the number of a sandbox in its first state: loaded now, or restored if it ran."""
        number = self._numbers.get(spec.key)
        if number is None:
            return self._load(spec, call)
        self._numbers.move_to_end(spec.key)
        if number in self._unclean:
            if not spec.restored:
                self._drop(spec.key, call)
                return self._load(spec, call)
            self._trusted(worker.RESTORE, number, b"", call)
            self._unclean.discard(number)
        return number

    def _drop(self, key: str, call: Call) -> None:
        number = self._numbers.pop(key)
        self._unclean.discard(number)
        self._trusted(worker.DROP, number, b"", call)

    def _load(self, spec: SandboxSpec, call: Call) -> int:
        while len(self._numbers) >= MAX_SANDBOXES:
            self._drop(next(iter(self._numbers)), call)
        number = next(self._next)
        head = {"path": spec.path, "heap": spec.heap, "stack": spec.stack, "first": spec.first}
        payload = json.dumps(head).encode() + b"\n" + spec.artefact
        if spec.definition is None:
            self._ask(worker.LOAD, number, payload, call)
        else:
            self._trusted(worker.LOAD, number, payload, call)
            self._define(number, spec.definition, call)
        if spec.restored:
            self._trusted(worker.SNAPSHOT, number, b"", call)
        self._unclean.discard(number)
        self._numbers[spec.key] = number
        return number

    def _define(self, number: int, definition: str, call: Call) -> None:
        try:
            self.run(number, definition, call)
        except GuestFailure:
            self._unclean.discard(number)
            self._trusted(worker.DROP, number, b"", call)
            raise

    def run(self, number: int, text: str, call: Call) -> str:
        """Run a sandbox with a text; it is then restored before its next use, unless spared.

        Raises
        ------
        GuestFailure
            The guest failed; its sandbox is restored before the next use.
        UdfLimitError, InterruptError
            It was late or interrupted, and the process is gone.
        UdfBackendError
            The process died.
        """
        self._unclean.add(number)
        call.transitions += 1
        return self._ask(worker.RUN, number, text.encode(), call)

    def spare(self, number: int) -> None:
        """Let the next batch see the sandbox as this one left it."""
        self._unclean.discard(number)

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self.leave()

    def leave(self) -> None:
        """Close this side's ends; the process ends when no one has any."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _trusted(self, kind: bytes, number: int, payload: bytes, call: Call) -> None:
        """Ask for what runs no user code: it may take its time, which is not the function's."""
        began = time.monotonic()
        deadline, call.deadline = call.deadline, began + TRUSTED_SECONDS
        try:
            self._ask(kind, number, payload, call)
        except GuestFailure as error:
            self.kill()
            raise UdfBackendError(
                f"function {call.function}: its Hyperlight sandbox does not start: {error}"
            ) from error
        finally:
            call.deadline = deadline
            call.wait(time.monotonic() - began)

    def _ask(self, kind: bytes, number: int, payload: bytes, call: Call) -> str:
        assert self._process.stdin is not None
        seconds = max(call.deadline - time.monotonic(), 0.0) + GRACE_S
        try:
            self._process.stdin.write(worker.REQUEST.pack(kind, number, seconds, len(payload)))
            self._process.stdin.write(payload)
            self._process.stdin.flush()
            outcome, size = worker.REPLY.unpack(self._read(worker.REPLY.size, call))
            if size > MAX_REPLY_BYTES:
                raise OSError(f"a reply of {size} bytes")
            said = self._read(size, call).decode()
        except OSError as error:
            raise self._died(call) from error
        if outcome == worker.FAILED:
            raise GuestFailure(said)
        return said

    def _read(self, size: int, call: Call) -> bytes:
        assert self._process.stdout is not None
        place = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(place, select.POLLIN)
        parts = []
        while size:
            if call.must_stop():
                self.kill()
                raise _stopped(call)
            if poll.poll(1000 * TICK_S):
                part = os.read(place, size)
                if not part:
                    raise self._died(call)
                parts.append(part)
                size -= len(part)
        return b"".join(parts)

    def _died(self, call: Call) -> UdfBackendError:
        self.kill()
        return UdfBackendError(
            f"function {call.function}: its Hyperlight process {self.pid} died "
            f"(exit {self._process.returncode})",
            hint="run the statement again: a new process is started",
        )


def _stopped(call: Call) -> DatabaseError:
    if call.stopped == "interrupt":
        return InterruptError(f"function {call.function}: interrupted")
    return time_error(call)


class ProcessPool:
    """The Hyperlight processes of this process."""

    def __init__(self) -> None:
        self._idle: list[SandboxProcess] = []
        self._count = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def lease(self, key: str, call: Call) -> Iterator[SandboxProcess]:
        """Have a process to oneself, one that holds the sandbox where there is one."""
        process = self._take(key, call)
        try:
            yield process
        except (GuestFailure, DatabaseError):
            raise
        except BaseException:  # a request may be half way
            process.kill()
            raise
        finally:
            self._give(process)

    def _take(self, key: str, call: Call) -> SandboxProcess:
        with self._changed:
            while True:
                self._forget_the_dead()
                holding = [process for process in self._idle if process.holds(key)]
                found = (holding or self._idle)[-1:]
                if found:
                    self._idle.remove(found[0])
                    return found[0]
                if self._count < MAX_PROCESSES:
                    self._count += 1
                    break
                if call.must_stop():
                    raise _stopped(call)
                self._changed.wait(TICK_S)
        try:
            return SandboxProcess()
        except BaseException:
            self._gone()
            raise

    def _forget_the_dead(self) -> None:
        for process in [process for process in self._idle if not process.alive]:
            process.leave()
            self._idle.remove(process)
            self._count -= 1

    def _give(self, process: SandboxProcess) -> None:
        if not process.alive:
            self._gone()
            return
        with self._changed:
            self._idle.append(process)
            self._changed.notify()

    def _gone(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify()

    def leave(self) -> None:
        """Close a forked child's copies of idle processes' pipes."""
        for process in self._idle:
            process.leave()

    def close(self) -> None:
        """End idle processes."""
        with self._changed:
            idle, self._idle = self._idle, []
            self._count -= len(idle)
        for process in idle:
            process.kill()


POOL = ProcessPool()


def _after_fork() -> None:
    """Let a forked child start its own processes; the parent's are not its."""
    global POOL
    POOL.leave()
    POOL = ProcessPool()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: POOL.close())
