"""The compiled kernels of inverted lists, and the sizes they count on. Knows no index."""

from __future__ import annotations

from collections.abc import Callable

from tarsdb.kernels.background import Compiled
from tarsdb.records import dataclass

TILE = 16
CENTROIDS = 16  # as in kernels/cpu/product_codes.py; a test compares
PLAN, SCRATCH = 18, 1664  # as in kernels/cpu/ivf.py; a test compares
BLOCK, ROUNDS = 64, 3  # as in kernels/cpu/sign_bits.py; a test compares
PLACE, FURTHER_CONSTANTS = 4, 16  # as in kernels/cpu/refining.py; a test compares
STEP = 8
"""Assignments start at multiples of this, so that threads do not change what is done together."""


@dataclass(frozen=True)
class IvfKernels:
    """The compiled kernels of a level; ``kernels/cpu/ivf.py`` says what each does."""

    variant: str
    encode: Callable[..., None]
    assign: Callable[..., None]
    add: Callable[..., None]
    search: Callable[..., int]
    name: Callable[..., None]


_compiled = Compiled("ivf", IvfKernels)
current, wait = _compiled.current, _compiled.wait
