"""A finished graph: immutable arrays, and the search that yields candidates."""

from __future__ import annotations

from copy import copy
from functools import cached_property

import numpy as np

from tarsdb.errors import CorruptionError, DimensionMismatchError, OperationalError
from tarsdb.index.arrays import private
from tarsdb.index.hnsw.asking import Unknown
from tarsdb.index.hnsw.codes import LINE, Space, padded_width
from tarsdb.kernels import graph as kernels
from tarsdb.kernels.graph import LIST_ROOM, STARTS, TOGETHER
from tarsdb.kernels.native import address, scratch
from tarsdb.records import dataclass

_SHAPES = {
    "rowids": ("i8", 1), "codes": ("u1", 2), "constants": ("f4", 2), "edges": ("i4", 2),
    "entries": ("i4", 1), "mean": ("f4", 1), "largest": ("f8", 1), "op": ("u1", 1),
}  # fmt: skip
OPERATORS = ("<->", "<#>", "<=>")


def sketch_bytes(padded: int) -> int:
    """Return the bytes of a sketch: a bit an element and four numbers, in whole cache lines."""
    return -(-(padded // 8 + 16) // LINE) * LINE


def list_and_room(how: tuple[int, int, int], is_filtered: bool) -> tuple[int, int]:
    """Return the list size a search keeps, and how many nodes it keeps in sight.

    ``how`` is the list size asked for, nodes wanted and the reach.
    """
    ef, wanted, reach = how
    if not is_filtered:
        return ef, ef
    ef = max(ef, wanted)
    return ef, max(reach, 2 * ef)


@dataclass(frozen=True)
class Graph:
    """Nodes of one metric space and their edges.

    Attributes
    ----------
    rowids : int64 (n,)
    codes : uint8 (n, padded * bits / 8)
        Of 8 or 4 bits, see ``kernels/cpu/graph_products.py``.
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

    def __len__(self) -> int:
        return len(self.rowids)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory: of the arrays, and of what searches derive from them."""
        kept = sum(array.nbytes for array in self.to_arrays().values())
        return kept + len(self) * sketch_bytes(self.padded)

    @property
    def bits(self) -> int:
        """Bits of an element's code."""
        return 8 if self.codes.shape[1] == padded_width(len(self.space.mean)) else 4

    @property
    def padded(self) -> int:
        """Elements of a code."""
        return padded_width(len(self.space.mean), self.bits)

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
        allowed: np.ndarray | Unknown | None = None,
        reach: int = 0,
        places: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """Return the nodes nearest to a query by their codes, nearest first.

        Parameters
        ----------
        query : float32 (dim,)
        wanted : int
            Nodes to return at most.
        ef : int
            List size (Malkov & Yashunin 2018): how many of the nearest so far are followed.
        allowed : uint8 (n,) or Unknown, optional
            Return nodes with a 1 here only. The search passes through all, until the nearest
            ``ef`` allowed ones are known. Of unknown ones it asks when it comes to them.
        reach : int
            With ``allowed``: how many nodes may be kept in sight meanwhile.
        places : int64 (n,), optional
            Return what stands here for the nodes found.

        Returns
        -------
        int64 (<= wanted,), or None when ``reach`` did not suffice or asking failed
        """
        found = kernels.current()
        if found is None:
            raise OperationalError("the graph's kernels are not compiled yet")
        given, out = np.ascontiguousarray(query, np.float32), np.empty(wanted, np.int64)
        table, dim = self.place
        if given.shape != (dim,):
            raise DimensionMismatchError(
                f"the query has shape {given.shape}, the graph is of {dim} elements"
            )
        ef, room = list_and_room((ef, wanted, reach), is_filtered=allowed is not None)
        rest = (
            0 if places is None else address(places), address(out),
            scratch.of(self.scratch_bytes(room)),
        )  # fmt: skip
        first = table, address(given), wanted, ef, room
        count: int
        if isinstance(allowed, Unknown):
            asked = address(allowed.allowed), address(allowed.words)
            count = found.search_asking(*first, *asked, *rest)
        else:
            mask = 0 if allowed is None else address(allowed)
            count = found.search(*first, mask, *rest)
        return out[:count] if count >= 0 else None

    def search_others(self, node: int, query: np.ndarray, wanted: int, ef: int) -> np.ndarray:
        """Return what :meth:`search` would if a node were not there, for a query that is its own.

        Queries that are rows are found sooner than others: their edges lead to their neighbours.
        """
        without = copy(self)
        without.__dict__["table"] = np.append(self.table[:-1], node)
        without.__dict__.pop("place", None)
        found = without.search(query, wanted, ef)
        assert found is not None  # nothing is filtered
        return found

    def scratch_bytes(self, room: int) -> int:
        """Return the scratch memory of a search whose list has so much room."""
        marks, near = len(self) // 8 + 8, 4 * max(TOGETHER * self.edges.shape[1], STARTS)
        bytes_: int = self.padded + near + marks + 8 * (room + LIST_ROOM)
        return bytes_

    @cached_property
    def table(self) -> np.ndarray:
        """The words that kernels find the graph by; int64, see ``kernels/cpu/graph_search.py``."""
        arrays = (self.codes, self._sketches, self.edges, self.entries, self.space.mean)
        return np.array([
            *map(address, arrays), len(self), len(self.entries), self.edges.shape[1], self.bits,
            self.padded, sketch_bytes(self.padded), len(self.space.mean),
            OPERATORS.index(self.space.op), self.space.norm.view(np.int32), -1,
        ], dtype=np.int64)  # fmt: skip

    @cached_property
    def place(self) -> tuple[int, int]:
        """Return the address of the table, and the dimension."""
        return address(self.table), self.dim

    @cached_property
    def _sketches(self) -> np.ndarray:
        """Signs of the codes with four numbers each; uint8 (n, a multiple of 64)."""
        found = kernels.current()
        assert found is not None
        sketches = private(np.zeros((len(self), sketch_bytes(self.padded)), dtype=np.uint8))
        found.sketch(self.codes, self.constants, self.bits, len(self.space.mean), sketches)
        return sketches

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
    width, bytes_ = len(arrays["mean"]), arrays["codes"].shape[1]
    known = {padded_width(width, bits) * bits // 8 for bits in (8, 4)}
    if bytes_ not in known or arrays["constants"].shape[1] != 2:
        raise CorruptionError(f"a graph's codes have {bytes_} bytes, not {known}")
    if not edges.shape[1] or edges.min() < -1 or edges.max() >= nodes:
        raise CorruptionError(f"a graph's edges lead outside its {nodes} nodes")
    if not len(entries) or entries.min() < 0 or entries.max() >= nodes:
        raise CorruptionError(f"a graph's entries are outside its {nodes} nodes")
    if len(np.unique(entries)) != len(entries):
        raise CorruptionError("a graph has an entry twice")
    if not all(np.isfinite(arrays[name]).all() for name in ("constants", "mean", "largest")):
        raise CorruptionError("a graph's constants are not finite")
