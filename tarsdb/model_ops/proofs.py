"""Compiled passes tried on a small model before the first real one: they must agree with NumPy's.

A compiler or processor that gets a kernel wrong then costs speed, not answers: models are computed
by NumPy, and the counter ``kernels.disproved`` says so. Each kernel is tried once in a process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.metrics import METRICS

F32 = npt.NDArray[np.float32]

TOLERANCE = {"f32": 1e-4, "bf16": 2e-3, "int8": 0.03, "int4": 0.03}
"""Error by kind of weights, root mean square, as a fraction of the values; activations may round
to the other side where sums differ in their last bits."""
_lock = threading.Lock()
_outcomes: dict[Hashable, bool] = {}


def is_proven(kernel: Hashable, kind: str, try_out: Callable[[], tuple[F32, F32]]) -> bool:
    """Return whether a kernel computes what NumPy does.

    Parameters
    ----------
    kernel : hashable
        Tried once; the outcome is kept.
    kind : str
        Of the weights.
    try_out : callable
        Returns NumPy's values and the kernel's.
    """
    with _lock:
        outcome = _outcomes.get(kernel)
        if outcome is None:
            try:
                exact, found = try_out()
                error = np.sqrt(np.square(found - exact).mean())
                outcome = bool(error <= TOLERANCE[kind] * np.sqrt(np.square(exact).mean()))
            except Exception:  # what cannot even be tried is not used
                outcome = False
            _outcomes[kernel] = outcome
            if not outcome:
                METRICS.add("kernels.disproved")
    return outcome


def random_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, npt.NDArray[Any]]:
    """Return weights of some shapes: scales near one, all else small; the same every time."""
    random, tensors = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape, np.float32) * np.float32(0.2)
        is_scale = len(shape) == 1 and "norm" in name.lower() and name.endswith("weight")
        tensors[name] = values + np.float32(is_scale)
    return tensors
