"""Memory at one place: private at first, then a file's pages, with the same addresses."""

from __future__ import annotations

import gc
import mmap
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tarsdb.memory_region import CAN_OVERLAY, Region

PAGE = mmap.PAGESIZE
needs_overlay = pytest.mark.skipif(not CAN_OVERLAY, reason="no pages of files in memory here")


def private_dirty_kb(region: Region) -> int:
    """Return what the system counts as private and written, of the region's pages."""
    first, last = region.address, region.address + len(region.array)
    total, inside = 0, False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        start, dash, rest = line.partition(" ")[0].partition("-")
        if dash and rest:
            inside = first <= int(start, 16) < last
        elif inside and line.startswith("Private_Dirty"):
            total += int(line.split()[1])
    return total


def test_a_region_is_zeros_on_whole_pages_and_may_be_written_to() -> None:
    region = Region(3 * PAGE + 5)
    assert region.address % PAGE == 0
    assert len(region.array) == 3 * PAGE + 5
    assert not region.array.any()
    region.array[-1] = 7
    assert region.read_only[-1] == 7
    with pytest.raises(ValueError, match="read-only"):
        region.read_only[0] = 1


def test_a_region_nobody_has_memory_for_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="bytes for the weights"):
        Region(1 << 62)


@needs_overlay
def test_pages_of_a_file_take_the_place_of_private_ones(tmp_path: pathlib.Path) -> None:
    content = np.random.default_rng(0).integers(0, 255, 600 * PAGE, np.uint8)
    (tmp_path / "f").write_bytes(b"x" * PAGE + content.tobytes())
    region = Region(len(content))
    region.array[:] = content
    held = region.read_only
    before, private = region.address, private_dirty_kb(region)
    with open(tmp_path / "f", "rb") as file:
        region.overlay(0, 599 * PAGE, file.fileno(), PAGE)
    assert held.__array_interface__["data"][0] == region.address == before
    assert np.array_equal(held, content)
    assert region.overlaid == 599 * PAGE
    assert private >= len(content) // 1024
    assert private_dirty_kb(region) <= 2 * PAGE // 1024 + PAGE
    with open(tmp_path / "f", "r+b") as file:  # it is the file that is seen, closed or not
        file.seek(PAGE)
        file.write(bytes([255 - content[0]]))
    assert held[0] == 255 - content[0]


@needs_overlay
def test_what_cannot_be_mapped_leaves_the_bytes(tmp_path: pathlib.Path) -> None:
    region = Region(4 * PAGE)
    region.array[:] = 9
    (tmp_path / "f").write_bytes(bytes(8 * PAGE))
    with open(tmp_path / "f", "rb") as file, pytest.raises(OSError, match="Invalid argument"):
        region.overlay(0, PAGE, file.fileno(), 17)
    assert region.overlaid == 0
    assert (region.array == 9).all()


@needs_overlay
def test_writing_to_overlaid_bytes_ends_the_process(tmp_path: pathlib.Path) -> None:
    """Why arrays given out are read-only."""
    (tmp_path / "f").write_bytes(bytes(PAGE))
    script = (
        "import sys; from tarsdb.memory_region import Region\n"
        f"r = Region({PAGE}); f = open(sys.argv[1], 'rb'); r.overlay(0, {PAGE}, f.fileno(), 0)\n"
        "r.array[0] = 1"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "f")]
    assert subprocess.run(command, check=False, capture_output=True).returncode < 0


def test_the_last_array_says_when_it_is_gone() -> None:
    region, calls = Region(10), list[int]()
    region.when_gone(calls.append, 1)
    array = region.read_only[3:5]
    del region
    gc.collect()
    assert calls == []
    assert array[0] == 0
    del array
    gc.collect()
    assert calls == [1]
