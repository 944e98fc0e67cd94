"""Large values by content: model tensors and module bytes, in checksummed chunks.

A blob is named by the SHA-256 of its bytes. It is stored as chunks of at most 8 MB, each under its
own SHA-256, and a descriptor that lists them; the descriptor is written last, so an interrupted
write leaves chunks and no blob. Equal chunks are stored once.

Keys in ``blobs``: digest (32 bytes) + u32 big-endian; 0 for a chunk, 0xffffffff for a descriptor.
Knows nothing about who refers to a blob.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from tarsdb.errors import CorruptionError
from tarsdb.storage import failpoints, leases
from tarsdb.storage.transaction import ReadTxn, WriteTxn
from tarsdb.storage.values import Buffer, ValueType, pack, unpack

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

CHUNK_BYTES = (8 << 20) - 64  # with its headers a chunk fills whole pages
TXN_BYTES = 32 << 20
_CHUNK = bytes(4)
_DESCRIPTOR = b"\xff" * 4
_HOLD = b"blob/"


def put_blob(
    env: Environment, data: Buffer | Iterable[Buffer], lease: leases.Lease | None = None
) -> str:
    """Store a blob in staging transactions of at most 32 MB; return its SHA-256 in hex.

    Parameters
    ----------
    env : Environment
    data : buffer or iterable of buffers
        Pieces of any size.
    lease : Lease, optional
        Keeps the blob from collection until a commit refers to it.
    """
    pieces = (data,) if isinstance(data, (bytes, bytearray, memoryview)) else data
    whole = hashlib.sha256()
    parts: list[tuple[str, int]] = []
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for chunk in rechunk(pieces):
        whole.update(chunk)
        digest = hashlib.sha256(chunk).digest()
        parts.append((digest.hex(), len(chunk)))
        batch.append((digest + _CHUNK, chunk))
        size += len(chunk)
        if sum(len(piece) for _, piece in batch) + CHUNK_BYTES > TXN_BYTES:
            _stage_chunks(env, batch, lease)
            failpoints.hit("blob.between_chunks")
            batch = []
    key = whole.digest() + _DESCRIPTOR
    payload = json.dumps({"length": size, "chunks": parts}, separators=(",", ":")).encode()

    def finish(txn: WriteTxn) -> None:
        _put_chunks(txn, batch, lease)
        failpoints.hit("blob.before_descriptor")
        if lease is not None:
            lease.hold(txn, _HOLD + key)
        if txn.get("blobs", key) is None:
            txn.put("blobs", key, pack(ValueType.BLOB_DESCRIPTOR, key, payload, len(parts)))

    env.stage(finish)
    return whole.hexdigest()


def rechunk(pieces: Iterable[Buffer]) -> Iterator[bytes]:
    """Cut pieces of any size into chunks of exactly CHUNK_BYTES, the last one shorter."""
    pending: list[memoryview] = []
    size = 0
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while size + len(view) >= CHUNK_BYTES:
            cut = CHUNK_BYTES - size
            yield b"".join([*pending, view[:cut]])
            view, pending, size = view[cut:], [], 0
        if len(view):
            pending.append(view)
            size += len(view)
    if pending:
        yield b"".join(pending)


def _stage_chunks(
    env: Environment, batch: list[tuple[bytes, bytes]], lease: leases.Lease | None
) -> None:
    env.stage(lambda txn: _put_chunks(txn, batch, lease))


def _put_chunks(
    txn: WriteTxn, batch: list[tuple[bytes, bytes]], lease: leases.Lease | None
) -> None:
    for key, chunk in batch:
        if lease is not None:
            lease.hold(txn, _HOLD + key)
        if not _is_stored(txn, key):
            txn.put("blobs", key, pack(ValueType.BLOB, key, chunk))


def _is_stored(txn: WriteTxn, key: bytes) -> bool:
    """Return whether a chunk is there and whole: a damaged one is written again."""
    stored = txn.get("blobs", key)
    if stored is None:
        return False
    try:
        unpack(ValueType.BLOB, key, stored)
    except CorruptionError:
        return False
    return True


def _parts(txn: ReadTxn, digest: str) -> tuple[int, list[tuple[bytes, int]]] | None:
    key = bytes.fromhex(digest) + _DESCRIPTOR
    stored = txn.get("blobs", key)
    if stored is None:
        return None
    payload, _, _ = unpack(ValueType.BLOB_DESCRIPTOR, key, stored, f"blob {digest[:12]}")
    record = json.loads(bytes(payload))
    return int(record["length"]), [(bytes.fromhex(d), int(n)) for d, n in record["chunks"]]


def has_blob(txn: ReadTxn, digest: str) -> bool:
    """Return whether the blob is stored."""
    return txn.get("blobs", bytes.fromhex(digest) + _DESCRIPTOR) is not None


def blob_size(txn: ReadTxn, digest: str) -> int:
    """Return a blob's length in bytes; CorruptionError when it is missing."""
    return _require(txn, digest)[0]


def _require(txn: ReadTxn, digest: str) -> tuple[int, list[tuple[bytes, int]]]:
    found = _parts(txn, digest)
    if found is None:
        raise CorruptionError(f"blob {digest[:12]} is missing", hint="restore from a backup")
    return found


def blob_views(txn: ReadTxn, digest: str, check: bool = True) -> Iterator[memoryview]:
    """Yield a blob's chunks as views, valid while the transaction lives; checked or as they are."""
    _, parts = _require(txn, digest)
    for number, (chunk_digest, length) in enumerate(parts):
        key = chunk_digest + _CHUNK
        where = f"blob {digest[:12]}, chunk {number} of {len(parts)}"
        stored = txn.get("blobs", key)
        if stored is None:
            raise CorruptionError(f"{where} is missing", hint="restore from a backup")
        payload, _, _ = unpack(ValueType.BLOB, key, stored, where, check)
        if len(payload) != length:
            raise CorruptionError(f"{where} has {len(payload)} bytes, expected {length}")
        yield payload


def blob_chunks(txn: ReadTxn, digest: str) -> Iterator[bytes]:
    """Yield a blob's chunks as copies."""
    for view in blob_views(txn, digest):
        yield bytes(view)


def read_blob(txn: ReadTxn, digest: str) -> bytes:
    """Return a whole blob as a copy."""
    return b"".join(blob_views(txn, digest))


def delete_unreferenced(txn: WriteTxn, live: Collection[str]) -> int:
    """Delete blobs that nobody refers to or holds; return the bytes of payload deleted.

    Parameters
    ----------
    txn : WriteTxn
        Of the ``stage`` in which the caller found out what is live: a commit in between could refer
        to more.
    live : collection of str
        Digests in hex.
    """
    keep = {bytes.fromhex(digest) + _DESCRIPTOR for digest in live}
    keep |= {
        entry.name[len(_HOLD) :]
        for entry in leases.held(txn)
        if entry.is_live and entry.name.startswith(_HOLD)
    }
    for key in [key for key in keep if key.endswith(_DESCRIPTOR)]:
        found = _parts(txn, key[:32].hex())
        keep |= {digest + _CHUNK for digest, _ in found[1]} if found else set()
    doomed = [(key, len(v)) for key, v in txn.range("blobs", b"", None) if key not in keep]
    for key, _ in doomed:
        txn.delete("blobs", key)
    return sum(size for _, size in doomed)
