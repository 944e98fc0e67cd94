"""LMDB files with every kind of page tarsdb makes, and ways to damage them."""

from __future__ import annotations

import pathlib
import random
import struct
from collections.abc import Callable
from typing import Any

import lmdb

PAGE = 4096
MULTI = {"dupsort": True, "dupfixed": True}
ODD_NUMBERS = (0, 1, 2, 3, 8, 15, 16, 17, 18, 255, 2048, 4080, 4088, 4095, 4096, 4097, 0x7FFF)
ODD_NUMBERS += (0x8000, 0xFFFF, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 48, (1 << 63) - 1, 1 << 63)
ODD_NUMBERS += ((1 << 64) - 1,)
Patch = tuple[int, bytes]  # where in the file, and what


def open_file(path: pathlib.Path) -> Any:
    """Open an LMDB file as tarsdb does."""
    return lmdb.open(
        str(path), subdir=False, map_size=1 << 28, max_dbs=16, lib_version=0, sync=False
    )


def small(path: pathlib.Path) -> None:
    """One page per tree: values in nodes, in extents, as sub-pages."""
    env = open_file(path)
    index, blocks = env.open_db(b"index", **MULTI), env.open_db(b"blocks")
    env.open_db(b"empty")
    for batch in range(3):
        with env.begin(write=True) as txn:
            for n in range(12):
                for value in range(1 + n * (batch + 1)):
                    txn.put(b"k%02d" % n, value.to_bytes(8, "big"), db=index)
                txn.put(b"b%02d" % n, bytes(3000 * n + batch), db=blocks)
    env.close()


def wide(path: pathlib.Path) -> None:
    """Trees of two and three levels, trees of values, branch pages, keys with long prefixes."""
    rng = random.Random(5)
    env = open_file(path)
    index, delta = env.open_db(b"index", **MULTI), env.open_db(b"delta")
    keys = [struct.pack(">IIQQ", 1, 0, n // 50, n) for n in range(700)]
    long_keys = [b"same" * 60 + b"%06d" % n for n in range(120)]
    with env.begin(write=True) as txn:
        for key in keys:
            txn.put(key, rng.randbytes(rng.randrange(20, 900)), db=delta)
        for key in rng.sample(long_keys, len(long_keys)):
            txn.put(key, rng.randbytes(8), db=index)
        for n, count in enumerate((1, 2, 40, 200, 300, 700, 1500, 4000)):
            for value in range(count):
                txn.put(b"many%d" % n, (value * 3).to_bytes(8, "big"), db=index)
    with env.begin(write=True) as txn:
        for key in rng.sample(keys, 150):
            txn.delete(key, db=delta)
        for value in range(0, 4000, 2):
            txn.delete(b"many7", (value * 3).to_bytes(8, "big"), db=index)
    env.close()


def freed(path: pathlib.Path) -> None:
    """Free lists: many of them (a tree with branches), and one of several pages."""
    env = open_file(path)
    blocks = env.open_db(b"blocks")
    with env.begin(write=True) as txn:
        for n in range(60):
            txn.put(b"%03d" % n, bytes(150_000), db=blocks)
    reader = env.begin()
    for batch in range(140):
        with env.begin(write=True) as txn:
            for n in range(14):
                txn.put(b"x%04d" % (batch * 7 + n), bytes(100 + 70 * n), db=blocks)
    with env.begin(write=True) as txn:
        for n in range(0, 60, 2):
            txn.delete(b"%03d" % n, db=blocks)
    reader.abort()
    env.close()


def replaced(path: pathlib.Path) -> None:
    """Extents larger than their values: lmdb's verifier takes these for damage."""
    env = open_file(path)
    blocks = env.open_db(b"blocks")
    with env.begin(write=True) as txn:
        for n in range(9):
            txn.put(b"%03d" % n, bytes(30_000), db=blocks)
            txn.put(b"%03d" % n, bytes(5_000 * n + 100), db=blocks)
    env.close()


FILES: dict[str, Callable[[pathlib.Path], None]] = {
    "small": small,
    "wide": wide,
    "freed": freed,
    "replaced": replaced,
}


class Damage:
    """Draws patches for a healthy file; knows what its pages are, so that they hit something."""

    def __init__(self, healthy: bytes, seed: int) -> None:
        self.healthy = healthy
        self.rng = random.Random(seed)
        self.kinds: dict[int, list[int]] = {}
        newest = max((0, 1), key=lambda page: self.number(page * PAGE + 144, 8))
        for page in range(self.number(newest * PAGE + 136, 8) + 1):
            if page < 2 or self.number(page * PAGE, 8) == page:
                kind = self.number(page * PAGE + 10, 2)
                self.kinds.setdefault(kind, []).append(page)
        self.ways = [
            self.flip, self.flip_header, self.odd_field, self.odd_node, self.swap_nodes,
            self.other_page, self.swap_pages, self.zero, self.nudge_meta, self.nudge, self.repoint,
        ]  # fmt: skip

    def number(self, at: int, width: int) -> int:
        """Return a number in the file."""
        return int.from_bytes(self.healthy[at : at + width], "little")

    def page(self) -> int:
        """Draw a page; each kind is as likely."""
        return self.rng.choice(self.kinds[self.rng.choice(sorted(self.kinds))])

    def patch(self) -> list[Patch]:
        """Draw a way to damage the file."""
        return self.rng.choice(self.ways)()

    def flip(self) -> list[Patch]:
        """One bit anywhere in a page."""
        at = self.page() * PAGE + self.rng.randrange(PAGE)
        return [(at, bytes([self.healthy[at] ^ 1 << self.rng.randrange(8)]))]

    def flip_header(self) -> list[Patch]:
        """One bit of a page header or of the first pointers."""
        at = self.page() * PAGE + self.rng.randrange(40)
        return [(at, bytes([self.healthy[at] ^ 1 << self.rng.randrange(8)]))]

    def odd_field(self) -> list[Patch]:
        """A boundary value in a field of a page header or of a meta page."""
        page, width = self.page(), self.rng.choice((2, 2, 4, 8))
        at = page * PAGE + self.rng.randrange(0, 152 if page < 2 else 32, 2)
        return [(at, self.odd(width))]

    def odd(self, width: int) -> bytes:
        """A boundary value."""
        value = self.rng.choice(ODD_NUMBERS) + self.rng.choice((0, 0, -1, 1))
        return (value % (1 << 8 * width)).to_bytes(width, "little")

    def node(self) -> tuple[int, int] | None:
        """Where a node and its pointer are, in a page that has nodes."""
        pages = self.kinds.get(1, []) * 3 + self.kinds.get(2, [])
        page = self.rng.choice(pages)
        count = (self.number(page * PAGE + 12, 2) - 16) // 2
        if not 0 < count < 2000:
            return None
        pointer = page * PAGE + 16 + 2 * self.rng.randrange(count)
        return page * PAGE + self.number(pointer, 2), pointer

    def odd_node(self) -> list[Patch]:
        """A boundary value or a changed bit in the header, key or value of a node."""
        found = self.node()
        if found is None:
            return self.flip()
        start, pointer = found
        key_size = self.number(start + 6, 2)
        value = start + 8 + key_size
        places = [pointer, *range(start, start + 10, 2), *range(value - 1, value + 14)]
        at = self.rng.choice([*places, value + self.rng.randrange(64)])
        if self.rng.random() < 0.5:
            return [(at, bytes([self.healthy[at] ^ 1 << self.rng.randrange(8)]))]
        return [(at, self.odd(self.rng.choice((1, 2, 4, 8))))]

    def swap_nodes(self) -> list[Patch]:
        """Two neighbouring pointers exchanged, or one of them twice."""
        found = self.node()
        if found is None:
            return self.flip()
        at = found[1]
        first, second = self.healthy[at : at + 2], self.healthy[at + 2 : at + 4]
        return [(at, second + self.rng.choice((first, second)))]

    def other_page(self) -> list[Patch]:
        """A page overwritten by another one, which keeps its own number or takes the place's."""
        target, source = self.page(), self.page()
        body = self.healthy[source * PAGE : (source + 1) * PAGE]
        if self.rng.random() < 0.7:
            body = target.to_bytes(8, "little") + body[8:]
        return [(target * PAGE, body)]

    def swap_pages(self) -> list[Patch]:
        """Two pages exchanged, with their numbers put right."""
        first, second = self.page(), self.page()
        patches = self.swapped(first, second)
        if self.rng.random() < 0.7:
            for page in (first, second):
                patches.append((page * PAGE, page.to_bytes(8, "little")))
        return patches

    def swapped(self, first: int, second: int) -> list[Patch]:
        """Two pages exchanged as they are."""
        bodies = [self.healthy[page * PAGE : (page + 1) * PAGE] for page in (first, second)]
        return [(first * PAGE, bodies[1]), (second * PAGE, bodies[0])]

    def zero(self) -> list[Patch]:
        """A page, or the part of it after the header, zeroed."""
        keep = self.rng.choice((0, 16, 2048))
        return [(self.page() * PAGE + keep, bytes(PAGE - keep))]

    def nudge_meta(self) -> list[Patch]:
        """A counter of a database record or of a meta page changed by a little."""
        at = self.rng.randrange(2) * PAGE + self.rng.randrange(16, 152, self.rng.choice((2, 4, 8)))
        return self.nudged(at, 2)

    def nudge(self) -> list[Patch]:
        """A number anywhere in a tree page changed by a little."""
        return self.nudged(self.page() * PAGE + self.rng.randrange(0, PAGE - 8, 2), 2)

    def nudged(self, at: int, width: int) -> list[Patch]:
        """A number changed by a little."""
        value = self.number(at, width) + self.rng.choice((-8, -2, -1, 1, 2, 8))
        return [(at, (value % (1 << 8 * width)).to_bytes(width, "little"))]

    def repoint(self) -> list[Patch]:
        """A branch or a value sent to another page."""
        found = self.node()
        if found is None:
            return self.flip()
        start, _ = found
        at = self.rng.choice((start, start + 8 + self.number(start + 6, 2)))
        if self.rng.random() < 0.3:
            at += 40  # the root of a database record
        return [(at, self.page().to_bytes(8, "little")[: self.rng.choice((4, 6, 8))])]
