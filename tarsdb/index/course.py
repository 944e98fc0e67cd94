"""How a long build is followed, and how it goes on where another one was cut off.

A build tells how far it is and now and then offers its state. Whoever called it may keep that and
give it back to the next build of the same input. Knows no storage and no clock.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tarsdb.records import dataclass

State = dict[str, np.ndarray]
"""Named arrays; a build checks what it is given, for they may come from a file."""


@dataclass(frozen=True)
class Course:
    """The callbacks of one build.

    Attributes
    ----------
    progress : callable
        Told rows done and all rows now and then; may raise to stop the building.
    resume : callable
        Returns the state an earlier build of the same input offered last, or None.
    offer : callable
        Takes a function that makes the state; it is called only if the state is to be kept.
    """

    progress: Callable[[int, int], None] = lambda done, total: None
    resume: Callable[[], State | None] = lambda: None
    offer: Callable[[Callable[[], State]], None] = lambda make: None


UNWATCHED = Course()
