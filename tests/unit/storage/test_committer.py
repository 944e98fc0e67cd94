"""Commits: numbers, failures that stay alone, group commit, waiting for the writer."""

from __future__ import annotations

import json
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tarsdb.errors import ConflictError, LockError, OperationalError, StorageFullError
from tarsdb.options import Durability, OpenOptions
from tarsdb.storage import failpoints
from tarsdb.storage.committer import GROUP_ROWS
from tarsdb.storage.environment import Environment
from tarsdb.storage.values import ValueType, unpack
from tests.unit.storage.kv import Put


@pytest.fixture
def env(tmp_path: pathlib.Path) -> Iterator[Environment]:
    env = Environment.open(tmp_path / "t.tars", OpenOptions(durability=Durability.RELAXED))
    yield env
    failpoints.disarm()
    env.release()


def keys(env: Environment) -> list[bytes]:
    with env.read() as txn:
        return [key for key, _ in txn.range("delta", b"", None)]


def start(*functions: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    return threads


def hold_writer(env: Environment) -> tuple[threading.Event, threading.Thread]:
    """Occupy the writer from another thread until the event is set."""
    entered, leave = threading.Event(), threading.Event()

    def work(_: object) -> None:
        entered.set()
        leave.wait(10)

    (thread,) = start(lambda: env.stage(work))
    assert entered.wait(5)
    return leave, thread


def test_numbers_times_and_the_log(env: Environment) -> None:
    infos = [env.commit(Put(b"%d" % i), d) for i, d in enumerate([*Durability] * 2)]
    assert [info.number for info in infos] == [1, 2, 3, 4, 5, 6]
    assert sorted({info.timestamp_us for info in infos}) == [info.timestamp_us for info in infos]
    with env.read() as txn:
        assert (txn.commit_number, txn.timestamp_us) == infos[-1]
        for (key, value), info in zip(txn.range("commits", b"", None), infos, strict=True):
            payload, _, commit = unpack(ValueType.COMMIT, key, value)
            assert (int.from_bytes(key, "big"), commit) == (info.number, info.number)
            entry = json.loads(bytes(payload))
            assert entry["time"] == info.timestamp_us
            assert entry["changes"] == [{"put": (b"%d" % (info.number - 1)).hex()}]


def test_a_refused_or_exploding_change_writes_nothing(env: Environment) -> None:
    env.commit(Put(b"a"))
    with pytest.raises(ConflictError):
        env.commit(Put(b"b", refuse=ConflictError("row 1 changed")))
    with pytest.raises(ZeroDivisionError):
        env.commit(Put(b"c", explode=ZeroDivisionError()))
    assert env.commit(Put(b"d")).number == 2
    assert keys(env) == [b"a", b"d"]


@pytest.mark.parametrize(
    "point", ["commit.before_apply", "commit.after_apply", "commit.before_sync"]
)
def test_a_failure_before_the_sync_rolls_back(env: Environment, point: str) -> None:
    failpoints.arm(point, "enospc:1")
    with pytest.raises(StorageFullError):
        env.commit(Put(b"a"))
    assert keys(env) == []
    assert env.commit(Put(b"b")).number == 1


def test_a_failed_sync_says_the_outcome_is_unknown(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(env, "sync", fail)
    with pytest.raises(OperationalError, match="outcome is unknown"):
        env.commit(Put(b"a"), Durability.FULL)
    monkeypatch.undo()
    assert env.commit(Put(b"b"), Durability.FULL).number == 2


@pytest.mark.parametrize("durability", [Durability.FULL, Durability.GROUP])
def test_group_commit_shares_a_sync_and_failures_stay_alone(
    env: Environment, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    syncs: list[int] = []
    monkeypatch.setattr(env, "sync", lambda: syncs.append(1))
    outcomes: dict[int, object] = {}

    def commit(number: int) -> None:
        refuse = ConflictError("no") if number == 3 else None
        explode = ZeroDivisionError() if number == 5 else None
        change = Put(b"%02d" % number, refuse=refuse, explode=explode)
        try:
            outcomes[number] = env.commit(change, durability)
        except Exception as error:
            outcomes[number] = error

    leave, holder = hold_writer(env)
    threads = start(*[lambda n=n: commit(n) for n in range(4)])
    while len(env._committer._queue) < 4:
        time.sleep(0.001)
    leave.set()
    for thread in [*threads, holder]:
        thread.join()
    assert len(syncs) == 1
    assert keys(env) == [b"00", b"01", b"02"]
    assert isinstance(outcomes.pop(3), ConflictError)
    assert sorted(info.number for info in outcomes.values()) == [1, 2, 3]

    leave, holder = hold_writer(env)
    threads = start(*[lambda n=n: commit(n) for n in range(4, 8)])
    while len(env._committer._queue) < 4:
        time.sleep(0.001)
    leave.set()
    for thread in [*threads, holder]:
        thread.join()
    assert keys(env) == [b"00", b"01", b"02", b"04", b"06", b"07"]
    assert isinstance(outcomes[5], ZeroDivisionError)
    numbers = [outcomes[n].number for n in (4, 6, 7)]
    assert sorted(numbers) == [4, 5, 6]
    with env.read() as txn:
        assert txn.count("commits") == 6


def transactions(env: Environment) -> int:
    """Return the number of LMDB's last transaction."""
    return int(env._lmdb.info()["last_txnid"])


@pytest.mark.parametrize(
    ("durability", "rows", "expected"),
    [
        (Durability.FULL, [1, 1, 1, 1], 1),
        (Durability.FULL, [1, GROUP_ROWS, 1, 1], 2),
        (Durability.FULL, [GROUP_ROWS // 2] * 4, 2),
        (Durability.FULL, [GROUP_ROWS + 1] * 4, 4),
        (Durability.RELAXED, [1, 1, 1, 1], 4),
    ],
)
def test_which_commits_share_a_transaction(
    env: Environment, durability: Durability, rows: list[int], expected: int
) -> None:
    leave, holder = hold_writer(env)
    threads: list[threading.Thread] = []
    for number, count in enumerate(rows):
        change = Put(b"%d" % number, rows=count)
        threads += start(lambda c=change: env.commit(c, durability))
        while len(env._committer._queue) <= number:
            time.sleep(0.001)
    before = transactions(env)
    leave.set()
    for thread in [*threads, holder]:
        thread.join()
    assert len(keys(env)) == 4
    assert transactions(env) - before == expected  # the holder wrote nothing


def test_many_threads_of_all_durabilities(env: Environment) -> None:
    done: list[int] = []

    def work(thread: int) -> None:
        durability = [*Durability][thread % 3]
        for step in range(20):
            done.append(env.commit(Put(b"%02d-%02d" % (thread, step)), durability, 60.0).number)
            env.stage(lambda txn: txn.put("segments", b"s", b""), 60.0)

    for thread in start(*[lambda n=n: work(n) for n in range(9)]):
        thread.join()
    assert sorted(done) == list(range(1, 181))
    assert len(keys(env)) == 180


def test_a_waiting_thread_times_out(env: Environment) -> None:
    leave, holder = hold_writer(env)
    for durability in Durability:
        with pytest.raises(LockError, match=r"waited 0\.[12] s") as raised:
            env.commit(Put(b"a"), durability, timeout_s=0.1)
        assert raised.value.retryable
    leave.set()
    holder.join()
    assert keys(env) == []
    env.commit(Put(b"a"))


def test_an_interrupt_in_apply_leaves_the_queue_working(env: Environment) -> None:
    with pytest.raises(KeyboardInterrupt):
        env.commit(Put(b"a", explode=KeyboardInterrupt()), Durability.GROUP)
    env.commit(Put(b"b"), Durability.GROUP)
    assert keys(env) == [b"b"]


def test_an_interrupted_leader_hands_its_followers_on(env: Environment) -> None:
    leave, holder = hold_writer(env)
    errors: list[BaseException] = []

    def interrupted() -> None:
        try:
            env.commit(Put(b"a", explode=KeyboardInterrupt()), Durability.GROUP)
        except KeyboardInterrupt as error:
            errors.append(error)

    first = start(interrupted)
    while len(env._committer._queue) < 1:
        time.sleep(0.001)
    rest = start(*[lambda n=n: env.commit(Put(b"%d" % n), Durability.GROUP) for n in range(3)])
    while len(env._committer._queue) < 4:
        time.sleep(0.001)
    leave.set()
    for thread in [*first, *rest, holder]:
        thread.join(10)
        assert not thread.is_alive()
    assert len(errors) == 1
    assert keys(env) == [b"0", b"1", b"2"]
