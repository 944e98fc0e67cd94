"""Which transformer kernels to use: NumPy at once, compiled ones as soon as they are there.

The first call of :func:`current` starts compiling (or loading from Numba's disk cache) in the
background and returns the reference; nobody ever waits for a compiler. Without Numba, or where
compiling fails, the reference stays.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.kernels import transformer_reference

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TransformerKernels:
    """The kernels of a layer; ``kernels/transformer_reference.py`` defines what they do."""

    name: str
    add_bias: Callable[[F32, F32], None]
    bias_activation: Callable[[F32, F32, int], None]
    residual_norm: Callable[[F32, F32, F32, F32, F32, float], None]
    softmax_columns: Callable[[F32], None]


REFERENCE = TransformerKernels(
    "numpy",
    transformer_reference.add_bias,
    transformer_reference.bias_activation,
    transformer_reference.residual_norm,
    transformer_reference.softmax_columns,
)

_lock = threading.Lock()
_current = REFERENCE
_compiling: threading.Thread | None = None


def current() -> TransformerKernels:
    """Return the fastest kernels that are ready now."""
    if _compiling is None:
        _start()
    return _current


def wait() -> TransformerKernels:
    """Compile if need be, wait for it, and return the fastest kernels this machine has."""
    _start().join()
    return _current


def _start() -> threading.Thread:
    global _compiling
    with _lock:
        if _compiling is None:
            # No daemon: a compiler running while the process is taken down crashes it.
            _compiling = threading.Thread(target=_compile, name="tarsdb-compile")
            _compiling.start()
        return _compiling


def _compile() -> None:
    global _current
    if os.environ.get("TARSDB_ISA") == "portable":
        return
    try:
        from tarsdb.kernels.cpu import disk_cache, transformer

        compiled: list[Any] = [
            disk_cache.compiled(k, form) for k, form in transformer.SIGNATURES.items()
        ]
    except Exception:  # no Numba, or a compiler bug: NumPy does it too
        return
    _current = TransformerKernels("numba", *compiled)
