"""Short calls of several threads: shared, each with its own rows, errors and interrupts."""

from __future__ import annotations

import pathlib
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.inference import shared_batches
from tarsdb.engine.inference.shared_batches import SharedBatches
from tarsdb.errors import DataError, InterruptError
from tarsdb.metrics import METRICS
from tests.unit.model_ops.conftest import model_dir as model_dir


class Model:
    """Encodes a text as its length; waits at a gate, and refuses the text 'bad'."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[tuple[Any, list[str]]] = []
        self.interrupt = False

    def encode(self, texts: Sequence[str], *, kind: Any, threads: int | None) -> np.ndarray:
        self.batches.append((kind, list(texts)))
        self.entered.release()
        assert self.gate.wait(30)
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt
        if "bad" in texts:
            raise DataError("a bad text")
        return np.array([[len(text)] for text in texts], np.float32)


class Caller(threading.Thread):
    """A call in a thread of its own."""

    def __init__(
        self, shared: SharedBatches, texts: list[str], kind: Any = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self.call = lambda: shared.run(texts, kind, interrupted)
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.call().tolist()
        except BaseException as error:
            self.outcome = error

    def result(self) -> Any:
        self.join(30)
        assert not self.is_alive()
        return self.outcome


def waiting(shared: SharedBatches, calls: int) -> None:
    """Return when so many calls wait."""
    end = time.monotonic() + 30
    while len(shared._waiting) != calls:
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def shared(model: Model) -> SharedBatches:
    return SharedBatches(weakref.WeakMethod(model.encode), cores=1)


def busy(model: Model, shared: SharedBatches) -> Caller:
    """Have the only core taken by a call."""
    first = Caller(shared, ["first"])
    assert model.entered.acquire(timeout=30)
    return first


def test_who_waits_is_computed_together_and_gets_its_own_rows(
    model: Model, shared: SharedBatches
) -> None:
    first = busy(model, shared)
    callers = []
    for number in range(5):
        callers.append(Caller(shared, ["x" * number, "y" * (number + 10)]))
        waiting(shared, number + 1)
    before = METRICS.snapshot().get("encode.shared_calls", 0)
    model.gate.set()
    assert first.result() == [[5]]
    for number, caller in enumerate(callers):
        assert caller.result() == [[number], [number + 10]]
    assert [len(texts) for _, texts in model.batches] == [1, 10]
    assert METRICS.snapshot()["encode.shared_calls"] == before + 5
    assert shared._leading == 0


def test_a_free_core_is_taken_at_once_and_alone(model: Model, shared: SharedBatches) -> None:
    model.gate.set()
    assert Caller(shared, ["abc"]).result() == [[3]]
    assert Caller(shared, ["ab"]).result() == [[2]]
    assert len(model.batches) == 2


def test_other_kinds_and_full_batches_are_apart(
    model: Model, shared: SharedBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_batches, "MOST_TEXTS", 3)
    first = busy(model, shared)
    calls = [(["a"], "query"), (["b"], "document"), (["c", "cc"], "query"), (["d"], "query")]
    callers = []
    for number, (texts, kind) in enumerate(calls):
        callers.append(Caller(shared, texts, kind))
        waiting(shared, number + 1)
    model.gate.set()
    assert [caller.result() for caller in (first, *callers)] == [
        [[5]], [[1]], [[1]], [[1], [2]], [[1]],
    ]  # fmt: skip
    assert model.batches[1:] == [
        ("query", ["a", "c", "cc"]), ("document", ["b"]), ("query", ["d"]),
    ]  # fmt: skip


def test_a_bad_text_is_an_error_of_its_own_caller_only(model: Model, shared: SharedBatches) -> None:
    first = busy(model, shared)
    callers = []
    for number, text in enumerate(["good", "bad", "fine"]):
        callers.append(Caller(shared, [text]))
        waiting(shared, number + 1)
    model.gate.set()
    assert first.result() == [[5]]
    assert callers[0].result() == callers[2].result() == [[4]]
    assert isinstance(callers[1].result(), DataError)
    assert shared._leading == 0


def test_a_leader_that_is_interrupted_hands_over(model: Model, shared: SharedBatches) -> None:
    first = busy(model, shared)
    callers = [Caller(shared, ["a"]), Caller(shared, ["bb"])]
    waiting(shared, 2)
    model.interrupt = True
    model.gate.set()
    assert isinstance(first.result(), KeyboardInterrupt)
    assert [caller.result() for caller in callers] == [[[1]], [[2]]]


def test_a_leader_of_others_that_is_interrupted_leaves_them_to_themselves(
    model: Model, shared: SharedBatches
) -> None:
    first = busy(model, shared)
    callers = []
    for number, text in enumerate(["a", "bb", "ccc"]):
        callers.append(Caller(shared, [text]))
        waiting(shared, number + 1)
    shared_encode = model.encode

    def once(texts: Sequence[str], **options: Any) -> np.ndarray:
        if len(texts) == 3:
            raise KeyboardInterrupt
        return shared_encode(texts, **options)

    model.encode = once  # type: ignore[method-assign]
    shared._encode = lambda: once  # type: ignore[assignment]
    model.gate.set()
    assert first.result() == [[5]]
    assert isinstance(callers[0].result(), KeyboardInterrupt)
    assert [callers[1].result(), callers[2].result()] == [[[2]], [[3]]]
    assert shared._leading == 0


def test_who_waits_can_be_interrupted(model: Model, shared: SharedBatches) -> None:
    first = busy(model, shared)
    stop = threading.Event()
    caller = Caller(shared, ["a"], interrupted=stop.is_set)
    waiting(shared, 1)
    stop.set()
    assert isinstance(caller.result(), InterruptError)
    assert shared._waiting == []
    model.gate.set()
    assert first.result() == [[5]]
    assert Caller(shared, ["abc"]).result() == [[3]]


def test_many_threads_get_their_own_answers(model: Model) -> None:
    model.gate.set()
    shared = SharedBatches(weakref.WeakMethod(model.encode), cores=2)
    wrong: list[Any] = []

    def work(number: int) -> None:
        for turn in range(50):
            text = "x" * (number * 50 + turn)
            rows = shared.run([text], number % 3, lambda: False)
            if rows.tolist() != [[len(text)]]:
                wrong.append((text, rows))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert shared._leading == 0
    assert shared._waiting == []


def test_connections_of_several_threads_share(
    tmp_path: pathlib.Path, model_dir: pathlib.Path
) -> None:
    path = tmp_path / "t.tars"
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE MODEL m FROM '{model_dir}'")
        db.execute("SET inference_cache = off")
        texts = ["the time", "a date", "how do i parse", "string", "b"]
        query = "SELECT embed('m', ?)"
        expected = {text: db.execute(query, (text,)).fetchall()[0][0] for text in texts}
    wrong: list[str] = []

    def work(number: int) -> None:
        with tarsdb.connect(path) as db:
            db.execute("SET inference_cache = off")
            for turn in range(10):
                text = texts[(number + turn) % len(texts)]
                found = db.execute(query, (text,)).fetchall()[0][0]
                if not np.allclose(found, expected[text], rtol=0, atol=1e-6):
                    wrong.append(text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
