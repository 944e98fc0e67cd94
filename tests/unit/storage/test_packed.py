"""Packed weights in the file: mapped where they lie, kept while mapped, rebuilt when damaged."""

from __future__ import annotations

import gc
import pathlib
import threading
import time
from collections.abc import Iterator

import lmdb
import numpy as np
import pytest

from tarsdb.errors import StorageFullError
from tarsdb.memory_region import Region
from tarsdb.options import OpenOptions
from tarsdb.storage import Environment, check, failpoints, packed, vacuum
from tarsdb.storage.locks import UseLocks
from tarsdb.storage.transaction import WriteTxn
from tarsdb.storage.values import ValueType, pack
from tests.unit.storage.test_inference import OPTIONS, drop_model, make_model

NBYTES = packed.CHUNK_BYTES + 12345
pytestmark = pytest.mark.skipif(not packed.CAN_OVERLAY, reason="nothing is mapped here")


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "t.tars"


@pytest.fixture
def env(path: pathlib.Path) -> Iterator[Environment]:
    env = Environment.open(path, OPTIONS)
    yield env
    failpoints.disarm()
    env.release()


def content(seed: int = 0, nbytes: int = NBYTES) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, nbytes, np.uint8)


def region_of(values: np.ndarray) -> Region:
    region = Region(len(values))
    region.array[:] = values
    return region


def publish(env: Environment, weights: bytes, values: np.ndarray, left: int = 1 << 62) -> bool:
    name = packed.image_name(weights, "layout")
    return packed.publish(env, name, weights, region_of(values), lambda more: more <= left)


def find(env: Environment, weights: bytes, nbytes: int = NBYTES) -> Region | None:
    return packed.find(env, packed.image_name(weights, "layout"), nbytes)


def entries(env: Environment) -> int:
    with env.read() as txn:
        return txn.count(packed.DATABASE)


def overwrite_pages(env: Environment) -> None:
    """Commit enough to use every page that is free."""
    for number in range(4):
        value = bytes([number + 1]) * (9 << 20)
        env.stage(lambda txn, value=value: txn.put("blobs", b"filler", value))
        env.stage(lambda txn: txn.delete("blobs", b"filler"))
        env.stage(lambda txn, value=value: txn.put("blobs", b"filler2", value[: 5 << 20]))


@pytest.mark.parametrize("nbytes", [1, 5000, packed.CHUNK_BYTES, NBYTES])
def test_an_image_is_found_as_it_was_stored(env: Environment, nbytes: int) -> None:
    weights, values = make_model(env), content(nbytes, nbytes)
    assert find(env, weights, nbytes) is None
    region = region_of(values)
    address = region.address
    name = packed.image_name(weights, "layout")
    assert packed.publish(env, name, weights, region, lambda left: True)
    assert region.address == address
    assert region.overlaid == nbytes
    assert np.array_equal(region.array, values)
    found = find(env, weights, nbytes)
    assert found is not None
    assert found.overlaid == nbytes
    assert np.array_equal(found.array, values)
    assert find(env, weights, nbytes + 1) is None
    assert find(env, b"other weights", nbytes) is None
    assert packed.find(env, packed.image_name(weights, "other layout"), nbytes) is None


def test_an_image_makes_no_commit_and_holds_no_reader(env: Environment) -> None:
    weights = make_model(env)
    before = env.read().commit_number
    gc.collect()
    assert publish(env, weights, content())
    found = find(env, weights)
    assert found is not None
    assert env.live_readers() == []
    with env.read() as txn:
        assert txn.commit_number == before
        assert packed.size_bytes(txn) == packed.size_bytes(txn, weights) == NBYTES
        assert packed.size_bytes(txn, b"other") == 0


def test_pages_of_a_dropped_model_stay_while_it_is_mapped(env: Environment) -> None:
    weights, values = make_model(env), content()
    publish(env, weights, values)
    gc.collect()
    found = find(env, weights)
    assert found is not None
    drop_model(env)
    vacuum(env)
    overwrite_pages(env)
    assert entries(env) == 3
    assert np.array_equal(found.array, values)
    del found
    gc.collect()
    vacuum(env)
    assert entries(env) == 0


def test_without_the_lock_pages_would_be_written_over(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    weights, values = make_model(env), content()
    publish(env, weights, values)
    found = find(env, weights)
    assert found is not None
    monkeypatch.setattr(UseLocks, "exclude", lambda *_: True)
    drop_model(env)
    vacuum(env)
    overwrite_pages(env)
    assert not np.array_equal(found.array, values)


def test_an_image_outlives_its_environment(path: pathlib.Path) -> None:
    env = Environment.open(path, OPTIONS)
    weights, values = make_model(env), content()
    publish(env, weights, values)
    found = find(env, weights)
    env.release()
    assert found is not None
    assert np.array_equal(found.array, values)


def test_readers_of_a_read_only_file_map_it_too(path: pathlib.Path) -> None:
    env = Environment.open(path, OPTIONS)
    weights, values = make_model(env), content()
    publish(env, weights, values)
    env.release()
    gc.collect()
    reader = Environment.open(path, OpenOptions(read_only=True))
    found = find(reader, weights)
    assert found is not None
    assert np.array_equal(found.array, values)
    reader.release()


def damage(env: Environment, weights: bytes, number: int = 1, value: bytes | None = None) -> None:
    """Change one byte of a chunk, and not its checksum; or replace the value."""
    key = packed.image_name(weights, "layout") + number.to_bytes(4, "big")

    def work(txn: WriteTxn) -> None:
        raw = bytearray(txn.get(packed.DATABASE, key) or b"")
        raw[-1] ^= 1
        txn.put(packed.DATABASE, key, value or bytes(raw))

    env.stage(work)


@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_chunk_is_not_used_and_made_anew(env: Environment, number: int) -> None:
    weights, values = make_model(env), content()
    publish(env, weights, values)
    assert check(env, full=True) == []
    damage(env, weights, number)
    (finding,) = check(env, full=True)
    assert "packed weights: 1 of 1 images are damaged" in finding
    assert find(env, weights) is None
    gc.collect()
    assert publish(env, weights, values)
    assert check(env, full=True) == []
    found = find(env, weights)
    assert found is not None
    assert np.array_equal(found.array, values)


def test_vacuum_removes_damaged_images_and_parts_of_images(env: Environment) -> None:
    weights, values = make_model(env), content()
    publish(env, weights, values)
    damage(env, weights)
    vacuum(env)
    assert entries(env) == 0
    publish(env, weights, values)
    name = packed.image_name(weights, "layout")
    env.stage(lambda txn: txn.delete(packed.DATABASE, name + b"\xff" * 4))
    assert find(env, weights) is None
    assert check(env, full=True) == []
    gc.collect()
    vacuum(env)
    assert entries(env) == 0


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"bytes": "x", "weights": ""}', b"[1]"])
def test_a_descriptor_that_does_not_read_is_none(env: Environment, payload: bytes) -> None:
    weights = make_model(env)
    publish(env, weights, content())
    key = packed.image_name(weights, "layout") + b"\xff" * 4
    value = pack(ValueType.PACKED, key, payload)
    env.stage(lambda txn: txn.put(packed.DATABASE, key, value))
    assert find(env, weights) is None
    assert publish(env, weights, content())
    gc.collect()
    assert find(env, weights) is not None


@pytest.mark.parametrize("value", [b"short", b"x" * 300, b"y" * 20_000])
def test_a_chunk_of_another_size_is_no_chunk(env: Environment, value: bytes) -> None:
    weights = make_model(env)
    publish(env, weights, content())
    gc.collect()
    key = packed.image_name(weights, "layout") + (1).to_bytes(4, "big")
    damage(env, weights, 1, pack(ValueType.PACKED, key, value))
    assert find(env, weights) is None


def test_other_content_under_the_same_name_is_not_mapped_over_mine(env: Environment) -> None:
    weights = make_model(env)
    assert publish(env, weights, content(1))
    user = find(env, weights)
    mine = region_of(content(2))
    name = packed.image_name(weights, "layout")
    assert not packed.publish(env, name, weights, mine, lambda left: left < 1 << 40)
    assert mine.overlaid == 0
    assert np.array_equal(mine.array, content(2))
    assert user is not None
    assert np.array_equal(user.array, content(1))


def test_weights_of_no_model_are_not_stored(env: Environment) -> None:
    make_model(env)
    assert not publish(env, b"0123456789abcdef", content())
    assert entries(env) == 0


def test_who_may_not_go_on_leaves_nothing(env: Environment) -> None:
    weights = make_model(env)
    assert not publish(env, weights, content(), left=NBYTES - 1)
    assert entries(env) == 0
    failpoints.arm("packed.between_chunks", "error", 2)
    with pytest.raises(OSError, match="failpoint"):
        publish(env, weights, content())
    assert entries(env) == 0
    assert publish(env, weights, content())


def test_of_a_file_with_a_quota_images_take_a_quarter(path: pathlib.Path) -> None:
    env = Environment.open(path, OpenOptions(max_size_bytes=4 * NBYTES - 1))
    weights = make_model(env)
    assert not publish(env, weights, content())
    assert entries(env) == 0
    env.release()
    env = Environment.open(path, OpenOptions(max_size_bytes=8 * NBYTES))
    assert publish(env, weights, content())
    env.release()


def test_a_full_disk_leaves_nothing(env: Environment) -> None:
    weights = make_model(env)
    failpoints.arm("stage.before_commit", "enospc", 3)
    with pytest.raises((OSError, StorageFullError)):
        publish(env, weights, content())
    failpoints.disarm()
    assert entries(env) == 0


def test_who_comes_while_another_writes_waits_and_maps_the_same(env: Environment) -> None:
    weights, values = make_model(env), content()
    failpoints.arm("packed.between_chunks", "sleep:200")
    regions = [region_of(values) for _ in range(3)]
    name, done = packed.image_name(weights, "layout"), list[bool]()

    def run(region: Region) -> None:
        done.append(packed.publish(env, name, weights, region, lambda left: True))

    threads = [threading.Thread(target=run, args=(region,)) for region in regions]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    assert find(env, weights) is None  # not whole yet
    for thread in threads:
        thread.join()
    assert done == [True] * 3
    assert [region.overlaid for region in regions] == [NBYTES] * 3
    assert entries(env) == 3


def test_a_file_that_was_replaced_is_not_mapped(env: Environment, path: pathlib.Path) -> None:
    weights = make_model(env)
    publish(env, weights, content())
    gc.collect()
    path.rename(path.with_name("moved"))
    path.write_bytes(b"another file")
    assert find(env, weights) is None
    assert not publish(env, weights, content())
    path.unlink()
    path.with_name("moved").rename(path)
    assert find(env, weights) is not None


def test_a_file_without_the_database_is_read_and_gets_it(path: pathlib.Path) -> None:
    env = Environment.open(path, OPTIONS)
    weights = make_model(env)
    env.release()
    with lmdb.open(str(path), subdir=False, max_dbs=16, lib_version=0) as raw:
        database = raw.open_db(packed.DATABASE.encode())
        with raw.begin(write=True) as txn:
            txn.drop(database)
    reader = Environment.open(path, OpenOptions(read_only=True))
    assert find(reader, weights) is None
    assert check(reader, full=True) == []
    reader.release()
    env = Environment.open(path, OPTIONS)
    assert publish(env, weights, content())
    env.release()
