"""Results of models in the file: found again, bounded, erased, mended; old files open."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import lmdb
import pytest

from tarsdb.errors import StorageFullError
from tarsdb.options import OpenOptions
from tarsdb.schema import ModelDef, ModelVersion
from tarsdb.storage import Environment, Snapshot, WriteSet, check, inference, vacuum
from tarsdb.storage.inference import Entry, entry_name, text_digest
from tarsdb.storage.transaction import WriteTxn

WAY = inference.digest(b"embed, fp32")
OPTIONS = OpenOptions(background_merge=False)


def make_model(env: Environment, name: str = "m", content: str = "a") -> bytes:
    """Put a model into the catalog; return the digest of its weights."""
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        blob = writes.put_blob(content.encode())
        made = ModelVersion("v1", 0, {"config.json": blob}, {"w": ("<f4", (2,), blob)})
        writes.put_object("model", name, ModelDef(writes.new_id(), name, "embed", 2, "v1", (made,)))
        writes.commit()
    return made.weights_digest


def drop_model(env: Environment, name: str = "m") -> None:
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        writes.delete_object("model", name)
        writes.commit()


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "t.tars"


@pytest.fixture
def env(path: pathlib.Path) -> Iterator[Environment]:
    env = Environment.open(path, OPTIONS)
    yield env
    env.release()


def mark(env: Environment) -> str:
    with env.read() as txn:
        return inference.read_state(txn).mark


def names(weights: bytes, *texts: str) -> list[bytes]:
    return [entry_name([text_digest(text)], weights, WAY) for text in texts]


def store(env: Environment, found: list[bytes], value: bytes = b"value") -> int:
    now = mark(env)
    return inference.write(env, [Entry(name, value, now) for name in found])


def values(env: Environment, found: list[bytes]) -> list[bytes | None]:
    with env.read() as txn:
        return [each and each.value for each in inference.find(txn, found)]


def test_what_was_stored_is_found_and_makes_no_commit(env: Environment) -> None:
    weights = make_model(env)
    with env.read() as txn:
        before = txn.commit_number
    assert store(env, names(weights, "a", "b"), b"x" * 5000) == 2
    assert values(env, names(weights, "a", "c", "b")) == [b"x" * 5000, None, b"x" * 5000]
    with env.read() as txn:
        assert txn.commit_number == before
        assert inference.count(txn) == 2


def test_every_part_of_a_name_counts(env: Environment) -> None:
    weights = make_model(env)
    store(env, names(weights, "a"))
    a, b = text_digest("a"), text_digest("b")
    for inputs, of, way in (
        ([b], weights, WAY),
        ([a], inference.digest(b"other"), WAY),
        ([a], weights, inference.digest(b"embed, int8")),
        ([a, b], weights, WAY),
    ):
        assert values(env, [entry_name(inputs, of, way)]) == [None]


def test_results_of_weights_nobody_has_are_not_stored(env: Environment) -> None:
    weights = make_model(env)
    assert store(env, names(inference.digest(b"gone"), "a")) == 0
    assert store(env, names(weights, "a")) == 1


def test_the_limit_is_kept_and_the_newest_stay(env: Environment) -> None:
    weights = make_model(env)
    inference.set_limit(env, inference.SMALLEST_LIMIT)
    texts = [str(n) for n in range(2000)]
    for start in range(0, len(texts), 100):
        store(env, names(weights, *texts[start : start + 100]), b"v" * 1536)
        with env.read() as txn:
            assert inference.size_bytes(txn) <= inference.SMALLEST_LIMIT
    kept = [value is not None for value in values(env, names(weights, *texts))]
    assert 300 < sum(kept) < 640
    assert all(kept[-100:])
    assert not any(kept[:1000])
    assert check(env, full=True) == []


def test_what_is_read_in_an_old_generation_and_written_again_stays(env: Environment) -> None:
    weights = make_model(env)
    inference.set_limit(env, inference.SMALLEST_LIMIT)
    (used,), moved = names(weights, "used"), 0
    store(env, [used], b"u" * 1536)
    for n in range(40):
        store(env, names(weights, *(f"{n} {i}" for i in range(50))), b"v" * 1536)
        with env.read() as txn:
            (found,) = inference.find(txn, [used])
        assert found is not None, f"lost after {n} writes"
        if found.is_old:
            again = Entry(used, found.value, mark(env), found.generation)
            moved += inference.write(env, [again])
    assert moved >= 2
    with env.read() as txn:  # once, not once in each generation
        copies = [key for key in inference._keys(txn) if used in key]
    assert len(copies) == 1


def test_lowering_the_limit_removes_and_survives_a_new_process(path: pathlib.Path) -> None:
    env = Environment.open(path, OPTIONS)
    weights = make_model(env)
    for n in range(10):
        store(env, names(weights, *(f"{n} {i}" for i in range(200))), b"v" * 1536)
    with env.read() as txn:
        assert inference.size_bytes(txn) > 2 * inference.SMALLEST_LIMIT
    inference.set_limit(env, inference.SMALLEST_LIMIT)
    env.release()
    env = Environment.open(path, OPTIONS)
    with env.read() as txn:
        assert inference.read_state(txn).limit == inference.SMALLEST_LIMIT
        assert inference.size_bytes(txn) <= inference.SMALLEST_LIMIT
    env.release()


def test_forgetting_an_input_reaches_every_model_and_pairs(env: Environment) -> None:
    one, two = make_model(env), make_model(env, "n", "b")
    secret, other = text_digest("secret"), text_digest("other")
    gone = [
        *names(one, "secret"),
        *names(two, "secret"),
        entry_name([secret, other], one, WAY),
        entry_name([other, secret], one, WAY),
    ]
    kept = [*names(one, "other"), entry_name([other, other], one, WAY)]
    store(env, gone + kept)
    assert inference.forget_input(env, "secret") == 4
    assert values(env, gone) == [None] * 4
    assert values(env, kept) == [b"value"] * 2
    assert inference.forget_input(env, "never seen") == 0


def test_what_was_computed_before_an_erasure_is_not_written_after_it(env: Environment) -> None:
    weights = make_model(env)
    late = [Entry(name, b"v", mark(env)) for name in names(weights, "secret")]
    inference.forget_input(env, "secret")
    assert inference.write(env, late) == 0
    assert store(env, names(weights, "secret")) == 1  # computed again later: allowed


def test_results_go_with_the_last_model_that_has_the_weights(env: Environment) -> None:
    weights = make_model(env)
    assert make_model(env, "same") == weights
    store(env, names(weights, "a"))
    drop_model(env)
    assert inference.forget_dead(env) == 0
    drop_model(env, "same")
    assert inference.forget_dead(env) == 1
    assert values(env, names(weights, "a")) == [None]


def _flip(txn: WriteTxn, db: str, key: bytes) -> None:
    raw = txn.get(db, key)
    assert raw is not None
    changed = bytearray(raw)
    changed[-1] ^= 1
    txn.put(db, key, bytes(changed))


def test_a_damaged_entry_is_a_miss_is_found_by_the_check_and_mended(env: Environment) -> None:
    weights = make_model(env)
    store(env, names(weights, "a", "b", "c"))
    with env.read() as txn:
        keys = list(inference._keys(txn))
    env.stage(lambda txn: [_flip(txn, inference.DATABASE, key) for key in keys[:2]])
    assert values(env, names(weights, "a", "b", "c")).count(None) == 2
    assert check(env) == []
    (finding,) = check(env, full=True)
    assert "2 of 3 results are damaged" in finding
    store(env, names(weights, "a", "b", "c"))  # computed and written again
    assert values(env, names(weights, "a", "b", "c")) == [b"value"] * 3
    assert check(env, full=True) == []
    env.stage(lambda txn: _flip(txn, inference.DATABASE, keys[0]))
    vacuum(env)
    assert check(env, full=True) == []
    with env.read() as txn:
        assert inference.count(txn) == 2


def test_a_damaged_state_loses_nothing_and_is_made_anew(env: Environment) -> None:
    weights = make_model(env)
    inference.set_limit(env, 5 << 20)
    store(env, names(weights, "a"))
    env.stage(lambda txn: _flip(txn, "meta", b"inference"))
    assert values(env, names(weights, "a")) == [b"value"]
    assert "state is damaged" in check(env, full=True)[0]
    assert store(env, names(weights, "b")) == 0  # its mark is nobody's
    assert check(env, full=True) == []
    assert store(env, names(weights, "b")) == 1


def test_a_stray_generation_costs_no_endless_search(env: Environment) -> None:
    weights = make_model(env)
    store(env, names(weights, "a"))
    (name,) = names(weights, "b")
    stray = b"\xff\xff\xff\xfe" + name
    env.stage(lambda txn: txn.put(inference.DATABASE, stray, b"nothing"))
    assert values(env, names(weights, "a", "b")) == [None, None]  # out of reach: computed again
    assert "1 of 2 results are damaged" in check(env, full=True)[0]
    vacuum(env)
    assert values(env, names(weights, "a")) == [b"value"]


def _without(path: pathlib.Path) -> None:
    """Make a file as releases before wrote it."""
    env = lmdb.open(str(path), subdir=False, max_dbs=16, map_size=1 << 24)
    db = env.open_db(b"inference", create=False)
    with env.begin(write=True) as txn:
        txn.drop(db, delete=True)
    env.close()


def test_a_file_of_an_older_release_opens_and_gets_the_database(path: pathlib.Path) -> None:
    env = Environment.open(path, OPTIONS)
    weights = make_model(env)
    env.release()
    _without(path)
    env = Environment.open(path, OpenOptions(read_only=True))
    with env.read() as txn:
        assert not txn.has(inference.DATABASE)
        assert inference.find(txn, names(weights, "a")) == [None]
        assert inference.size_bytes(txn) == inference.count(txn) == 0
    assert check(env, full=True) == []
    env.release()
    env = Environment.open(path, OPTIONS)
    assert store(env, names(weights, "a")) == 1
    assert values(env, names(weights, "a")) == [b"value"]
    env.release()


def test_a_process_that_opened_an_older_file_read_only_goes_on(path: pathlib.Path) -> None:
    env = Environment.open(path, OPTIONS)
    weights = make_model(env)
    env.release()
    _without(path)
    reader = Environment.open(path, OpenOptions(read_only=True))
    writer = Environment.open(path, OPTIONS)  # the same environment, now for writing
    assert writer is reader
    assert store(writer, names(weights, "a")) == 1
    writer.release()
    reader.release()


def test_a_quota_bounds_the_results_and_is_left_to_the_rows(path: pathlib.Path) -> None:
    env = Environment.open(path, OpenOptions(background_merge=False, max_size_bytes=16 << 20))
    weights = make_model(env)
    for n in range(20):
        try:
            store(env, names(weights, *(f"{n} {i}" for i in range(200))), b"v" * 1536)
        except StorageFullError:
            pytest.fail("results filled the quota")
    with env.read() as txn:
        assert (1 << 20) < inference.size_bytes(txn) <= 2 << 20
    env.release()
