"""Write GGUF files by hand: the container, and tensors in codings a test can make."""

from __future__ import annotations

import pathlib
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

F32, F16, Q4_0, Q8_0, BF16 = 0, 1, 2, 8, 30
_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9
ALIGNMENT = 32


class Blocks(NamedTuple):
    """Elements that are coded already."""

    shape: tuple[int, ...]
    data: bytes


def encode(values: np.ndarray | Blocks, coding: int) -> bytes:
    """Return a tensor's bytes."""
    if isinstance(values, Blocks):
        return values.data
    flat = np.ascontiguousarray(values, np.float32)
    if coding == F32:
        return flat.tobytes()
    if coding == F16:
        return flat.astype(np.float16).tobytes()
    if coding == BF16:
        return (flat.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    blocks = flat.reshape(-1, 32)
    if coding == Q8_0:
        scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
        codes = np.rint(blocks / scales.astype(np.float32)).clip(-127, 127).astype(np.int8)
        return np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], axis=1).tobytes()
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scales = (largest / -8).astype(np.float16)
    codes = np.rint(blocks / scales.astype(np.float32) + 8).clip(0, 15).astype(np.uint8)
    packed = codes[:, :16] | codes[:, 16:] << 4
    return np.concatenate([scales.view(np.uint8), packed], axis=1).tobytes()


def write_gguf(
    path: pathlib.Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[np.ndarray | Blocks, int]],
) -> None:
    """Write a file of version 3."""
    head, data = bytearray(), bytearray()
    for key, value in metadata.items():
        head += _text(key) + _value(value)
    for name, (values, coding) in tensors.items():
        data += b"\0" * (-len(data) % ALIGNMENT)
        rank = len(values.shape)
        dims = struct.pack(f"<I{rank}Q", rank, *values.shape[::-1])
        head += _text(name) + dims + struct.pack("<IQ", coding, len(data))
        data += encode(values, coding)
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + bytes(head)
    path.write_bytes(start + b"\0" * (-len(start) % ALIGNMENT) + bytes(data))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    kind, data = _plain(value)
    return struct.pack("<I", kind) + data


def _plain(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return _UINT32, struct.pack("<I", value)
    if isinstance(value, float):
        return _FLOAT32, struct.pack("<f", value)
    if isinstance(value, str):
        return _STRING, _text(value)
    items = [_plain(item) for item in value]
    return _ARRAY, struct.pack("<IQ", items[0][0], len(items)) + b"".join(d for _, d in items)
