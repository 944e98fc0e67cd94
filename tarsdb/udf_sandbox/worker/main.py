"""The program of a worker process: ``python -I -S main.py SOCKET PARENT WASMTIME PACKAGE``.

Starts with an engine and nothing to do. COMPILE requests turn modules into native code; a LOAD
request makes it the worker of one program: native code is loaded, resources limited and system
calls filtered, and only then does guest code run. Batches lie in memory shared with the database;
what comes over the socket are calls and their results. Knows no columns and no SQL.
"""

from __future__ import annotations

import functools
import math
import os
import socket
import struct
import sys
import time
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wasmtime

    from tarsdb.udf_sandbox.ticker import Ticker
    from tarsdb.udf_sandbox.worker import messages

COMPILER_MEMORY = 1 << 30
COMPILER_CPU_S = 600
GUEST_MEMORY = 256 << 20  # for wasmtime and Python beside the shared memories


def _find_packages(wasmtime_folder: str, package: str) -> None:
    """Let the few modules of ours be imported without the rest of the package."""
    sys.path.append(wasmtime_folder)
    rooms = [f"tarsdb.udf_sandbox{room}" for room in ("", ".modules", ".worker")]
    for name in ("tarsdb", *rooms):
        module = types.ModuleType(name)
        module.__path__ = [os.path.join(package, *name.split(".")[1:])]
        sys.modules[name] = module


class Compiler:
    """Turns modules into native code, confined but for executable memory."""

    def __init__(self) -> None:
        self._engines: dict[str, wasmtime.Engine] = {}

    def confine(self) -> str:
        """Make the engines, then give up what compiling does not need."""
        from tarsdb.udf_sandbox import settings
        from tarsdb.udf_sandbox.worker import confinement

        self._engines = {name: settings.engine(name) for name in settings.SETTINGS}
        confinement.limit_resources(COMPILER_CPU_S, COMPILER_MEMORY)
        return confinement.filter_system_calls(executable_memory=True)

    def compile(self, name: str, code: bytes) -> bytes:
        """Return a module's native code under the settings of a name."""
        import wasmtime

        return bytes(wasmtime.Module(self._engines[name], code).serialize())


class Guest:
    """The one program this process serves, and its instance."""

    def __init__(self, engine: wasmtime.Engine, memories: Any, channel: socket.socket) -> None:
        self._engine = engine
        self._memories = memories
        self._channel = channel
        self._store: Any = None
        self._exports: Any = None
        self._functions: dict[tuple[str, int], Any] = {}
        self._slot = 0
        self._deadline, self._fuel_taken = math.inf, 0

    def tick(self) -> None:
        """Stop the running call once its time is over; called every few milliseconds."""
        if time.monotonic() >= self._deadline:
            self._engine.increment_epoch()

    def load(self, body: messages.LoadBody, descriptor: int) -> str:
        """Load native code, map the memories, confine the process.

        Returns
        -------
        str
            Why system calls are not filtered; ``''`` when they are.
        """
        import wasmtime

        from tarsdb.udf_sandbox.worker import confinement

        self._body = body
        self._module = wasmtime.Module.deserialize(self._engine, body.module)
        self._driver = None
        if body.driver:
            self._driver = wasmtime.Module.deserialize(self._engine, body.driver)
        self._slot = 1 if body.driver else 0
        sizes = (body.memory_bytes, body.driver_bytes)
        self._memories.map(descriptor, sizes[: self._slot + 1])
        os.close(descriptor)
        confinement.limit_resources(body.cpu_seconds, GUEST_MEMORY)
        return confinement.filter_system_calls()

    def start(self, request: messages.Request) -> None:
        """Make a new instance in a new store; the start function runs under the call's limits."""
        import wasmtime

        if self._store is not None:
            self._store.close()
        self._functions.clear()
        self._memories.clear()
        self._store = store = wasmtime.Store(self._engine)
        self._limit(self._body.memory_bytes)
        self._begin(request)
        self._memories.begin(0)
        imports = []
        for each in self._module.imports:
            kind: Any = each.type  # of a function: the module was inspected
            ask = functools.partial(self._ask, each.name or "", bool(kind.results))
            imports.append(wasmtime.Func(store, kind, ask))
        instance = wasmtime.Instance(store, self._module, imports)
        if self._driver is not None:
            function = instance.exports(store)[self._body.export]
            self._limit(self._body.driver_bytes)
            self._memories.begin(1)
            instance = wasmtime.Instance(store, self._driver, [function])
            self._limit(self._body.memory_bytes)
        self._exports = instance.exports(store)

    def call(self, request: messages.Request, payload: bytes) -> int:
        """Call an export with i32 arguments."""
        from tarsdb.udf_sandbox.exports import Export

        if request.begins:
            self._begin(request)
        name = payload[4 * request.count :].decode()
        function = self._functions.get((name, request.count))
        if function is None:
            function = Export(self._store, self._exports[name], request.count)
            self._functions[name, request.count] = function
        arguments = memoryview(payload)[: 4 * request.count].cast("I")
        return int(function(*arguments))

    def _ask(self, name: str, returns: bool, *arguments: int) -> int | None:
        """Let the database answer a call of the host; without an answer the guest's fuel ends."""
        from tarsdb.udf_sandbox.worker import messages

        text = " ".join(map(str, (name, *arguments)))
        memory = self._memories.size(0)
        asks = messages.Reply(messages.Status.ASKS, memory=memory, text=text)
        try:
            self._channel.sendall(asks.pack())
            size = messages.read_request(self._channel).size
            answer = messages.read_exactly(self._channel, size)
        except (EOFError, OSError):
            os._exit(1)  # the database is gone
        if not answer:
            self._fuel_taken = int(self._store.get_fuel())
            self._store.set_fuel(0)
        value = struct.unpack("<i", answer)[0] if answer else 0
        return value if returns else None

    def state(self) -> tuple[int, int]:
        """Return the fuel not used and the bytes of the memory the database sees."""
        fuel = 0 if self._store is None else int(self._store.get_fuel())
        return self._fuel_taken + fuel, self._memories.size(self._slot)

    def _limit(self, size: int) -> None:
        from tarsdb.udf_sandbox.modules.sections import MAX_TABLE_ELEMENTS

        self._store.set_limits(
            memory_size=size, table_elements=MAX_TABLE_ELEMENTS, instances=2, tables=16, memories=2
        )

    def _begin(self, request: messages.Request) -> None:
        self._fuel_taken = 0
        self._store.set_fuel(request.fuel)
        self._store.set_epoch_deadline(1)
        self._deadline = time.monotonic() + request.seconds


def serve(channel: socket.socket, guest: Guest, ticker: Ticker) -> None:
    """Answer requests until the database closes the socket."""
    from tarsdb.udf_sandbox.worker import messages

    compiler: Compiler | None = None
    while True:
        try:
            request = messages.read_request(channel)
            payload = messages.read_exactly(channel, request.size)
        except (EOFError, OSError):
            return
        answer = b""
        try:
            if request.kind is messages.Kind.COMPILE:
                if compiler is None:
                    compiler = Compiler()
                    compiler.confine()
                name, _, code = payload.partition(b"\0")
                answer = compiler.compile(name.decode(), code)
                reply = messages.Reply(messages.Status.DONE, size=len(answer))
            else:
                with ticker:
                    reply = _guest_reply(channel, guest, request, payload)
        except Exception as error:
            reply = _failure(request.kind, guest, error)
        channel.sendall(reply.pack() + answer)


def _guest_reply(
    channel: socket.socket, guest: Guest, request: messages.Request, payload: bytes
) -> messages.Reply:
    from tarsdb.udf_sandbox.worker import messages

    if request.kind is messages.Kind.LOAD:
        _, (descriptor,), _, _ = socket.recv_fds(channel, 1, 1)
        text = guest.load(messages.LoadBody.unpack(payload), descriptor)
        return messages.Reply(messages.Status.DONE, text=text)
    value = 0
    if request.kind is messages.Kind.START:
        guest.start(request)
    else:
        value = guest.call(request, payload)
    fuel_left, memory = guest.state()
    return messages.Reply(messages.Status.DONE, value, fuel_left, memory)


def _failure(kind: messages.Kind, guest: Guest, error: Exception) -> messages.Reply:
    import wasmtime

    from tarsdb.udf_sandbox.exports import describe_trap, is_memory_limit
    from tarsdb.udf_sandbox.worker import messages

    if kind is messages.Kind.COMPILE:
        invalid = isinstance(error, wasmtime.WasmtimeError)
        status = messages.Status.INVALID if invalid else messages.Status.FAILED
        return messages.Reply(status, text=str(error))
    if kind is messages.Kind.LOAD:
        return messages.Reply(messages.Status.FAILED, text=f"{type(error).__name__}: {error}")
    fuel_left, memory = guest.state()
    status, text = messages.Status.FAILED, str(error)
    if is_memory_limit(error):
        status = messages.Status.MEMORY
    elif isinstance(error, wasmtime.Trap):
        status, text = messages.Status.TRAP, "\n".join(describe_trap(error))
    return messages.Reply(status, 0, fuel_left, memory, text)


def main(arguments: list[str]) -> None:
    """Be a worker: descriptor of the socket, parent, folders of wasmtime and of the package."""
    descriptor, parent, wasmtime_folder, package = arguments
    _find_packages(wasmtime_folder, package)
    from tarsdb.udf_sandbox.worker import confinement

    confinement.die_with(int(parent))
    import wasmtime

    from tarsdb.udf_sandbox import exports, settings  # noqa: F401 - none later
    from tarsdb.udf_sandbox.modules import sections  # noqa: F401 - none later
    from tarsdb.udf_sandbox.ticker import Ticker
    from tarsdb.udf_sandbox.worker import memories, messages

    shared = memories.Memories()
    config = settings.SETTINGS["worker"]()
    shared.install(config)
    engine = wasmtime.Engine(config)
    channel = socket.socket(fileno=int(descriptor))
    guest = Guest(engine, shared, channel)
    ticker = Ticker(guest.tick)
    with ticker:  # its thread starts before threads cannot
        channel.sendall(messages.Reply(messages.Status.DONE).pack())
    serve(channel, guest, ticker)
    os._exit(0)  # no destructor has to run


if __name__ == "__main__":
    main(sys.argv[1:])
