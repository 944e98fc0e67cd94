"""A module in a virtual machine as an instance: exports to call, a memory to read and write.

For functions of several exports, whose guests are those of the other backends. Each read is an
entry into the virtual machine; what is written is kept until the guest next runs, and goes with
that call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np

from tarsdb.errors import DatabaseError
from tarsdb.udf_sandbox.backends import Program
from tarsdb.udf_sandbox.functions.aggregates import MERGE, PARTS
from tarsdb.udf_sandbox.hyperlight import messages, processes
from tarsdb.udf_sandbox.hyperlight.failures import guest_error
from tarsdb.udf_sandbox.hyperlight.processes import GuestFailure, SandboxProcess, SandboxSpec
from tarsdb.udf_sandbox.limits import WASM_PAGE, Call
from tarsdb.udf_sandbox.modules.module import COLUMNAR_TYPE
from tarsdb.udf_sandbox.modules.sections import FuncType, read_outline

MAX_WRITTEN_BYTES = 256 << 10
"""Of one request, which lies in the guest's heap several times."""


def exports_of(program: Program) -> dict[str, FuncType]:
    """Return the exports that the guest of an aggregate or table function calls."""
    found = {"tars_alloc": FuncType(("i32",), ("i32",))}
    if program.resettable:
        found["tars_reset"] = FuncType((), ())
    if program.kind == "table":
        return found | {program.export: COLUMNAR_TYPE}
    functions = read_outline(program.code).exported_functions
    parts = {f"{program.export}_{part}": kind for part, kind in (PARTS | {"merge": MERGE}).items()}
    return found | {name: kind for name, kind in parts.items() if name in functions}


class SandboxInstance:
    """An instance in a sandbox that it has to itself from a call's first export to its end.

    Parameters
    ----------
    program : Program
    spec : SandboxSpec
        Of a sandbox whose adapter knows the exports.
    exports : mapping
        In the adapter's order.
    call : Call
        The first one.
    """

    def __init__(
        self, program: Program, spec: SandboxSpec, exports: Mapping[str, FuncType], call: Call
    ) -> None:
        self._limits = program.limits
        self._spec = spec
        self._numbers = {name: number for number, name in enumerate(exports)}
        self._call = call
        self._lease = contextlib.ExitStack()
        self._process: SandboxProcess | None = None
        self._sandbox = 0
        self._memory = SandboxMemory(self, self._limits.max_memory_bytes)

    def begin(self, call: Call) -> bool:
        """Return True: every call gets a sandbox in its first state."""
        self._call = call
        return True

    def lend(self, export: str, call: Call) -> None:
        """Return None: compiled code cannot call into a virtual machine."""

    def invoke(self, export: str, call: Call, *arguments: int) -> int:
        """Write what is to be written, then call an export."""
        return self._memory.send(self._numbers[export], *arguments)

    def run(self, request: np.ndarray, size: int) -> np.ndarray:
        """Send a request to the sandbox; return the first bytes of its reply.

        Raises
        ------
        UdfTrapError, UdfLimitError, InterruptError, UdfBackendError
        """
        with self._typed_errors():
            if self._process is None:
                lease = processes.POOL.lease(self._spec.key, self._call)
                self._process = self._lease.enter_context(lease)
                self._sandbox = self._process.ready(self._spec, self._call)
            text = self._process.run(self._sandbox, messages.to_text(request), self._call)
            try:
                found = messages.to_bytes(text)[:size]
            except UnicodeEncodeError as error:
                raise GuestFailure("the guest's reply is no message") from error
            if len(found) < size:
                raise GuestFailure(f"the guest sent {len(found)} of {size} bytes")
            return found

    @contextlib.contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except GuestFailure as error:
            raise guest_error(error, self._call, self._limits) from error
        except DatabaseError:
            raise
        except BaseException:  # a request may be half way
            if self._process is not None:
                self._process.kill()
            raise

    def memory(self) -> SandboxMemory:
        """Return the memory, untrusted; its size is that after the last call."""
        return self._memory

    def end(self, call: Call) -> int:
        """Give the sandbox back; fuel is not counted."""
        self.close()
        return 0

    def close(self) -> None:
        """Give the sandbox back; it is restored before its next use."""
        self._process = None
        self._memory.forget()
        self._lease.close()


class SandboxMemory:
    """A guest's memory in a virtual machine, at most so many bytes."""

    def __init__(self, instance: SandboxInstance, most: int) -> None:
        self._instance = instance
        self._most = most
        self._size = 0
        self._written: list[tuple[int, np.ndarray]] = []

    def __len__(self) -> int:
        return self._size

    def __setitem__(self, place: slice, values: np.ndarray | int) -> None:
        data = np.empty(place.stop - place.start, dtype=np.uint8)
        data[:] = values
        for start in range(0, len(data), MAX_WRITTEN_BYTES):
            self._written.append((place.start + start, data[start : start + MAX_WRITTEN_BYTES]))

    def __getitem__(self, place: slice) -> np.ndarray:
        if self._written:
            self.send(messages.NOTHING)
        parts = [np.zeros(0, dtype=np.uint8)]
        for at in range(place.start, place.stop, messages.REPLY_BYTES):
            size = min(messages.REPLY_BYTES, place.stop - at)
            request = np.array([(messages.READ, at, size)], dtype=messages.READ_REQUEST)
            parts.append(self._instance.run(request.view(np.uint8), size))
        return np.concatenate(parts)

    def forget(self) -> None:
        """Forget what was not sent; the size stays known."""
        self._written = []

    def send(self, export: int, *arguments: int) -> int:
        """Write what is kept, in as many requests as that takes; the last calls the export."""
        written: list[tuple[int, np.ndarray]] = []
        size = 0
        for address, data in self._written:
            if written and size + len(data) > MAX_WRITTEN_BYTES:
                self._invoke(written, messages.NOTHING)
                written, size = [], 0
            written.append((address, data))
            size += len(data)
        self._written = []
        return self._invoke(written, export, *arguments)

    def _invoke(self, written: list[tuple[int, np.ndarray]], export: int, *arguments: int) -> int:
        request = np.zeros(1, dtype=messages.INVOKE_REQUEST)
        given = [argument & 0xFFFFFFFF for argument in arguments]
        request[0] = (messages.INVOKE, export, len(written), given + [0] * (4 - len(given)))
        parts = [request.view(np.uint8)]
        for address, data in written:
            parts += [np.array([(address, len(data))], dtype=messages.WRITE).view(np.uint8), data]
        size = messages.INVOKE_REPLY.itemsize
        reply = self._instance.run(np.concatenate(parts), size)
        value, pages = reply.view(messages.INVOKE_REPLY)[0].tolist()
        self._size = min(pages * WASM_PAGE, self._most)  # whatever the guest says
        return int(value)
