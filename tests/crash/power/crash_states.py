"""From a recorded log to the contents a file can have after the power went.

At any moment everything before the last sync is on the disk. Of the writes since, any pages may be
there, in any order, and of a page any of its 512-byte sectors.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

WRITE, SYNC, TRUNCATE, MARK = 1, 2, 3, 4
PAGE, SECTOR = 4096, 512
_HEAD = struct.Struct("<QQQ")
Write = tuple[int, bytes]


@dataclass(frozen=True)
class Record:
    """One call the recorder saw."""

    kind: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Mark:
    """An acknowledged commit."""

    thread: int
    step: int
    commit: int


@dataclass
class Crash:
    """One state of the file, and what had been acknowledged by then."""

    point: int
    kind: str
    image: bytearray
    marks: list[Mark] = field(default_factory=list)


def read_log(path: Path) -> list[Record]:
    """Return the records of a log, writes cut into pages."""
    raw = path.read_bytes()
    records: list[Record] = []
    at = 0
    while at < len(raw):
        kind, offset, size = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        data = raw[at : at + size]
        at += size
        if len(data) != size or kind not in (WRITE, SYNC, TRUNCATE, MARK):
            raise ValueError(f"the log is damaged at {at}")
        if kind != WRITE:
            records.append(Record(kind, offset, data))
            continue
        while data:
            cut = PAGE - offset % PAGE
            records.append(Record(WRITE, offset, data[:cut]))
            offset, data = offset + cut, data[cut:]
    return records


# --- which of the pending writes reached the disk ---

Chooser = Callable[[list[Write], random.Random], list[Write]]


def _none(pending: list[Write], rng: random.Random) -> list[Write]:
    return []


def _all(pending: list[Write], rng: random.Random) -> list[Write]:
    return pending


def _last(pending: list[Write], rng: random.Random) -> list[Write]:
    return pending[-1:]


def _all_but_one(pending: list[Write], rng: random.Random) -> list[Write]:
    without = rng.randrange(len(pending))
    return pending[:without] + pending[without + 1 :]


def _subset(pending: list[Write], rng: random.Random) -> list[Write]:
    share = rng.choice((0.1, 0.5, 0.9))
    return [write for write in pending if rng.random() < share]


def _torn(pending: list[Write], rng: random.Random) -> list[Write]:
    """Keep only some sectors of one write; the others are all there, or a subset of them."""
    chosen = rng.randrange(len(pending))
    others = pending if rng.random() < 0.5 else _subset(pending, rng)
    offset, data = pending[chosen]
    pieces = [(offset + at, data[at : at + SECTOR]) for at in range(0, len(data), SECTOR)]
    kept = [piece for piece in pieces if rng.random() < 0.5]
    return [write for write in others if write is not pending[chosen]] + kept


KINDS: dict[str, Chooser] = {
    "none": _none,
    "all": _all,
    "last": _last,
    "all but one": _all_but_one,
    "subset": _subset,
    "subset again": _subset,
    "torn": _torn,
    "torn again": _torn,
}


def apply(image: bytearray, writes: list[Write]) -> None:
    """Make writes in an image; a hole before one is zero, as in a file."""
    for offset, data in writes:
        if offset > len(image):
            image.extend(bytes(offset - len(image)))
        image[offset : offset + len(data)] = data


def crash_states(
    base: bytes, records: list[Record], rng: random.Random, limit: int, syncs_count: bool = True
) -> Iterator[Crash]:
    """Yield at most ``limit`` states, spread over all moments and kinds.

    Parameters
    ----------
    base : bytes
        The file when recording began.
    records : list of Record
    rng : Random
    limit : int
    syncs_count : bool
        False takes the syncs for absent: nothing is ever sure to be on the disk but the base. The
        negative control.
    """
    durable, pending, marks = bytearray(base), list[Write](), list[Mark]()
    moments = [point for point, record in enumerate(records) if record.kind != SYNC]
    every = [(point, kind) for point in moments for kind in KINDS]
    wanted: dict[int, list[str]] = {}
    for point, kind in rng.sample(every, min(limit, len(every))):
        wanted.setdefault(point, []).append(kind)
    for point, record in enumerate(records):
        if record.kind == WRITE:
            pending.append((record.offset, record.data))
        elif record.kind == SYNC and syncs_count:
            apply(durable, pending)
            pending = []
        elif record.kind == TRUNCATE:
            raise ValueError("the file was truncated; the model does not know what that does")
        elif record.kind == MARK:
            marks.append(Mark(*map(int, record.data.split())))
        for kind in wanted.get(point, ()):
            image = bytearray(durable)
            apply(image, KINDS[kind](pending, rng) if pending else [])
            yield Crash(point, kind, image, marks.copy())
