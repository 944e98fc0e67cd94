"""Safe open: creation, foreign files, damage, locks held by other processes."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import stat
import subprocess
import sys
import threading
import time

import lmdb
import pytest

from tarsdb.errors import (
    CorruptionError,
    DatabaseError,
    Error,
    FormatVersionError,
    LockError,
    NotSupportedError,
    OperationalError,
)
from tarsdb.options import Durability, OpenOptions
from tarsdb.storage import failpoints, opening
from tarsdb.storage.environment import Environment
from tarsdb.storage.values import ValueType, pack, unpack
from tests.unit.storage.kv import Put

ROOT = pathlib.Path(__file__).parents[3]
RELAXED = OpenOptions(durability=Durability.RELAXED)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "t.tars")


def fill(path: str, rows: int = 60) -> None:
    env = Environment.open(path, RELAXED)
    for number in range(rows):
        key = b"%03d" % number
        env.commit(Put(key, pack(ValueType.DELTA, key, bytes([number]) * 700)))
    env.stage(lambda txn: txn.put("blocks", b"b", pack(ValueType.BLOCK, b"b", bytes(30000))))
    env.release()


def read_all(path: str) -> int:
    """Open and read everything; return the number of values whose checksum held."""
    env = Environment.open(path, RELAXED)
    try:
        with env.read() as txn:
            for key, value in txn.range("delta", b"", None):
                payload = unpack(ValueType.DELTA, key, value)[0]
                assert bytes(payload) == bytes([int(key)]) * 700
            for key, value in txn.range("blocks", b"", None):
                unpack(ValueType.BLOCK, key, value)
            return txn.count("delta")
    finally:
        env.release()


def test_missing_files_and_directories(path: str, tmp_path: pathlib.Path) -> None:
    for options in (OpenOptions(read_only=True), OpenOptions(create=False)):
        with pytest.raises(OperationalError, match="no such database"):
            Environment.open(path, options)
    with pytest.raises(OperationalError, match="is a directory"):
        Environment.open(tmp_path)
    with pytest.raises(OperationalError, match="directory does not exist"):
        Environment.open(tmp_path / "a" / "b.tars")
    assert os.listdir(tmp_path) == []


def test_a_pipe_is_left_where_it_is(path: str) -> None:
    """It has no bytes, as an empty file has; so have devices."""
    os.mkfifo(path)
    with pytest.raises(OperationalError, match="a device or a pipe"):
        Environment.open(path)
    assert stat.S_ISFIFO(os.stat(path).st_mode)
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="Linux only")
def test_a_new_file_is_synced_then_named_then_its_directory_synced(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(fd: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    def replaced(source: str, target: str) -> None:
        done.append(f"{source} > {target}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    Environment.open(path).release()
    new = done[0]
    assert new.startswith(f"{path}.new-")
    assert done == [new, f"{new} > {path}", os.path.dirname(path)]


def test_an_empty_file_is_a_new_database(path: str) -> None:
    pathlib.Path(path).touch()
    with pytest.raises(DatabaseError, match="empty"):
        Environment.open(path, OpenOptions(read_only=True))
    fill(path, 3)
    assert read_all(path) == 3


@pytest.mark.parametrize("point", ["open.before_create", "open.before_publish"])
def test_a_birth_cut_short(path: str, tmp_path: pathlib.Path, point: str) -> None:
    failpoints.arm(point, "enospc:1")
    try:
        with pytest.raises(OperationalError):
            Environment.open(path)
    finally:
        failpoints.disarm()
    assert os.listdir(tmp_path) == ["t.tars"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from tarsdb.storage.environment import Environment as E\nE.open({path!r})",
        ],
        env={**os.environ, "TARSDB_FAILPOINTS": f"{point}=kill"},
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == -signal.SIGKILL
    fill(path, 3)
    assert read_all(path) == 3


def test_many_processes_create_one_file(path: str) -> None:
    code = (
        "import sys\nfrom tarsdb.options import *\n"
        "from tarsdb.storage.environment import Environment\n"
        "from tests.unit.storage.kv import Put\n"
        f"env = Environment.open({path!r}, OpenOptions(lock_timeout_s=30))\n"
        "env.commit(Put(sys.argv[1].encode()))\nprint(env.file_id.hex())"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], stdout=subprocess.PIPE, cwd=ROOT)
        for n in range(5)
    ]
    ids = {child.communicate()[0] for child in children}
    assert [child.returncode for child in children] == [0] * 5
    assert len(ids) == 1
    env = Environment.open(path)
    with env.read() as txn:
        assert txn.count("delta") == 5
    env.release()


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"hello world" * 1000,
        b"SQLite format 3\0" + bytes(9000),
        bytes(8192),
        bytes(100),
        b"PK\3\4" + bytes(20000),
    ],
)
def test_a_file_that_is_not_ours(path: str, tmp_path: pathlib.Path, content: bytes) -> None:
    pathlib.Path(path).write_bytes(content)
    with pytest.raises(DatabaseError, match="not a tarsdb database"):
        Environment.open(path)
    assert pathlib.Path(path).read_bytes() == content
    assert os.listdir(tmp_path) == ["t.tars"]


def test_other_lmdb_files(path: str, tmp_path: pathlib.Path) -> None:
    env = lmdb.open(path, subdir=False, lib_version=0)
    with env.begin(write=True) as txn:
        txn.put(b"k", b"v")
    env.close()
    with pytest.raises(DatabaseError, match="not a tarsdb database"):
        Environment.open(path)
    other = str(tmp_path / "other")
    env = lmdb.open(other, subdir=False, lib_version=1)
    with env.begin(write=True) as txn:
        txn.put(b"k", b"v")
    env.close()
    with pytest.raises(CorruptionError, match="engine"):
        Environment.open(other)


def test_another_format_version(path: str) -> None:
    fill(path, 1)
    env = lmdb.open(path, subdir=False, max_dbs=9, lib_version=0)
    meta = env.open_db(b"meta")
    with env.begin(write=True, db=meta) as txn:
        raw = bytearray(txn.get(b"format"))
        raw[6:8] = (77).to_bytes(2, "little")
        txn.put(b"format", bytes(raw))
    env.close()
    with pytest.raises(FormatVersionError, match="version 77, this release reads 1"):
        Environment.open(path)


def test_remote_filesystems_are_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tarsdb.storage.filesystems.filesystem_type", lambda _: "nfs4")
    with pytest.raises(NotSupportedError, match="nfs4"):
        Environment.open(path)


def test_a_system_engine_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb, "__version__", "1.4.1")
    with pytest.raises(NotSupportedError, match="bundled"):
        Environment.open(path)


# --- damage ---


def test_truncation_anywhere_is_an_error(path: str) -> None:
    fill(path)
    whole = pathlib.Path(path).read_bytes()
    for size in [1, 100, 4096, 8192, *range(12288, len(whole), 7 * 4096), len(whole) - 1]:
        pathlib.Path(path).write_bytes(whole[:size])
        with pytest.raises(DatabaseError):
            read_all(path)
    pathlib.Path(path).write_bytes(whole)
    assert read_all(path) == 60


DAMAGE = """
import pathlib, random, sys
sys.path.insert(0, "")
from tarsdb.errors import Error
from tests.unit.storage.test_opening import mutate, read_all
whole = pathlib.Path(sys.argv[1]).read_bytes()
good = bad = 0
for seed in range(int(sys.argv[2]), int(sys.argv[3])):
    path = f"{sys.argv[1]}.{seed}"
    pathlib.Path(path).write_bytes(mutate(whole, seed))
    print(seed, flush=True)
    try:
        assert read_all(path) in (59, 60)
        good += 1
    except Error:
        bad += 1
    for name in (path, path + "-lock"):
        pathlib.Path(name).unlink(missing_ok=True)
print("done", good, bad)
"""


def mutate(whole: bytes, seed: int) -> bytes:
    """Return the file with one of five kinds of damage."""
    rng = random.Random(seed)
    data = bytearray(whole)
    pages = len(data) // 4096
    page = rng.randrange(pages) * 4096
    kind = seed % 5
    if kind == 0:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[page : page + 4096] = bytes(4096)
    elif kind == 2:
        other = rng.randrange(pages) * 4096
        data[page : page + 4096] = whole[other : other + 4096]
    elif kind == 3:
        data[page + rng.randrange(64)] = rng.randrange(256)
    else:
        offset = page + rng.randrange(4000)
        data[offset : offset + 8] = rng.randbytes(8)
    return bytes(data)


def test_damaged_files_are_errors_or_right_and_never_kill(path: str) -> None:
    fill(path)
    done = subprocess.run(
        [sys.executable, "-c", DAMAGE, path, "0", "250"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    *seeds, last = done.stdout.splitlines()
    assert done.returncode == 0, f"seed {seeds[-1] if seeds else last}: {done.stderr[-2000:]}"
    word, good, bad = last.split()
    assert word == "done"
    assert int(good) > 0 and int(bad) > 60


# --- other processes ---

HOLDER = """
import sys, time
from tarsdb.options import *
from tarsdb.storage.environment import Environment
env = Environment.open(sys.argv[1], OpenOptions(durability=Durability.RELAXED))
def hold(txn):
    print("holding", flush=True)
    sys.stdin.readline()
env.stage(hold)
"""


def holder(path: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert child.stdout and child.stdout.readline() == "holding\n"
    return child


def open_beside_holder(path: str) -> tuple[subprocess.Popen[str], Environment]:
    """Open a file here first, then have another process hold its writer."""
    fill(path, 2)
    env = Environment.open(path, RELAXED)
    return holder(path), env


def test_a_busy_writer_in_another_process(path: str) -> None:
    child, env = open_beside_holder(path)
    with child:
        with pytest.raises(LockError, match=r"another process .* waited 0\.[23] s"):
            env.commit(Put(b"x"), timeout_s=0.2)
        with env.read() as txn:
            assert txn.count("delta") == 2
        timer = threading.Timer(0.2, lambda: child.communicate("\n"))
        timer.start()
        assert env.commit(Put(b"x"), timeout_s=10).number == 3
        timer.join()
        env.release()


def test_opening_beside_a_busy_writer(path: str) -> None:
    fill(path, 2)
    with holder(path) as child:
        reader = Environment.open(path, OpenOptions(read_only=True))
        with reader.read() as txn:
            assert txn.count("delta") == 2
        reader.release()
        with pytest.raises(LockError, match="waited"):
            Environment.open(path, OpenOptions(lock_timeout_s=0.2))
        child.communicate("\n")
    assert read_all(path) == 2


def test_a_killed_writer_frees_the_lock(path: str) -> None:
    child, env = open_beside_holder(path)
    with child:
        timer = threading.Timer(0.1, child.kill)
        timer.start()
        assert env.commit(Put(b"x"), timeout_s=10).number == 3
        timer.join()
        env.release()


def test_ctrl_c_ends_the_wait_and_loses_nothing(path: str) -> None:
    child, env = open_beside_holder(path)
    with child:
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            env.commit(Put(b"x"), timeout_s=30)
        assert time.monotonic() - started < 5
        child.communicate("\n")
        assert env.commit(Put(b"y")).number == 3
        env.release()


def test_check_beside_a_reader_and_beside_a_writer(path: str) -> None:
    fill(path, 2)
    with holder(path) as child:
        with pytest.raises(LockError):
            Environment.open(path, OpenOptions(check=True, lock_timeout_s=0.2))
        child.communicate("\n")
    env = Environment.open(path, OpenOptions(check=True))
    Environment.open(path, OpenOptions(check=True)).release()
    env.release()


def test_a_file_that_may_only_be_read_is_checked(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No lock on it can be exclusive, and damage must still not reach LMDB."""
    fill(path, 20)
    real = os.open

    def refuse(name: str, flags: int, *rest: int, **more: int) -> int:
        if os.fspath(name) == path and flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(13, "no")
        return real(name, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    for check in (False, True):
        options = OpenOptions(read_only=True, check=check)
        env = Environment.open(path, options)
        assert Environment.open(path, OpenOptions(read_only=True, check=True)) is env
        with env.read() as txn:
            assert txn.count("delta") == 20
        env.release()
        env.release()
    with holder(path) as child:
        env = Environment.open(path, OpenOptions(read_only=True, check=True))
        env.release()
        child.communicate("\n")
    content = bytearray(pathlib.Path(path).read_bytes())
    content[3 * 4096 :] = os.urandom(len(content) - 3 * 4096)
    pathlib.Path(path).write_bytes(content)
    for check in (False, True):
        with pytest.raises(CorruptionError):
            Environment.open(path, OpenOptions(read_only=True, check=check))


def test_hard_links_and_namespaces(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, 2)
    os.link(path, path + ".hard")
    with holder(path) as child:
        with pytest.raises(OperationalError, match="hard links"):
            Environment.open(path + ".hard")
        os.unlink(path + ".hard")
        monkeypatch.setattr(opening, "_process_namespace", lambda: 12345)
        with pytest.raises(OperationalError, match="namespace"):
            Environment.open(path)
        child.communicate("\n")
    Environment.open(path).release()


def test_errors_are_tarsdb_errors(path: str) -> None:
    fill(path, 1)
    os.chmod(path, 0)
    if os.access(path, os.R_OK):
        pytest.skip("running as root: permissions do not bind")
    with pytest.raises(Error):
        Environment.open(path)
