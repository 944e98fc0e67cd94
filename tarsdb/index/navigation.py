"""How graphs and inverted lists answer every operator over every type of vector.

They know the squared Euclidean distance, inner product and cosine of rows of numbers. An operator
is *navigated* by one of these: by it candidates are found, which the exact index then compares by
the operator itself on the stored vectors. Bits are numbers 0 and 1: their squared Euclidean
distance is the Hamming distance, and where all rows have as many bits set, the nearest by cosine
are those by Jaccard distance. Knows no index.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tarsdb.errors import NotSupportedError
from tarsdb.index.base import METRICS, metric_code
from tarsdb.records import dataclass
from tarsdb.types import Kind, SqlType


@dataclass(frozen=True)
class Navigation:
    """How the candidates for an operator are found.

    Attributes
    ----------
    op : str
        ``<->``, ``<#>`` or ``<=>``: orders the candidates.
    is_loose : bool
        Whether that is another order than the operator's, so that more candidates are to be
        compared than what codes round away asks for.
    """

    op: str
    is_loose: bool = False


NAVIGATIONS = {
    "<->": Navigation("<->"), "<#>": Navigation("<#>"), "<=>": Navigation("<=>"),
    "<~>": Navigation("<->"),
    "<+>": Navigation("<->", is_loose=True), "<%>": Navigation("<=>", is_loose=True),
}  # fmt: skip
"""By the operator that is answered."""


def operators(sql_type: SqlType) -> tuple[str, ...]:
    """Return the operators defined for a type, the most usual first; none for no vector."""
    found = []
    for op in METRICS:
        try:
            metric_code(op, sql_type)
        except NotSupportedError:
            continue
        found.append(op)
    return tuple(found)


def elements(sql_type: SqlType) -> int:
    """Return how many numbers :func:`as_numbers` makes of a vector of a type."""
    return 8 * sql_type.width if sql_type.kind is Kind.BIT else sql_type.width


def as_numbers(rows: np.ndarray) -> npt.NDArray[np.float32]:
    """Return vectors as numbers, float32 (..., elements), ``rows`` itself where it is that.

    Parameters
    ----------
    rows : (..., width)
        float32, float16 or int8; uint8 are bits, packed, the first the most significant.
    """
    if rows.dtype == np.float32:
        return rows
    numbers = np.unpackbits(rows, axis=-1) if rows.dtype == np.uint8 else rows
    wide: npt.NDArray[np.float32] = numbers.astype(np.float32)
    return wide
