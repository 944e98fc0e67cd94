"""Calls of guest exports whose parameters and result are all i32, without per-call type queries.

wasmtime-py's ``Func.__call__`` asks for the function's type on every call (25 us). The exports
called here have types that were checked when the module was inspected, so values go straight
into the C function. Where that binding is absent the ordinary call is used. Part of what a worker
process imports, so it imports wasmtime and nothing of ours.
"""

from __future__ import annotations

import ctypes
from typing import Any

import wasmtime

try:
    from wasmtime import _bindings as c_api

    _call_unchecked: Any = c_api._wasmtime_func_call_unchecked
except (ImportError, AttributeError):  # another wasmtime-py than the tested range
    _call_unchecked = None


try:
    from wasmtime import _ffi

    _export_get: Any = c_api._wasmtime_instance_export_get
    _KINDS: dict[int, Any] = {
        _ffi.WASMTIME_EXTERN_FUNC.value: lambda item: wasmtime.Func._from_raw(item.of.func),
        _ffi.WASMTIME_EXTERN_MEMORY.value: lambda item: wasmtime.Memory._from_raw(item.of.memory),
    }
except (ImportError, AttributeError):
    _export_get = None


class Exports:
    """The functions and memories of one instance by name, each found when it is asked for.

    wasmtime-py's own mapping wraps all of them first, which takes as long as making the instance.
    """

    def __init__(self, store: wasmtime.Store, instance: wasmtime.Instance) -> None:
        self._store = store
        self._instance = instance

    def __getitem__(self, name: str) -> Any:
        if _export_get is None or not hasattr(self._instance, "_instance"):
            return self._instance.exports(self._store)[name]
        code, item = name.encode(), c_api.wasmtime_extern_t()
        place = ctypes.byref(self._instance._instance), code, len(code), ctypes.byref(item)
        found = _export_get(self._store._context(), *place)
        wrap = _KINDS.get(int(item.kind)) if found else None
        if wrap is None:
            raise KeyError(name)
        return wrap(item)


class Export:
    """One function of one instance.

    Parameters
    ----------
    store : wasmtime.Store
    function : wasmtime.Func
        Takes ``parameters`` values of i32 and returns one i32 or nothing.
    parameters : int
    """

    __slots__ = (
        "_arguments", "_context", "_function", "_parameters", "_raw", "_store", "_trap",
        "_trap_address",
    )  # fmt: skip

    def __init__(self, store: wasmtime.Store, function: Any, parameters: int) -> None:
        self._store = store
        self._function = function
        self._parameters = parameters
        self._raw: Any = None
        if _call_unchecked is not None and hasattr(function, "_func"):
            self._raw = ctypes.byref(function._func)
            self._arguments = (c_api.wasmtime_val_raw_t * max(parameters, 1))()
            self._context = store._context()
            self._expect_trap()

    def _expect_trap(self) -> None:
        """Make the place where the next call puts its trap."""
        self._trap = ctypes.POINTER(c_api.wasm_trap_t)()
        self._trap_address = ctypes.byref(self._trap)

    def __call__(self, *arguments: int) -> int:
        """Call it; the result of a function that returns nothing is undefined.

        Raises
        ------
        wasmtime.Trap, wasmtime.WasmtimeError
        """
        if self._raw is None:
            return self._function(self._store, *arguments) or 0
        values = self._arguments
        for number in range(self._parameters):
            values[number].i32 = arguments[number]
        self._store.ptr()  # raises once the store is closed, and with it the context is gone
        error = _call_unchecked(self._context, self._raw, values, len(values), self._trap_address)
        if error or self._trap:
            self._raise(error)
        return int(values[0].i32)

    def _raise(self, error: Any) -> None:
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)
        trap = self._trap
        self._expect_trap()
        raise wasmtime.Trap._from_ptr(trap)

    def place(self) -> tuple[int, int, int, int, int, int] | None:
        """Return by what compiled code calls it; None where it cannot.

        ``wasmtime_func_call_unchecked`` of wasmtime's C interface, and its arguments: the store's
        context, the function, values, how many, and where it leaves a trap.
        """
        if self._raw is None:
            return None
        self._store.ptr()
        target, context = (
            ctypes.cast(each, ctypes.c_void_p).value or 0
            for each in (_call_unchecked, self._context)
        )
        function, values = map(ctypes.addressof, (self._function._func, self._arguments))
        return target, context, function, values, len(self._arguments), ctypes.addressof(self._trap)

    def check(self, error: int) -> None:
        """Raise for a call by :meth:`place` that returned this, or left a trap.

        Raises
        ------
        wasmtime.Trap, wasmtime.WasmtimeError
        """
        if error or self._trap:
            kind = _call_unchecked.restype
            self._raise(ctypes.cast(error, kind) if error else None)


def describe_trap(trap: wasmtime.Trap) -> tuple[str, str]:
    """Return the name of a trap, and of the guest function where the name section tells."""
    frames = trap.frames
    name = trap.trap_code.name if trap.trap_code is not None else "UNKNOWN"
    return name, (frames[0].func_name or "") if frames else ""


def is_memory_limit(error: Exception) -> bool:
    """Return True when an instance could not be made because its memory starts too large."""
    text = str(error)
    return "exceeds memory limits" in text or "memory minimum size" in text
