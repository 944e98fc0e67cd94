"""Options of a graph."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tarsdb.errors import DataError

_LIMITS: dict[str, tuple[float, float]] = {
    "m": (2, 256), "ef_construction": (8, 10_000), "alpha": (1.0, 2.0), "seed": (0, 2**63 - 1),
}  # fmt: skip


@dataclass(frozen=True)
class GraphOptions:
    """How a graph is built.

    Parameters
    ----------
    m : int
        A node keeps up to ``2 * m`` neighbours.
    ef_construction : int
        List size of the searches that find a new node's neighbours.
    alpha : float
        A candidate is dropped when a chosen neighbour is this many times nearer to it (squared
        distances) than the node is: the larger, the more long edges stay.
    seed : int
        Of the order of insertion.

    Raises
    ------
    DataError
        An option is outside its range.
    """

    m: int = 16
    ef_construction: int = 128
    alpha: float = 1.1
    seed: int = 1

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            low, high = _LIMITS[each.name]
            whole = each.name == "alpha" or (isinstance(value, int) and not isinstance(value, bool))
            if not whole or not isinstance(value, (int, float)) or not low <= value <= high:
                raise DataError(
                    f"option {each.name} of a graph is {value!r}, expected {low:g} to {high:g}"
                )

    @property
    def degree(self) -> int:
        """Neighbours a node may have."""
        return 2 * self.m
