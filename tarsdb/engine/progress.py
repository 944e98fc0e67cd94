"""Who is told how far long work is: models that embed, indexes that are built.

Knows the callbacks and what is told, not how it is shown.
"""

from __future__ import annotations

from collections.abc import Callable

from tarsdb.records import dataclass

Report = Callable[[int, int], None]
"""Takes what is done and the total; may raise to stop the work."""


@dataclass(frozen=True, slots=True)
class Work:
    """One long piece of work, as it is announced before it starts.

    Attributes
    ----------
    what : str
        For people: ``index docs_emb``, ``model minilm``.
    unit : str
        What is counted, in the plural.
    total : int
        How many there are.
    memory_bytes : int
        Estimate of the memory the work holds at its peak beyond what is held now; 0: not estimated.
    disk_bytes : int
        Estimate of what the file grows by; 0: not estimated.
    why : str
        Why it is done in this way, where that was chosen.
    """

    what: str
    unit: str
    total: int
    memory_bytes: int = 0
    disk_bytes: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Listener:
    """The callbacks of one connection, called by the thread that runs the statement."""

    report: Report | None = None
    begin: Callable[[Work], None] | None = None

    def start(self, work: Work) -> None:
        """Announce work."""
        if self.begin is not None:
            self.begin(work)
        if self.report is not None:
            self.report(0, work.total)

    def show(self, done: int, total: int) -> None:
        """Tell how far the work is."""
        if self.report is not None:
            self.report(done, total)


SILENT = Listener()
