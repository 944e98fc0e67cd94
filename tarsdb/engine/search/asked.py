"""What was asked of a vector index: how many rows, at what recall, and through which filters.

Each process counts its own searches, in memory; ``USING auto`` chooses by them and stores what it
chose by with the parts, for processes that have asked nothing yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tarsdb.records import dataclass

if TYPE_CHECKING:
    from tarsdb.storage import Environment, IndexPart

ENOUGH = 100
"""Searches from which on they count."""
MOST = 0.9
"""Share of the searches an index is chosen for."""
_KINDS = 1000
"""Kinds of searches that are told apart, at most."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The searches of an index, summed up.

    Attributes
    ----------
    searches : int
    k : int
        Most searches that an index can answer want no more rows.
    recall : float
        Nor a higher recall.
    filtered : float
        Share of the searches that were exact ones among the few rows of a filter.
    """

    searches: int = 0
    k: int = 0
    recall: float = 0.0
    filtered: float = 0.0

    @property
    def is_enough(self) -> bool:
        """Whether there are enough searches to choose by."""
        return self.searches >= ENOUGH

    def __str__(self) -> str:
        if self.filtered == 1:
            return f"{self.searches:,} searches, all among few rows of a filter"
        rows = f"{self.searches:,} searches, most for up to {self.k:,} rows at {self.recall:g}"
        return f"{rows}, {self.filtered:.0%} among few rows of a filter"

    def stored(self) -> tuple[float, ...]:
        """Return what :meth:`of` reads; nothing where there is nothing to choose by."""
        return (self.searches, self.k, self.recall, self.filtered) if self.is_enough else ()

    @staticmethod
    def of(parts: Sequence[IndexPart]) -> Asked:
        """Return what the parts of an index were chosen by."""
        kept = parts[-1].asked if parts else ()
        if len(kept) != len(Asked.__dataclass_fields__):
            return Asked()  # none, or of another version
        searches, k, recall, filtered = kept
        return Asked(int(searches), int(k), recall, filtered)


class Observed:
    """The searches of one index that a process counts.

    Threads count without a lock: what two of them add in the same moment may count once.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[int, float, bool], list[int]] = {}

    def tally(self, k: int, recall: float, is_filtered: bool) -> list[int]:
        """Return the count of one kind of search, for the caller to add to."""
        step = 10 ** max(len(str(k)) - 2, 0)
        kind = -(-k // step) * step, recall, is_filtered  # two digits of k
        if len(self._counts) >= _KINDS:
            return self._counts.get(kind, [0])
        return self._counts.setdefault(kind, [0])

    def summary(self) -> Asked:
        """Return the counts summed up."""
        counts = [(*kind, count) for kind, (count,) in list(self._counts.items())]
        total = sum(count for *_, count in counts)
        by_index = [each for each in counts if not each[2]]
        filtered = total - sum(count for *_, count in by_index)
        k = _of_most((k, count) for k, _, _, count in by_index)
        recall = _of_most((recall, count) for _, recall, _, count in by_index)
        return Asked(total, int(k), recall, filtered / max(total, 1))


def _of_most(counted: Iterable[tuple[float, int]]) -> float:
    """Return the smallest value that most are not above; 0 of none."""
    ascending = sorted(counted)
    left = (1 - MOST) * sum(count for _, count in ascending)
    for value, count in reversed(ascending):
        left -= count
        if left < 0:
            return value
    return 0.0


def observed(env: Environment, index: int) -> Observed:
    """Return what this process counts of an index, by its id."""
    kept: dict[int, Observed] = env.caches.setdefault("asked", {})
    return kept.setdefault(index, Observed())


def known(env: Environment, index: int, stored: Sequence[IndexPart]) -> Asked:
    """Return what this process was asked, or what the parts were chosen by if it was not enough."""
    here = observed(env, index).summary()
    return here if here.is_enough else Asked.of(stored)
