"""What was brought to a device, by the identity of an array of the host, within a budget."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

Value = TypeVar("Value")


class DeviceArrays:
    """Keeps what was made of arrays that do not change; safe to use from threads.

    Parameters
    ----------
    budget : int
        Bytes to keep at most. What was used longest ago leaves first; what belongs to an array
        leaves when the array dies.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._lock = threading.RLock()  # an array may die while its thread holds it
        self._entries: OrderedDict[int, tuple[weakref.ref[np.ndarray], Any, int]] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        with self._lock:
            return sum(size for _, _, size in self._entries.values())

    def get(self, key: np.ndarray, nbytes: int, make: Callable[[], Value]) -> Value | None:
        """Return what ``make`` made of an array, once; None where it is larger than the budget.

        ``nbytes`` is what it takes on the device.
        """
        with self._lock:
            entry = self._entries.get(id(key))
            if entry is not None and entry[0]() is key:
                self._entries.move_to_end(id(key))
                found: Value = entry[1]
                return found
            if nbytes > self.budget:
                return None
            while self._entries and self.nbytes + nbytes > self.budget:
                self._entries.popitem(last=False)
            made, number = make(), id(key)
            self._entries[number] = (weakref.ref(key, lambda _: self._drop(number)), made, nbytes)
            return made

    def _drop(self, number: int) -> None:
        with self._lock:
            entry = self._entries.get(number)
            if entry is not None and entry[0]() is None:  # another array may have its number now
                del self._entries[number]
