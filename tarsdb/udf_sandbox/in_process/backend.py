"""The wasmtime backend: instances in this process, on threads whose stacks are fit for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import wasmtime

from tarsdb.errors import UdfLimitError
from tarsdb.options import SandboxLimits
from tarsdb.records import dataclass
from tarsdb.udf_sandbox.backends import Guest, Place, Program
from tarsdb.udf_sandbox.exports import Export, Exports
from tarsdb.udf_sandbox.guests import guest_of
from tarsdb.udf_sandbox.in_process import stacks
from tarsdb.udf_sandbox.in_process.wasmtime_backend import Store, runtime
from tarsdb.udf_sandbox.limits import MAX_MEMORY_BYTES, Call
from tarsdb.udf_sandbox.modules.fusion import fuse

DIRECT_FUEL = 20_000_000  # about 10 ms: how long the main thread may not see Ctrl-C

T = TypeVar("T")


class InProcessBackend:
    """Runs guests in this process: the fastest way, one layer of isolation."""

    name = "wasmtime"

    def unavailable(self) -> str:
        """Return ``''``: wasmtime is a dependency."""
        return ""

    def compile(self, program: Program) -> InProcessProgram:
        """Compile the module, or find it compiled; programs of one module share it."""
        if program.driver is None:
            return InProcessProgram(program, runtime().module(program.sha256, program.code), None)
        if program.reusable:  # without state
            fused = fuse(program.code, program.export, program.arguments, program.returns)
            if fused is not None:
                key = hashlib.sha256(fused.code).hexdigest()
                module = runtime().module(key, fused.code, canonical=fused.sees_nan)
                return InProcessProgram(program, module, None, canonical=fused.sees_nan)
        module = runtime().module(program.sha256, program.code)
        return InProcessProgram(program, module, _driver(program.driver))

    def run(self, batch: Callable[[bool], T], call: Call) -> T:
        """Run on this thread, or on one of ours where this one is not fit for it.

        The main thread is fit for short calls only. One that is not likely to be long is begun
        there, and begun anew elsewhere should it be.
        """
        with runtime().ticker:
            if stacks.has_enough_stack():
                if not stacks.on_main_thread():
                    return batch(True)
                if call.fuel <= DIRECT_FUEL:
                    return batch(False)
                if call.likely_fuel <= DIRECT_FUEL // 4 * 3:
                    granted, call.fuel = call.fuel, DIRECT_FUEL
                    try:
                        return batch(False)
                    except UdfLimitError as error:
                        if error.kind != "fuel":
                            raise
                    finally:
                        call.fuel = granted
            return stacks.run_with_stack(lambda: batch(True), call.interrupt)


def _driver(code: bytes) -> wasmtime.Module:
    return runtime().module("driver:" + code.hex(), code)


@dataclass(frozen=True)
class InProcessProgram:
    """A program and its compiled modules.

    Attributes
    ----------
    driver : wasmtime.Module, optional
        Of a bare scalar export whose module is not fused with the loop already.
    canonical : bool
        Whether every operation of the guest gives the one canonical NaN.
    """

    program: Program
    module: wasmtime.Module
    driver: wasmtime.Module | None
    canonical: bool = True

    def guest(self, call: Call, watched: bool) -> Guest:
        """Make a guest in a store of its own."""
        return guest_of(self.program, InProcessInstance(self, call, watched))

    def close(self) -> None:
        """Do nothing: compiled modules are kept by the runtime."""


class InProcessInstance:
    """A module's instance, and its driver's where the export is a bare scalar one."""

    def __init__(self, compiled: InProcessProgram, call: Call, watched: bool) -> None:
        limits = compiled.program.limits
        self._store = Store(limits, watched, compiled.canonical)
        self._store.begin(call)
        self._functions: dict[str, Export] = {}
        self._limit = limits.max_memory_bytes
        try:
            self._exports = self._start(compiled, limits, call)
        except BaseException:
            self._store.close()
            raise
        self._memory = self._exports["memory"]

    def _start(self, compiled: InProcessProgram, limits: SandboxLimits, call: Call) -> Exports:
        store = self._store
        fused = compiled.program.driver is not None and compiled.driver is None
        if fused:
            store.set_memory_limit(MAX_MEMORY_BYTES)  # the driver's, of fixed size
        imports = [store.host_function(each.name or "") for each in compiled.module.imports]
        exports = Exports(store.raw, store.instantiate(compiled.module, imports, call))
        if compiled.driver is not None:
            store.set_memory_limit(MAX_MEMORY_BYTES)
            function = exports[compiled.program.export]
            exports = Exports(store.raw, store.instantiate(compiled.driver, [function], call))
        store.set_memory_limit(limits.max_memory_bytes)
        return exports

    def begin(self, call: Call) -> bool:
        """Give the instance the fuel and the time of a call."""
        self._store.begin(call)
        return True

    def invoke(self, export: str, call: Call, *arguments: int) -> int:
        """Call an export; traps and stops become typed errors."""
        call.transitions += 1
        function = self._function(export, len(arguments))
        return self._store.invoke(function, call, self._memory, *arguments)

    def lend(self, export: str, call: Call) -> tuple[Place, Callable[[int], None]] | None:
        """Return by what compiled code calls an export, and what raises for a call that failed."""
        function = self._function(export, 0)
        place = function.place()
        if place is None:
            return None
        return place, lambda error: self._store.check(function, error, call, self._memory)

    def _function(self, export: str, parameters: int) -> Export:
        function = self._functions.get(export)
        if function is None:
            found = self._exports[export]
            function = self._functions[export] = Export(self._store.raw, found, parameters)
        return function

    def memory(self) -> np.ndarray:
        """Return the memory as bytes; valid until the guest next runs."""
        return self._store.view(self._memory)

    def end(self, call: Call) -> int:
        """Return the fuel the call used."""
        return self._store.end(call)

    def close(self) -> None:
        """Free the store and everything in it."""
        self._store.close()
