"""What each method of a vector index does in its own way: options, building, reading, searching.

A part of an index is a :class:`Part`; its :class:`Method` says how such parts are made and how much
effort a search of them takes. ``METHODS`` has them by the word after USING. Knows no snapshot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import numpy as np

from tarsdb.errors import NotSupportedError
from tarsdb.index.arrays import Runs
from tarsdb.index.base import Found, Look, OneCall
from tarsdb.index.course import Course
from tarsdb.index.flat import FlatIndex
from tarsdb.index.navigation import NAVIGATIONS, elements
from tarsdb.index.resources import Resources
from tarsdb.kernels.gpu.device import Device
from tarsdb.records import dataclass
from tarsdb.types import SqlType

if TYPE_CHECKING:
    from tarsdb.index.hnsw import Graph

EXTRA = 8
"""Candidates compared by their full vectors beyond k, at least: codes seldom err by more."""
EXACT_WORK, CODED_WORK = 4.5, 95.0
"""Exact search of m of n rows costs what a graph search of list size ef does at m*m = work*ef*n:
where vectors are read, and where codes of these rows lie side by side."""
VECTOR_WORK = 10
"""Codes in a list that are read in the time of one vector elsewhere."""
FIRST_EF = 16
"""List size that is short, but long enough for the few of the nearest a small graph has."""
REACH = 8
"""A filtered search may keep one node in sight for so many rows that match: expanding one costs as
much as comparing these."""
LOOSE = 16
"""Of the rows in the lists looked at one in so many is compared where another metric navigates:
that takes about as long as reading the codes of all."""


class Part(Protocol):
    """One immutable index over some rows, called nodes."""

    @property
    def rowids(self) -> np.ndarray:
        """Row ids of the nodes, int64 (nodes,)."""
        ...

    def __len__(self) -> int:
        """Return how many nodes there are."""
        ...

    @property
    def dim(self) -> int:
        """Elements of the vectors as numbers."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        ...

    def is_ready(self) -> bool:
        """Return whether a search can run now; if not, its kernels are being compiled."""
        ...

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as named arrays."""
        ...

    def search(
        self,
        query: np.ndarray,
        wanted: int,
        effort: int,
        allowed: np.ndarray | None = None,
        reach: int = 0,
        places: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """Return the nodes nearest to a query, or what stands in ``places`` for them, (<= wanted,).

        None where exact search is cheaper.
        """
        ...

    def search_others(self, node: int, query: np.ndarray, wanted: int, effort: int) -> np.ndarray:
        """Return the nodes nearest to the vector of one, which is as if it were not there."""
        ...


class Prepared(OneCall, Protocol):
    """A search of all parts of an index by one call a query, or a share of a batch."""

    def search(
        self, queries: np.ndarray, threads: int = 1, check: Callable[[], None] | None = None
    ) -> Found | None:
        """Return the k nearest rows of each query; None where they are to be found otherwise."""
        ...


@dataclass(frozen=True)
class Rows:
    """Copies of the rows a part is made of, and who makes it.

    Attributes
    ----------
    rowids : int64 (n,)
    vectors : (n, width)
    type : SqlType
        Of their column.
    op : str
        The operator the part will answer, navigated as ``NAVIGATIONS`` says.
    threads : int
    course : Course
        Whom the build tells how far it is, and what it goes on from.
    device : Device, optional
        For a method that has work for one.
    """

    rowids: np.ndarray
    vectors: np.ndarray
    type: SqlType
    op: str
    threads: int
    course: Course
    device: Device | None = None

    @property
    def space(self) -> str:
        """The operator of the space the part is built in."""
        return NAVIGATIONS[self.op].op


class Method(ABC):
    """One word after USING."""

    name: ClassVar[str]
    noun: ClassVar[str]
    """What a part is, in messages."""
    effort: ClassVar[str]
    """What a search's effort counts."""
    setting: ClassVar[str]
    """The setting that fixes the effort."""
    counter: ClassVar[str]
    """The counter of its searches."""
    default_effort: ClassVar[int]
    """Where a part has no calibration."""
    calibrated: ClassVar[tuple[int, ...]]
    """Numbers of neighbours that its effort is measured for, ascending."""
    shown: ClassVar[tuple[int, ...]]
    """Efforts worth measuring for people, ascending."""
    asks: ClassVar[bool] = False
    """Whether searches of a part may ask a filter about the nodes they come to."""
    left: ClassVar[tuple[str, ...]] = ()
    """Arrays of a part that are searched where the file has them, not copied into memory."""

    @abstractmethod
    def options(self) -> type[Any]:
        """Return the dataclass of the options; making one checks them."""

    @abstractmethod
    def estimated_bytes(
        self, rows: int, sql_type: SqlType, op: str, options: Any
    ) -> tuple[int, int]:
        """Return memory held at the peak of a build and bytes of its part, from shapes alone."""

    def searched_bytes(self, rows: int, sql_type: SqlType, op: str, options: Any) -> int:
        """Return what searches of a part read, codes in the file included, from shapes alone."""
        return self.estimated_bytes(rows, sql_type, op, options)[1]

    @abstractmethod
    def build(self, rows: Rows, options: Any) -> Part:
        """Build a part."""

    @abstractmethod
    def read(self, arrays: dict[str, np.ndarray], left: dict[str, Runs]) -> Part:
        """Return a part of arrays from outside; CorruptionError where they are unsound."""

    @abstractmethod
    def ladder(self, part: Part, is_loose: bool) -> Sequence[int]:
        """Return the efforts a calibration tries, ascending."""

    @abstractmethod
    def settled(self, effort: int, k: int, parts: Sequence[Part]) -> int:
        """Return the effort that a search really takes where one is asked for."""

    def first_effort(self, effort: int, k: int) -> int:
        """Return the effort that all parts but the largest are searched with at first."""
        return effort

    @abstractmethod
    def candidates(self, part: Part, k: int, effort: int) -> int:
        """Return how many nodes of a part are compared by their full vectors."""

    @abstractmethod
    def loosely(self, part: Part, k: int, effort: int, share: float = 1) -> int:
        """Return how many are where another metric navigates; ``share`` of the rows may be found.

        How many that takes differs by orders of magnitude between data, so it grows with the
        effort, which is calibrated.
        """

    def prepare(
        self, looks: Sequence[Look[Part]], fresh: np.ndarray, flat: FlatIndex, op: str, k: int
    ) -> Prepared | None:
        """Return a search of parts and fresh rows as one call; None where there is no such call."""
        return None

    def candidates_on(
        self, device: Device, look: Look[Part], queries: np.ndarray
    ) -> list[np.ndarray | None] | None:
        """Return positions of a part's candidates for each query, found by a device.

        None, for a query or for all, where the processor must search.
        """
        return None

    @abstractmethod
    def pool(self, part: Part, k: int, effort: int) -> int:
        """Return how many nodes an effort makes known, to be compared by another distance."""

    @abstractmethod
    def prefers_exact(
        self, effort: int, share: tuple[int, int], parts: Sequence[Part], is_coded: bool
    ) -> bool:
        """Return whether comparing the allowed ones of all rows is cheaper than a search.

        ``share`` is how many are allowed and how many there are; ``is_coded`` tells whether codes
        of the allowed ones lie side by side.
        """

    @abstractmethod
    def reach(self, effort: int, allowed: int | None) -> int:
        """Return how far a search may go; ``allowed``: rows a filter leaves, None without one."""

    def checked(self, given: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the options an index of that name is stored with, words in lower case.

        Raises
        ------
        NotSupportedError
            An option is not known.
        DataError
            One is outside its range.
        """
        return checked(self.options(), given, name)


def checked(kind: type[Any], given: dict[str, Any], name: str) -> dict[str, Any]:
    """Return options an index of that name is stored with, as :meth:`Method.checked` does.

    ``kind`` is the dataclass of the options.
    """
    known = {each.name for each in fields(kind)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise NotSupportedError(
            f"index {name}: option {unknown[0]!r} is not known",
            hint=f"metric, {', '.join(sorted(known))}",
        )
    options = {k: v.lower() if isinstance(v, str) else v for k, v in given.items()}
    kind(**options)
    return options


class Hnsw(Method):
    """A graph; the effort is the size of the search's list (Malkov & Yashunin 2018)."""

    name, noun, effort = "hnsw", "graph", "ef"
    setting, counter, default_effort = "ef_search", "index.graph_searches", 64
    calibrated = (10,)
    asks = True
    shown = (16, 32, 64, 128, 256, 512)
    _LADDER = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    _LOOSE = (768, 1024)

    def options(self) -> type[Any]:
        """Return the options of a graph."""
        from tarsdb.index.hnsw import GraphOptions

        return GraphOptions

    def estimated_bytes(
        self, rows: int, sql_type: SqlType, op: str, options: Any
    ) -> tuple[int, int]:
        """Return memory held at the peak of a build and bytes of its graph."""
        from tarsdb.index.hnsw import estimated_bytes

        stored = sql_type.width * sql_type.dtype.itemsize
        return estimated_bytes(rows, elements(sql_type), stored, NAVIGATIONS[op].op, options)

    def searched_bytes(self, rows: int, sql_type: SqlType, op: str, options: Any) -> int:
        """Return bytes of a graph and of the sketches beside it."""
        from tarsdb.index.hnsw import searched_bytes

        return searched_bytes(rows, elements(sql_type), NAVIGATIONS[op].op, options)

    def build(self, rows: Rows, options: Any) -> Part:
        """Build a graph."""
        from tarsdb.index.hnsw import build_graph, on_device

        if rows.device is not None:
            resources = Resources(rows.threads, rows.device)
            made = on_device.build_graph(
                rows.vectors, rows.rowids, rows.space, options, resources, rows.course
            )
            if made is not None:
                return made
        return build_graph(
            rows.vectors, rows.rowids, rows.space, options,
            threads=rows.threads, course=rows.course,
        )  # fmt: skip

    def read(self, arrays: dict[str, np.ndarray], left: dict[str, Runs]) -> Part:
        """Return a graph of arrays from outside."""
        from tarsdb.index.hnsw import Graph

        return Graph.from_arrays(arrays)

    def ladder(self, part: Part, is_loose: bool) -> Sequence[int]:
        """Return the list sizes a calibration tries."""
        return self._LADDER + self._LOOSE if is_loose else self._LADDER

    def settled(self, effort: int, k: int, parts: Sequence[Part]) -> int:
        """Return a list that has room for what is found."""
        return max(effort, k)

    def first_effort(self, effort: int, k: int) -> int:
        """Return a short list."""
        return min(effort, max(FIRST_EF, k))

    def candidates(self, part: Part, k: int, effort: int) -> int:
        """Return how many nodes are compared by their full vectors."""
        return min(max(effort, k), max(k + k // 2, k + EXTRA))

    def prepare(
        self, looks: Sequence[Look[Part]], fresh: np.ndarray, flat: FlatIndex, op: str, k: int
    ) -> Prepared | None:
        """Return a search of graphs as one call, once its kernels are compiled."""
        from tarsdb.index.hnsw.nearest import Nearest

        if not Nearest.is_ready(flat, op, k):
            return None
        return Nearest(cast("Sequence[Look[Graph]]", looks), fresh, flat, op, k)

    def loosely(self, part: Part, k: int, effort: int, share: float = 1) -> int:
        """Return the size of the whole list: comparing it costs little beside filling it."""
        return self.pool(part, k, effort)

    def pool(self, part: Part, k: int, effort: int) -> int:
        """Return the size of the whole list."""
        return max(effort, k)

    def prefers_exact(
        self, effort: int, share: tuple[int, int], parts: Sequence[Part], is_coded: bool
    ) -> bool:
        """Return whether comparing all allowed rows is cheaper, or likely done in the end.

        It is where the reach is too short for as many of them as the effort asks for.
        """
        allowed, rows = share
        if effort * rows > self.reach(effort, allowed) * allowed:
            return True
        return allowed**2 <= (CODED_WORK if is_coded else EXACT_WORK) * effort * rows

    def reach(self, effort: int, allowed: int | None) -> int:
        """Return how many nodes may be kept in sight."""
        # dead nodes are few, else their part would have been built anew; matching rows may be far
        return 4 * effort if allowed is None else max(4 * effort, allowed // REACH)


class Lists(Method):
    """Inverted lists; the effort is the number of lists looked at (Jegou et al. 2011)."""

    name, noun, effort = "ivf", "lists", "probes"
    setting, counter, default_effort = "probes", "index.list_searches", 64
    calibrated = (10, 100)
    shown = tuple(1 << n for n in range(11))
    left = ("codes", "further")

    def options(self) -> type[Any]:
        """Return the options of inverted lists."""
        from tarsdb.index.ivf import IvfOptions

        return IvfOptions

    def estimated_bytes(
        self, rows: int, sql_type: SqlType, op: str, options: Any
    ) -> tuple[int, int]:
        """Return memory held at the peak of a build and bytes of its lists."""
        from tarsdb.index.ivf import estimated_bytes

        stored = sql_type.width * sql_type.dtype.itemsize
        return estimated_bytes(rows, elements(sql_type), stored, NAVIGATIONS[op].op, options)

    def build(self, rows: Rows, options: Any) -> Part:
        """Build inverted lists."""
        from tarsdb.index.ivf import build_ivf

        return build_ivf(
            rows.vectors, rows.rowids, rows.space, options,
            resources=Resources(rows.threads, rows.device), course=rows.course,
        )  # fmt: skip

    def read(self, arrays: dict[str, np.ndarray], left: dict[str, Runs]) -> Part:
        """Return inverted lists of arrays from outside."""
        from tarsdb.index.ivf import Ivf

        return Ivf.from_arrays({**arrays, **left})

    def ladder(self, part: Part, is_loose: bool) -> Sequence[int]:
        """Return numbers of lists up to all of them, each about 1.4 times the one before."""
        lists = self._lists(part)
        powers = (1 << n for n in range(lists.bit_length()))
        steps = (step for power in powers for step in (power, power + power // 2))
        return sorted({min(step, lists) for step in (*steps, lists)})

    def settled(self, effort: int, k: int, parts: Sequence[Part]) -> int:
        """Return no more than there are lists."""
        return min(effort, max((self._lists(part) for part in parts), default=effort))

    def candidates(self, part: Part, k: int, effort: int) -> int:
        """Return how many nodes are compared by their full vectors."""
        from tarsdb.index.ivf import Ivf

        assert isinstance(part, Ivf)
        return part.candidates(k)

    def loosely(self, part: Part, k: int, effort: int, share: float = 1) -> int:
        """Return a share of the rows in the lists looked at."""
        some = int(share * self._looked_at(part, effort)) // LOOSE
        return max(self.candidates(part, k, effort), some)

    def pool(self, part: Part, k: int, effort: int) -> int:
        """Return how many nodes the lists looked at hold, about."""
        return max(self.candidates(part, k, effort), self._looked_at(part, effort))

    def prefers_exact(
        self, effort: int, share: tuple[int, int], parts: Sequence[Part], is_coded: bool
    ) -> bool:
        """Return whether comparing all allowed rows is cheaper."""
        # exact search reads a code of each, as the lists do, or the vector
        work = share[0] if is_coded else VECTOR_WORK * share[0]
        return work <= sum(self._looked_at(part, effort) for part in parts)

    def reach(self, effort: int, allowed: int | None) -> int:
        """Return 0: all lists may be looked at."""
        return 0

    def candidates_on(
        self, device: Device, look: Look[Part], queries: np.ndarray
    ) -> list[np.ndarray | None] | None:
        """Return what the lists' search names for each query of a batch."""
        from tarsdb.index.ivf import Ivf, on_device

        assert isinstance(look.part, Ivf)
        found = on_device.search(
            device, look.part, queries, look.taken, look.whole, look.allowed
        )  # fmt: skip
        if found is None:
            return None
        return [None if nodes is None else look.positions[nodes] for nodes in found]

    def _looked_at(self, part: Part, effort: int) -> int:
        lists = self._lists(part)
        return len(part) * min(effort, lists) // lists

    @staticmethod
    def _lists(part: Part) -> int:
        from tarsdb.index.ivf import Ivf

        assert isinstance(part, Ivf)
        return part.lists


METHODS: dict[str, Method] = {method.name: method for method in (Hnsw(), Lists())}
"""By the word after USING."""
