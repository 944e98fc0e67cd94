"""Reading one state of the file again and again, for as long as it is the newest.

It costs a part of what a `ReadTxn` does: nothing is read to tell which commit is seen. Knows no
tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lmdb

from tarsdb.storage.transaction import ReaderSlot

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment


class Revisit:
    """Pins the pages of a state while they are read; one thread uses it at a time.

    Parameters
    ----------
    env : Environment
    state : tuple of int
        From `ReadTxn.file_state`.
    """

    __slots__ = ("_env", "_epoch", "_number", "_slot")

    def __init__(self, env: Environment, state: tuple[int, int]) -> None:
        self._env = env
        self._number, self._epoch = state
        self._slot = ReaderSlot(env.forget)

    def enter(self) -> bool:
        """Return whether the newest state is the one meant; then its pages stay until `leave`."""
        env, slot = self._env, self._slot
        try:
            if env.enter(slot).id() == self._number and env.epoch == self._epoch:
                return True
        except lmdb.Error:  # an ordinary transaction says what it means, or mends it
            pass
        except BaseException:
            env.leave(slot)
            raise
        env.leave(slot)
        return False

    def leave(self) -> None:
        """Let go of the pages."""
        self._env.leave(self._slot)
