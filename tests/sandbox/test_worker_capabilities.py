"""Calls of the host from a worker: answered as in process, and no way in for one that lies."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tarsdb.columns import from_list
from tarsdb.errors import InterruptError, UdfBackendError, UdfError, UdfLimitError
from tarsdb.types import BIGINT, TEXT
from tarsdb.udf_sandbox import Budget, ScalarFunction
from tarsdb.udf_sandbox.worker import backend, messages
from tests.sandbox.test_worker import (
    BUSY_S,
    LATE_S,
    ONE_ROW,
    answering,
    is_running,
    make,
    seconds,
    wait_until_gone,
    worker_of,
)
from tests.sandbox.wasm_text import IDENTITY

LOOKUP = '(import "tars" "lookup" (func $lookup (param i32 i32 i32 i32) (result i32)))'
ASKS = f"""(module {LOOKUP} (memory (export "memory") 1) (data (i32.const 0) "key")
  (func (export "f") (param $times i64) (result i64) (local $found i64)
    (loop $again
      (local.set $found (i64.extend_i32_s
        (call $lookup (i32.const 0) (i32.const 3) (i32.const 64) (i32.const 8))))
      (local.set $times (i64.sub (local.get $times) (i64.const 1)))
      (br_if $again (i64.gt_s (local.get $times) (i64.const 0))))
    (i64.add (local.get $found) (i64.mul (i64.const 1000) (i64.load (i32.const 64))))))"""
"""Looks a key up so many times; returns the length it was told, and 1000 times the value."""
ENDLESS = [from_list(BIGINT, [2**40])]


def asks(timeout_ms: int = 5000) -> ScalarFunction:
    return make(ASKS, timeout_ms=timeout_ms, allow=("lookup",))


def answers(work: Callable[[], object] = lambda: None) -> Budget:
    """Return a budget whose lookups do something and find 7."""

    def look_up(function: str, key: str) -> bytes:
        assert (function, key) == ("f", "key")
        work()
        return b"\x07"

    return Budget(lookup=look_up)


def test_a_worker_is_answered_in_its_memory() -> None:
    function = asks()
    budget = answers()
    assert function.call([from_list(BIGINT, [3])], 1, budget).get(0) == 7001
    assert budget.count("f", "lookup") == 4  # this one included
    pid = worker_of(function)
    assert function.call(ONE_ROW, 1, answers()).get(0) == 7001
    assert worker_of(function) == pid


def test_too_many_questions_end_the_call_and_not_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tarsdb.udf_sandbox.capabilities.MOST", {"lookup": 20})
    function = asks()
    assert function.call([from_list(BIGINT, [20])], 1, answers()).get(0) == 7001
    pid = worker_of(function)
    with pytest.raises(UdfLimitError, match=r"called tars.lookup more than 20") as caught:
        function.call(ENDLESS, 1, answers())
    assert caught.value.kind == "lookup"
    assert function.call(ONE_ROW, 1, answers()).get(0) == 7001
    assert worker_of(function) == pid


@pytest.mark.parametrize("error", [RuntimeError("no disk"), KeyboardInterrupt()])
def test_what_fails_in_the_host_is_raised_and_the_worker_lives(error: BaseException) -> None:
    def fail() -> None:
        raise error

    function = asks()
    function.call(ONE_ROW, 1, answers())
    pid = worker_of(function)
    with pytest.raises(type(error)) as caught:
        function.call(ENDLESS, 1, answers(fail))
    assert caught.value is error
    assert function.call(ONE_ROW, 1, answers()).get(0) == 7001
    assert worker_of(function) == pid


def test_time_in_the_host_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "KILL_GRACE_S", 10.0)  # it stops by itself, however busy all is
    function = asks(timeout_ms=200)
    function.call(ONE_ROW, 1, answers())
    pid = worker_of(function)
    budget = answers(lambda: time.sleep(0.05))
    taken = seconds(lambda: function.call(ENDLESS, 1, budget), UdfLimitError)
    assert 0.2 <= taken <= 0.25 + LATE_S + BUSY_S
    assert 2 <= budget.count("f", "lookup") <= 6
    assert function.call(ONE_ROW, 1, answers()).get(0) == 7001
    assert worker_of(function) == pid


def test_an_interrupt_ends_a_worker_that_never_stops_asking() -> None:
    function = asks()
    function.call(ONE_ROW, 1, answers())
    budget = answers(lambda: time.sleep(0.001))
    threading.Timer(0.1, budget.interrupt).start()
    taken = seconds(lambda: function.call(ENDLESS, 1, budget), InterruptError)
    assert taken <= 0.1 + LATE_S + BUSY_S


def test_a_guest_that_is_told_to_end_gives_no_result() -> None:
    """It returns before it meets the end of its fuel, and with no answer of ours."""
    zeros = " ".join(["(i32.const 0)"] * 4)
    text = IDENTITY.replace("(module", f"(module {LOOKUP}", 1).replace(
        "(memory.copy", f"(drop (call $lookup {zeros})) (memory.copy", 1
    )
    function, budget = make(text, allow=("lookup",)), Budget(lookup=lambda *_: b"")
    assert function.call(COLUMN, 1, budget).get(0) == "x"
    budget.lookup = lambda *_: budget.interrupt() or b""  # type: ignore[func-returns-value]
    with pytest.raises(InterruptError):
        function.call(COLUMN, 1, budget)
    assert function.call(COLUMN, 1, Budget(lookup=lambda *_: b"")).get(0) == "x"


def test_a_worker_that_asks_on_after_its_deadline_is_killed() -> None:
    """Out of WebAssembly no clock stops it, and its questions would keep the call alive."""
    function, peer, answered = liar(*["lookup 0 3 64 8"] * 1000, timeout_ms=200)
    budget = Budget(lookup=lambda *_: time.sleep(0.01) or b"\x07")  # type: ignore[func-returns-value]
    with peer:
        taken = seconds(lambda: function.call(COLUMN, 1, budget), UdfLimitError)
    assert 0.2 <= taken <= 0.2 + LATE_S + BUSY_S
    assert len(answered) < 30 and answered[0] == b"\1\0\0\0"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_while_it_waits_leaves_nothing(number: signal.Signals) -> None:
    """Killed: a typed error at once. Stopped: killed at the deadline."""
    function = asks(timeout_ms=500)
    function.call(ONE_ROW, 1, answers())
    pid = worker_of(function)
    expected = UdfBackendError if number == signal.SIGKILL else UdfLimitError
    with pytest.raises(expected):
        function.call(ENDLESS, 1, answers(lambda: os.kill(pid, number)))
    assert wait_until_gone(pid)
    assert function.call(ONE_ROW, 1, answers()).get(0) == 7001
    assert worker_of(function) != pid and is_running(worker_of(function))


COLUMN = [from_list(TEXT, ["x"])]


def question(text: str, memory: int = 1 << 16) -> bytes:
    return messages.Reply(messages.Status.ASKS, memory=memory, text=text).pack()


def liar(
    *texts: str, memory: int = 1 << 16, timeout_ms: int = 5000
) -> tuple[ScalarFunction, Any, list[bytes]]:
    """Return a function, what asks in its worker's place, and where the answers will be."""
    function = make(IDENTITY, timeout_ms=timeout_ms, allow=("lookup",))
    answered: list[bytes] = []

    def ask(peer: Any) -> None:
        peer.settimeout(5)
        with contextlib.suppress(OSError):
            peer.recv(1 << 16)
            for text in texts:
                peer.sendall(question(text, memory))
                answered.append(peer.recv(1 << 16)[messages._REQUEST.size :])
            done = messages.Reply(messages.Status.TRAP, memory=memory, text="OUT_OF_FUEL")
            peer.sendall(done.pack())

    return function, answering(function, ask), answered


NOT_GRANTED = ["log 0 3", "embed 0 3 64 8", "open 0 3", "lookup 0 3 64", "lookup 0 3 64 8 9", "",
               "lookup 0 3 64 99999999999", "lookup 0 3 64 0x8", "lookup\n0 3 64 8", "0 3 64 8",
               "lookup 0 3 64 ٣"]  # fmt: skip


@pytest.mark.parametrize("text", NOT_GRANTED)
def test_a_worker_that_asks_for_what_is_not_granted_is_killed(text: str) -> None:
    """Out of WebAssembly it can send anything; the module's imports say nothing then."""
    function, peer, answered = liar(text)
    with peer, pytest.raises(UdfBackendError, match="which it is not granted"):
        function.call(COLUMN, 1, answers())
    assert [each for each in answered if each] == []
    assert function.call(COLUMN, 1).get(0) == "x"


def test_the_same_worker_is_answered_what_is_granted() -> None:
    """The control of the refusals above and below."""
    budget = Budget(lookup=lambda _, key: b"\x07" if key == "\0\0\0" else None)
    function, peer, answered = liar("lookup 0 3 64 8", "lookup 0 2 64 8")
    with peer, pytest.raises(UdfLimitError, match="fuel"):
        function.call(COLUMN, 1, budget)
    assert answered == [b"\1\0\0\0", b"\xff\xff\xff\xff"]


@pytest.mark.parametrize(
    ("text", "memory", "message"),
    [
        ("lookup 65534 3 64 8", 1 << 16, "65534..65537, outside its memory of 65536"),
        ("lookup 0 3 -1 8", 1 << 16, "outside its memory"),
        ("lookup 0 -1 64 8", 1 << 16, "text of -1 bytes"),
        ("lookup 0 9999999999 64 8", 1 << 16, "text of 9999999999 bytes"),
        ("lookup 67108863 3 64 8", 1 << 40, "outside its memory of 67108864 bytes"),
        ("lookup 0 3 64 8", 0, "outside its memory of 0"),
    ],
)  # fmt: skip
def test_lies_about_places_and_lengths_are_errors(text: str, memory: int, message: str) -> None:
    function, peer, answered = liar(text, memory=memory)
    with peer, pytest.raises(UdfError, match=message):
        function.call(COLUMN, 1, Budget(lookup=lambda *_: b"\x07"))
    assert answered == [b""]
    assert function.call(COLUMN, 1).get(0) == "x"


def test_a_worker_that_goes_on_after_it_was_told_to_end_is_not_answered() -> None:
    found: list[str] = []

    def look_up(_: str, key: str) -> bytes:
        found.append(key)
        raise RuntimeError("no disk")

    function, peer, answered = liar("lookup 0 3 64 8", "lookup 0 3 64 8")
    with peer, pytest.raises(RuntimeError, match="no disk"):
        function.call(COLUMN, 1, Budget(lookup=look_up))
    assert len(found) == 1 and answered[0] == b"" and b"\1" not in b"".join(answered)
    assert function.call(COLUMN, 1).get(0) == "x"


def test_a_flood_of_questions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does not even count is stopped by the limit of one statement."""
    monkeypatch.setattr("tarsdb.udf_sandbox.capabilities.MOST", {"lookup": 5})
    function, peer, answered = liar(*["lookup 0 3 64 8"] * 50)
    with peer, pytest.raises(UdfLimitError, match="more than 5 times"):
        function.call(COLUMN, 1, Budget(lookup=lambda *_: b"\x07"))
    assert answered[:5] == [b"\1\0\0\0"] * 5
    assert not any(answered[5:])


def test_a_start_function_may_ask_too() -> None:
    text = ASKS.replace("(memory", "(start $begin) (memory", 1).replace(
        "(func (export",
        '(func $begin (drop (call $lookup (i32.const 0) (i32.const 3) (i32.const 64)'
        " (i32.const 8)))) (func (export", 1,
    )  # fmt: skip
    budget = answers()
    function = make(text, allow=("lookup",))
    assert function.call(ONE_ROW, 1, budget).get(0) == 7001
    assert budget.count("f", "lookup") == 3
