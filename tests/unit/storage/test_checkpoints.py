"""Checkpoints of long builds: whole or absent, whatever happens while they are written."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import tarsdb
from tarsdb.errors import Error
from tarsdb.storage import (
    Environment,
    checkpoint_name,
    checkpoints,
    failpoints,
    forget_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

NAME = checkpoint_name(b"a", b"b")


@pytest.fixture
def env(tmp_path: Path):  # type: ignore[no-untyped-def]
    with tarsdb.connect(tmp_path / "a.tars") as db:
        yield db._require_session().env


def load(env: Environment, name: bytes = NAME) -> bytes | None:
    with env.read() as txn:
        found = load_checkpoint(txn, name)
    return None if found is None else bytes(found)


def keys(env: Environment) -> list[bytes]:
    with env.read() as txn:
        return [key for key, _ in txn.range("meta", b"unfinished/", b"unfinished0")]


def test_names_tell_inputs_apart() -> None:
    names = {checkpoint_name(*given) for given in ([b"ab"], [b"a", b"b"], [b"", b"ab"], [b"b"])}
    assert len(names) == 4
    assert checkpoint_name(b"a", b"b") == NAME


def test_what_is_saved_comes_back_until_forgotten(env: Environment) -> None:
    assert load(env) is None
    first, second = bytes(range(256)) * 50_000, b"short"  # 12.8 MB: several chunks
    save_checkpoint(env, NAME, [first[:100], first[100:]])
    assert load(env) == first
    save_checkpoint(env, NAME, [second])
    assert load(env) == second
    assert len(keys(env)) == 2  # nothing is left of the first
    save_checkpoint(env, checkpoint_name(b"other"), [first])
    forget_checkpoint(env, NAME)
    assert load(env) is None
    assert load(env, checkpoint_name(b"other")) == first


def test_a_save_that_fails_leaves_the_one_before(env: Environment) -> None:
    save_checkpoint(env, NAME, [b"before"])
    failpoints.arm("checkpoint.between_chunks", "enospc")
    try:
        with pytest.raises((OSError, Error)):
            save_checkpoint(env, NAME, [bytes(40 << 20)])
    finally:
        failpoints.disarm()
    assert load(env) == b"before"
    save_checkpoint(env, NAME, [b"after"])  # takes the torn chunks with it
    assert load(env) == b"after"
    assert len(keys(env)) == 2


def test_damage_is_as_good_as_nothing(env: Environment) -> None:
    save_checkpoint(env, NAME, [b"something"])
    chunk = next(key for key in keys(env) if len(key) > 11 + 16)

    def spoil(txn) -> None:  # type: ignore[no-untyped-def]
        stored = bytearray(txn.get("meta", chunk))
        stored[-1] ^= 1
        txn.put("meta", chunk, bytes(stored))

    env.stage(spoil)
    assert load(env) is None
    env.stage(lambda txn: txn.delete("meta", chunk))
    assert load(env) is None


def test_vacuum_takes_what_is_a_week_old(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(env, NAME, [b"something"])
    assert env.stage(checkpoints.forget_old_checkpoints) == 0
    assert load(env) == b"something"
    later = time.time() + checkpoints.KEPT_SECONDS + 5
    monkeypatch.setattr(checkpoints.time, "time", lambda: later)
    assert env.stage(checkpoints.forget_old_checkpoints) == 2
    assert keys(env) == []
