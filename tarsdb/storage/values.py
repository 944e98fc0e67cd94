"""The 48-byte header in front of every stored value, and its checksum.

Layout (little-endian)::

    0   4   magic b"TARS"
    4   2   format version (1)
    6   2   value type (ValueType)
    8   8   payload length in bytes
    16  8   rows
    24  8   commit number that wrote it
    32  8   xxh3_64 over key, bytes 0-32 and 40-48 of this header, payload
    40  8   reserved, zero

48 bytes, because LMDB places a large value at 16 modulo 64: the payload of a block then starts at
a multiple of 64. The checksum covers the key, so a value found under another key is damage too.
Knows nothing about what a payload means.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence

import xxhash

from tarsdb.errors import CorruptionError, FormatVersionError

MAGIC = b"TARS"
FORMAT_VERSION = 1
HEADER_SIZE = 48
_FIELDS = struct.Struct("<4sHHQQQ")
_HEADER = struct.Struct("<4sHHQQQQQ")
_SEAL = struct.Struct("<QQ")
_RESERVED = bytes(8)
_ONE_SHOT_LIMIT = 16384

Buffer = bytes | bytearray | memoryview


class ValueType(enum.IntEnum):
    """What a stored value is; part of the file format, so numbers are never reused."""

    CATALOG = 1
    COMMIT = 2
    DELTA = 3
    SEGMENT = 4
    BLOCK = 5
    BLOB = 6
    BLOB_DESCRIPTOR = 7
    META = 8
    INFERENCE = 9
    PACKED = 10


def _digest(key: bytes, fields: bytes, parts: Sequence[Buffer], size: int) -> int:
    if size <= _ONE_SHOT_LIMIT:
        return xxhash.xxh3_64_intdigest(b"".join((key, fields, _RESERVED, *parts)))
    state = xxhash.xxh3_64(b"".join((key, fields, _RESERVED)))
    for part in parts:
        state.update(part)
    return state.intdigest()


def pack(
    value_type: int,
    key: bytes,
    payload: Buffer | Sequence[Buffer],
    rows: int = 0,
    commit: int = 0,
) -> bytes:
    """Put the header in front of a payload.

    Parameters
    ----------
    value_type : int
        A `ValueType`.
    key : bytes
        The key the value will be stored under.
    payload : buffer or sequence of buffers
        C-contiguous byte buffers; a sequence is concatenated. An ndarray goes in as
        ``memoryview(array).cast("B")``.
    rows, commit : int
        Header fields.

    Returns
    -------
    bytes
        Header and payload, one copy of the payload.
    """
    if isinstance(payload, (bytes, bytearray, memoryview)):
        payload = (payload,)
    size = 0
    for part in payload:
        size += part.nbytes if isinstance(part, memoryview) else len(part)
    fields = _FIELDS.pack(MAGIC, FORMAT_VERSION, value_type, size, rows, commit)
    seal = _SEAL.pack(_digest(key, fields, payload, size), 0)
    return b"".join((fields, seal, *payload))


def pack_each(
    value_type: int, keys: Sequence[bytes], payloads: Sequence[bytes], commit: int
) -> list[bytes]:
    """Put headers in front of many payloads of one row each: :func:`pack` of every one."""
    values, known = [], dict[int, bytes]()
    for key, payload in zip(keys, payloads, strict=True):
        size = len(payload)
        fields = known.get(size)
        if fields is None:
            fields = _FIELDS.pack(MAGIC, FORMAT_VERSION, value_type, size, 1, commit)
            known[size] = fields
        seal = _SEAL.pack(_digest(key, fields, (payload,), size), 0)
        values.append(b"".join((fields, seal, payload)))
    return values


def unpack(
    value_type: int,
    key: bytes,
    view: Buffer,
    where: str = "value",
    check: bool = True,
) -> tuple[memoryview, int, int]:
    """Check a stored value and return its payload.

    Parameters
    ----------
    value_type : int
        The `ValueType` the caller expects.
    key : bytes
        The key it was found under.
    view : buffer
        Header and payload as stored.
    where : str
        Named in the error: table and rows, or object.
    check : bool
        False skips the checksum (verified before in this process); the header is always checked.

    Returns
    -------
    tuple of (memoryview, int, int)
        The payload (a view of `view`, same lifetime), rows, and commit number.

    Raises
    ------
    CorruptionError
        Magic, type, length or checksum disagree.
    FormatVersionError
        The value was written by another format version.
    """
    whole = memoryview(view)
    if len(whole) < HEADER_SIZE:
        raise CorruptionError(f"{where}: {len(whole)} bytes stored, header needs {HEADER_SIZE}")
    magic, version, kind, size, rows, commit, digest, reserved = _HEADER.unpack_from(whole)
    if magic != MAGIC:
        raise CorruptionError(f"{where}: value starts with {magic!r}, expected {MAGIC!r}")
    if version != FORMAT_VERSION:
        raise FormatVersionError(
            f"{where}: written in format version {version}, this release reads {FORMAT_VERSION}"
        )
    if kind != value_type or reserved or size != len(whole) - HEADER_SIZE:
        raise CorruptionError(
            f"{where}: header says type {kind} with {size} bytes, "
            f"expected type {int(value_type)} with {len(whole) - HEADER_SIZE} bytes"
        )
    payload = whole[HEADER_SIZE:]
    if check:
        found = _digest(key, bytes(whole[:32]), (payload,), size)
        if found != digest:
            raise CorruptionError(
                f"{where}: checksum is {found:016x}, stored {digest:016x}",
                hint="restore from a backup; PRAGMA integrity_check lists all damage",
            )
    return payload, rows, commit


def stored_checksum(view: Buffer) -> int:
    """Return the checksum in the header of a stored value; 0 of one too short to have any."""
    return int.from_bytes(view[32:40], "little")


def is_whole(key: bytes, head: Buffer, rest: Buffer) -> bool:
    """Return whether the checksum of a stored value in two pieces, header in the first, agrees."""
    size = len(head) - HEADER_SIZE + len(rest)
    _, _, _, _, _, _, digest, _ = _HEADER.unpack_from(head)
    return _digest(key, bytes(head[:32]), (head[HEADER_SIZE:], rest), size) == int(digest)
