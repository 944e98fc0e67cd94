"""Blobs by content, leases of processes, and their collection."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tarsdb.errors import CorruptionError
from tarsdb.options import Durability, OpenOptions
from tarsdb.storage import blobs, failpoints, leases
from tarsdb.storage.environment import Environment
from tarsdb.storage.transaction import WriteTxn


@pytest.fixture
def env(tmp_path: pathlib.Path) -> Iterator[Environment]:
    env = Environment.open(tmp_path / "t.tars", OpenOptions(durability=Durability.RELAXED))
    yield env
    failpoints.disarm()
    env.release()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(blobs, "TXN_BYTES", 4000)


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 12345])
def test_round_trip_in_any_pieces(env: Environment, small_chunks: None, size: int) -> None:
    data = hashlib.shake_256(b"x").digest(size)
    digests = {
        blobs.put_blob(env, data),
        blobs.put_blob(env, (data[i : i + 7] for i in range(0, size, 7))),
        blobs.put_blob(env, [data[:5], memoryview(data)[5:]]),
    }
    assert digests == {hashlib.sha256(data).hexdigest()}
    (digest,) = digests
    with env.read() as txn:
        assert blobs.has_blob(txn, digest)
        assert blobs.blob_size(txn, digest) == size
        assert blobs.read_blob(txn, digest) == data
        assert all(len(chunk) <= 1000 for chunk in blobs.blob_chunks(txn, digest))


def test_real_sizes_stay_within_limits(env: Environment) -> None:
    sizes: list[int] = []
    failpoints.arm("stage.after_commit", lambda: sizes.append(env.size_bytes()))
    pieces = (bytes([i]) * (5 << 20) for i in range(9))
    digest = blobs.put_blob(env, pieces)
    assert len(sizes) == 2
    with env.read() as txn:
        assert blobs.blob_size(txn, digest) == 45 << 20
        assert max(map(len, blobs.blob_views(txn, digest))) <= 8 << 20
    assert env.size_bytes() < (45 << 20) * 1.01


def test_damage_and_absence_are_named(env: Environment, small_chunks: None) -> None:
    digest = blobs.put_blob(env, bytes(2500))
    chunk = hashlib.sha256(bytes(500)).digest() + bytes(4)

    def spoil(txn: WriteTxn) -> None:
        stored = bytearray(txn.get("blobs", chunk))
        stored[-1] ^= 1
        txn.put("blobs", chunk, bytes(stored))

    env.stage(spoil)
    with env.read() as txn, pytest.raises(CorruptionError, match="chunk 2 of 3"):
        blobs.read_blob(txn, digest)
    env.stage(lambda txn: txn.delete("blobs", chunk))
    with env.read() as txn, pytest.raises(CorruptionError, match="missing"):
        blobs.read_blob(txn, digest)
    with env.read() as txn, pytest.raises(CorruptionError, match="missing"):
        blobs.read_blob(txn, "00" * 32)


def test_an_interrupted_put_is_no_blob(env: Environment, small_chunks: None) -> None:
    failpoints.arm("blob.before_descriptor", "error:1")
    data = bytes(range(256)) * 40
    with pytest.raises(Exception, match="failpoint"):
        blobs.put_blob(env, data)
    with env.read() as txn:
        assert not blobs.has_blob(txn, hashlib.sha256(data).hexdigest())
        assert txn.count("blobs") > 0
    assert env.stage(lambda txn: blobs.delete_unreferenced(txn, [])) > 0
    with env.read() as txn:
        assert txn.count("blobs") == 0


def test_collection_keeps_what_is_live_shared_or_leased(
    env: Environment, small_chunks: None
) -> None:
    kept = blobs.put_blob(env, b"a" * 1000 + b"b" * 1000)
    gone = blobs.put_blob(env, b"a" * 1000 + b"c" * 1000)
    lease = env.lease()
    held = blobs.put_blob(env, b"d" * 3000, lease)
    assert env.stage(lambda txn: blobs.delete_unreferenced(txn, {kept})) > 1000
    with env.read() as txn:
        assert len(blobs.read_blob(txn, kept)) == 2000
        assert len(blobs.read_blob(txn, held)) == 3000
        assert not blobs.has_blob(txn, gone)
    lease.release()
    env.stage(lambda txn: blobs.delete_unreferenced(txn, {kept}))
    with env.read() as txn:
        assert not blobs.has_blob(txn, held)
        assert txn.count("blobs") == 3


def test_a_dead_process_holds_nothing(env: Environment) -> None:
    code = (
        "import os, signal\nfrom tarsdb.storage.environment import Environment\n"
        f"env = Environment.open({env.path!r})\nlease = env.lease()\n"
        "env.stage(lambda txn: lease.hold(txn, b'segment/1'))\n"
        "print(lease.token.hex(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    token = bytes.fromhex(done.stdout.strip())
    mine = env.lease()
    env.stage(lambda txn: mine.hold(txn, b"segment/2"))
    with env.read() as txn:
        found = {entry.name: entry.is_live for entry in leases.held(txn)}
        assert found == {b"segment/1": False, b"segment/2": True}
        assert leases.dead_tokens(txn) == [token]
    env.stage(lambda txn: leases.forget(txn, token))
    mine.release()
    with env.read() as txn:
        assert list(leases.held(txn)) == []
        assert list(txn.range("meta", b"lease/", b"lease0")) == []


def test_another_start_or_boot_is_another_process() -> None:
    record = leases._process(os.getpid())
    assert leases.is_running(json.dumps(record).encode())
    for change in ({"start": "1"}, {"boot": "other"}, {"pid": 2**22 + 1}):
        assert not leases.is_running(json.dumps({**record, **change}).encode())
    assert not leases.is_running(b"damaged")


def test_a_damaged_chunk_is_written_again(env: Environment) -> None:
    """Importing the same model anew is a way to mend its weights."""
    digest = blobs.put_blob(env, b"weights" * 1000)

    def spoil(txn: WriteTxn) -> None:
        for key, value in list(txn.range("blobs", b"", None)):
            if key.endswith(bytes(4)):
                txn.put("blobs", key, bytes(value[:-1]) + b"?")

    env.stage(spoil)
    with env.read() as txn, pytest.raises(CorruptionError):
        blobs.read_blob(txn, digest)
    assert blobs.put_blob(env, b"weights" * 1000) == digest
    with env.read() as txn:
        assert blobs.read_blob(txn, digest) == b"weights" * 1000
