"""Short calls of one model from several threads computed together: leader and followers.

Whoever finds a core free computes at once, alone. Who comes while all are busy waits; the next core
that gets free goes to the first who waits, and that thread computes the texts of all the others
with its own. So nobody waits for company, and the more wait, the larger the batch. Knows no SQL and
no model but its ``encode``.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tarsdb.errors import InternalError, InterruptError
from tarsdb.metrics import METRICS

SMALL = 4
"""Texts of a call that is worth sharing; more fill a batch by themselves."""
MOST_TEXTS = 64
_POLL_S = 0.05


class _Call:
    """One caller's texts, and what became of them."""

    __slots__ = ("alone", "key", "result", "texts", "threads", "wake")

    def __init__(self, texts: Sequence[Any], key: Any, threads: int | None) -> None:
        self.texts = texts
        self.key = key
        self.threads = threads
        self.result: np.ndarray | None = None
        self.alone = False
        self.wake = threading.Event()


class SharedBatches:
    """Short calls of one model.

    Parameters
    ----------
    encode : WeakMethod
        Takes texts, ``kind`` (the key they share) and ``threads`` (None for all cores); returns a
        row for each. The model is alive: whoever calls holds it.
    cores : int, optional
        Callers that compute at a time.
    """

    def __init__(self, encode: weakref.WeakMethod[Any], cores: int | None = None) -> None:
        self._encode = encode
        self._cores = cores or os.cpu_count() or 1
        self._lock = threading.Lock()
        self._waiting: list[_Call] = []
        self._leading = 0

    def run(
        self, texts: Sequence[Any], key: Any, interrupted: Callable[[], bool],
        threads: int | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Return a row for each text; texts of callers with an equal key may share a batch.

        A caller that is alone computes with ``threads``, all cores where it is None.

        Raises
        ------
        InterruptError
            The caller was asked to stop while it waited.
        """
        call = _Call(texts, key, threads)
        with self._lock:
            leads = self._leading < self._cores
            if leads:
                self._leading += 1
            else:
                self._waiting.append(call)
        if not leads:
            self._wait(call, interrupted)
        return self._lead(call) if call.result is None else call.result

    def _wait(self, call: _Call, interrupted: Callable[[], bool]) -> None:
        """Return when the call has its result, or the core of whoever leads next."""
        try:
            while not call.wake.wait(_POLL_S):
                if interrupted():
                    raise InterruptError("the statement was interrupted while it waited for a core")
        except BaseException:
            with self._lock:
                if call in self._waiting:
                    self._waiting.remove(call)
                    raise
            call.wake.wait()  # taken: the result, or the core, comes
            if call.result is None:
                self._pass_on()
            raise

    def _lead(self, call: _Call) -> np.ndarray:
        """Compute a call, and with it what waits; then let the next lead."""
        group = [call]
        try:
            group += self._company(call)
            texts = [text for each in group for text in each.texts]
            rows = self._compute(texts, call.key, call.threads if self._leading == 1 else 1)
            start = 0
            for each in group:
                each.result = rows[start : start + len(each.texts)]
                start += len(each.texts)
            if len(group) > 1:
                METRICS.add("encode.shared_calls", len(group))
            result: np.ndarray = rows[: len(call.texts)]
            return result
        except Exception:
            if len(group) == 1:
                raise
            call.alone = True  # whose text it was will show
        finally:
            self._settle(group)
            self._pass_on()
        return self._compute(list(call.texts), call.key, 1)

    def _compute(self, texts: list[Any], kind: Any, threads: int | None) -> np.ndarray:
        encode = self._encode()
        if encode is None:
            raise InternalError("a model is gone while somebody computes with it")
        rows: np.ndarray = encode(texts, kind=kind, threads=threads)
        return rows

    def _company(self, call: _Call) -> list[_Call]:
        """Take calls that wait and may share the batch, the first ones first."""
        if call.alone:
            return []
        with self._lock:
            taken, room = [], MOST_TEXTS - len(call.texts)
            for each in self._waiting:
                if each.key == call.key and not each.alone and len(each.texts) <= room:
                    taken.append(each)
                    room -= len(each.texts)
            self._waiting = [each for each in self._waiting if each not in taken]
        return taken

    def _settle(self, group: list[_Call]) -> None:
        """Wake those who have their result; the others wait on, each for a batch of its own."""
        with self._lock:
            for each in reversed(group[1:]):
                if each.result is None:
                    each.alone = True
                    self._waiting.insert(0, each)
                else:
                    each.wake.set()

    def _pass_on(self) -> None:
        """Give this core to the first who waits, or give it up."""
        with self._lock:
            if self._waiting:
                self._waiting.pop(0).wake.set()
            else:
                self._leading -= 1


_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # a thread of the parent may hold it at the fork
    os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined]
_of: weakref.WeakKeyDictionary[Any, SharedBatches] = weakref.WeakKeyDictionary()


def encode(model: Any, texts: Sequence[Any], kind: str | None, **watch: Any) -> np.ndarray:
    """Return a model's vectors of texts; short calls of several threads are computed together.

    Texts of one adapter, or of none, share a batch.
    """
    if len(texts) > SMALL:
        vectors: np.ndarray = model.encode(texts, kind=kind, **watch)
        return vectors
    base = model.base
    with _lock:
        shared = _of.get(base)
        if shared is None:
            shared = _of[base] = SharedBatches(weakref.WeakMethod(base.encode_way))
    vectors = shared.run(texts, (kind, model.adapter), watch["interrupted"], watch["threads"])
    progress = watch["progress"]
    if progress is not None:
        progress(len(texts), len(texts))
    return vectors
