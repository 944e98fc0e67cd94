"""What each method of a vector index does in its own way: options, building, reading, searching.

A part of an index is a :class:`Part`; its :class:`Method` says how such parts are made and how much
effort a search of them takes. ``METHODS`` has them by the word after USING. Knows no snapshot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import numpy as np

from tarsdb.errors import NotSupportedError

EXTRA = 5
"""Candidates compared by their full vectors beyond k, at least: int8 codes seldom err by more."""
EXACT_WORK = 9.0
"""Exact search of m of n rows costs what a graph search of list size ef does at m*m = 9*ef*n."""
REACH = 8
"""A filtered search may keep one node in sight for so many rows that match: expanding one costs as
much as comparing these."""
CODE_WORK = 0.5
"""Reading a row's code in a list costs at most this share of comparing its full vector."""
CALIBRATED_K = 10
"""Neighbours that calibrations look for."""


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
        """Dimension of the vectors."""
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
    ) -> np.ndarray | None:
        """Return the nodes nearest to a query, int32 (<= wanted,); None where exact is cheaper."""
        ...


@dataclass(frozen=True)
class Filtered:
    """How many rows a search may return, of how many."""

    allowed: int
    rows: int


@dataclass(frozen=True)
class Rows:
    """Copies of the rows a part is made of, and what makes it."""

    rowids: np.ndarray
    vectors: np.ndarray
    op: str
    threads: int
    progress: Callable[[int, int], None]


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

    @abstractmethod
    def options(self) -> type[Any]:
        """Return the dataclass of the options; making one checks them."""

    @abstractmethod
    def build(self, rows: Rows, options: Any) -> Part:
        """Build a part."""

    @abstractmethod
    def read(self, arrays: dict[str, np.ndarray]) -> Part:
        """Return a part of arrays from outside; CorruptionError where they are unsound."""

    @abstractmethod
    def ladder(self, part: Part) -> list[int]:
        """Return the efforts a calibration tries, ascending."""

    @abstractmethod
    def candidates(self, part: Part, k: int, effort: int) -> int:
        """Return how many nodes of a part are compared by their full vectors."""

    @abstractmethod
    def effort_for(self, effort: int, k: int) -> int:
        """Return the effort for k neighbours that is as good as a calibrated one."""

    def least_effort(self, k: int) -> int:
        """Return the least effort that can find k neighbours."""
        del k
        return 1

    @abstractmethod
    def prefers_exact(self, parts: list[Part], effort: int, filtered: Filtered) -> bool:
        """Return whether comparing all allowed rows is cheaper than a filtered search."""

    @abstractmethod
    def reach(self, effort: int, allowed: int | None) -> int:
        """Return how far a search may go; ``allowed``: rows a filter leaves, None without one."""

    def filtered_effort(self, effort: int, filtered: Filtered) -> int:
        """Return the effort of a search with a filter that is as good as one without."""
        del filtered
        return effort

    def checked(self, given: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the options given.

        Raises
        ------
        NotSupportedError
            An option is not known.
        DataError
            One is outside its range.
        """
        kind = self.options()
        known = {each.name for each in fields(kind)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise NotSupportedError(
                f"index {name}: option {unknown[0]!r} is not known",
                hint=f"metric, {', '.join(sorted(known))}",
            )
        kind(**given)
        return given


class Hnsw(Method):
    """A graph; the effort is the size of the search's list (Malkov & Yashunin 2018)."""

    name, noun, effort = "hnsw", "graph", "ef"
    setting, counter, default_effort = "ef_search", "index.graph_searches", 64
    _LADDER = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

    def options(self) -> type[Any]:
        """Return the options of a graph."""
        from tarsdb.index.hnsw import GraphOptions

        return GraphOptions

    def checked(self, given: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the options given; the codes are int8."""
        if str(given.get("quantization", "int8")).lower() != "int8":
            raise NotSupportedError(f"index {name}: the graph's quantization is 'int8'")
        return super().checked({k: v for k, v in given.items() if k != "quantization"}, name)

    def build(self, rows: Rows, options: Any) -> Part:
        """Build a graph."""
        from tarsdb.index.hnsw import build_graph

        return build_graph(
            rows.vectors, rows.rowids, rows.op, options,
            threads=rows.threads, progress=rows.progress,
        )  # fmt: skip

    def read(self, arrays: dict[str, np.ndarray]) -> Part:
        """Return a graph of arrays from outside."""
        from tarsdb.index.hnsw import Graph

        return Graph.from_arrays(arrays)

    def ladder(self, part: Part) -> list[int]:
        """Return the efforts a calibration tries."""
        return list(self._LADDER)

    def candidates(self, part: Part, k: int, effort: int) -> int:
        """Return how many nodes are compared by their full vectors."""
        return min(max(effort, k), max(k + k // 2, k + EXTRA))

    def effort_for(self, effort: int, k: int) -> int:
        """Return a list that has room for k."""
        return max(effort, k)

    def least_effort(self, k: int) -> int:
        """Return k: the list holds what is found."""
        return k

    def prefers_exact(self, parts: list[Part], effort: int, filtered: Filtered) -> bool:
        """Return whether comparing all allowed rows is cheaper."""
        return filtered.allowed**2 <= EXACT_WORK * effort * filtered.rows

    def reach(self, effort: int, allowed: int | None) -> int:
        """Return how many nodes may be kept in sight."""
        # dead nodes are few, else their part would have been built anew; matching rows may be far
        return 4 * effort if allowed is None else max(4 * effort, allowed // REACH)


class Lists(Method):
    """Inverted lists; the effort is the number of lists looked at."""

    name, noun, effort = "ivf", "lists", "probes"
    setting, counter, default_effort = "probes", "index.list_searches", 64

    def options(self) -> type[Any]:
        """Return the options of inverted lists."""
        from tarsdb.index.ivf import IvfOptions

        return IvfOptions

    def build(self, rows: Rows, options: Any) -> Part:
        """Build inverted lists."""
        from tarsdb.index.ivf import build_ivf

        return build_ivf(
            rows.vectors, rows.rowids, rows.op, options,
            threads=rows.threads, progress=rows.progress,
        )  # fmt: skip

    def read(self, arrays: dict[str, np.ndarray]) -> Part:
        """Return inverted lists of arrays from outside."""
        from tarsdb.index.ivf import Ivf

        return Ivf.from_arrays(arrays)

    def ladder(self, part: Part) -> list[int]:
        """Return the efforts a calibration tries."""
        from tarsdb.index.ivf.calibrate import LADDER

        lists = self._lists(part)
        return [effort for effort in (*LADDER, lists) if effort <= lists]

    def candidates(self, part: Part, k: int, effort: int) -> int:
        """Return how many nodes are compared by their full vectors."""
        from tarsdb.index.ivf import Ivf

        assert isinstance(part, Ivf)
        return part.candidates(k)

    def effort_for(self, effort: int, k: int) -> int:
        """Return more for more neighbours: they lie in as many more lists, at most."""
        return -(-effort * max(k, CALIBRATED_K) // CALIBRATED_K)

    def prefers_exact(self, parts: list[Part], effort: int, filtered: Filtered) -> bool:
        """Return whether comparing all allowed rows is cheaper."""
        # lists of all parts are read until as many allowed rows are seen as without the filter
        seen = sum(effort * len(part) / self._lists(part) for part in parts)
        read = seen * filtered.rows / max(filtered.allowed, 1)
        return filtered.allowed <= seen or filtered.allowed <= CODE_WORK * read

    def reach(self, effort: int, allowed: int | None) -> int:
        """Return 0: all lists may be looked at."""
        return 0

    def filtered_effort(self, effort: int, filtered: Filtered) -> int:
        """Return more for fewer: a list holds as many fewer allowed rows."""
        return -(-effort * filtered.rows // max(filtered.allowed, 1))

    @staticmethod
    def _lists(part: Part) -> int:
        from tarsdb.index.ivf import Ivf

        assert isinstance(part, Ivf)
        return part.lists


METHODS: dict[str, Method] = {method.name: method for method in (Hnsw(), Lists())}
