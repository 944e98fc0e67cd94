"""wasmtime's settings, by the name of what runs with them: guests here, or in a worker.

Part of what a worker process imports, so it imports wasmtime and little else.
"""

from __future__ import annotations

from collections.abc import Callable

import wasmtime
from wasmtime import _bindings as c_api

from tarsdb.udf_sandbox.in_process.stacks import MAX_WASM_STACK

_OFF = (
    "wasm_threads", "wasm_memory64", "wasm_multi_memory", "wasm_gc", "wasm_exceptions",
    "wasm_tail_call", "wasm_relaxed_simd", "wasm_function_references", "wasm_wide_arithmetic",
    "wasm_custom_page_sizes", "wasm_stack_switching", "wasm_component_model", "shared_memory",
    "debug_info", "parallel_compilation",
)  # fmt: skip

_OFF_BY_BINDING = ("wasm_branch_hinting", "wasm_compact_imports")  # without a property


RESERVED_BYTES = 4 << 30
GUARD_BYTES = 32 << 20
"""Address space of a memory in a worker, and around it: what code may reach without a check."""


def _in_process(canonical: bool) -> wasmtime.Config:
    """Return the settings of guests in this process; ``canonical`` is about NaN."""
    config = wasmtime.Config()
    for name in _OFF:  # a pool of compiler threads would not survive fork either
        setattr(config, name, False)
    for name in _OFF_BY_BINDING:
        switch = getattr(c_api, f"wasmtime_config_{name}_set", None)
        if switch is not None:
            switch(config.ptr(), False)
    config.consume_fuel = True
    config.epoch_interruption = True
    config.cranelift_nan_canonicalization = canonical
    config.max_wasm_stack = MAX_WASM_STACK
    return config


def _in_worker() -> wasmtime.Config:
    """Return the settings of guests in a worker: the same, for memories made by ``memories``."""
    config = _in_process(True)
    config.memory_reservation = RESERVED_BYTES
    config.memory_guard_size = GUARD_BYTES
    # Data segments are copied, not mapped from a file that a confined process cannot make.
    c_api.wasmtime_config_memory_init_cow_set(config.ptr(), False)
    return config


SETTINGS: dict[str, Callable[[], wasmtime.Config]] = {
    "wasmtime": lambda: _in_process(True),
    "any-nan": lambda: _in_process(False),
    "worker": _in_worker,
}
"""``any-nan`` is ``wasmtime`` for functions that cannot tell one NaN from another."""


def engine(name: str) -> wasmtime.Engine:
    """Return a new engine with settings of a name."""
    return wasmtime.Engine(SETTINGS[name]())
