"""Options of inverted lists."""

from __future__ import annotations

from tarsdb.errors import DataError
from tarsdb.index.ivf.refining import CHOICES
from tarsdb.records import dataclass

CODES = ("auto", "none", "int8", "bits", "pq")
MOST_LISTS = 1 << 20
_LIMITS: dict[str, tuple[int, int]] = {
    "lists": (0, MOST_LISTS), "iterations": (0, 1000), "sample": (1, 4096), "seed": (0, 2**63 - 1),
}  # fmt: skip


@dataclass(frozen=True)
class IvfOptions:
    """How inverted lists are built.

    Parameters
    ----------
    lists : int
        How many; 0 chooses :data:`LISTS_PER_ROOT` times the square root of the rows.
    codes : str
        What the lists hold of a row: ``int8`` (a byte an element), ``bits`` (a bit an element: of
        rows of bits themselves, else by RaBitQ), ``pq`` (product codes: four bits for some six
        elements), ``none`` (float32) or ``auto``: ``bits`` of rows of bits, else ``int8``.
    iterations : int
        Of k-means, at most; it stops when no row changes its cluster.
    sample : int
        Rows a list k-means learns from.
    seed : int
        Of the sample and the first centroids.
    refine_bits : int
        Bits an element beside the sign bits of ``codes='bits'`` of numbers: 0 or 2.

    Raises
    ------
    DataError
        An option is outside its range.
    """

    lists: int = 0
    codes: str = "auto"
    iterations: int = 10
    sample: int = 64
    seed: int = 1
    refine_bits: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise DataError(
                    f"option {name} of inverted lists is {value!r}, expected {low} to {high}"
                )
        if self.codes not in CODES:
            raise DataError(
                f"option codes of inverted lists is {self.codes!r}, expected {' or '.join(CODES)}"
            )
        bits = self.refine_bits
        if type(bits) is not int or bits not in CHOICES:
            raise DataError(f"option refine_bits of inverted lists is {bits!r}, expected 0 or 2")
        if bits and self.codes != "bits":
            raise DataError(
                f"option refine_bits of inverted lists is {bits}, but codes is {self.codes!r}: "
                "only 'bits' has further bits"
            )

    def codes_for(self, is_bits: bool) -> str:
        """Return what lists of rows hold, given whether these are bits."""
        if self.codes == "auto":
            return "bits" if is_bits else "int8"
        return self.codes

    def lists_for(self, rows: int) -> int:
        """Return how many lists an index of some rows has."""
        wanted = self.lists or round(LISTS_PER_ROOT * rows**0.5)
        return max(1, min(wanted, rows, MOST_LISTS))


LISTS_PER_ROOT = 4
"""A list then has about a quarter of the square root of the rows."""
