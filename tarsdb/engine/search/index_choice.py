"""USING auto: what an index of vectors is made by, from what it holds, may take and is asked.

The rules come from measurements, see docs/tuning-index.md. Knows shapes and what was measured of a
part; builds nothing and reads no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tarsdb.engine.search.asked import Asked
from tarsdb.engine.search.calibration import Calibration
from tarsdb.engine.search.index_methods import METHODS, Part
from tarsdb.engine.settings import size_bytes
from tarsdb.errors import DataError
from tarsdb.index.navigation import NAVIGATIONS
from tarsdb.records import dataclass
from tarsdb.storage import IndexPart
from tarsdb.types import Kind, SqlType

AUTO, FLAT = "auto", "flat"
"""The word after USING, and what is chosen where exact search does best."""
FEWEST_ROWS = 10_000
"""Below, a statement through an index takes more than half of the time of an exact one."""
INT4_DIM, BITS_DIM = 96, 256
"""Dimensions from which codes of 4 bits, and product codes, tell near rows apart as bytes do."""
GROWN = 2
"""Rows that no method is good at are tried again when there are so many times as many."""
K = 10
"""Neighbours the recall is promised for, where searches do not ask for more."""
FILTERED = 0.99
"""Share of searches answered among few rows of a filter from which on an index does not pay."""
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_INT4 = {"quantization": "int4"}
_LARGER = (FLAT, "hnsw", "ivf")
"""What is chosen as an index grows, in order."""


@dataclass(frozen=True)
class AutoOptions:
    """What an index has to reach and may take.

    Parameters
    ----------
    target_recall : float
        Searches find at least this share of the true neighbours, or are exact.
    memory : str
        Size of what searches read of the index, for it to stay in memory.

    Raises
    ------
    DataError
        An option is outside its range.
    """

    target_recall: float = 0.95
    memory: str = "1GiB"

    def __post_init__(self) -> None:
        recall = self.target_recall
        if isinstance(recall, bool) or not isinstance(recall, (int, float)) or not 0 < recall <= 1:
            raise DataError(f"option target_recall is {recall!r}, expected more than 0, at most 1")
        size_bytes("option memory", self.memory)

    @property
    def memory_bytes(self) -> int:
        """The size in bytes."""
        return size_bytes("option memory", self.memory)


@dataclass(frozen=True)
class Shape:
    """What an index is to hold: so many vectors of a type, for an operator."""

    rows: int
    type: SqlType
    op: str

    def searched_bytes(self, method: str, options: dict[str, Any]) -> int:
        """Return what searches of a part of this shape read."""
        made = METHODS[method].options()(**options)
        return METHODS[method].searched_bytes(self.rows, self.type, self.op, made)


@dataclass(frozen=True)
class Choice:
    """What makes a part, and why.

    Attributes
    ----------
    method : str
        Of ``METHODS``, or ``FLAT``: nothing is made, search is exact.
    options : dict
        Of the method.
    reason : str
        In words; empty where the statement named the method.
    target : float
        Recall the part has to reach, else another choice is made; 0: it stays whatever it reaches.
    asked : Asked
        The searches it was chosen by.
    """

    method: str
    options: dict[str, Any]
    reason: str = ""
    target: float = 0.0
    asked: Asked = Asked()

    @property
    def promised(self) -> tuple[float, int]:
        """The recall a part has to reach, and of how many rows."""
        return max(self.target, self.asked.recall), max(K, self.asked.k)


def chosen(shape: Shape, wanted: AutoOptions, asked: Asked) -> Choice:
    """Return what an index over all its rows is made by."""
    if shape.rows < FEWEST_ROWS:
        return Choice(FLAT, {}, f"{shape.rows:,} rows, an index pays from {FEWEST_ROWS:,}")
    if not asked.is_enough:
        return _by_size(shape, wanted)
    if asked.filtered >= FILTERED:
        return Choice(FLAT, {}, f"exact search does: {asked}", asked=asked)
    choice = _by_size(shape, wanted)
    return replace(choice, reason=f"{choice.reason}; {asked}", asked=asked)


def _by_size(shape: Shape, wanted: AutoOptions) -> Choice:
    options = _graph_options(shape, wanted)
    held, memory = shape.searched_bytes("hnsw", options), wanted.memory_bytes
    told = (
        f"a graph of {shape.rows:,} rows takes up to {_amount(held)}, memory is {_amount(memory)}"
    )
    if held <= memory:
        return Choice("hnsw", options, told, wanted.target_recall)
    return _lists(shape, wanted, told)


def _amount(nbytes: int) -> str:
    unit, one = next((u for u in _UNITS if nbytes >= u[1]), _UNITS[-1])
    return f"{nbytes / one:.1f} {unit}"


def _graph_options(shape: Shape, wanted: AutoOptions) -> dict[str, Any]:
    """Return those of a graph that fits; where none does, of the smallest."""
    fits = shape.searched_bytes("hnsw", {}) <= wanted.memory_bytes
    return {} if fits or shape.type.width < INT4_DIM else _INT4


def _lists_options(shape: Shape, wanted: AutoOptions) -> dict[str, Any]:
    fits = shape.searched_bytes("ivf", {}) <= wanted.memory_bytes
    if fits or shape.type.width < BITS_DIM:
        return {}
    if shape.type.kind is Kind.BIT:
        return {"codes": "bits"}
    refined = {"codes": "bits", "refine_bits": 2}
    fits = shape.searched_bytes("ivf", refined) <= wanted.memory_bytes
    return refined if fits else {"codes": "pq"}


def _lists(shape: Shape, wanted: AutoOptions, why: str) -> Choice:
    return Choice("ivf", _lists_options(shape, wanted), why, wanted.target_recall)


def more_of(stored: Sequence[IndexPart], shape: Shape, wanted: AutoOptions) -> Choice:
    """Return what makes a part beside others of an index of that shape: their method."""
    last = stored[-1]
    options = {"hnsw": _graph_options, "ivf": _lists_options}[last.method](shape, wanted)
    return Choice(last.method, options, last.reason, asked=Asked.of(stored))


def suffices(choice: Choice, part: Part, calibration: Calibration, shape: Shape) -> bool:
    """Return whether a part reaches the recall of a choice, and faster than exact search."""
    if not choice.target:
        return True
    method, rows = METHODS[choice.method], len(part)
    target, k = choice.promised
    reached = calibration.effort_for(target, k)
    effort = method.settled(reached, k, [part])
    if not reached or 2 * method.pool(part, k, effort) > rows:
        return False
    is_coded = shape.type.kind is Kind.VECTOR and not NAVIGATIONS[shape.op].is_loose
    return not method.prefers_exact(effort, (rows, rows), [part], is_coded)


def instead(tried: Sequence[str], last: Choice, shape: Shape, wanted: AutoOptions) -> Choice:
    """Return what is made where methods did not suffice: lists after a graph, else nothing."""
    recall, k = last.promised
    rows = f" of {k:,} rows" if k > K else ""
    target = f"a recall of {recall}{rows} faster than exact search"
    if tried[-1] == "hnsw":
        lists = _lists(shape, wanted, f"a graph does not reach {target}")
        return replace(lists, asked=last.asked)
    nouns = " and ".join("a graph" if method == "hnsw" else "lists" for method in tried)
    return Choice(FLAT, {}, f"{nouns} do not reach {target}", asked=last.asked)


def has_outgrown(stored: Sequence[IndexPart], shape: Shape, wanted: AutoOptions) -> bool:
    """Return whether an index of that shape had better be made anew by another method."""
    last, choice = stored[-1], chosen(shape, wanted, Asked.of(stored))
    if last.method == FLAT and last.rows >= FEWEST_ROWS and shape.rows < GROWN * last.rows:
        return False  # no method was good at these rows
    if last.method not in _LARGER:
        return True  # made by another version
    return _LARGER.index(choice.method) > _LARGER.index(last.method)
