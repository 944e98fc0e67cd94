"""A GGUF file: metadata by key, tensors by name, each made float32 when it is asked for.

Knows the container (versions 2 and 3, little endian) and nothing of models. Counts, lengths and
offsets are not trusted: each is checked against the file before anything is read or allocated.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.model_ops.gguf.blocks import CODINGS, NAMES
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]

MAX_ENTRIES = 100_000
"""Metadata entries, and tensors."""
MAX_ITEMS = 4 << 20
"""Elements of a metadata array, such as a vocabulary."""
MAX_STRING = 16 << 20
_DAMAGED = "the file is damaged or incomplete; fetch it again"
_NUMBERS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its shape, rows first, the number of its coding, and its bytes."""

    shape: tuple[int, ...]
    coding: int
    start: int
    stop: int


class GgufTensors(Mapping[str, F32]):
    """The tensors of a file, read from the map and made float32 one at a time."""

    def __init__(self, data: npt.NDArray[np.uint8], entries: Mapping[str, Entry]) -> None:
        self._data = data
        self.entries = entries

    def __getitem__(self, name: str) -> F32:
        entry = self.entries[name]
        return CODINGS[entry.coding].decode(self.rows(name)).reshape(entry.shape)

    def rows(self, name: str) -> npt.NDArray[np.uint8]:
        """Return a tensor's bytes in the file, no copy; of a matrix (rows, bytes of a row)."""
        entry = self.entries[name]
        return self._data[entry.start : entry.stop].reshape(*entry.shape[:-1], -1)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def read_gguf(path: str) -> tuple[dict[str, Any], GgufTensors]:
    """Read the head of a file and map its tensors.

    Returns
    -------
    metadata : dict
        Numbers, texts, booleans and lists of them, by key.
    tensors : GgufTensors

    Raises
    ------
    ModelFormatError
        The file is no GGUF file, or its head disagrees with its size.
    NotSupportedError
        A version or coding that is not read.
    """
    try:
        data: npt.NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"cannot read {path}: {error}", _DAMAGED) from error
    head = _Head(path, data)
    if bytes(data[:4]) != b"GGUF":
        raise ModelFormatError(f"{path} is no GGUF file: it begins with {bytes(data[:4])!r}")
    head.at = 4
    version = head.number(4)
    if version not in (2, 3):
        raise NotSupportedError(f"{path} is of GGUF version {version}", "supported: 2 and 3")
    tensors, entries = head.count("tensors"), head.count("metadata entries")
    metadata = {head.string(): head.value() for _ in range(entries)}
    infos = [(head.string(), *head.tensor()) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise ModelFormatError(f"{path}: general.alignment is {alignment!r:.60}")
    base = -(-head.at // alignment) * alignment
    found: dict[str, Entry] = {}
    for name, shape, coding, offset in infos:
        if name in found:
            raise ModelFormatError(f"tensor {name!r:.80} is twice in {path}")
        found[name] = _entry(path, name, shape, coding, (base + offset, len(data)))
    return metadata, GgufTensors(data, found)


def _entry(
    path: str, name: str, shape: tuple[int, ...], number: int, place: tuple[int, int]
) -> Entry:
    """Check a tensor against the file: ``place`` is where it starts, and where the file ends."""
    coding, (start, end) = CODINGS.get(number), place
    if coding is None:
        raise NotSupportedError(
            f"tensor {name!r:.80} of {path} is coded as {NAMES.get(number, number)}",
            "supported: " + ", ".join(each.name for each in CODINGS.values()),
        )
    if shape[-1] % coding.elements:
        raise ModelFormatError(
            f"tensor {name!r:.80} of {path} has shape {shape}, {coding.name} codes "
            f"{coding.elements} elements of a row together"
        )
    size = math.prod(shape) // coding.elements * coding.nbytes
    if start + size > end:
        raise ModelFormatError(
            f"tensor {name!r:.80} of {path} of shape {shape} needs bytes {start} to "
            f"{start + size}, the file has {end}",
            _DAMAGED,
        )
    return Entry(shape, number, start, start + size)


class _Head:
    """Reads the head of a file from ``at`` on."""

    def __init__(self, path: str, data: npt.NDArray[np.uint8]) -> None:
        self._path, self._data = path, data
        self.at = 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self.at:
            raise ModelFormatError(
                f"the head of {self._path} ends at byte {len(self._data)}, byte {self.at + size} "
                "is wanted",
                _DAMAGED,
            )
        found = bytes(self._data[self.at : self.at + size])
        self.at += size
        return found

    def number(self, size: int = 8) -> int:
        return int.from_bytes(self.take(size), "little")

    def count(self, what: str, limit: int = MAX_ENTRIES) -> int:
        found = self.number()
        if found > limit:
            raise ModelFormatError(f"{self._path} claims {found} {what}, the limit is {limit}")
        return found

    def string(self) -> str:
        data = self.take(self.count("bytes of a text", MAX_STRING))
        return data.decode("utf-8", "replace")

    def value(self) -> Any:
        return self._value(self.number(4))

    def _value(self, kind: int, depth: int = 0) -> Any:
        form = _NUMBERS.get(kind)
        if form is not None:
            (found,) = struct.unpack(form, self.take(struct.calcsize(form)))
            return found
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth:
            raise ModelFormatError(f"{self._path} holds metadata of type {kind}", _DAMAGED)
        inner, count = self.number(4), self.count("items of a list", MAX_ITEMS)
        form = _NUMBERS.get(inner)
        if form is not None:
            items = np.frombuffer(self.take(count * struct.calcsize(form)), np.dtype(form))
            return items.tolist()
        return [self._value(inner, depth + 1) for _ in range(count)]

    def tensor(self) -> tuple[tuple[int, ...], int, int]:
        """Return shape, coding and offset."""
        rank = self.number(4)
        if not 1 <= rank <= 4:
            raise ModelFormatError(f"{self._path} holds a tensor of {rank} dimensions", _DAMAGED)
        shape = tuple(self.number() for _ in range(rank))[::-1]
        if not 0 < math.prod(shape) < 1 << 48:
            raise ModelFormatError(f"{self._path} holds a tensor of shape {shape}", _DAMAGED)
        return shape, self.number(4), self.number()
