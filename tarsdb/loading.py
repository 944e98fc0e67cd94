"""Modules are loaded without the garbage collector looking at them again and again.

Loading makes some hundred thousand objects that stay; the collector would visit all of them
several times and find nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the process's cyclic garbage collector for the block, where it runs.

    What the block made counts as old afterwards, where it is more than the collector lets pass
    without a look: only full collections visit it.
    """
    was_running, before = gc.isenabled(), gc.get_count()[0]
    gc.disable()
    try:
        yield
    finally:
        if was_running:
            made = gc.get_count()[0] - before
            # Thawing would undo what the program froze, and counting that takes long.
            if made > gc.get_threshold()[0] and not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()  # to the oldest generation, unvisited
            gc.enable()
