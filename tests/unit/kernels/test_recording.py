"""Recorded work: the calls a device gets, in order, and what becomes of failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tarsdb.kernels.gpu import device
from tarsdb.kernels.gpu.recording import Recorder
from tarsdb.metrics import METRICS


class Driver:
    """What a recorder asks of CuPy, written down."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[str] = []
        self.fails = fails
        self.cuda = SimpleNamespace(
            Stream=self._stream, MemoryPool=lambda: SimpleNamespace(malloc="private"),
            using_allocator=self._allocator,
        )  # fmt: skip

    def did(self, what: str) -> None:
        self.calls.append(what)
        if what == self.fails:
            raise RuntimeError(what)

    def _stream(self, non_blocking: bool) -> Any:
        driver = self

        class Stream:
            def __enter__(self) -> None:
                driver.did("enter")

            def __exit__(self, *_: object) -> None:
                driver.did("exit")

            def synchronize(self) -> None:
                driver.did("synchronize")

            def begin_capture(self) -> None:
                driver.did("begin")

            def end_capture(self) -> Any:
                driver.did("end")
                return SimpleNamespace(launch=lambda stream: driver.did("launch"))

        assert non_blocking
        return Stream()

    @contextmanager
    def _allocator(self, malloc: str) -> Iterator[None]:
        self.did(f"memory {malloc}")
        yield


def test_work_is_done_once_recorded_and_launched() -> None:
    driver, done = Driver(), np.zeros(1)
    repeat = Recorder(driver).record(lambda: driver.did("work") or done)
    assert driver.calls == [
        "enter", "memory private", "work", "begin", "work", "end", "exit"
    ]  # fmt: skip
    driver.calls.clear()
    assert repeat() is done and repeat() is done
    assert driver.calls == ["launch", "launch"]


@pytest.mark.parametrize("fails", ["begin", "end"])
def test_what_cannot_be_recorded_is_repeated_as_it_is(fails: str) -> None:
    before = METRICS.snapshot().get("generate.unrecorded", 0)
    driver, done = Driver(fails), np.zeros(1)
    repeat = Recorder(driver).record(lambda: driver.did("work") or done)
    driver.calls.clear()
    assert repeat() is done
    assert driver.calls == ["work"]
    assert METRICS.snapshot()["generate.unrecorded"] == before + 1


def test_work_that_fails_raises() -> None:
    with pytest.raises(RuntimeError, match="work"):
        Recorder(Driver("work")).record(lambda: driver_work())
    with pytest.raises(ZeroDivisionError):
        Recorder(np).record(lambda: 1 / 0)()


def driver_work() -> None:
    raise RuntimeError("work")


def test_other_work_is_in_the_same_order() -> None:
    driver = Driver()
    with Recorder(driver).working():
        driver.did("other")
    assert driver.calls == ["enter", "other", "synchronize", "exit"]


@pytest.mark.gpu
def test_a_graph_reads_its_arrays_anew() -> None:
    found = device.choose("auto")
    if found is None:
        pytest.skip("no CUDA device")
    xp, recorder = found.xp, Recorder(found.xp)
    with recorder.working():
        given = xp.zeros(5)
        repeat = recorder.record(lambda: given * 2 + 1)
        for value in (3.0, 4.0):
            given[...] = value
            assert found.host(repeat()).tolist() == [2 * value + 1] * 5
    assert METRICS.snapshot().get("generate.unrecorded", 0) == 0
