"""The worker backend: each program in processes of its own, killed when they do not stop.

The guest's memory is shared, so the columnar interface (``guests``) works on it as on a guest in
this process; only calls go over a socket, the guest's calls of the host too, which are answered
here. Nothing the worker reports is believed: sizes are bounded
by what is mapped here, names are cleaned, and columns are checked by ``outputs`` after they were
copied.
"""

from __future__ import annotations

import re
import struct
import time
import weakref
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from tarsdb.errors import UdfBackendError, UdfError
from tarsdb.metrics import METRICS
from tarsdb.udf_sandbox import capabilities
from tarsdb.udf_sandbox.backends import Guest, Program
from tarsdb.udf_sandbox.guests import guest_of
from tarsdb.udf_sandbox.limits import WASM_PAGE, Call, memory_error, stop_error
from tarsdb.udf_sandbox.modules import driver
from tarsdb.udf_sandbox.modules.compilation import native_code
from tarsdb.udf_sandbox.modules.fusion import fuse
from tarsdb.udf_sandbox.stopping import stoppable
from tarsdb.udf_sandbox.worker.messages import Kind, LoadBody, Reply, Request, Status
from tarsdb.udf_sandbox.worker.pool import WorkerPool, pool
from tarsdb.udf_sandbox.worker.process import LIFETIME_S, Unanswered, WorkerProcess, unavailable

KILL_GRACE_S = 0.03
"""How long after its deadline a worker may still say that its guest was stopped."""

T = TypeVar("T")


class WorkerBackend:
    """Runs guests in child processes with limits of the kernel and a filter of system calls."""

    name = "worker"

    def unavailable(self) -> str:
        """Return why no worker can be started, or ``''``."""
        return unavailable()

    def compile(self, program: Program) -> WorkerProgram:
        """Compile the module for workers, or find it compiled."""
        return WorkerProgram(program)

    def run(self, batch: Callable[[bool], T], call: Call) -> T:
        """Run on this thread, which only waits."""
        return batch(True)


class WorkerProgram:
    """A program's native code, and the resting processes that have loaded it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.fixed_bytes = 0  # of the memory that batches go through, where it cannot grow
        self.memory_bytes = program.limits.max_memory_bytes // WASM_PAGE * WASM_PAGE
        self.driver_bytes = 0
        code, own = program.code, b""
        if program.driver is not None:
            self.fixed_bytes = driver.memory_pages(len(program.arguments) + 1) * WASM_PAGE
            fused = self._fused()
            if fused is None:
                self.driver_bytes, own = self.fixed_bytes, program.driver
            else:
                self.memory_bytes, code = self.fixed_bytes, fused
        self._body = LoadBody(
            self.memory_bytes, self.driver_bytes,
            int(LIFETIME_S + program.limits.timeout_ms / 1000) + 60, program.export,
            native_code(WorkerBackend.name, code),
            native_code(WorkerBackend.name, own) if own else b"",
        )  # fmt: skip
        self._resting: list[WorkerProcess] = []
        pool().attach()
        weakref.finalize(self, _leave, pool(), self._resting)

    def _fused(self) -> bytes | None:
        """Return function and loop as one module, where they can be."""
        given = self.program
        if not given.reusable:
            return None
        fused = fuse(given.code, given.export, given.arguments, given.returns)
        return None if fused is None else fused.code

    def guest(self, call: Call, watched: bool) -> Guest:
        """Make a guest in a process that has loaded the program."""
        began = time.monotonic()
        with stoppable(call.is_interrupted):
            process = self._process()
        call.wait(time.monotonic() - began)
        instance = WorkerInstance(self, process)
        try:
            instance.start(call)
        except BaseException:
            instance.close()
            raise
        return guest_of(self.program, instance)

    def _process(self) -> WorkerProcess:
        while self._resting:
            try:
                process = self._resting.pop()
            except IndexError:  # another thread was quicker
                break
            if pool().wake(process):
                return process
            pool().discard(process)
        process = pool().take()
        try:
            process.load(self._body)
            if self.program.limits.require_seccomp and process.unfiltered:
                raise UdfBackendError(
                    f"system calls of workers cannot be filtered here: {process.unfiltered}",
                    hint="the function asks for require_seccomp",
                )
        except BaseException:
            process.kill()
            raise
        return process

    def put_back(self, process: WorkerProcess) -> None:
        """Keep a resting process for the next guest."""
        self._resting.append(process)

    def close(self) -> None:
        """End the processes that rest."""
        while self._resting:
            pool().discard(self._resting.pop())


def _leave(home: WorkerPool, processes: list[WorkerProcess]) -> None:
    while processes:
        home.discard(processes.pop())
    home.detach()


class WorkerInstance:
    """An instance in a worker."""

    def __init__(self, compiled: WorkerProgram, process: WorkerProcess) -> None:
        self._compiled = compiled
        self._process = process
        self._dropped = weakref.finalize(self, pool().discard, process)
        self._working = True
        self._begins = True
        self._fuel_left = 0
        self._size = compiled.fixed_bytes
        start = compiled.memory_bytes if compiled.driver_bytes else 0
        self._shared = process.memory[start:]

    def start(self, call: Call) -> None:
        """Make the instance, beginning the call."""
        self._fuel_left = call.fuel
        self._report(call)
        self._ask(Kind.START, call, b"", 0)

    def begin(self, call: Call) -> bool:
        """Give the instance the fuel and the time of a call; False when its process is gone."""
        self._working = pool().wake(self._process)
        self._begins, self._fuel_left = True, call.fuel
        self._report(call)
        return self._working

    def _report(self, call: Call) -> None:
        call.confinement = self._process.unfiltered or "seccomp"

    def lend(self, export: str, call: Call) -> None:
        """Return None: compiled code cannot call into another process."""

    def invoke(self, export: str, call: Call, *arguments: int) -> int:
        """Call an export; traps, stops and the process's death become typed errors."""
        numbers = [argument & 0xFFFFFFFF for argument in arguments]
        payload = struct.pack(f"{len(numbers)}I", *numbers) + export.encode()
        call.transitions += 1
        return self._ask(Kind.CALL, call, payload, len(numbers)).value

    def _ask(self, kind: Kind, call: Call, payload: bytes, count: int) -> Reply:
        seconds = call.deadline - time.monotonic()
        request = Request(kind, self._begins, count, call.fuel, seconds, len(payload))
        self._begins = False
        reply = self._exchange(request, payload, call)
        while reply.status is Status.ASKS:
            answer = self._served(reply, call)
            reply = self._exchange(Request(Kind.ANSWER, size=len(answer)), answer, call)
        self._fuel_left = min(reply.fuel_left, call.fuel)
        if not self._compiled.fixed_bytes:  # memories only grow, whatever the worker says
            self._size = max(self._size, min(reply.memory, len(self._shared)))
        call.raise_failed()
        if call.stopped:  # while it was served; what the guest made of that is no result
            raise stop_error(call, "", "", None)
        if reply.status is not Status.DONE:
            raise self._failed(reply, call)
        return reply

    def _exchange(self, request: Request, payload: bytes, call: Call) -> Reply:
        """Send a request and wait; a worker that is late or dead becomes a typed error."""
        seconds = max(call.deadline - time.monotonic(), 0.0) + KILL_GRACE_S
        try:
            return self._process.ask(request, payload, seconds, call.is_interrupted)
        except Unanswered:
            METRICS.add("udf.workers_killed")
            call.stopped = "interrupt" if call.is_interrupted() else "time"
            raise stop_error(call, "", "", None) from None
        except UdfBackendError as error:
            METRICS.add("udf.workers_died")
            what = f"function {call.function}: {error.message}"
            raise UdfBackendError(what, error.hint) from error

    def _served(self, reply: Reply, call: Call) -> bytes:
        """Answer a guest's call of the host; nothing where it failed, and the guest is to end.

        An error leaves the worker waiting, so that it is killed when the instance is closed.
        """
        call.raise_failed()
        if call.stopped:  # it was told to end, and goes on
            METRICS.add("udf.workers_killed")
            raise stop_error(call, "", "", None)
        found = re.fullmatch(r"([a-z]+)((?: -?[0-9]{1,10})*)", reply.text)
        name = found[1] if found else ""
        arguments = [int(each) for each in found[2].split()] if found else []
        wanted = capabilities.SIGNATURES.get(name)
        if name not in call.limits.allow or wanted is None or len(arguments) != len(wanted.params):
            METRICS.add("udf.workers_killed")
            raise UdfBackendError(
                f"function {call.function}: its worker process {self._process.pid} asked for "
                f"{reply.text[:100]!r}, which it is not granted"
            )
        memory = self._process.memory[: min(reply.memory, self._compiled.memory_bytes)]
        value = None
        try:
            value = capabilities.serve(name, call, memory, *arguments)
        except BaseException as error:  # raised once the guest has ended
            call.failed = error
        ends = call.failed is not None or call.must_stop()
        return b"" if ends else struct.pack("<i", value or 0)

    def _failed(self, reply: Reply, call: Call) -> Exception:
        if reply.status is Status.TRAP:
            code, _, place = reply.text.partition("\n")
            code = code if re.fullmatch(r"[A-Z_]{1,40}", code) else "UNKNOWN"
            return stop_error(call, code, place[:200], self._size)
        if reply.status is Status.MEMORY:
            return memory_error(call.function, call.limits, "its memory is too large")
        return UdfError(f"function {call.function}: {reply.text[:500]}")

    def memory(self) -> np.ndarray:
        """Return the memory as bytes: what the worker says it has, at most what is mapped."""
        return self._shared[: self._size]

    def end(self, call: Call) -> int:
        """Return the fuel the call used; the process rests."""
        if self._working:
            self._working = False
            pool().rest(self._process)
        return call.fuel - self._fuel_left

    def close(self) -> None:
        """Leave the process to the program's next guest, unless it is gone."""
        if self._working:
            self._working = False
            pool().rest(self._process)
        if self._dropped.detach() is None:
            return
        if self._process.usable():
            self._compiled.put_back(self._process)
        else:
            pool().discard(self._process)
