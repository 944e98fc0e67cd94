"""Results of models and functions: from the file where known, put there behind the statement.

:func:`through` asks for what was computed before, in the statement's own snapshot, has the rest
computed, and leaves it to a queue. A short-lived thread writes the queue in small transactions
without commit numbers; no statement waits for it, and what does not fit into the queue, or cannot
be written, is dropped and counted. What the file holds is the business of ``storage.inference``.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from tarsdb.engine.inference.loaded_models import loaded_models, numeric_mode
from tarsdb.engine.inference.model_functions import KEPT
from tarsdb.errors import BindError, DataError, Error
from tarsdb.kernels.gpu.device import Device
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass
from tarsdb.schema import ModelDef, ModelVersion
from tarsdb.sql.expressions import Call
from tarsdb.storage import Environment, WriteSet, background, inference, packed
from tarsdb.storage.inference import Entry, Found, entry_name, text_digest

if TYPE_CHECKING:
    from tarsdb.engine.context import Context
    from tarsdb.storage.transaction import ReadTxn

THREAD = "inference"
LINGER_S = 0.25
"""How long results wait for others to share a transaction with."""
BATCH_BYTES = 1 << 20
"""Written in one transaction, about: the writer is held some milliseconds for it."""
MOST_WAITING_BYTES = 32 << 20

Item = tuple[Any, ...]
Compute = Callable[[list[Item]], Iterable[Any]]


class Asked(Protocol):
    """What is asked of every item, and how its results are kept.

    Attributes
    ----------
    counters : str
        Where hits and misses are counted: ``<counters>.hits``, ``<counters>.misses``.
    """

    counters: ClassVar[str]

    def names(self, items: Sequence[Item]) -> list[bytes]:
        """Return the names the results of items have in the file."""

    def encode(self, value: Any) -> bytes:
        """Return a result as it is stored."""

    def decode(self, stored: bytes) -> Any:
        """Return a stored result, None where it is none of this kind."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a model about every item, beside the item itself.

    Attributes
    ----------
    version : ModelVersion
        Its content is what counts, not its name.
    way : mapping
        Everything else a result depends on: function, numeric mode, options; JSON values.
    width : int
        Elements of a result that is a float32 vector; 0 for JSON values (text, numbers, lists).
    beside : tuple of str
        Texts read with every item: erasing one of them erases the result.
    """

    counters: ClassVar[str] = "inference_cache"
    version: ModelVersion
    way: Mapping[str, Any]
    width: int = 0
    beside: tuple[str, ...] = ()

    def names(self, items: Sequence[Item]) -> list[bytes]:
        """Return the names the results of items have in the file."""
        way = inference.digest(json.dumps(self.way, sort_keys=True, default=str).encode())
        weights = self.version.weights_digest
        return [
            entry_name([_digest(value) for value in (*item, *self.beside)], weights, way)
            for item in items
        ]

    def encode(self, value: Any) -> bytes:
        """Return a result as it is stored."""
        if self.width:
            return np.ascontiguousarray(value, dtype="<f4").tobytes()
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")

    def decode(self, stored: bytes) -> Any:
        """Return a stored result, None where it is none of this kind."""
        if self.width:
            vector = np.frombuffer(stored, dtype="<f4") if len(stored) % 4 == 0 else None
            return vector if vector is not None and len(vector) == self.width else None
        try:
            return json.loads(stored)
        except ValueError:
            return None


def question_of(
    models: Sequence[ModelDef], call: Call, options: dict[str, Any], settings: Mapping[str, Any],
    device: Device | None = None,
) -> Question | None:  # fmt: skip
    """Return what a call of a model function asks; None where its results are not kept.

    ``models`` are the model and, where it is an adapter, the one it adapts; ``device`` computes
    what is not known.

    Not kept is what costs no more than a lookup, what is drawn at random, and what the setting, or
    the option ``cache``, which is taken out, says no to.

    Raises
    ------
    BindError
        The option is neither true nor false.
    """
    wanted = options.pop("cache", True)
    if not isinstance(wanted, bool):
        raise BindError(f"{call.name}: cache is {wanted!r}, neither true nor false")
    model, version = models[0], models[0].find_version()
    unseeded = options.get("seed") is None
    is_drawn = call.name == "generate" and options.get("temperature") and unseeded
    if version is None or call.returns is None or call.name not in KEPT or is_drawn:
        return None
    if not wanted or not settings["inference_cache"]:
        return None
    way: dict[str, Any] = {
        "function": call.name, "task": model.task, "mode": numeric_mode(model.options, device),
        "model": model.options, "options": options, "returns": str(call.returns),
    }  # fmt: skip
    for base in models[1:]:
        adapted = base.find_version()
        way["base"] = [adapted.weights_digest.hex() if adapted else None, base.options]
    width = call.returns.width if call.returns.is_vector else 0
    system = options.get("system")
    return Question(version, way, width, (system,) if isinstance(system, str) else ())


def _digest(value: Any) -> bytes:
    if isinstance(value, np.ndarray):  # its text leaves out most of it
        value = [str(value.dtype), value.tobytes().hex()]
    return text_digest(value if isinstance(value, str) else json.dumps(value, default=str))


def through(
    context: Context, question: Asked, items: Sequence[Item], compute: Compute
) -> list[Any]:
    """Return the result of every item, computing only what no snapshot has yet.

    Parameters
    ----------
    context : Context
    question : Asked
    items : sequence of tuple
        Inputs of each result; equal items have equal results.
    compute : callable
        Given items in the order asked, each once, returns their results. It may let go of the
        context's snapshot.
    """
    queue = queue_of(context.engines.env)
    names = question.names(items)
    results, moved, mark = _known(context, question, names, queue)
    missing = {names[at]: at for at in range(len(items)) if names[at] not in results}
    misses = sum(name in missing for name in names)
    METRICS.add(f"{question.counters}.hits", len(items) - misses)
    METRICS.add(f"{question.counters}.misses", misses)
    if missing:
        computed = compute([items[at] for at in missing.values()])
        results.update(zip(missing, computed, strict=True))
    if context.engines.may_write:
        fresh = [Entry(name, question.encode(results[name]), mark) for name in missing]
        queue.add([*fresh, *moved])
    return [results[name] for name in names]


def _known(
    context: Context, question: Asked, names: Sequence[bytes], queue: WriteQueue
) -> tuple[dict[bytes, Any], list[Entry], str]:
    """Return results at hand by name, entries worth writing again, and the erase mark."""
    distinct = list(dict.fromkeys(names))
    txn = context.snapshot.txn
    mark = inference.read_state(txn).mark
    results, moved = {}, []
    for name, found in zip(distinct, inference.find(txn, distinct), strict=True):
        value = _value(question, found, queue.find(name))
        if value is None:
            continue
        results[name] = value
        if found is not None and found.is_old:
            moved.append(Entry(name, found.value, mark, found.generation))
    return results, moved, mark


def _value(question: Asked, found: Found | None, waiting: bytes | None) -> Any:
    stored = found.value if found is not None else waiting
    return None if stored is None else question.decode(stored)


class WriteQueue:
    """Results of one environment that wait to be written.

    Parameters
    ----------
    env : Environment
    """

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._changed = threading.Condition()
        self._waiting: dict[bytes, Entry] = {}
        self._nbytes = 0
        self._purge = False
        self._running = False
        self._urgent = False

    def find(self, name: bytes) -> bytes | None:
        """Return a result that waits."""
        entry = self._waiting.get(name)
        return None if entry is None else entry.value

    def add(self, entries: Sequence[Entry]) -> None:
        """Have entries written soon; what the queue has no room for is dropped."""
        if not entries:
            return
        dropped = 0
        with self._changed:
            for entry in entries:
                if self._nbytes + len(entry.value) > MOST_WAITING_BYTES:
                    dropped += 1
                elif entry.name not in self._waiting:
                    self._waiting[entry.name] = entry
                    self._nbytes += len(entry.value)
            self._start()
        if dropped:
            METRICS.add("inference_cache.dropped", dropped)

    def purge(self) -> None:
        """Have results and packed weights removed whose model or function is gone."""
        with self._changed:
            self._purge = True
            self._start()

    def forget(self) -> None:
        """Drop everything that waits: an input was erased."""
        with self._changed:
            self._waiting.clear()
            self._nbytes = 0

    def hurry(self) -> None:
        """Write at once what waits; does not wait for it."""
        with self._changed:
            self._urgent = True
            self._changed.notify_all()

    def wait(self) -> None:
        """Return when nothing waits any more (for benchmarks and tests)."""
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._running)

    def _start(self) -> None:
        if not self._running and (self._waiting or self._purge):
            self._urgent = False
            self._running = background.start(self._env, THREAD, self._run)

    def _run(self) -> None:
        try:
            while self._write_once():
                pass
        finally:
            with self._changed:
                self._running = False
                self._changed.notify_all()

    def _write_once(self) -> bool:
        """Write a batch; False, and no longer running, when there is none."""
        with self._changed:
            if not self._purge and self._nbytes < BATCH_BYTES:
                self._changed.wait_for(lambda: self._urgent, LINGER_S)
            batch, purge, self._purge = self._batch(), self._purge, False
            if not batch and not purge:
                self._running = False
                return False
        try:
            stored = inference.write(self._env, batch) if batch else 0
            METRICS.add("inference_cache.stored", stored)
            if purge:
                inference.forget_dead(self._env)
                packed.forget_dead(self._env)
        except Error:  # full, locked, closed: these results are computed again when asked for
            METRICS.add("inference_cache.dropped", len(batch))
        with self._changed:
            for entry in batch:
                if self._waiting.get(entry.name) is entry:
                    del self._waiting[entry.name]
                    self._nbytes -= len(entry.value)
        return True

    def _batch(self) -> list[Entry]:
        batch, size = [], 0
        for entry in self._waiting.values():
            if size >= BATCH_BYTES:
                break
            batch.append(entry)
            size += len(entry.value)
        return batch


_making = threading.Lock()
if hasattr(os, "register_at_fork"):  # a thread of the parent may hold it at the fork
    os.register_at_fork(after_in_child=_making._at_fork_reinit)  # type: ignore[attr-defined]


def queue_of(env: Environment) -> WriteQueue:
    """Return the queue of an environment."""
    found: WriteQueue | None = env.caches.get("inference queue")
    if found is None:
        with _making:
            found = env.caches.setdefault("inference queue", WriteQueue(env))
    return found


def hurry(env: Environment) -> None:
    """Have what waits written at once: a connection closes."""
    found: WriteQueue | None = env.caches.get("inference queue")
    if found is not None:
        found.hurry()


def after_commit(env: Environment, writes: WriteSet) -> None:
    """Let go of models that a commit dropped; the file does so in the background.

    Results of functions are removed too.
    """
    kinds = {kind for kind, _ in writes.objects}
    if "model" in kinds:
        with env.read() as txn:
            loaded_models(env).keep_only(inference.live_weights(txn, env))
    if kinds & {"model", "function"}:
        queue_of(env).purge()


def set_limit(env: Environment, limit: int) -> None:
    """Set how many bytes of the file results may take.

    Raises
    ------
    DataError
        It is less than one megabyte.
    """
    if limit < inference.SMALLEST_LIMIT:
        raise DataError(
            f"the inference cache cannot have {limit} bytes, the least is "
            f"{inference.SMALLEST_LIMIT}",
            hint="SET inference_cache = off does without",
        )
    inference.set_limit(env, limit)


def figures(txn: ReadTxn) -> tuple[int, int, int]:
    """Return limit, bytes in use and number of results."""
    return inference.read_state(txn).limit, inference.size_bytes(txn), inference.count(txn)


def forget(env: Environment, text: str) -> int:
    """Erase every result of a text; return how many the file had. Durable when this returns."""
    queue_of(env).forget()
    gone = inference.forget_input(env, text)
    queue_of(env).forget()
    env.sync()
    return gone
