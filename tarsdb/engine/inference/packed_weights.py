"""Packed weights taken from the file where they lie, and put there behind the statement.

A model that is not in the file packed is packed in private memory, and used from there; a
short-lived thread then writes it, a chunk a transaction, and lets the file's pages take the place
of the private ones. No statement waits for it; what cannot be written is dropped and counted. What
lies in the file is the business of ``storage.packed``, how it is packed that of ``model_ops``.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from tarsdb.engine.inference.loaded_models import adapted_model
from tarsdb.errors import Error
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass
from tarsdb.schema import ModelVersion
from tarsdb.storage import Environment, background, packed

if TYPE_CHECKING:
    from tarsdb.engine.context import Context
    from tarsdb.memory_region import Region

THREAD = "packed weights"
SMALLEST_BYTES = 8 << 20
"""Less is packed faster than it is worth room in the file."""
MOST_WAITING = 16
FINISHED_AT_EXIT_BYTES = 1 << 30
"""What a process that ends still writes, at most."""


@dataclass(frozen=True)
class FileShelf:
    """The packed weights of one model version in a file; a ``model_ops.shelf.Shelf``."""

    env: Environment
    weights: bytes
    may_write: bool

    def find(self, layout: str, nbytes: int) -> Region | None:
        """Return packed weights, mapped; None where they must be packed."""
        if nbytes < SMALLEST_BYTES:
            return None
        found = packed.find(self.env, packed.image_name(self.weights, layout), nbytes)
        METRICS.add("packed_weights.misses" if found is None else "packed_weights.hits")
        return found

    def offer(self, layout: str, region: Region) -> None:
        """Have packed weights written soon."""
        if self.may_write and len(region.array) >= SMALLEST_BYTES:
            queue_of(self.env).add(packed.image_name(self.weights, layout), self.weights, region)


def shelf_for(context: Context, version: ModelVersion) -> FileShelf | None:
    """Return where a connection finds and leaves a version's packed weights, None for nowhere."""
    engines = context.engines
    if not engines.settings["packed_weights"]:
        return None
    return FileShelf(engines.env, version.weights_digest, engines.may_write)


class _Waiting(NamedTuple):
    name: bytes
    weights: bytes
    region: weakref.ref[Region]


class PublishQueue:
    """Packed weights of one environment that wait to be written.

    A model that is let go of before its turn is not written.
    """

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._running = False

    def add(self, name: bytes, weights: bytes, region: Region) -> None:
        """Have an image written; dropped where too many wait."""
        with self._changed:
            is_full = len(self._waiting) >= MOST_WAITING
            if not is_full:
                self._waiting.append(_Waiting(name, weights, weakref.ref(region)))
            if not self._running:
                self._running = background.start(self._env, THREAD, self._run)
        if is_full:
            METRICS.add("packed_weights.dropped")

    def wait(self) -> None:
        """Return when nothing waits any more (for benchmarks and tests)."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)

    def _run(self) -> None:
        try:
            while (waiting := self._next()) is not None:
                self._publish(waiting)
        except BaseException:
            self._stopped()
            raise

    def _stopped(self) -> None:
        with self._changed:
            self._running = False
            self._changed.notify_all()

    def _next(self) -> _Waiting | None:
        """Return what to write; None, and no longer running, where nothing waits."""
        with self._changed:
            if not self._waiting:
                self._running = False
                self._changed.notify_all()
                return None
            return self._waiting.popleft()

    def _publish(self, waiting: _Waiting) -> None:
        region, is_stored = waiting.region(), False
        if region is not None:
            try:
                is_stored = packed.publish(
                    self._env, waiting.name, waiting.weights, region, _may_go_on
                )
            except (Error, OSError):  # full, locked, closed: packed again by the next process
                is_stored = False
        METRICS.add("packed_weights.stored" if is_stored else "packed_weights.dropped")


def _may_go_on(left: int) -> bool:
    """Return whether to write on: a process that ends is not held up for long."""
    return threading.main_thread().is_alive() or left <= FINISHED_AT_EXIT_BYTES


def pack_models(context: Context) -> list[tuple[str, int]]:
    """Load every model, see that its packed weights are in the file, and return their bytes.

    Models in the order of their names, adapters and models of onnxruntime left out; 0 where the
    file keeps none: a small model, or one that could not be written. A model larger than
    ``model_memory`` is refused with ModelError.
    """
    env, sizes = context.engines.env, []
    for model in context.catalog.models():
        version = model.find_version()
        if version is None or adapted_model(model) or not version.tensors:
            continue
        context.engines.models.load(context, model)
        queue_of(env).wait()  # before the next one: models may not fit beside each other
        with env.read() as txn:
            sizes.append((model.name, packed.size_bytes(txn, version.weights_digest)))
    return sorted(sizes)


_making = threading.Lock()
if hasattr(os, "register_at_fork"):  # a thread of the parent may hold it at the fork
    os.register_at_fork(after_in_child=_making._at_fork_reinit)  # type: ignore[attr-defined]


def queue_of(env: Environment) -> PublishQueue:
    """Return the queue of an environment."""
    with _making:
        found: PublishQueue = env.caches.setdefault("packed queue", PublishQueue(env))
    return found
