"""Options of a graph."""

from __future__ import annotations

from tarsdb.errors import DataError, NotSupportedError
from tarsdb.records import dataclass

_LIMITS: dict[str, tuple[float, float]] = {
    "m": (2, 256), "ef_construction": (8, 10_000), "alpha": (1.0, 2.0), "seed": (0, 2**63 - 1),
}  # fmt: skip
QUANTIZATIONS = ("auto", "int4", "int8")


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
    quantization : str
        Codes that searches read: ``int8``, ``int4`` (half the memory, a third faster), or ``auto``:
        ``int4`` where a sample of the data shows that these tell near rows apart.

    Raises
    ------
    DataError
        An option is outside its range.
    NotSupportedError
        Graphs have no such codes.
    """

    m: int = 16
    ef_construction: int = 128
    alpha: float = 1.1
    seed: int = 1
    quantization: str = "auto"

    def __post_init__(self) -> None:
        if self.quantization not in QUANTIZATIONS:
            raise NotSupportedError(
                f"option quantization of a graph is {self.quantization!r}, expected one of "
                f"{', '.join(QUANTIZATIONS)}"
            )
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            whole = name == "alpha" or (isinstance(value, int) and not isinstance(value, bool))
            if not whole or not isinstance(value, (int, float)) or not low <= value <= high:
                raise DataError(
                    f"option {name} of a graph is {value!r}, expected {low:g} to {high:g}"
                )

    @property
    def degree(self) -> int:
        """Neighbours a node may have."""
        return 2 * self.m
