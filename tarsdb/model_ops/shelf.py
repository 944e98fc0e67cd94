"""Packed weights between processes: taken from a shelf where they lie, packed and offered else.

What the shelf is, a file or nothing, is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from tarsdb.kernels.packed_plan import Plan, Weight
from tarsdb.memory_region import Region


class Shelf(Protocol):
    """Keeps the packed weights of one model version."""

    def find(self, layout: str, nbytes: int) -> Region | None:
        """Return what was packed to a plan of this name, exactly so many bytes; None: nothing."""
        ...

    def offer(self, layout: str, region: Region) -> None:
        """Take note of weights that were packed just now; keeps them if it likes, later."""
        ...


def packed_weights(
    plan: Plan, shelf: Shelf | None, pack: Callable[[Mapping[str, Weight]], None]
) -> tuple[dict[str, Weight], Region]:
    """Return the arrays of a plan, which nobody writes to, and the region that holds them.

    ``pack`` fills the arrays where the shelf does not have them.
    """
    region = None if shelf is None else shelf.find(plan.name, plan.nbytes)
    if region is None:
        region = Region(plan.nbytes)
        pack(plan.views(region.array))
        if shelf is not None:
            shelf.offer(plan.name, region)
    return plan.views(region.read_only), region
