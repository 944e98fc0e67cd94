"""wasmtime's settings: what every guest runs under, here and in a worker.

Part of what a worker process imports, so it imports wasmtime and little else.
"""

from __future__ import annotations

import wasmtime
from wasmtime import _bindings as c_api

from tarsdb.udf_sandbox.stacks import MAX_WASM_STACK

_OFF = (
    "wasm_threads", "wasm_memory64", "wasm_multi_memory", "wasm_gc", "wasm_exceptions",
    "wasm_tail_call", "wasm_relaxed_simd", "wasm_function_references", "wasm_wide_arithmetic",
    "wasm_custom_page_sizes", "wasm_stack_switching", "wasm_component_model", "shared_memory",
    "debug_info", "parallel_compilation",
)  # fmt: skip


def in_process(canonical: bool = True) -> wasmtime.Config:
    """Return the settings of guests in this process; ``canonical`` is about NaN."""
    config = wasmtime.Config()
    for name in _OFF:  # a pool of compiler threads would not survive fork either
        setattr(config, name, False)
    config.consume_fuel = True
    config.epoch_interruption = True
    config.cranelift_nan_canonicalization = canonical
    config.max_wasm_stack = MAX_WASM_STACK
    return config


def in_worker() -> wasmtime.Config:
    """Return the settings of guests in a worker: memories that fit an address-space limit.

    Reserving 4 GiB for each would not; without that, and without guards, every access is compiled
    with a bounds check.
    """
    config = in_process()
    config.memory_reservation = 0
    config.memory_reservation_for_growth = 0
    config.memory_guard_size = 0
    # Data segments are copied, not mapped from a file that a confined process cannot make.
    c_api.wasmtime_config_memory_init_cow_set(config.ptr(), False)
    return config
