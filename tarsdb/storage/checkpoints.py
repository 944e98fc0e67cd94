"""How far a long build came, kept outside every commit, so that it can go on after a crash.

A checkpoint is named by a hash of everything the build depends on: whoever builds the same thing
again finds it. It is derived data: one that is damaged, half written or a week old is as good as
none. Keys in ``meta``: ``unfinished/`` + 16-byte name -> JSON of time, generation and number of
chunks, written last; ``unfinished/`` + name + 4-byte generation + u32 -> a chunk. Knows nothing
about what is built.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import xxhash

from tarsdb.errors import CorruptionError
from tarsdb.storage import failpoints, keys
from tarsdb.storage.blobs import TXN_BYTES, rechunk
from tarsdb.storage.transaction import ReadTxn, WriteTxn
from tarsdb.storage.values import Buffer, ValueType, pack, unpack

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

_PREFIX = b"unfinished/"
_NAME = 16
KEPT_SECONDS = 7 * 24 * 3600
"""How long VACUUM leaves a checkpoint nobody took up again."""


def checkpoint_name(*inputs: Buffer) -> bytes:
    """Return the name of a build of these inputs: 16 bytes of xxh3, of all lengths and bytes."""
    state = xxhash.xxh3_128()
    for given in inputs:
        view = memoryview(given).cast("B")
        state.update(len(view).to_bytes(8, "little"))
        state.update(view)
    return state.digest()


def save_checkpoint(env: Environment, name: bytes, pieces: Iterable[Buffer]) -> None:
    """Keep bytes under a name, in place of what was kept before; in transactions of 32 MB."""
    generation, batch, count, size = secrets.token_bytes(4), list[bytes](), 0, 0
    for chunk in rechunk(pieces):
        batch.append(chunk)
        size += len(chunk)
        if size >= TXN_BYTES:
            _stage(env, name + generation, count, batch)
            failpoints.hit("checkpoint.between_chunks")
            count, batch, size = count + len(batch), [], 0
    _stage(env, name + generation, count, batch)
    record = {"time": int(time.time()), "generation": generation.hex(),
              "chunks": count + len(batch)}  # fmt: skip

    def finish(txn: WriteTxn) -> None:
        key = _PREFIX + name
        for old in [k for k, _ in txn.range("meta", *_range(name)) if len(k) > len(key)]:
            if not old.startswith(key + generation):
                txn.delete("meta", old)
        txn.put("meta", key, pack(ValueType.META, key, json.dumps(record).encode()))

    env.stage(finish)


def _stage(env: Environment, stem: bytes, first: int, batch: list[bytes]) -> None:
    def work(txn: WriteTxn) -> None:
        for number, chunk in enumerate(batch, first):
            key = _PREFIX + stem + number.to_bytes(4, "big")
            txn.put("meta", key, pack(ValueType.META, key, chunk))

    env.stage(work)


def _range(name: bytes) -> tuple[bytes, bytes | None]:
    return _PREFIX + name, keys.successor(_PREFIX + name)


def load_checkpoint(txn: ReadTxn, name: bytes) -> bytearray | None:
    """Return a copy of what is kept under a name; None for nothing that is whole."""
    key, where = _PREFIX + name, "a checkpoint"
    raw = txn.get("meta", key)
    if raw is None:
        return None
    try:
        record = json.loads(bytes(unpack(ValueType.META, key, raw, where)[0]))
        stem, found = key + bytes.fromhex(record["generation"]), bytearray()
        for number in range(int(record["chunks"])):
            at = stem + number.to_bytes(4, "big")
            chunk = txn.get("meta", at)
            if chunk is None:
                return None
            found += unpack(ValueType.META, at, chunk, where)[0]
    except (CorruptionError, ValueError, KeyError, TypeError):
        return None
    return found


def forget_checkpoint(env: Environment, name: bytes) -> None:
    """Remove what is kept under a name, if anything."""

    def work(txn: WriteTxn) -> None:
        for key in [key for key, _ in txn.range("meta", *_range(name))]:
            txn.delete("meta", key)

    env.stage(work, frees_space=True)


def forget_old_checkpoints(txn: WriteTxn) -> int:
    """Remove checkpoints nobody took up for a week, and chunks of no checkpoint; return keys."""
    oldest, whole = time.time() - KEPT_SECONDS, set[bytes]()
    doomed = []
    for key, raw in txn.range("meta", _PREFIX, keys.successor(_PREFIX)):
        if len(key) > len(_PREFIX) + _NAME:
            if key[: len(_PREFIX) + _NAME + 4] not in whole:
                doomed.append(key)
            continue
        try:
            record = json.loads(bytes(unpack(ValueType.META, key, raw, "a checkpoint")[0]))
            if record["time"] >= oldest:
                whole.add(key + bytes.fromhex(record["generation"]))
                continue
        except (CorruptionError, ValueError, KeyError, TypeError):
            pass
        doomed.append(key)
    for key in doomed:
        txn.delete("meta", key)
    return len(doomed)
