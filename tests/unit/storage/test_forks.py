"""Forked children beside threads of their parent that use the file at that moment."""

from __future__ import annotations

import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable

import pytest

import tarsdb
from tarsdb.metrics import METRICS
from tarsdb.options import Durability, OpenOptions
from tarsdb.storage.environment import Environment
from tests.unit.storage.kv import Put

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux only")
RELAXED = OpenOptions(durability=Durability.RELAXED, lock_timeout_s=30)


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a child; return its exit code, -14 where it did not end in ten seconds."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("what", ["read", "write"])
def test_a_child_opens_a_file_that_threads_of_its_parent_use(
    tmp_path: pathlib.Path, what: str
) -> None:
    """At a fork in the middle of a call lmdb waits for ever for that call to end."""
    path = tmp_path / "t.tars"
    env = Environment.open(path, RELAXED)
    env.commit(Put(b"a"))
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            if what == "read":
                with env.read() as txn:
                    for _ in range(50):
                        txn.get("delta", b"a")
            else:
                env.commit(Put(b"p"))

    def child() -> None:
        own = Environment.open(path, RELAXED)
        own.commit(Put(b"child %d" % os.getpid()))
        own.release()

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    codes = []
    for _ in range(20):
        codes.append(fork(child))
        time.sleep(0.003)
    stop.set()
    for thread in threads:
        thread.join()
    assert codes == [0] * 20
    with env.read() as txn:
        assert len([1 for _ in txn.range("delta", b"child", b"chile")]) == 20
    env.release()


def test_a_child_counts_although_a_thread_of_its_parent_was_counting() -> None:
    with METRICS._lock:
        assert fork(lambda: METRICS.add("test")) == 0


def test_a_child_leaves_its_parents_memory_database(tmp_path: pathlib.Path) -> None:
    with tarsdb.connect(":memory:") as db:
        db.execute("CREATE TABLE t (a INT)")
        file = pathlib.Path(db._require_session().env.path)
        assert fork(db.close) == 0
        assert file.exists()
    assert not file.exists()
