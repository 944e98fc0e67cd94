"""Signals that raise at the worst moment: no commit is made twice, lost or left unanswered."""

from __future__ import annotations

import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tarsdb.errors import LockError
from tarsdb.options import Durability, OpenOptions
from tarsdb.storage import CommitInfo, failpoints
from tarsdb.storage.environment import Environment
from tarsdb.storage.locks import FileLocks
from tests.unit.storage.interruption import interrupted_at
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


class Once(Put):
    """A put that shows when it is made twice: its key holds the commit number."""

    def apply(self, txn: Any) -> None:
        txn.put("delta", self.key + b" in %d" % txn.commit_number, b"")


class Run:
    """A leader in this thread, with followers that queue up once it has the writer."""

    def __init__(
        self, env: Environment, durability: Durability, tag: bytes, followers: int
    ) -> None:
        self.env, self.durability, self.tag = env, durability, tag
        self.answers: dict[bytes, object] = {}
        self.interrupt: BaseException | None = None
        self.threads = [
            threading.Thread(target=self._follow, args=(b"%s-%d" % (tag, n),), daemon=True)
            for n in range(followers)
        ]

    def _follow(self, key: bytes) -> None:
        try:
            self.answers[key] = self.env.commit(Once(key), self.durability, 10.0)
        except BaseException as error:
            self.answers[key] = error

    def _queue_up(self) -> None:
        for thread in self.threads:
            thread.start()
        while len(self.env._committer._queue) < len(self.threads):
            time.sleep(0.0002)

    def lead(self, act: Callable[[Callable[[], object]], object]) -> None:
        """Let `act` run the leader's commit."""
        failpoints.arm("writer.taken", self._queue_up, nth=1)
        try:
            act(lambda: self._follow(self.tag))
        except KeyboardInterrupt as error:
            self.answers[self.tag] = error
        failpoints.disarm()
        for thread in self.threads:
            if thread.ident is not None:
                thread.join(10)
                assert not thread.is_alive(), "a follower waits for ever"

    def check(self, before: int) -> int:
        """Compare the file with the answers; return the number of the last commit."""
        found = [key.split(b" in ") for key in keys(self.env) if key.startswith(self.tag)]
        numbers = {name: int(number) for name, number in found}
        assert len(numbers) == len(found), f"made twice: {found}"
        assert sorted(numbers.values()) == list(range(before + 1, before + 1 + len(found)))
        for key, answer in self.answers.items():
            if isinstance(answer, CommitInfo):
                assert numbers[key] == answer.number
            else:
                assert key == self.tag, f"a follower got {answer!r}"
                assert isinstance(answer, KeyboardInterrupt)
                named = f"commit {numbers.get(key)} was made before the interrupt"
                assert str(answer) in ("", named), f"{answer} with {numbers}"
        committer = self.env._committer
        assert committer._leader is None and not committer._queue
        assert not self.env._live and not self.env._writing
        return before + len(found)


def is_writer_free(env: Environment) -> bool:
    """Ask for the file's writer lock as another process would."""
    fd = os.open(env.path, os.O_RDWR)
    try:
        FileLocks(fd, env.path).acquire_writer(0.0)
        return True
    except LockError:
        return False
    finally:
        os.close(fd)


def test_a_leader_interrupted_after_its_commit_answers_its_followers(env: Environment) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    failpoints.arm("commit.after_write", interrupt, nth=1)
    run = Run(env, Durability.GROUP, b"a", 2)
    run.lead(lambda commit: commit())
    assert run.check(0) == 3
    assert "commit 1 was made" in str(run.answers[b"a"])


@pytest.mark.parametrize("durability", [Durability.GROUP, Durability.FULL])
def test_an_interrupt_between_any_two_steps(env: Environment, durability: Durability) -> None:
    """Every commit is made once or not at all, answered, and leaves queue and lock free."""
    last = 0
    for moment in range(10_000):
        run = Run(env, durability, b"%04d" % moment, 1)
        where: list[str] = []
        run.lead(lambda commit, m=moment, w=where: interrupted_at(commit, m, w))
        try:
            last = run.check(last)
            assert is_writer_free(env)
        except AssertionError as error:
            raise AssertionError(f"interrupted at {where}: {error}") from error
        if not where:
            break
    assert moment > 50
