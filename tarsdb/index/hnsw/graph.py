"""A finished graph: immutable arrays, and the search that yields candidates."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tarsdb.errors import CorruptionError, OperationalError
from tarsdb.index.arrays import private
from tarsdb.index.hnsw.codes import Space
from tarsdb.kernels import graph as kernels

_SHAPES = {
    "rowids": ("i8", 1), "codes": ("u1", 2), "constants": ("f4", 2), "edges": ("i4", 2),
    "entries": ("i4", 1), "mean": ("f4", 1), "largest": ("f8", 1), "op": ("u1", 1),
}  # fmt: skip
OPERATORS = ("<->", "<#>", "<=>")


def sketched(
    found: kernels.GraphKernels, codes: np.ndarray, constants: np.ndarray, width: int
) -> np.ndarray:
    """Return the signs of codes with three numbers each; uint8 (n, a multiple of 64)."""
    sketches = private(np.zeros((len(codes), _stride(codes.shape[1])), dtype=np.uint8))
    found.sketch(codes, constants, width, sketches)
    return sketches


def _stride(padded: int) -> int:
    """Return the bytes of a sketch: a bit an element and four numbers, in whole cache lines."""
    return -(-(padded // 8 + 16) // 64) * 64


class _Scratch(threading.local):
    """Memory of one thread's searches."""

    def __init__(self) -> None:
        self.code = np.empty(0, np.int8)
        self.visited = np.empty(0, np.uint8)
        self.near = np.empty(0, np.int32)
        self.beam = np.empty(0, np.int64)


_scratch = _Scratch()


@dataclass(frozen=True)
class Graph:
    """Nodes of one metric space and their edges.

    Attributes
    ----------
    rowids : int64 (n,)
    codes : uint8 (n, padded)
        int8 codes + 128.
    constants : float32 (n, 2)
        Squared norm and scale.
    edges : int32 (n, degree)
        Neighbours of a node, ended by -1.
    entries : int32 (e,)
        Nodes every search begins from.
    space : Space
    """

    rowids: np.ndarray
    codes: np.ndarray
    constants: np.ndarray
    edges: np.ndarray
    entries: np.ndarray
    space: Space
    _none: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8), repr=False)

    def __len__(self) -> int:
        return len(self.rowids)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory: of the arrays, and of what searches derive from them."""
        kept = sum(array.nbytes for array in self.to_arrays().values())
        return kept + len(self) * _stride(self.codes.shape[1])

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return len(self.space.mean) - (self.space.op == "<#>")

    def is_ready(self) -> bool:
        """Return whether a search can run now; if not, its kernels are being compiled."""
        return kernels.current() is not None

    def search(
        self,
        query: np.ndarray,
        wanted: int,
        ef: int,
        allowed: np.ndarray | None = None,
        reach: int = 0,
    ) -> np.ndarray | None:
        """Return the nodes nearest to a query by their codes, nearest first.

        Parameters
        ----------
        query : float32 (dim,)
        wanted : int
            Nodes to return at most.
        ef : int
            List size (Malkov & Yashunin 2018): how many of the nearest so far are followed.
        allowed : uint8 (n,), optional
            Return nodes with a 1 here only. The search passes through all, until the nearest
            ``ef`` allowed ones are known.
        reach : int
            With ``allowed``: how many nodes may be kept in sight meanwhile.

        Returns
        -------
        int32 (<= wanted,), or None when ``reach`` did not suffice
        """
        found = kernels.current()
        if found is None:
            raise OperationalError("the graph's kernels are not compiled yet")
        out = np.empty(wanted, np.int32)
        best = np.empty(0 if allowed is None else max(ef, wanted), np.int64)
        code, visited, near, beam = self._memory(ef if allowed is None else max(reach, 2 * ef))
        count = found.search(
            self.codes, self._sketches, self.edges, self.entries, query, self.space.mean,
            self._kind,
            code, self._none if allowed is None else allowed, beam, best, visited, near, out,
        )  # fmt: skip
        return out[:count] if count >= 0 else None

    @cached_property
    def _sketches(self) -> np.ndarray:
        found = kernels.current()
        assert found is not None
        return sketched(found, self.codes, self.constants, len(self.space.mean))

    @cached_property
    def _kind(self) -> int:
        return OPERATORS.index(self.space.op)

    def _memory(self, ef: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        scratch = _scratch
        marks, most = len(self) // 8 + 1, max(self.edges.shape[1], len(self.entries))
        if len(scratch.visited) < marks:
            scratch.visited = np.empty(marks, np.uint8)
        if len(scratch.near) < most:
            scratch.near = np.empty(most, np.int32)
        if len(scratch.beam) < ef:
            scratch.beam = np.empty(ef, np.int64)
        padded = self.space.padded
        if len(scratch.code) < padded:
            scratch.code = np.empty(padded, np.int8)
        return scratch.code[:padded], scratch.visited[:marks], scratch.near, scratch.beam[:ef]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as named arrays; :meth:`from_arrays` reads them."""
        return {
            "rowids": self.rowids, "codes": self.codes, "constants": self.constants,
            "edges": self.edges, "entries": self.entries, "mean": self.space.mean,
            "largest": np.array([self.space.largest], dtype=np.float64),
            "op": np.frombuffer(self.space.op.encode(), dtype=np.uint8),
        }  # fmt: skip

    @staticmethod
    def from_arrays(arrays: dict[str, np.ndarray]) -> Graph:
        """Return a graph of arrays from outside, all checked: a wrong node would be a wild read.

        Raises
        ------
        CorruptionError
        """
        kept = {}
        for name, (kind, ndim) in _SHAPES.items():
            array = arrays.get(name)
            if array is None or array.ndim != ndim or array.dtype != np.dtype(kind):
                shown = "absent" if array is None else f"{array.dtype} {array.shape}"
                raise CorruptionError(
                    f"array {name} of a graph is {shown}, expected {ndim}-d {kind}"
                )
            kept[name] = private(array)
        _require_sound(kept)
        space = Space(bytes(kept["op"]).decode(), kept["mean"], float(kept["largest"][0]))
        return Graph(
            kept["rowids"], kept["codes"], kept["constants"], kept["edges"], kept["entries"], space
        )


def _require_sound(arrays: dict[str, np.ndarray]) -> None:
    nodes = len(arrays["rowids"])
    edges, entries = arrays["edges"], arrays["entries"]
    lengths = {name: len(arrays[name]) for name in ("codes", "constants", "edges")}
    if any(length != nodes for length in lengths.values()) or not nodes:
        raise CorruptionError(f"a graph of {nodes} nodes has arrays of {lengths}")
    if bytes(arrays["op"]) not in [op.encode() for op in OPERATORS] or arrays["largest"].shape != (
        1,
    ):
        raise CorruptionError(f"a graph's operator is {bytes(arrays['op'])!r}")
    padded = -(-len(arrays["mean"]) // 64) * 64
    if arrays["codes"].shape[1] != padded or arrays["constants"].shape[1] != 2:
        raise CorruptionError(
            f"a graph's codes have {arrays['codes'].shape[1]} bytes, not {padded}"
        )
    if not edges.shape[1] or edges.min() < -1 or edges.max() >= nodes:
        raise CorruptionError(f"a graph's edges lead outside its {nodes} nodes")
    if not len(entries) or entries.min() < 0 or entries.max() >= nodes:
        raise CorruptionError(f"a graph's entries are outside its {nodes} nodes")
    if len(np.unique(entries)) != len(entries):
        raise CorruptionError("a graph has an entry twice")
    if not np.isfinite(arrays["constants"]).all() or not np.isfinite(arrays["mean"]).all():
        raise CorruptionError("a graph's constants are not finite")
