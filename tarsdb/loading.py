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

    What the block made counts as old afterwards: only full collections visit it.
    """
    was_running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_running:
            if not gc.get_freeze_count():  # else thawing would undo what the program froze
                gc.freeze()
                gc.unfreeze()  # to the oldest generation, unvisited
            gc.enable()
