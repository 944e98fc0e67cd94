"""The shared environment: sharing, forks, old readers, growth, recovery."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import lmdb
import pytest

from tarsdb.errors import (
    ForkedProcessError,
    InterfaceError,
    OperationalError,
    ReadOnlyError,
    SnapshotExpiredError,
    StorageFullError,
)
from tarsdb.options import Durability, OpenOptions
from tarsdb.storage import reader_watch, verify
from tarsdb.storage.environment import Environment
from tarsdb.storage.transaction import WriteTxn
from tests.unit.storage.kv import Put

RELAXED = OpenOptions(durability=Durability.RELAXED)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "t.tars")


@pytest.fixture
def env(path: str) -> Iterator[Environment]:
    env = Environment.open(path, RELAXED)
    yield env
    env.release()


def in_child(function: Callable[[], None]) -> None:
    """Run a function in a forked child; its exception fails the test."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException as error:
            print("in the child:", repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_one_environment_per_file(env: Environment, path: str, tmp_path: pathlib.Path) -> None:
    os.symlink(path, tmp_path / "link")
    again = Environment.open(tmp_path / "link")
    assert again is env
    again.release()
    env.commit(Put(b"a"))
    assert sorted(os.listdir(tmp_path)) == ["link", "t.tars", "t.tars-lock"]


def test_closing_waits_for_the_last_reader(path: str) -> None:
    env = Environment.open(path, RELAXED)
    env.commit(Put(b"a", bytes(5000)))
    txn = env.read()
    view = txn.get("delta", b"a")
    env.release()
    assert view is not None and bytes(view) == bytes(5000)
    revived = Environment.open(path)
    assert revived is env
    revived.release()
    txn.close()
    with pytest.raises(InterfaceError, match="closed"):
        env.read()
    fresh = Environment.open(path)
    assert fresh is not env
    fresh.release()


def test_read_only(path: str) -> None:
    Environment.open(path).release()
    env = Environment.open(path, OpenOptions(read_only=True))
    with pytest.raises(ReadOnlyError):
        env.commit(Put(b"a"))
    epoch = env.epoch
    writer = Environment.open(path, RELAXED)
    writer.commit(Put(b"a"))
    assert (writer is env, env.epoch) == (True, epoch + 1)
    env.release()
    writer.release()


def test_other_processes_see_each_commit_at_once(env: Environment, path: str) -> None:
    code = (
        "import sys\nfrom tarsdb.storage.environment import Environment\n"
        "from tarsdb.options import OpenOptions\n"
        f"env = Environment.open({path!r}, OpenOptions(read_only=True))\n"
        "for line in sys.stdin:\n"
        "    with env.read() as txn: print(txn.commit_number, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin and child.stdout
        for number in range(1, 20):
            env.commit(Put(b"%d" % number))
            child.stdin.write("\n")
            child.stdin.flush()
            assert int(child.stdout.readline()) == number
        child.stdin.close()


# --- fork ---


def test_a_fork_is_refused_and_can_open_anew(env: Environment, path: str) -> None:
    env.commit(Put(b"a"))
    txn = env.read()

    def child() -> None:
        with pytest.raises(ForkedProcessError):
            env.read()
        with pytest.raises(ForkedProcessError):
            env.commit(Put(b"x"))
        own = Environment.open(path, RELAXED)
        assert own is not env
        own.commit(Put(b"b"))
        with own.read() as mine:
            assert mine.commit_number == 2
        own.release()

    in_child(child)
    assert [k for k, _ in txn.range("delta", b"", None)] == [b"a"]
    txn.close()
    with env.read() as new:
        assert [k for k, _ in new.range("delta", b"", None)] == [b"a", b"b"]


def test_a_child_does_not_unprotect_its_parents_snapshot(env: Environment, path: str) -> None:
    """Freeing an inherited read transaction must not clear the parent's slot."""
    env.commit(Put(b"a", b"\x01" * 20000))
    txn = env.read()
    view = txn.get("delta", b"a")
    assert view is not None

    def child() -> None:
        nonlocal txn
        own = Environment.open(path, RELAXED)
        del txn
        gc.collect()
        own.release()

    in_child(child)
    readers = env._lmdb.readers()
    assert readers.count(str(os.getpid())) == 1, readers
    for byte in range(2, 12):
        env.commit(Put(b"a", bytes([byte]) * 20000))
    assert bytes(view) == b"\x01" * 20000
    txn.close()


def _insert(path: str, name: bytes) -> None:
    env = Environment.open(path, OpenOptions(lock_timeout_s=30))
    for step in range(10):
        env.commit(Put(b"%s-%d" % (name, step)))
    env.release()


def test_forked_workers_write_together(env: Environment, path: str) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_insert, args=(path, b"%d" % n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for step in range(10):
        env.commit(Put(b"p-%d" % step), timeout_s=30)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    with env.read() as txn:
        assert (txn.commit_number, txn.count("delta")) == (40, 40)


# --- old readers ---


def test_a_parked_reader_is_ended_and_an_active_one_refused(path: str) -> None:
    env = Environment.open(path, OpenOptions(max_read_age_s=0.1, durability=Durability.RELAXED))
    parked, active, fresh = env.read(), env.read(), None
    parked.park()
    deadline = time.monotonic() + 5
    while len(env.live_readers()) == 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(env.live_readers()) == 1
    fresh = env.read()
    fresh.get("meta", b"head")
    with pytest.raises(SnapshotExpiredError, match="commit 0 is 0 s old"):
        parked.resume()
    with pytest.raises(SnapshotExpiredError):
        active.get("meta", b"head")
    with pytest.raises(SnapshotExpiredError):
        active.file_state()
    active.close()
    fresh.close()
    assert env.live_readers() == []
    env.release()


def test_only_what_lies_unused_is_ended_where_no_limit_is_given(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_watch, "IDLE_LIMIT_S", 0.4)
    env = Environment.open(path, RELAXED)
    active, used, forgotten = env.read(), env.read(), env.read()
    forgotten.park()
    deadline = time.monotonic() + 1.2
    while time.monotonic() < deadline:  # three times as long in all, never that long between
        used.park()
        time.sleep(0.02)
        used.resume()
        active.get("meta", b"head")
    used.get("meta", b"head")
    with pytest.raises(SnapshotExpiredError, match="without use"):
        forgotten.resume()
    assert len(env.live_readers()) == 2
    active.close()
    used.close()
    env.release()


def test_a_young_parked_reader_resumes(env: Environment) -> None:
    txn = env.read()
    txn.park()
    txn.resume()
    assert txn.get("meta", b"head") is not None
    txn.park()
    txn.close()


def test_the_file_stays_small_once_a_forgotten_reader_is_ended(path: str) -> None:
    env = Environment.open(path, OpenOptions(max_read_age_s=0.1, durability=Durability.RELAXED))
    forgotten = env.read()
    forgotten.park()
    while env.live_readers():
        time.sleep(0.01)
    for _ in range(40):
        env.commit(Put(b"k", bytes(1 << 18)))
    assert env.size_bytes() < 4 << 20
    forgotten.close()
    env.release()


def test_readers_of_dead_processes_are_cleared(env: Environment, path: str) -> None:
    code = (
        "import os, signal\nfrom tarsdb.storage.environment import Environment\n"
        f"txn = Environment.open({path!r}).read()\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert env.reader_check() == 1
    assert env.reader_check() == 0


# --- space ---


def test_the_watch_clears_readers_of_dead_processes(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_watch, "_READER_CHECK_S", 0.0)
    env = Environment.open(path, OpenOptions(max_read_age_s=0.2))
    code = (
        "import os, sys; from tarsdb.storage.environment import Environment; "
        "txn = Environment.open(sys.argv[1]).read(); os.kill(os.getpid(), 9)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, path])
    child.wait()
    deadline = time.monotonic() + 10
    while str(child.pid) in env._lmdb.readers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert str(child.pid) not in env._lmdb.readers()
    env.release()


def test_a_quota_is_an_error_and_not_the_end(path: str) -> None:
    options = OpenOptions(max_size_bytes=1 << 20, durability=Durability.RELAXED)
    env = Environment.open(path, options)
    stored = 0
    with pytest.raises(StorageFullError, match="size limit"):
        for stored in range(100):
            env.commit(Put(b"%03d" % stored, bytes(50_000)))
    with pytest.raises(StorageFullError):
        env.stage(lambda txn: txn.put("blocks", b"k", bytes(1 << 20)))
    assert env.size_bytes() <= 1 << 20
    with env.read() as txn:
        assert txn.commit_number == txn.count("delta") == stored > 5
    env.stage(lambda txn: [txn.delete("delta", b"%03d" % n) for n in range(stored)])
    env.commit(Put(b"again", bytes(50_000)))
    env.release()
    larger = Environment.open(path, RELAXED)
    larger.commit(Put(b"big", bytes(2 << 20)))
    assert verify.find_problems(path, None) == ([], True)
    larger.release()


LIMITED = """
import resource, signal, sys
from tarsdb.errors import StorageFullError
from tarsdb.options import *
from tarsdb.storage.environment import Environment
from tests.unit.storage.kv import Put
env = Environment.open(sys.argv[1], OpenOptions(durability=Durability.RELAXED))
"""


def run_limited(path: str, code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED + code, path],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_file_size_limit_stands_for_a_full_disk(path: str) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the write, as a full disk does."""
    code = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, -1))
try:
    for stored in range(100): env.commit(Put(b"%03d" % stored, bytes(50_000)), Durability.FULL)
except StorageFullError as error:
    print("full", stored)
with env.read() as txn: print(txn.commit_number)
env.stage(lambda txn: [txn.delete("delta", b"%03d" % n) for n in range(stored)])
for n in range(4): print(env.commit(Put(b"again", bytes(50_000))).number - stored)
"""
    word, stored, number, *more = run_limited(path, code)
    assert (word, number, more) == ("full", stored, ["1", "2", "3", "4"])
    assert verify.find_problems(path, None) == ([], True)


def test_limited_address_space_and_growth(path: str) -> None:
    code = """
import threading
print(env.stat()["map_size"])
for n in range(24): env.commit(Put(b"%03d" % n, bytes(8 << 20)))
with env.read() as txn: print(txn.count("delta"))
print(env.stat()["map_size"], env.epoch)
"""
    limit = "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, -1))\n"
    code = limit + "env.release(); env = Environment.open(sys.argv[1], OpenOptions())\n" + code
    first, count, last, epoch = map(int, run_limited(path, code))
    assert (first, count) == (1 << 27, 24)
    assert last > first
    assert epoch > 1


def test_another_process_outgrew_our_map(path: str) -> None:
    small = OpenOptions(map_size_bytes=1 << 20, durability=Durability.RELAXED)
    env = Environment.open(path, small)
    run_limited(path, "env.commit(Put(b'big', bytes(8 << 20)))")
    with env.read() as txn:
        assert len(txn.get("delta", b"big") or b"") == 8 << 20
    assert env.epoch == 2
    env.commit(Put(b"more"))
    env.release()


# --- recovery ---


def test_a_panic_reopens(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed meta write LMDB refuses every transaction until it is reopened."""
    env.commit(Put(b"a"))
    env.caches["address"] = 1

    def panic(*_: object) -> None:
        raise lmdb.PanicError("update of meta page failed")

    for use in (lambda: env.commit(Put(b"b")), lambda: env.read().close()):
        epoch = env.epoch
        monkeypatch.setattr(env, "_begin", panic)
        use()
        assert (env.epoch, env.caches) == (epoch + 1, {})
    reader = env.read()
    monkeypatch.setattr(env, "_begin", panic)
    monkeypatch.setattr("tarsdb.storage.environment._QUIESCE_S", 0.05)
    with pytest.raises(OperationalError, match="1 read transactions are open"):
        env.read()
    reader.close()
    with env.read() as txn:
        assert txn.commit_number == 2


def test_a_reopened_path_must_be_the_same_file(env: Environment, path: str) -> None:
    os.rename(path, path + ".moved")
    with pytest.raises(OperationalError, match="replaced"):
        env._reopen(RELAXED)
    os.rename(path + ".moved", path)
    env._reopen(RELAXED)
    env.commit(Put(b"a"))


def test_copy_is_complete_and_never_overwrites(env: Environment, tmp_path: pathlib.Path) -> None:
    for number in range(5):
        env.commit(Put(b"%d" % number, bytes(100_000)))
    env.stage(lambda txn: txn.delete("delta", b"0"))
    env.copy(tmp_path / "copy.tars")
    assert (tmp_path / "copy.tars").stat().st_size <= env.size_bytes()
    copy = Environment.open(tmp_path / "copy.tars", OpenOptions(check=True))
    with copy.read() as txn:
        assert (txn.commit_number, txn.count("delta")) == (5, 4)
    assert copy.file_id == env.file_id
    copy.release()
    with pytest.raises(OperationalError, match="exists already"):
        env.copy(tmp_path / "copy.tars")
    with pytest.raises(OperationalError):
        env.copy(tmp_path / "absent" / "copy.tars")


def test_staged_work_has_no_number(env: Environment) -> None:
    def work(txn: WriteTxn) -> int:
        txn.put("blocks", b"k", b"v")
        return txn.commit_number

    env.commit(Put(b"a"))
    assert env.stage(work) == 1
    with env.read() as txn:
        assert (txn.commit_number, txn.count("commits")) == (1, 1)
    assert set(env.stat()) >= {"map_size", "file_size", "used_bytes", "entries_blocks"}


def test_the_limit_of_this_process_is_untouched() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
