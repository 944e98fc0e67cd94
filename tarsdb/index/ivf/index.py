"""Finished inverted lists: immutable arrays, and the search that yields candidates."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import field
from functools import cached_property

import numpy as np

from tarsdb.errors import (
    CorruptionError,
    DataError,
    DimensionMismatchError,
    OperationalError,
)
from tarsdb.index.arrays import Runs
from tarsdb.index.hnsw.codes import Space
from tarsdb.index.ivf.kmeans import LINE, padded_width, tile_starts
from tarsdb.index.ivf.products import Products, parts_of
from tarsdb.index.ivf.refining import row_bytes
from tarsdb.kernels import ivf as kernels
from tarsdb.kernels.graph import LIST_ROOM
from tarsdb.kernels.ivf import CENTROIDS, PLACE, PLAN, ROUNDS, SCRATCH, TILE
from tarsdb.kernels.native import address
from tarsdb.records import dataclass

_SHAPES = {
    "rowids": ("i8", 1), "constants": ("f4", 3), "starts": ("i8", 1), "centroids": ("u1", 4),
    "shapes": ("f4", 3), "radii": ("f4", 1), "mean": ("f4", 1), "largest": ("f8", 1),
    "op": ("u1", 1), "rotation": ("f4", 2),
}  # fmt: skip
_PRODUCTS = {"axes": ("u1", 4), "scales": ("f4", 3), "products": ("f4", 3)}
"""What product codes have besides."""
OPERATORS = ("<->", "<#>", "<=>")
_FORMS = {np.dtype("u1"): 0, np.dtype("f4"): 1, np.dtype("u4"): 2}  # as in kernels/cpu/ivf.py
_SETS, _PRODUCT_CODES = 3, 4
_WIDER = 4
_POOL, _POOL_MORE = 5, 54
"""Rows put in order by their further bits for each that is wanted, or so many more."""


class _Scratch(threading.local):
    """Memory of one thread's searches, at whole cache lines."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._start = 0

    def of(self, size: int) -> int:
        """Return the address of some bytes."""
        if len(self._memory) < size + LINE:
            self._memory = np.empty(2 * size + LINE, np.uint8)
            self._start = -(-address(self._memory) // LINE) * LINE
        return self._start


_scratch = _Scratch()


@dataclass(frozen=True)
class Ivf:
    """Rows of one metric space in lists around centroids. A row's number is its *node*.

    Attributes
    ----------
    rowids : int64 (n,)
        In order of the lists.
    codes : uint8 (tiles, padded / 4, 16, 4), float32 (tiles, d', 16), uint32 (tiles, padded/32, 16)
        Codes + 128, the rows in the space, or bits: rows of bits themselves, else RaBitQ's signs of
        the rotated difference to the list's centroid, or product codes of that, (tiles, parts / 8,
        16); the rows of a tile side by side. As :class:`Runs` they stay in somebody else's memory,
        such as a memory map, and the owner says how long a search may be made.
    constants : float32 (tiles, 2, 16), for bits (tiles, 3, 16)
        Squared norms and scales; infinite and 0 where there is no row. For bits base, slope
        and number of set bits, see ``build.py``.
    starts : int64 (lists + 1,)
        First node of each list, and the end. Each list begins a tile.
    centroids : uint8 (ceil(lists / 16), padded / 4, 16, 4)
    shapes : float32 (ceil(lists / 16), 2, 16)
        Constants of the centroids.
    radii : float32 (lists,)
        No row of a list is farther from its centroid; infinite where that is not known.
    space : Space
    rotation : float32 (3, padded)
        Of signs, see ``build.py``; otherwise (0, 0).
    products : Products or None
        Of product codes.
    further : uint8 (n, padded / 4 + 16) or None
        Further bits of RaBitQ's, and their constants, see ``refining.py``; where ``codes`` may lie.
    """

    rowids: np.ndarray
    codes: np.ndarray | Runs
    constants: np.ndarray
    starts: np.ndarray
    centroids: np.ndarray
    shapes: np.ndarray
    radii: np.ndarray
    space: Space
    rotation: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    products: Products | None = None
    further: np.ndarray | Runs | None = None

    def __len__(self) -> int:
        return len(self.rowids)

    @property
    def lists(self) -> int:
        """How many lists there are."""
        return len(self.radii)

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return len(self.space.mean) - (self.space.op == "<#>")

    @property
    def nbytes(self) -> int:
        """Bytes held in memory; codes that are left where they lie are not among them."""
        held = [*self._arrays().values(), *self._table[2]]
        held += [each for each in (self.codes, self.further) if isinstance(each, np.ndarray)]
        return sum(array.nbytes for array in held)

    def is_ready(self) -> bool:
        """Return whether a search can run now; if not, its kernels are being compiled."""
        return kernels.current() is not None

    def candidates(self, k: int) -> int:
        """Return how many nodes to compare by their full vectors for the k nearest."""
        is_rough = (self.rotation.size and self.further is None) or self.products is not None
        few, more = (8, 64) if is_rough else (2, 10)
        return min(len(self), max(few * k, k + more))

    def search(
        self,
        query: np.ndarray,
        wanted: int,
        effort: int,
        allowed: np.ndarray | None = None,
        reach: int = 0,
        places: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the nodes nearest to a query by their codes, nearest first.

        Parameters
        ----------
        query : float32 (dim,)
        wanted : int
            Nodes to return at most.
        effort : int
            Lists to look at, those with the nearest centroids; more until ``wanted`` nodes are
            found. A list whose rows are all too far away is passed over.
        allowed : uint8 (n,), optional
            Return nodes with a 1 here only. Where the lists of the effort do not have enough of
            them, they lie far away, and more lists are looked at than those they are found in.
        reach : int
            Lists to look at, at most, for ``wanted`` nodes; 0: all.
        places : int64 (n,) in one piece, optional
            Return what stands here for the nodes found.

        Returns
        -------
        int64 (<= wanted,)
            As many as match where all lists are looked at.

        Raises
        ------
        DimensionMismatchError, DataError
            The query or the mask is of another length.
        OperationalError
            The kernels are not compiled yet.
        """
        found = kernels.current()
        if found is None:
            raise OperationalError("the kernels of inverted lists are not compiled yet")
        wanted, most = min(wanted, len(self)), min(reach or self.lists, self.lists)
        if wanted <= 0:
            return np.empty(0, np.int64)
        given = np.ascontiguousarray(query, np.float32)
        if given.shape != (self.dim,):
            raise DimensionMismatchError(
                f"the query has shape {given.shape}, the inverted lists are of {self.dim} elements"
            )
        mask = None if allowed is None else np.ascontiguousarray(allowed, np.uint8)
        if mask is not None and len(mask) != len(self):
            raise DataError(f"a mask of {len(mask)} for {len(self)} rows of inverted lists")
        out = np.empty(wanted, np.int64)
        plan, moved = self._plan
        at, filtered = address(given), 0 if mask is None else address(mask)
        names = 0 if places is None else address(places)
        pool = wanted
        if self.further is not None:
            pool = min(max(_POOL * wanted, wanted + _POOL_MORE), len(self))
        best = moved + 8 * (pool + LIST_ROOM)
        effort = max(1, min(effort, self.lists))
        missed = False
        while True:
            memory = _scratch.of(best + 8 * (max(effort, pool) + LIST_ROOM))
            count = found.search(
                plan, at, wanted, pool, effort, filtered, names, memory, memory + best,
                memory + moved, address(out),
            )  # fmt: skip
            if effort >= most or (count == wanted and not missed):
                return out[:count]
            missed = mask is not None and count < wanted
            effort = min(_WIDER * effort, most)

    def search_others(self, node: int, query: np.ndarray, wanted: int, effort: int) -> np.ndarray:
        """Return what the lists of the effort hold near a node, for a query that is its own."""
        found = self.search(query, wanted + 1, effort, None, effort)
        others: np.ndarray = found[found != node][:wanted]
        return others

    @cached_property
    def _plan(self) -> tuple[int, int]:
        """Return the address of the numbers a search wants, and the bytes of a moved query."""
        return address(self._table[0]), self._room

    @property
    def _form(self) -> int:
        if self.products is not None:
            return _PRODUCT_CODES
        is_sets = self.codes.dtype == np.uint32 and not self.rotation.size
        return _SETS if is_sets else _FORMS[self.codes.dtype]

    @property
    def _room(self) -> int:
        width, made = len(self.space.mean), self.products
        if made is None:
            of_lists = 0 if self.further is None else 4 * self.lists
            return SCRATCH + 4 * width + 10 * self._padded + of_lists
        of_code = 2 * self._padded + 80 * made.parts + 64
        return SCRATCH + 4 * width + of_code + 4 * len(made.axes) * TILE

    @property
    def _padded(self) -> int:
        return padded_width(len(self.space.mean))

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Return the plan, the places of the lists, and copies of codes that these lead to."""
        tiles = tile_starts(self.starts)
        places = np.zeros((len(self.starts), PLACE), np.int64)
        places[:, 0] = self.starts
        cuts = tiles * (self.codes.nbytes // int(tiles[-1]))
        places[:-1, 1], copies = _lying(self.codes, cuts)
        places[:, 2] = address(self.constants) + tiles * self.constants[0].nbytes
        if self.further is not None:
            cuts = self.starts * row_bytes(self._padded)
            places[:-1, 3], more = _lying(self.further, cuts)
            copies += more
        made = self.products
        coder = (0,) * 5 if made is None else (
            *map(address, (made.axes, made.scales, made.centroids)), *made.centroids.shape[:2]
        )  # fmt: skip
        plan = np.empty(PLAN, np.int64)
        plan[:] = (
            address(places), address(self.centroids), address(self.shapes), address(self.radii),
            address(self.space.mean), self.lists, self._padded, len(self.space.mean),
            OPERATORS.index(self.space.op), self._form, address(self.rotation),
            self.space.norm.view(np.int32), *coder, self.further is not None,
        )  # fmt: skip
        return plan, places, copies

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as named arrays; :meth:`from_arrays` reads them."""
        assert isinstance(self.codes, np.ndarray)
        arrays = {**self._arrays(), "codes": self.codes}
        if self.further is not None:
            assert isinstance(self.further, np.ndarray)
            arrays["further"] = self.further
        return arrays

    def _arrays(self) -> dict[str, np.ndarray]:
        made = self.products
        coder = {} if made is None else {
            "axes": made.axes, "scales": made.scales, "products": made.centroids,
        }  # fmt: skip
        return {
            "rowids": self.rowids, "constants": self.constants, "starts": self.starts,
            "centroids": self.centroids, "shapes": self.shapes, "radii": self.radii,
            "mean": self.space.mean, "largest": np.array([self.space.largest], dtype=np.float64),
            "op": np.frombuffer(self.space.op.encode(), dtype=np.uint8),
            "rotation": self.rotation, **coder,
        }  # fmt: skip

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray | Runs]) -> Ivf:
        """Return an index of arrays from outside, all checked; codes are used where they lie.

        Raises
        ------
        CorruptionError
        """
        kept, is_products = {}, bool(_PRODUCTS.keys() & arrays.keys())
        for name, (kind, ndim) in (_SHAPES | (_PRODUCTS if is_products else {})).items():
            array = arrays.get(name)
            if (
                not isinstance(array, np.ndarray)
                or array.ndim != ndim
                or array.dtype != np.dtype(kind)
            ):
                raise CorruptionError(
                    f"array {name} of inverted lists is {_shown(array)}, expected {ndim}-d {kind}"
                )
            kept[name] = np.ascontiguousarray(array)
        codes, further = arrays.get("codes"), arrays.get("further")
        for name, array in (("codes", codes), ("further", further)):
            if isinstance(array, np.ndarray) and not array.flags.c_contiguous:
                raise CorruptionError(f"array {name} of inverted lists is not in one piece")
        if codes is None:
            raise CorruptionError("array codes of inverted lists is absent")
        _require_sound(kept, codes)
        if further is not None:
            _require_further(kept, further)
        space = Space(bytes(kept["op"]).decode(), kept["mean"], float(kept["largest"][0]))
        return Ivf(
            kept["rowids"], codes, kept["constants"], kept["starts"], kept["centroids"],
            kept["shapes"], kept["radii"], space, kept["rotation"],
            Products(*(kept[name] for name in _PRODUCTS)) if is_products else None, further,
        )  # fmt: skip


def _lying(codes: np.ndarray | Runs, cuts: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the addresses of lists' codes, which begin at some bytes, and copies among them."""
    if isinstance(codes, np.ndarray):
        return address(codes) + cuts[:-1], []
    return codes.places(cuts)


def _shown(array: np.ndarray | Runs | None) -> str:
    return "absent" if array is None else f"{array.dtype} {array.shape}"


def _require_sound(arrays: dict[str, np.ndarray], codes: np.ndarray | Runs) -> None:
    op, nodes, width = bytes(arrays["op"]), len(arrays["rowids"]), len(arrays["mean"])
    if op not in [each.encode() for each in OPERATORS] or len(arrays["largest"]) != 1:
        raise CorruptionError(f"the operator of inverted lists is {op!r}")
    if not width or width <= (op == b"<#>"):
        raise CorruptionError(f"the mean of inverted lists has {width} elements")
    _require_starts(arrays["starts"], nodes)
    _require_shapes(arrays, codes, width)
    for name in ("mean", "rotation", "largest", *_PRODUCTS.keys() & arrays):
        if not np.isfinite(arrays[name]).all():
            raise CorruptionError(f"array {name} of inverted lists is not finite")
    for name in ("constants", "shapes", "radii"):
        if np.isnan(arrays[name]).any():
            raise CorruptionError(f"array {name} of inverted lists has what is no number")
    if (arrays["radii"] < 0).any():
        raise CorruptionError("array radii of inverted lists has negative ones")


def _require_further(arrays: dict[str, np.ndarray], further: np.ndarray | Runs) -> None:
    rotation = arrays["rotation"]
    if not rotation.size:
        raise CorruptionError("inverted lists have an array further, but no sign bits")
    shape = len(arrays["rowids"]), row_bytes(rotation.shape[1])
    if further.dtype != np.uint8 or further.shape != shape:
        raise CorruptionError(
            f"array further of inverted lists is {_shown(further)}, expected uint8 {shape}"
        )


def _require_starts(starts: np.ndarray, nodes: int) -> None:
    lists = len(starts) - 1
    if lists < 1 or not nodes or starts[0] != 0 or starts[-1] != nodes:
        raise CorruptionError(f"{lists} inverted lists of {nodes} rows do not cover them")
    if nodes >= 1 << 31 or (np.diff(starts) < 0).any() or starts.max() > nodes:
        raise CorruptionError(f"the starts of {lists} inverted lists do not ascend to {nodes}")


def _require_shapes(arrays: dict[str, np.ndarray], codes: np.ndarray | Runs, width: int) -> None:
    lists, tiles = len(arrays["starts"]) - 1, int(tile_starts(arrays["starts"])[-1])
    padded, of_lists, is_bits = padded_width(width), -(-lists // TILE), codes.dtype == np.uint32
    parts, part_width = parts_of(width)
    is_products, axes = "products" in arrays, parts * part_width // TILE
    is_signs = is_bits and not is_products and arrays["rotation"].size
    wanted = {
        "constants": (tiles, 3 if is_bits else 2, TILE), "radii": (lists,),
        "rotation": (ROUNDS, padded) if is_signs else (0, 0),
        "axes": (axes, padded // 4, TILE, 4), "scales": (axes, 2, TILE),
        "products": (parts, part_width, CENTROIDS),
        "centroids": (of_lists, padded // 4, TILE, 4), "shapes": (of_lists, 2, TILE),
    }  # fmt: skip
    for name, shape in wanted.items():
        if name in arrays and arrays[name].shape != shape:
            raise CorruptionError(
                f"array {name} of inverted lists is {arrays[name].shape}, expected {shape}"
            )
    shapes = {
        np.dtype("u1"): (tiles, padded // 4, TILE, 4), np.dtype("f4"): (tiles, width, TILE),
        np.dtype("u4"): (tiles, parts // 8 if is_products else padded // 32, TILE),
    }  # fmt: skip
    if shapes.get(codes.dtype) != codes.shape or (is_products and not is_bits):
        raise CorruptionError(
            f"array codes of inverted lists is {_shown(codes)}, expected {tiles} tiles of {width}"
        )
