"""A filter that a search of a graph asks about the nodes it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tarsdb.kernels import graph as kernels
from tarsdb.kernels.dispatch import entry
from tarsdb.kernels.native import address
from tarsdb.records import dataclass

_ERROR, _LEFT, _CALLS, _PASSED, _PLACES = 7, 10, 11, 12, 13  # words of kernels/cpu/asking.py
UNKNOWN = 2
"""Stands in ``allowed`` for a node that the filter was not asked about; a test compares both."""
AT_ONCE = 2048
"""Rows asked about by one call at most; a step comes to fewer nodes in graphs of any ``m``."""


class Batch(Protocol):
    """Where a function of another library answers for some rows, and how it is called.

    Attributes
    ----------
    place : (int, int, int, int, int, int)
        Addresses of the function, of its first three arguments, the fourth (a number), and where
        it leaves a trap.
    rows : uint32 (1,)
        Takes the number of rows.
    arguments : list of (AT_ONCE,)
        Take the arguments.
    answers : int32 (AT_ONCE,)
        Not 0 for rows that pass.
    """

    place: tuple[int, int, int, int, int, int]
    rows: np.ndarray
    arguments: list[np.ndarray]
    answers: np.ndarray


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of the filter: its values by position, and where they are not NULL (None: all).

    A constant has one value and no positions; it is written once.
    """

    values: np.ndarray
    valid: np.ndarray | None = None
    is_constant: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nodes of which some pass a filter, which a search asks about those it comes to.

    Attributes
    ----------
    allowed : uint8 (nodes,)
        0 and 1 where the answer is known, ``UNKNOWN`` where not; the search fills it in.
    positions : int64 (nodes,)
        Of the nodes' vectors in the exact index.
    words : int64
        By what it asks; see ``kernels/cpu/asking.py``.
    """

    allowed: np.ndarray
    positions: np.ndarray
    words: np.ndarray


class Asked:
    """A filter at work: what it was asked, and what it may still be asked.

    Parameters
    ----------
    batch : Batch
        Belongs to this search as long as it lasts.
    arguments : sequence of Argument
        As many as the batch takes.
    most : int
        Rows it may be asked about.
    """

    def __init__(self, batch: Batch, arguments: Sequence[Argument], most: int) -> None:
        found = kernels.current()
        assert found is not None
        self._kernel, self._held, self._most = found.ask, (batch, arguments), most
        columns: list[int] = []
        for argument, room in zip(arguments, batch.arguments, strict=True):
            if argument.is_constant:
                room[:AT_ONCE] = argument.values[0]
                continue
            valid = 0 if argument.valid is None else address(argument.valid)
            columns += [address(argument.values), argument.values.itemsize, valid, address(room)]
        self.words = np.array([
            entry(found.ask), *batch.place, 0, address(batch.rows), address(batch.answers), most,
            0, 0, 0, len(columns) // 4, *columns,
        ], np.int64)  # fmt: skip

    @property
    def error(self) -> int:
        """What the function returned last: the address of an error, or 0."""
        return int(self.words[_ERROR])

    @property
    def rows(self) -> int:
        """Rows it was asked about."""
        return self._most - int(self.words[_LEFT])

    @property
    def calls(self) -> int:
        """Calls of the function."""
        return int(self.words[_CALLS])

    @property
    def passed(self) -> int:
        """Rows that passed."""
        return int(self.words[_PASSED])

    def of(self, positions: np.ndarray, allowed: np.ndarray) -> Unknown:
        """Return it for a part whose nodes have these positions; ``allowed`` is changed by it."""
        self.words[_PLACES] = address(positions)
        return Unknown(allowed, positions, self.words)

    def passing(self, positions: np.ndarray) -> np.ndarray | None:
        """Return those of some positions whose rows pass, int64; None where asking ended."""
        allowed = np.full(len(positions), UNKNOWN, np.uint8)
        nodes, words = np.arange(len(positions), dtype=np.int32), self.of(positions, allowed).words
        for start in range(0, len(nodes), AT_ONCE):
            count = min(AT_ONCE, len(nodes) - start)
            if self._kernel(address(words), address(nodes) + 4 * start, count, address(allowed)):
                return None
        found: np.ndarray = positions[allowed == 1]
        return found
