"""Safetensors files as read-only NumPy arrays, straight from the map.

Knows the file format and nothing of models. The header is not trusted: the safetensors library
checks it, and offsets, shapes and sizes are checked again here before an array is made.
Arrays are views of the mapped file, so reading a model never holds a second copy of it; those of
bfloat16, which NumPy does not have, are widened when they are asked for.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelFormatError
from tarsdb.schema import BFLOAT16

MAX_HEADER_BYTES = 32 << 20
MAX_TENSORS = 100_000

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "|i1", "U8": "|u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
    "BOOL": "|b1",
}  # fmt: skip
_DAMAGED = "the file is damaged or incomplete; fetch it again"


class Tensors(Mapping[str, npt.NDArray[Any]]):
    """Tensors by name.

    Parameters
    ----------
    arrays : mapping of str to ndarray
    narrow : collection of str
        Names of those whose array has the bits of bfloat16 numbers, uint16: they are given as
        float32, widened anew whenever they are asked for.
    """

    def __init__(
        self, arrays: Mapping[str, npt.NDArray[Any]], narrow: Collection[str] = ()
    ) -> None:
        self._arrays = dict(arrays)
        self._narrow = frozenset(narrow)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        array = self._arrays[name]
        return widen_bfloat16(array) if name in self._narrow else array

    def stored(self, name: str) -> tuple[str, tuple[int, ...], npt.NDArray[Any]]:
        """Return a tensor's type and shape, and its elements as the file has them, no copy."""
        array = self._arrays[name]
        return BFLOAT16 if name in self._narrow else array.dtype.str, array.shape, array

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __or__(self, other: Tensors) -> Tensors:
        return Tensors(self._arrays | other._arrays, self._narrow | other._narrow)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor; nothing is read."""
        return {name: array.shape for name, array in self._arrays.items()}

    def floating(self) -> list[str]:
        """Return the names of those that are of a float type; nothing is read."""
        return [
            name
            for name, array in self._arrays.items()
            if name in self._narrow or np.issubdtype(array.dtype, np.floating)
        ]

    def only(self, names: Iterable[str]) -> Tensors:
        """Return some of the tensors."""
        return Tensors({name: self._arrays[name] for name in names}, self._narrow)


def read_safetensors(path: str) -> Tensors:
    """Map the tensors of one file.

    Returns
    -------
    Tensors
        Read-only views of the map, in file order; BF16 tensors become float32 copies when read.

    Raises
    ------
    ModelFormatError
        The file is no safetensors file, or its header disagrees with its size.
    """
    header_bytes = _check_size(path)
    _check_with_library(path)
    try:
        with open(path, "rb") as file:
            file.seek(8)
            header = json.loads(file.read(header_bytes))
        data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + header_bytes)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFormatError(f"cannot read {path}: {error}", _DAMAGED) from error
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    arrays = {name: _tensor(path, name, entry, data) for name, entry in entries.items()}
    return Tensors(arrays, [name for name in entries if entries[name]["dtype"] == "BF16"])


def _check_size(path: str) -> int:
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise ModelFormatError(f"cannot read {path}: {error.strerror or error}") from error
    if size <= 8 or header_bytes > size - 8:
        message = f"{path} has {size} bytes, its header claims {header_bytes} bytes"
        raise ModelFormatError(message, _pointer_hint(path, size) or _DAMAGED)
    if header_bytes > MAX_HEADER_BYTES:
        message = f"{path} has a header of {header_bytes} bytes, the limit is {MAX_HEADER_BYTES}"
        raise ModelFormatError(message)
    if header_bytes == size - 8:
        raise ModelFormatError(f"{path} holds a header and no tensor data", _DAMAGED)
    return header_bytes


def _pointer_hint(path: str, size: int) -> str | None:
    """Recognise a Git LFS pointer, what a clone without LFS leaves in place of the weights."""
    if size > 1024:
        return None
    with open(path, "rb") as file:
        is_pointer = file.read(40).startswith(b"version https://git-lfs")
    return "this is a Git LFS pointer, not the file: run 'git lfs pull'" if is_pointer else None


def _check_with_library(path: str) -> None:
    import safetensors  # on first need: keeps `import tarsdb` light

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            count = len(file.keys())
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelFormatError(f"{path} is no valid safetensors file: {error}", _DAMAGED) from error
    if count > MAX_TENSORS:
        raise ModelFormatError(f"{path} names {count} tensors, the limit is {MAX_TENSORS}")


def _tensor(
    path: str, name: str, entry: dict[str, Any], data: npt.NDArray[np.uint8]
) -> npt.NDArray[Any]:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        message = f"tensor {name!r} of {path} has dtype {entry['dtype']}, which is not supported"
        raise ModelFormatError(message, "supported: " + ", ".join(_DTYPES))
    shape = tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if not 0 <= start <= stop <= len(data) or stop - start != expected:
        message = (
            f"tensor {name!r} of {path} covers bytes {start} to {stop} of {len(data)}, "
            f"its shape {shape} needs {expected}"
        )
        raise ModelFormatError(message, _DAMAGED)
    return data[start:stop].view(dtype).reshape(shape)


def widen_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Return float32 values of bfloat16 bit patterns."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
