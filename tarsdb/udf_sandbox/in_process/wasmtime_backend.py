"""wasmtime in this process: its engine, compiled modules, stores with limits, traps to errors.

Imports wasmtime, and so is imported on first need. Uses four functions of
wasmtime-py's C binding that its classes do not wrap (the epoch callback); where they are absent
calls end at their time limit all the same, they only cannot be interrupted earlier.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import itertools
import math
import os
import threading
import time
from collections import OrderedDict
from typing import Any

import numpy as np
import wasmtime

from tarsdb.errors import UdfError, UdfValidationError
from tarsdb.options import SandboxLimits
from tarsdb.udf_sandbox import capabilities, settings
from tarsdb.udf_sandbox.exports import Export, describe_trap, is_memory_limit
from tarsdb.udf_sandbox.in_process import stacks
from tarsdb.udf_sandbox.limits import Call, memory_error, stop_error
from tarsdb.udf_sandbox.modules.compilation import native_code
from tarsdb.udf_sandbox.modules.sections import MAX_TABLE_ELEMENTS
from tarsdb.udf_sandbox.ticker import INTERVAL_S, Ticker

_CACHED_MODULES = 64


def _settings(canonical: bool) -> str:
    return "wasmtime" if canonical else "any-nan"


class Runtime:
    """The engines of this process, their clock and its compiled modules.

    The second engine is for functions that cannot tell one NaN from another: to make each
    operation's NaN the canonical one costs such a function more than all else it does.
    """

    def __init__(self) -> None:
        self.engines = {
            canonical: settings.engine(_settings(canonical)) for canonical in (True, False)
        }
        self.ticker = Ticker(self._tick)
        self._modules: OrderedDict[str, wasmtime.Module] = OrderedDict()
        self._lock = threading.Lock()

    def _tick(self) -> None:
        for engine in self.engines.values():
            engine.increment_epoch()

    def module(self, key: str, code: bytes, *, canonical: bool = True) -> wasmtime.Module:
        """Return the compiled module, from the cache when its key (a sha256) is known.

        One key stands for one code and one ``canonical``.
        """
        with self._lock:
            found = self._modules.get(key)
            if found is not None:
                self._modules.move_to_end(key)
                return found
        native = native_code(_settings(canonical), code)
        module = wasmtime.Module.deserialize(self.engines[canonical], native)
        with self._lock:
            self._modules[key] = module
            while len(self._modules) > _CACHED_MODULES:
                self._modules.popitem(last=False)
        return module


_runtime: Runtime | None = None
_runtime_lock = threading.Lock()


def runtime() -> Runtime:
    """Return this process's runtime, made on first use."""
    global _runtime
    with _runtime_lock:
        if _runtime is None:
            _runtime = Runtime()
        return _runtime


def _after_fork() -> None:
    """Forget threads and locks of the parent; a forked child makes its own engine."""
    global _runtime, _runtime_lock
    _runtime, _runtime_lock = None, threading.Lock()
    stacks.forget_workers()


def _at_exit() -> None:
    if _runtime is not None:
        _runtime.ticker.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


def assemble(text: bytes) -> bytes:
    """Return the binary form of WebAssembly text."""
    try:
        return bytes(wasmtime.wat2wasm(text))
    except wasmtime.WasmtimeError as error:
        raise UdfValidationError(f"WebAssembly text does not parse: {_short(error)}") from error


def validate(code: bytes) -> None:
    """Raise UdfValidationError unless the module validates under our settings; compiles nothing."""
    try:
        wasmtime.Module.validate(runtime().engines[True], code)
    except wasmtime.WasmtimeError as error:
        raise UdfValidationError(f"module does not validate: {_short(error)}") from error


def _short(error: Exception) -> str:
    return str(error).strip()[:500]


# -- stopping a running call ------------------------------------------------------------------

_running: dict[int, Call] = {}
_ids = itertools.count(1)


def _on_epoch(_context: Any, key: int | None, delta: Any, kind: Any) -> int | None:
    """Every tick in a running guest: go on for one more tick, or end it with an error."""
    call = _running.get(key or 0)
    if call is None or call.must_stop():
        error = wasmtime.WasmtimeError("stopped")._consume()
        return ctypes.cast(error, ctypes.c_void_p).value
    delta[0] = 1
    kind[0] = 0  # continue
    return 0


def _epoch_callback() -> Any:
    from wasmtime import _bindings

    _, prototype, _, finalizer = _bindings._wasmtime_store_epoch_deadline_callback.argtypes
    set_callback = _bindings.wasmtime_store_epoch_deadline_callback
    return prototype(_on_epoch), finalizer(0), set_callback


try:
    _callback, _no_finalizer, _set_callback = _epoch_callback()
except (AttributeError, ImportError, TypeError):  # another wasmtime-py than the tested range
    _set_callback = None


class Store:
    """One wasmtime store with its limits: what a guest's instances live in.

    Parameters
    ----------
    limits : SandboxLimits
    watched : bool
        Ask at every tick whether to stop. Not for calls on the main thread, where the question
        would swallow a pending Ctrl-C; those end at their deadline.
    canonical : bool
        Which of the engines its modules were compiled for.
    """

    def __init__(self, limits: SandboxLimits, watched: bool, canonical: bool = True) -> None:
        self.limits = limits
        self._memory_limit = 0
        self.watched = watched and _set_callback is not None
        self.raw = wasmtime.Store(runtime().engines[canonical])
        self.key = next(_ids)
        self._thread = 0  # of the call it was begun for: the calls below are not checked
        self._place, self._bytes = (0, -1), np.zeros(0, dtype=np.uint8)  # of the memory seen last
        self.set_memory_limit(limits.max_memory_bytes)
        if self.watched:
            _set_callback(self.raw.ptr(), _callback, self.key, _no_finalizer)

    def set_memory_limit(self, size: int) -> None:
        """Bound every memory of the store, for instances made and growth asked from now on."""
        if size == self._memory_limit:
            return
        self._memory_limit = size
        self.raw.set_limits(
            memory_size=size, table_elements=MAX_TABLE_ELEMENTS, instances=2, tables=16, memories=2
        )

    def begin(self, call: Call) -> None:
        """Give the store the fuel and the time of a call."""
        self.raw.set_fuel(call.fuel)
        left = max(call.deadline - time.monotonic(), 0.0)
        self.raw.set_epoch_deadline(1 if self.watched else math.ceil(left / INTERVAL_S) + 1)
        _running[self.key] = call
        self._thread = threading.get_ident()

    def end(self, call: Call) -> int:
        """Return the fuel the call used."""
        _running.pop(self.key, None)
        return call.fuel - call.fuel_taken - int(self.raw.get_fuel())

    def instantiate(
        self, module: wasmtime.Module, imports: list[Any], call: Call
    ) -> wasmtime.Instance:
        """Make an instance; runs the module's start function under the call's limits."""
        try:
            return wasmtime.Instance(self.raw, module, imports)
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            if is_memory_limit(error):
                raise memory_error(call.function, self.limits, "its memory is too large") from error
            raise _converted(error, call, None) from error

    def host_function(self, name: str) -> wasmtime.Func:
        """Return a capability as the guest imports it."""
        numbers = {"i32": wasmtime.ValType.i32()}
        signature = capabilities.SIGNATURES[name]
        kind = wasmtime.FuncType(
            [numbers[each] for each in signature.params],
            [numbers[each] for each in signature.results],
        )

        def serve(caller: Any, *arguments: int) -> int | None:
            call = _running[self.key]
            try:
                memory = self.view(caller["memory"])
                return capabilities.serve(name, call, memory, *arguments)
            except BaseException as error:  # raised once the guest has ended, for want of fuel
                call.failed = error
                call.fuel_taken = int(self.raw.get_fuel())
                self.raw.set_fuel(0)
                return 0 if signature.results else None

        return wasmtime.Func(self.raw, kind, serve, access_caller=True)

    def invoke(self, function: Export, call: Call, memory: Any, *args: int) -> int:
        """Call an export; traps and stops become typed errors."""
        assert self._thread == threading.get_ident(), "a store is used by another thread"
        try:
            result = function(*args)
            if call.failed is not None:
                raise call.failed
            return result
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            size = None if memory is None else memory.data_len(self.raw)
            raise _converted(error, call, size) from error

    def check(self, function: Export, error: int, call: Call, memory: Any) -> None:
        """Raise a typed error where compiled code called an export that trapped or was stopped."""
        try:
            function.check(error)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as raised:
            raise _converted(raised, call, memory.data_len(self.raw)) from raised

    def view(self, memory: Any) -> np.ndarray:
        """Return a memory as bytes; valid until the guest next runs (growth moves it)."""
        size = memory.data_len(self.raw)
        address = ctypes.addressof(memory.data_ptr(self.raw).contents) if size else 0
        if (address, size) != self._place:
            array = (ctypes.c_ubyte * size).from_address(address) if size else b""
            self._place, self._bytes = (address, size), np.frombuffer(array, dtype=np.uint8)
        return self._bytes

    def close(self) -> None:
        """Free the store and everything in it."""
        _running.pop(self.key, None)
        with contextlib.suppress(ValueError):
            self.raw.close()


def _converted(error: Exception, call: Call, memory_size: int | None) -> BaseException:
    if call.failed is not None:
        return call.failed
    if isinstance(error, wasmtime.Trap):
        return stop_error(call, *describe_trap(error), memory_size)
    if call.stopped:
        return stop_error(call, "", "", memory_size)
    return UdfError(f"function {call.function}: {_short(error)}")
