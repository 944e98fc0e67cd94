"""WebAssembly modules in Hyperlight: their sandboxes, and batches sent to them as messages."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from tarsdb.columns import Column, concat
from tarsdb.errors import UdfError
from tarsdb.metrics import METRICS
from tarsdb.types import parse_type
from tarsdb.udf_sandbox import outputs
from tarsdb.udf_sandbox.abi import BatchLayout
from tarsdb.udf_sandbox.backends import Guest, Program
from tarsdb.udf_sandbox.guests import guest_of
from tarsdb.udf_sandbox.hyperlight import aot, messages, processes
from tarsdb.udf_sandbox.hyperlight.component import capped, component, exports_component, splice
from tarsdb.udf_sandbox.hyperlight.failures import guest_error
from tarsdb.udf_sandbox.hyperlight.guest import SandboxGuest
from tarsdb.udf_sandbox.hyperlight.instance import SandboxInstance, exports_of
from tarsdb.udf_sandbox.hyperlight.processes import GuestFailure, SandboxProcess, SandboxSpec
from tarsdb.udf_sandbox.limits import WASM_PAGE, Call, memory_error
from tarsdb.udf_sandbox.modules.artefacts import artefacts
from tarsdb.udf_sandbox.modules.module import scalar_type, to_wasm

MAX_IMAGE_BYTES = 256 << 10  # a request lies in the guest's heap several times
RUNTIME_MIB = 3  # of the guest's runtime and the adapter
_owners = itertools.count(1)
_WIRE_TYPES = {"i32": "INT", "i64": "BIGINT", "f32": "REAL", "f64": "DOUBLE"}


def sandbox_spec(program: Program) -> SandboxSpec:
    """Return the sandbox of a module's function, compiled.

    Raises
    ------
    UdfValidationError, UdfBackendError
        See :func:`tarsdb.udf_sandbox.hyperlight.aot.compile_component`.
    """
    memory = program.limits.max_memory_bytes
    if program.kind == "scalar":
        scalar = None if program.driver is None else (program.arguments, program.returns)
        text = component(program.export, resettable=program.resettable, scalar=scalar)
    else:
        text = exports_component(exports_of(program))
    module = capped(program.code, memory // WASM_PAGE)
    binary = splice(to_wasm(text), module)
    heap, stack = _sizes_mib(memory)
    kept = program.reusable and program.kind == "scalar"
    owner = next(_owners) if kept else 0  # what is not restored is not shared
    return SandboxSpec(
        key=f"{hashlib.sha256(binary).hexdigest()}:{heap}:{owner}",
        artefact=_compiled(binary, program.export), path="", heap=heap, stack=stack,
        first=messages.to_text(np.zeros(7, dtype=np.uint8)), restored=not kept,
    )  # fmt: skip


def _sizes_mib(memory: int) -> tuple[int, int]:
    """Return heap and stack for a memory that may grow to so many bytes.

    The heap holds a memory that grows twice. What Hyperlight calls the stack holds the request's
    buffer, which is as large as the heap, and every page that is written.
    """
    grown = -(-2 * memory // (1 << 20))
    heap = grown + RUNTIME_MIB
    return heap, heap + grown + RUNTIME_MIB


@functools.lru_cache(maxsize=64)
def _compiled(binary: bytes, name: str) -> bytes:
    """Return the artefact of a component, from the user's cache where it is there."""
    entry = f"{hashlib.sha256(binary).hexdigest()}-{aot.fingerprint()}"
    kept = artefacts().get(entry)
    if kept is not None:
        METRICS.add("udf.artefact_hits")
        return kept
    METRICS.add("udf.compilations")
    made = aot.compile_component(binary, name)
    artefacts().put(entry, made)
    return made


class ModuleProgram:
    """A compiled module; all its guests are alike, for a sandbox is chosen at each batch."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.spec = sandbox_spec(program)

    def guest(self, call: Call, watched: bool) -> Guest:
        """Make a guest; its sandbox is loaded or restored by the first batch."""
        if self.program.kind == "scalar":
            return ModuleGuest(self)
        exports = exports_of(self.program)
        return guest_of(self.program, SandboxInstance(self.program, self.spec, exports, call))

    def close(self) -> None:
        """Do nothing: sandboxes are dropped when others need their place."""


class ModuleGuest(SandboxGuest):
    """Batches of a module's function, each in a sandbox in its first state or one like it."""

    def __init__(self, compiled: ModuleProgram) -> None:
        super().__init__(compiled.program, compiled.spec)
        wire = scalar_type(self.program.returns) if self.program.driver is not None else None
        self._returns = parse_type(_WIRE_TYPES[wire]) if wire else self.program.returns

    def batch(self, columns: Sequence[Column], rows: int, call: Call) -> Column:
        """Return the results of ``rows`` rows."""
        with processes.POOL.lease(self.spec.key, call) as process:
            try:
                found = self._parts(process, columns, rows, call)
            except GuestFailure as error:
                raise guest_error(error, call, self.program.limits) from error
        column = Column(self.program.returns, found.values, found.offsets, found.validity)
        column = outputs.checked(column, call.function)
        if column.values.dtype != self.program.returns.dtype:
            column.values = column.values.astype(self.program.returns.dtype)
        return column

    def _parts(
        self, process: SandboxProcess, columns: Sequence[Column], rows: int, call: Call
    ) -> Column:
        parts = []
        pending = [(0, rows)]
        while pending:
            start, stop = pending.pop()
            part = [  # a column of one row stands for all
                column.slice(start, stop) if len(column) == rows else column for column in columns
            ]
            layout = BatchLayout(part, [self._returns], stop - start)
            if layout.output_at > MAX_IMAGE_BYTES and stop - start > 1:
                middle = (start + stop) // 2
                pending += [(middle, stop), (start, middle)]
                continue
            parts.append(self._part(process, layout, call))
        return concat(self._returns, parts)

    def _part(self, process: SandboxProcess, layout: BatchLayout, call: Call) -> Column:
        limits = self.program.limits
        if layout.size > limits.max_memory_bytes:
            what = f"a batch of {layout.size} bytes does not fit"
            raise memory_error(call.function, limits, what)
        number = process.ready(self.spec, call)
        memory = RemoteMemory(process, number, call)
        base, status = memory.call(layout)
        if base == 0:
            raise memory_error(
                call.function, limits,
                f"tars_alloc({layout.size}) gave {status} in a memory of {len(memory)} bytes",
            )  # fmt: skip
        if status != 0:
            raise UdfError(f"function {call.function}: returned status {status}")
        column = layout.read(memory, base, call.function)
        if self.program.reusable:
            process.spare(number)
        return column


class RemoteMemory:
    """A guest's memory after a call, fetched through messages where it is read."""

    def __init__(self, process: SandboxProcess, number: int, call: Call) -> None:
        self._process = process
        self._number = number
        self._call = call
        self._size = 0
        self._known: list[tuple[int, np.ndarray]] = []  # places that came with the reply

    def call(self, layout: BatchLayout) -> tuple[int, int]:
        """Send a batch and call the export.

        Returns
        -------
        base, status : int
            Address of descriptor 0 and what the export returned. Where ``tars_alloc`` gave no
            usable region, 0 and the region it gave.
        """
        image = np.zeros(layout.size, dtype=np.uint8)
        layout.write(image, 0)
        request = np.zeros(1, dtype=messages.CALL_REQUEST)
        columns = len(layout.columns) + 1
        wanted = min(layout.size - 64 - layout.output_at, messages.MAX_WANTED)
        request[0] = (
            messages.CALL, layout.size, layout.rows, columns, layout.output_at,
            layout.validity_at, (layout.rows + 7) // 8, wanted,
        )  # fmt: skip
        reply = self._ask(np.concatenate([request.view(np.uint8), image[: layout.output_at]]))
        head = reply[: messages.CALL_REPLY.itemsize]
        if len(head) < messages.CALL_REPLY.itemsize:
            region, pages = reply[: messages.REFUSED_BYTES].view("<u4").tolist()
            self._size = pages * WASM_PAGE
            return 0, region
        fields = head.view(messages.CALL_REPLY)[0]
        most = max(self._call.limits.max_memory_bytes, layout.size + 2 * WASM_PAGE)
        self._size = min(int(fields["pages"]) * WASM_PAGE, most)  # whatever the guest says
        base = int(fields["base"])
        rest = reply[messages.CALL_REPLY.itemsize :][:wanted]
        self._known = [(base + 32 * (columns - 1), fields["descriptor"]),
                       (base + layout.output_at, rest)]  # fmt: skip
        return base, int(fields["status"])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: slice) -> np.ndarray:
        parts, at = [np.zeros(0, dtype=np.uint8)], place.start
        for start, data in self._known:
            if start <= at < min(start + len(data), place.stop):
                parts.append(data[at - start : place.stop - start])
                at += len(parts[-1])
        while at < place.stop:
            parts.append(self._fetch(at, min(messages.REPLY_BYTES, place.stop - at)))
            at += len(parts[-1])
        return np.concatenate(parts)

    def _fetch(self, address: int, size: int) -> np.ndarray:
        request = np.zeros(1, dtype=messages.READ_REQUEST)
        request[0] = (messages.READ, address, size)
        found = self._ask(request.view(np.uint8))[:size]
        if len(found) < size:
            raise GuestFailure(f"the guest sent {len(found)} of {size} bytes")
        return found

    def _ask(self, request: np.ndarray) -> np.ndarray:
        text = self._process.run(self._number, messages.to_text(request), self._call)
        try:
            return messages.to_bytes(text)
        except UnicodeEncodeError as error:
            raise GuestFailure("the guest's reply is no message") from error
