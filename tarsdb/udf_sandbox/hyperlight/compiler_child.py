"""Compile a component ahead of time with one exact release of wasmtime; runs as a child process.

Usage: ``python -I -S compiler_child.py LIBRARY CONFINEMENT MEMORY_BYTES CPU_SECONDS``, the binary
component on standard input, the artefact on standard output, a message and exit status 1 when it
is refused. Calls the library's C interface, since the process that asks uses another release of
wasmtime. The component is untrusted: before it is looked at, the functions of the file CONFINEMENT
(``worker/confinement.py``) take away what compiling does not need. Imports nothing of tarsdb.
"""

from __future__ import annotations

import ctypes
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any

TARGET = b"x86_64-unknown-linux-gnu"  # a named target switches off what this processor has
# The last one because a confined process cannot start threads.
OFF = ("wasm_threads", "wasm_memory64", "wasm_tail_call", "wasm_relaxed_simd", "wasm_gc",
       "wasm_function_references", "wasm_wide_arithmetic", "wasm_stack_switching",
       "parallel_compilation")  # fmt: skip

# Without room set aside behind a memory, code compares every address with the memory's size. The
# guest's page faults do not do it: it maps a fresh page where a guard page should be.
NO_RESERVATION = ("memory_reservation", "memory_guard_size", "memory_reservation_for_growth")


class Bytes(ctypes.Structure):
    """``wasm_byte_vec_t``."""

    _fields_ = (("size", ctypes.c_size_t), ("data", ctypes.POINTER(ctypes.c_char)))

    def value(self) -> bytes:
        """Return a copy."""
        return ctypes.string_at(self.data, self.size)


def load(path: str) -> Any:
    """Return the library with the types of the functions used here."""
    library = ctypes.CDLL(path)
    pointer = ctypes.c_void_p
    library.wasm_config_new.restype = pointer
    library.wasm_engine_new_with_config.argtypes = [pointer]
    library.wasm_engine_new_with_config.restype = pointer
    for name in ("wasm_component_model", "cranelift_nan_canonicalization", *OFF):
        getattr(library, f"wasmtime_config_{name}_set").argtypes = [pointer, ctypes.c_bool]
        getattr(library, f"wasmtime_config_{name}_set").restype = None
    for name in NO_RESERVATION:
        getattr(library, f"wasmtime_config_{name}_set").argtypes = [pointer, ctypes.c_uint64]
        getattr(library, f"wasmtime_config_{name}_set").restype = None
    library.wasmtime_config_target_set.argtypes = [pointer, ctypes.c_char_p]
    library.wasmtime_config_target_set.restype = pointer
    library.wasmtime_component_new.argtypes = [
        pointer, ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(pointer),
    ]  # fmt: skip
    library.wasmtime_component_new.restype = pointer
    library.wasmtime_component_serialize.argtypes = [pointer, ctypes.POINTER(Bytes)]
    library.wasmtime_component_serialize.restype = pointer
    library.wasmtime_error_message.argtypes = [pointer, ctypes.POINTER(Bytes)]
    library.wasmtime_error_message.restype = None
    return library


def engine(library: Any) -> Any:
    """Return an engine with the settings of the guest's."""
    config = library.wasm_config_new()
    library.wasmtime_config_wasm_component_model_set(config, True)
    library.wasmtime_config_cranelift_nan_canonicalization_set(config, True)
    for name in OFF:
        getattr(library, f"wasmtime_config_{name}_set")(config, False)
    for name in NO_RESERVATION:
        getattr(library, f"wasmtime_config_{name}_set")(config, 0)
    _check(library, library.wasmtime_config_target_set(config, TARGET))
    return library.wasm_engine_new_with_config(config)


def compiled(library: Any, made: Any, component: bytes) -> bytes:
    """Return the artefact of a binary component, by an engine."""
    found = ctypes.c_void_p()
    size = len(component)
    _check(library, library.wasmtime_component_new(made, component, size, ctypes.byref(found)))
    out = Bytes()
    _check(library, library.wasmtime_component_serialize(found, ctypes.byref(out)))
    return out.value()


def _check(library: Any, error: Any) -> None:
    if error:
        message = Bytes()
        library.wasmtime_error_message(error, ctypes.byref(message))
        sys.exit(message.value().decode(errors="replace"))


def main(path: str, confinement: str, memory: str, seconds: str) -> None:
    """Compile standard input to standard output, confined but for executable memory."""
    component = sys.stdin.buffer.read()
    library = load(path)
    made = engine(library)
    confined: Any = ModuleType("confinement")
    SourceFileLoader("confinement", confinement).exec_module(confined)
    confined.limit_resources(int(seconds), int(memory))
    confined.filter_system_calls(executable_memory=True)
    sys.stdout.buffer.write(compiled(library, made, component))


if __name__ == "__main__":
    main(*sys.argv[1:])
