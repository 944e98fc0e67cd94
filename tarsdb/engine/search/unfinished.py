"""Long index builds that go on after a crash: when their state is kept, under which name, how long.

A build of more than half a minute leaves its state in the file now and then, in transactions of its
own. The next build of the same rows by the same method and options takes it up; a finished one
removes it. Keeping it is best effort: without room for it the build goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import field
from typing import TYPE_CHECKING

import numpy as np

from tarsdb.engine.search.index_choice import Choice
from tarsdb.engine.search.index_methods import Rows
from tarsdb.errors import CorruptionError, Error
from tarsdb.index import arrays
from tarsdb.index.course import Course, State
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass
from tarsdb.storage import checkpoint_name, forget_checkpoint, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from tarsdb.storage import Environment

EVERY_SECONDS = 30.0
SHARE = 0.05
"""Of the time of a build that may go into keeping its state."""
_VERSION = b"1"  # of what builds do: the state of another is not taken up


@dataclass
class Unfinished:
    """The state of one build in a file."""

    env: Environment
    name: bytes
    _since: float = field(default_factory=time.monotonic)
    _pause: float = EVERY_SECONDS
    _is_kept: bool = True
    """Whether the file may hold something; at first, what another build left."""

    @staticmethod
    def of(env: Environment, rows: Rows, choice: Choice) -> Unfinished:
        """Return the state of the build of some rows; everything the result depends on names it."""
        given = json.dumps([choice.method, choice.options, rows.op, str(rows.type)], sort_keys=True)
        inputs = (np.ascontiguousarray(array).data for array in (rows.rowids, rows.vectors))
        return Unfinished(env, checkpoint_name(_VERSION, given.encode(), *inputs))

    def course(self, progress: Callable[[int, int], None]) -> Course:
        """Return how a build is followed that takes up this state and leaves its own."""
        self._pause = EVERY_SECONDS
        return Course(progress, self._resume, self._offer)

    def _resume(self) -> State | None:
        with self.env.read() as txn:
            kept = load_checkpoint(txn, self.name)
        if kept is None:
            self._is_kept = False
            return None
        try:
            state = arrays.unpack(kept)
        except CorruptionError:
            return None
        METRICS.add("index.builds_resumed")
        return state

    def _offer(self, make: Callable[[], State]) -> None:
        begun = time.monotonic()
        if begun - self._since < self._pause:
            return
        try:
            save_checkpoint(self.env, self.name, arrays.pack(make()))
            self._is_kept = True
        except Error:  # no space, or the file is being closed: the build itself will tell
            METRICS.add("index.checkpoint_failures")
        self._since = time.monotonic()
        self._pause = max(EVERY_SECONDS, (self._since - begun) / SHARE)

    def forget(self) -> None:
        """Remove the state of a build that is done."""
        if self._is_kept:
            forget_checkpoint(self.env, self.name)
