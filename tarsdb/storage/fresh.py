"""What a commit of this process wrote to the delta, kept so that it need not be read back.

Knows bytes only: they are decoded where those of the file are. Whoever takes them must see the
commit right after the one they know; all others read the file.
"""

from __future__ import annotations

from dataclasses import field

from tarsdb.records import dataclass

MOST_ROWS = 1024
"""Rows of a commit up to which they are kept: a few megabytes of vectors."""


@dataclass
class FreshVersions:
    """Row versions one commit added to a table's delta.

    Attributes
    ----------
    generation : int
        Of the delta they were added to.
    before : int
        The last commit that changed the table before.
    commit : int
    groups : dict
        Column group -> (rowids, payloads as stored).
    """

    generation: int
    before: int
    commit: int
    groups: dict[int, tuple[list[int], list[bytes]]] = field(default_factory=dict)

    @property
    def is_small(self) -> bool:
        """Whether keeping them is worth their memory."""
        return all(len(rowids) <= MOST_ROWS for rowids, _ in self.groups.values())

    def add(self, group: int, rowids: list[int], payloads: list[bytes]) -> None:
        """Note versions of one column group."""
        known = self.groups.setdefault(group, ([], []))
        known[0].extend(rowids)
        known[1].extend(payloads)

    def after(
        self, group: int, generation: int, loaded: int, commit: int
    ) -> tuple[list[int], list[bytes]] | None:
        """Return all versions of a group between two commits; None where the file must tell.

        Parameters
        ----------
        group, generation : int
            Whose log is read.
        loaded, commit : int
            Commits above the first and up to the second.
        """
        if generation != self.generation or commit != self.commit or loaded < self.before:
            return None
        return self.groups.get(group, ([], []))
