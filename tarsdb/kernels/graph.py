"""The compiled kernels of a graph. Knows no graph."""

from __future__ import annotations

from collections.abc import Callable

from tarsdb.kernels.background import Compiled
from tarsdb.records import dataclass

TOGETHER, STARTS, LIST_ROOM = 3, 8, 17
"""Nodes a search expands at a time, from how many it starts, and the words of a list besides its
entries; as in kernels/cpu, which is not imported before it is compiled."""


@dataclass(frozen=True)
class GraphKernels:
    """The compiled kernels of a level; ``kernels/cpu/graph.py`` says what each does."""

    variant: str
    sketch: Callable[..., None]
    search: Callable[..., int]
    search_asking: Callable[..., int]
    ask: Callable[..., int]
    nearest: Callable[..., int]
    insert: Callable[..., None]
    link: Callable[..., None]
    order: Callable[..., int]


_compiled = Compiled("graph", GraphKernels)
current, wait = _compiled.current, _compiled.wait
