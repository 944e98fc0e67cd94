"""Rows asked for ahead: the right pages, only while reads wait for disks, and read for real."""

from __future__ import annotations

import ctypes
import mmap
import os
import pathlib
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tarsdb.columns import VectorBlock
from tarsdb.index import asked_ahead
from tarsdb.index.flat import FlatIndex
from tarsdb.kernels.native import BlockTable, PlacedBlock
from tarsdb.types import parse_type

PAGE = mmap.PAGESIZE
WIDTH = 384
needs_linux = pytest.mark.skipif(
    asked_ahead._system is None, reason="this system counts no faults of a thread"
)


class Machine:
    """Stands for the system: counts faults as it is told, holds what it was told to hold."""

    RUSAGE_THREAD = 1

    def __init__(self) -> None:
        self.faults = 0
        self.holds = True
        self.asked = 0

    def getrusage(self, who: int) -> SimpleNamespace:
        assert who == self.RUSAGE_THREAD
        return SimpleNamespace(ru_majflt=self.faults)

    def ask(self, ranges: list[tuple[int, int]]) -> None:
        self.asked += 1

    def has(self, ranges: list[tuple[int, int]]) -> bool:
        return self.holds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(asked_ahead, "resource", found)
    monkeypatch.setattr(asked_ahead, "_system", found)
    monkeypatch.setattr(asked_ahead, "_waits", asked_ahead._Waits())
    return found


def _search(times: int) -> None:
    table = BlockTable.of([PlacedBlock.of(np.zeros((10, WIDTH), np.float32), np.arange(10), None)])
    for _ in range(times):
        asked_ahead.ask(table, np.arange(5))


def test_pages_hold_their_rows_and_no_more() -> None:
    rng = np.random.default_rng(3)
    data = [np.zeros((rows, WIDTH), np.float32) for rows in (100, 1, 57)]
    table = BlockTable.of([PlacedBlock.of(each, np.arange(len(each)), None) for each in data])
    positions = rng.permutation(158)
    starts, stops = asked_ahead.pages_of(table, positions)
    for position, start, stop in zip(positions, starts, stops, strict=True):
        block = int(np.searchsorted([100, 101, 158], position, "right"))
        row = data[block][position - (0, 100, 101)[block]]
        first = row.__array_interface__["data"][0]
        assert start <= first < start + PAGE
        assert stop - PAGE < first + row.nbytes <= stop
        assert start % PAGE == stop % PAGE == 0


def test_nobody_is_asked_after_the_first_search_where_all_is_in_memory(machine: Machine) -> None:
    _search(1000)
    assert machine.asked == 1


def test_a_thread_that_waited_asks_until_all_was_there(machine: Machine) -> None:
    _search(10)
    machine.faults += 1
    _search(1000)
    assert machine.asked == 1 + asked_ahead.SEARCHES


def test_a_thread_goes_on_asking_while_rows_are_missing(machine: Machine) -> None:
    machine.holds = False
    _search(1000)
    assert machine.asked == 1000


def test_many_rows_are_not_asked_for(machine: Machine) -> None:
    rows = asked_ahead.MOST_ROWS + 1
    table = BlockTable.of([PlacedBlock.of(np.zeros((rows, 4), np.float32), np.arange(rows), None)])
    asked_ahead.ask(table, np.arange(rows))
    assert machine.asked == 0
    asked_ahead.ask(table, np.arange(rows - 1))
    assert machine.asked == 1


def _resident(start: int, size: int) -> np.ndarray:
    """Return which pages the system holds."""
    found = np.zeros(size // PAGE, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.mincore(
        ctypes.c_void_p(start), ctypes.c_size_t(size), ctypes.c_void_p(found.ctypes.data)
    )
    assert done == 0, os.strerror(ctypes.get_errno())
    return found & 1


@needs_linux
def test_just_the_rows_are_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a row that is only touched brings the pages around it along."""
    monkeypatch.setattr(asked_ahead, "_waits", asked_ahead._Waits())
    rows = 20_000
    path = tmp_path / "vectors"
    np.random.default_rng(1).standard_normal((rows, WIDTH), dtype=np.float32).tofile(path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    data = np.frombuffer(mapped, np.float32).reshape(rows, WIDTH)
    start, size = data.__array_interface__["data"][0], len(mapped) // PAGE * PAGE
    if _resident(start, size).any():
        pytest.skip("this file system does not let go of its pages")
    flat = FlatIndex([VectorBlock(np.arange(rows), data, None)], parse_type(f"VECTOR({WIDTH})"))
    chosen = np.arange(500, rows, 1500)
    starts, stops = asked_ahead.pages_of(flat._table, chosen)
    wanted = np.zeros(size // PAGE, bool)
    for first, end in zip(starts, stops, strict=True):
        wanted[(first - start) // PAGE : (end - start) // PAGE] = True

    system = asked_ahead._system
    assert system is not None
    ranges = list(zip(starts.tolist(), stops.tolist(), strict=True))
    assert not system.has(ranges)
    asked_ahead.ask(flat._table, chosen)
    until = time.monotonic() + 10
    while not _resident(start, size)[wanted].all() and time.monotonic() < until:
        time.sleep(0.01)
    assert np.array_equal(_resident(start, size).astype(bool), wanted)
    assert system.has(ranges)

    float(data[10_000, 0])
    assert _resident(start, size).sum() > wanted.sum() + 2


def test_answers_are_the_same_while_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    data = rng.standard_normal((300, WIDTH), dtype=np.float32)
    flat = FlatIndex([VectorBlock(np.arange(300), data, None)], parse_type(f"VECTOR({WIDTH})"))
    query = data[:1] + np.float32(0.1)
    positions = np.ascontiguousarray(rng.permutation(300)[:64])
    before = flat.among(query, positions[np.newaxis], 10, "<->")
    monkeypatch.setattr(asked_ahead, "_waits", asked_ahead._Waits())
    after = flat.among(query, positions[np.newaxis], 10, "<->")
    assert np.array_equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
