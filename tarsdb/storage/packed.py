"""Packed weights of models in the file, for processes to map: derived data.

An *image* is the memory of one model's packed weights, byte for byte, in chunks whose data fill
whole pages: pages of the file can lie one after another in memory wherever LMDB put the chunks.
Mapped so, and not through LMDB's map, an image stays at its place without a read transaction. What
keeps its pages from being written over is a lock (``locks.UseLocks``): shared by every process that
maps it, exclusive for who makes or removes it. The kernel releases it with the process, and taking
it writes nothing.

Keys in ``packed``: 16 bytes of SHA-256 of the weights' digest and the layout's name, u32
big-endian: the chunk's number, or 0xffffffff for the descriptor, which is written last. Knows no
model.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tarsdb.errors import CorruptionError, Error, FormatVersionError
from tarsdb.memory_region import CAN_OVERLAY, Region
from tarsdb.storage import failpoints, inference
from tarsdb.storage.locks import HAS_OFD, UseLocks
from tarsdb.storage.page_bytes import HEADER, PAGE
from tarsdb.storage.transaction import ReadTxn, WriteTxn
from tarsdb.storage.values import HEADER_SIZE, ValueType, is_whole, pack, unpack

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

DATABASE = "packed"
CHUNK_BYTES = (8 << 20) - PAGE
"""With the page of its headers a chunk fills 8 MB."""
QUOTA_SHARE = 4
"""Of a file with a quota images take this part at most."""
PATIENCE_S = 120.0
"""How long to wait for another process that makes the same image."""
_POLL_S = 0.05
_DESCRIPTOR = b"\xff" * 4
_NAME = 16
_FILLER = bytes(PAGE - HEADER - HEADER_SIZE)
_PAGE_HEAD = struct.Struct("<Q2xH")  # number and flags
_OVERFLOW = 0x04


class Chunk(NamedTuple):
    """A chunk in the file.

    Attributes
    ----------
    key : bytes
    start : int
        Of its data in the image.
    size : int
        Of its data.
    offset : int
        Of its data in the file.
    head : bytes
        What lies in front of the data, from the value's header on.
    """

    key: bytes
    start: int
    size: int
    offset: int
    head: bytes


def image_name(weights: bytes, layout: str) -> bytes:
    """Return the name of an image: of weights of a digest, packed to a layout of that name."""
    return hashlib.sha256(weights + layout.encode()).digest()[:_NAME]


def is_possible(env: Environment) -> bool:
    """Return whether images of this file can be mapped here."""
    return CAN_OVERLAY and HAS_OFD and env.page_size == mmap.PAGESIZE == PAGE


# --- mapping ---


def find(env: Environment, name: bytes, nbytes: int) -> Region | None:
    """Return an image, mapped, every checksum read (0.1 s a GB); None where it cannot be used.

    Cannot be used: missing, of another size, damaged, or being made or removed at this moment.
    """
    if not is_possible(env) or not _is_stored(env, name, nbytes):
        return None
    region, locks = Region(nbytes), _use(env)
    if locks is None:
        return None
    region.when_gone(locks.close)
    if not locks.share(name):
        return None
    try:
        with env.read() as txn:  # begun under the lock: what it shows stays
            chunks = (
                list(_chunks(txn, name, nbytes, locks.fd)) if _size(txn, name) == nbytes else []
            )
        is_usable = bool(chunks) and all(_map(chunk, region, locks) for chunk in chunks)
    except (CorruptionError, FormatVersionError, OSError):
        return None
    return region if is_usable else None


def _map(chunk: Chunk, region: Region, locks: UseLocks) -> bool:
    """Map a chunk; return whether its checksum agrees."""
    region.overlay(chunk.start, chunk.size, locks.fd, chunk.offset)
    data = region.array[chunk.start : chunk.start + chunk.size].data
    return is_whole(chunk.key, chunk.head, data)


def _use(env: Environment) -> UseLocks | None:
    try:
        return UseLocks(env.open_again())
    except OSError:
        return None


def _size(txn: ReadTxn, name: bytes) -> int:
    """Return the bytes of an image; -1 when there is none, or none that reads."""
    try:
        found = _descriptor(txn, name)
    except (CorruptionError, FormatVersionError):
        return -1
    return -1 if found is None else int(found["bytes"])


def _descriptor(txn: ReadTxn, name: bytes) -> dict[str, str] | None:
    key = name + _DESCRIPTOR
    raw = txn.get(DATABASE, key) if txn.has(DATABASE) else None
    if raw is None:
        return None
    payload, _, _ = unpack(ValueType.PACKED, key, raw, "descriptor of packed weights")
    try:
        found: dict[str, str] = json.loads(bytes(payload))
        int(found["bytes"]), bytes.fromhex(found["weights"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"the descriptor of packed weights does not read: {error}") from error
    return found


def _keys(name: bytes, nbytes: int) -> list[tuple[bytes, int, int]]:
    """Return key, start and size of every chunk."""
    return [
        (name + number.to_bytes(4, "big"), start, min(CHUNK_BYTES, nbytes - start))
        for number, start in enumerate(range(0, nbytes, CHUNK_BYTES))
    ]


def _chunks(txn: ReadTxn, name: bytes, nbytes: int, fd: int) -> Iterator[Chunk]:
    """Yield the chunks of an image, where they lie in the file checked, their data not.

    Raises
    ------
    CorruptionError
        One is missing, has another size, or is not where its page says.
    """
    for number, (key, start, size) in enumerate(_keys(name, nbytes)):
        where = f"packed weights {name.hex()[:12]}, chunk {number}"
        raw = txn.get(DATABASE, key)
        if raw is None:
            raise CorruptionError(f"{where} is missing")
        payload, _, _ = unpack(ValueType.PACKED, key, raw, where, check=False)
        if len(payload) != len(_FILLER) + size:
            raise CorruptionError(f"{where} has {len(payload)} bytes")
        head = bytes(raw[: PAGE - HEADER])
        offset = _page_of(raw, fd, head, where) * PAGE + PAGE
        yield Chunk(key, start, size, offset, head)


def _page_of(raw: memoryview, fd: int, head: bytes, where: str) -> int:
    """Return the number of the page that a value begins on, as the file has it."""
    at = np.frombuffer(raw, np.uint8).__array_interface__["data"][0] - HEADER
    number, flags = _PAGE_HEAD.unpack_from(ctypes.string_at(at, HEADER))
    page = os.pread(fd, PAGE, number * PAGE) if at % PAGE == 0 and flags == _OVERFLOW else b""
    if page[HEADER:] != head or _PAGE_HEAD.unpack_from(page) != (number, flags):
        raise CorruptionError(f"{where} is not where its page says")
    return int(number)


# --- writing ---


def publish(
    env: Environment, name: bytes, weights: bytes, region: Region, may_go_on: Callable[[int], bool]
) -> bool:
    """Store an image, unless it is there, and let its pages take the place of the region's own.

    Parameters
    ----------
    env : Environment
    name : bytes
        Of :func:`image_name`.
    weights : bytes
        Digest of the weights; an image of weights that no model of the catalog has is not stored.
    region : Region
    may_go_on : callable
        Takes the bytes left to write; asked between transactions, and while somebody else writes
        the same image, which is waited for some time.

    Returns
    -------
    bool
        False where it is not stored: somebody else makes it for long, the quota has no room for
        it, it may not go on, the model is gone, or what is stored is damaged and in use.

    Raises
    ------
    Error
        Disk, quota or writer; what was written of it is removed, now or by VACUUM.
    """
    locks = _use(env) if is_possible(env) else None
    if locks is None:
        return False
    nbytes, until = len(region.array), time.monotonic() + PATIENCE_S
    try:
        while not locks.exclude(name):
            if _is_stored(env, name, nbytes) and locks.share(name):
                return _overlay(env, name, region, locks)
            if time.monotonic() > until or not may_go_on(sys.maxsize):
                return False
            time.sleep(_POLL_S)
        is_done = _overlay(env, name, region, locks)
        if not is_done and _has_room(env, nbytes):
            is_written = _write(env, name, weights, region, may_go_on)
            is_done = is_written and _overlay(env, name, region, locks)
        return is_done and locks.share(name)
    finally:
        if region.overlaid:
            region.when_gone(locks.close)
        else:
            locks.close()


def _is_stored(env: Environment, name: bytes, nbytes: int) -> bool:
    with env.read() as txn:
        return _size(txn, name) == nbytes


def _overlay(env: Environment, name: bytes, region: Region, locks: UseLocks) -> bool:
    """Let a stored image take a region's place, where it is the same; under the lock."""
    nbytes = len(region.array)
    with env.read() as txn:
        if _size(txn, name) != nbytes:
            return False
        try:
            chunks = list(_chunks(txn, name, nbytes, locks.fd))
        except (CorruptionError, FormatVersionError):
            return False
        if not all(_is_same(txn, chunk, region) for chunk in chunks):
            return False
    failpoints.hit("packed.before_overlay")
    with suppress(OSError):  # of mappings there may be too many; what is private stays so
        for chunk in chunks:
            region.overlay(chunk.start, chunk.size, locks.fd, chunk.offset)
    return True


def _is_same(txn: ReadTxn, chunk: Chunk, region: Region) -> bool:
    raw = txn.get(DATABASE, chunk.key) or b""
    stored = np.frombuffer(raw, np.uint8)[PAGE - HEADER :]
    return np.array_equal(region.array[chunk.start : chunk.start + chunk.size], stored)


def _has_room(env: Environment, nbytes: int) -> bool:
    quota = env.options.max_size_bytes
    with env.read() as txn:
        return txn.has(DATABASE) and (
            quota is None or (size_bytes(txn) + nbytes) * QUOTA_SHARE <= quota
        )


def _write(
    env: Environment, name: bytes, weights: bytes, region: Region, may_go_on: Callable[[int], bool]
) -> bool:
    """Write chunks, one in a transaction, and the descriptor; under the exclusive lock."""
    nbytes = len(region.array)
    record = {"bytes": nbytes, "weights": weights.hex()}
    key = name + _DESCRIPTOR

    def finish(txn: WriteTxn) -> bool:
        failpoints.hit("packed.before_descriptor")
        is_live = weights in inference.live_weights(txn, env)
        if is_live:
            payload = json.dumps(record, separators=(",", ":")).encode()
            txn.put(DATABASE, key, pack(ValueType.PACKED, key, payload))
        return is_live

    is_done = False
    try:
        env.stage(lambda txn: _delete(txn, name), frees_space=True)
        for chunk, start, size in _keys(name, nbytes):
            if not may_go_on(nbytes - start):
                return False
            data = region.array[start : start + size].data
            env.stage(functools.partial(_put, key=chunk, data=data))
            failpoints.hit("packed.between_chunks")
        is_done = env.stage(finish)
    finally:
        if not is_done:
            with suppress(Error):
                env.stage(lambda txn: _delete(txn, name), frees_space=True)
    return is_done


def _put(txn: WriteTxn, key: bytes, data: memoryview) -> None:
    txn.put(DATABASE, key, pack(ValueType.PACKED, key, [_FILLER, data]))


def _delete(txn: WriteTxn, name: bytes) -> int:
    """Remove an image; return the bytes it took."""
    doomed = [(key, len(value)) for key, value in txn.range(DATABASE, name, name + b"\xff" * 5)]
    for key, _ in doomed:
        txn.delete(DATABASE, key)
    return sum(size for _, size in doomed)


def forget_dead(env: Environment) -> int:
    """Remove images of weights that no model of the catalog has, and parts of images.

    What somebody maps or makes now stays. Returns the bytes removed.
    """
    with env.read() as txn:
        live = {weights.hex() for weights in inference.live_weights(txn, env)}
        doomed = [name for name, found in _images(txn).items() if found.get("weights") not in live]
    return _forget(env, doomed)


def forget_damaged(env: Environment) -> int:
    """Remove images whose checksums do not agree; as :func:`forget_dead`."""
    with env.read() as txn:
        doomed = list(dict.fromkeys(key[:_NAME] for key in _damaged(txn)))
    return _forget(env, doomed)


def _forget(env: Environment, names: Collection[bytes]) -> int:
    locks = _use(env) if names else None
    if locks is None:
        return 0

    def work(txn: WriteTxn) -> int:
        return sum(_delete(txn, name) for name in names if locks.exclude(name))

    try:
        return env.stage(work, frees_space=True)
    finally:
        locks.close()


# --- looking ---


def _images(txn: ReadTxn) -> dict[bytes, dict[str, str]]:
    """Return the descriptors of all images; of one that has none, or a damaged one, nothing."""
    found: dict[bytes, dict[str, str]] = {}
    if txn.has(DATABASE):
        for block in txn.keys(DATABASE, b"", b"\xff" * (_NAME + 5)):
            found.update({key[:_NAME]: {} for key in block})
    for name in found:
        with suppress(CorruptionError, FormatVersionError):
            found[name] = _descriptor(txn, name) or {}
    return found


def _damaged(txn: ReadTxn) -> Iterator[bytes]:
    if txn.has(DATABASE):
        for key, raw in txn.range(DATABASE, b"", None):
            try:
                unpack(ValueType.PACKED, key, raw)
            except (CorruptionError, FormatVersionError):
                yield key


def check(txn: ReadTxn) -> Iterator[str]:
    """Yield what is wrong, every checksum read."""
    names = {key[:_NAME] for key in _damaged(txn)}
    if names:
        yield (
            f"packed weights: {len(names)} of {len(_images(txn))} images are damaged "
            "(packed again when a model is next loaded; VACUUM removes them)"
        )


def size_bytes(txn: ReadTxn, weights: bytes | None = None) -> int:
    """Return the bytes of all images in the file, or of those of some weights."""
    return sum(
        int(found["bytes"])
        for found in _images(txn).values()
        if found and (weights is None or found["weights"] == weights.hex())
    )
