"""What every vector index can do, and the operators of vector search.

Knows no index kind. An index answers with row ids; what a row is, is the caller's business.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tarsdb.columns import VectorBlock
from tarsdb.errors import NotSupportedError
from tarsdb.kernels import reference
from tarsdb.kernels.native import PlacedBlock
from tarsdb.records import dataclass
from tarsdb.types import Kind, SqlType

Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Row ids and distances, of equal shape."""

METRICS: dict[str, int] = {
    "<->": reference.L2, "<#>": reference.IP, "<=>": reference.COSINE, "<+>": reference.L1,
    "<~>": reference.HAMMING, "<%>": reference.JACCARD,
}  # fmt: skip
"""Operator -> metric code of the kernels."""

_BIT_METRICS = frozenset({reference.HAMMING, reference.JACCARD})


class OneCall(Protocol):
    """A search of its own rows by one compiled call.

    Attributes
    ----------
    level : str
        The instruction set level it is compiled for.
    k : int
        Rows it finds.
    call : tuple of int
        What another kernel asks it by: entry of one like ``nearest`` of ``kernels/cpu/graph.py``,
        address of its words, bytes of scratch memory.
    """

    level: str
    k: int
    call: tuple[int, int, int]

    def search(self, queries: np.ndarray, /) -> Found | None:
        """Return row ids and distances (1, k) for float32 (1, width); None: to find otherwise."""
        ...

    def asked_often(self) -> None:
        """Take note that it is: what pays from some searches on is made now."""
        ...


OFTEN = 8
"""Searches that make a call one that is asked often: in their time a row can be coded."""
Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Look(Generic[Part]):
    """What a search takes of one part of an index.

    Attributes
    ----------
    part
    positions : int64 (nodes,)
        Of the nodes' vectors in the exact index.
    allowed : uint8 (nodes,), optional
        Nodes that may be named; all without it.
    taken : int
        Nodes to compare by their vectors.
    short, whole : int
        Effort at first, and where the part turns out to hold many of the nearest rows.
    reach : int
        How far a search among allowed nodes may go.
    """

    part: Part
    positions: np.ndarray
    allowed: np.ndarray | None
    taken: int
    short: int
    whole: int
    reach: int


class VectorIndex(Protocol):
    """Searches the vectors of one column as of one snapshot."""

    def search(
        self,
        queries: np.ndarray,
        k: int,
        op: str,
        *,
        positions: np.ndarray | None = None,
        descending: bool = False,
        threads: int = 1,
    ) -> Found:
        """Return the k nearest rows of each query."""
        ...


def metric_code(op: str, sql_type: SqlType) -> int:
    """Return the kernels' code of an operator on a type.

    Raises
    ------
    NotSupportedError
        The operator is unknown or not defined for the type.
    """
    metric = METRICS.get(op)
    if metric is None:
        raise NotSupportedError(
            f"{op} is no vector operator", hint=f"operators: {' '.join(METRICS)}"
        )
    if not sql_type.is_vector:
        raise NotSupportedError(f"{op} is not defined for {sql_type}")
    if (metric in _BIT_METRICS) != (sql_type.kind is Kind.BIT):
        fitting = [o for o, m in METRICS.items() if (m in _BIT_METRICS) == (
            sql_type.kind is Kind.BIT)]  # fmt: skip
        raise NotSupportedError(
            f"{op} is not defined for {sql_type}", hint=f"defined: {' '.join(fitting)}"
        )
    return metric


def placed(block: VectorBlock) -> PlacedBlock:
    """Return where a block lies, found once."""
    known = block.placed
    if not isinstance(known, PlacedBlock):
        known = block.placed = PlacedBlock.of(block.data, block.rowids, block.live)
    return known
