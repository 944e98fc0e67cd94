"""What is counted of a child's system calls."""

from __future__ import annotations

import pytest

from benchmarks import processes

CALLS = """{0}openat(AT_FDCWD, "a", O_RDWR|O_DSYNC) = 7
{0}openat(AT_FDCWD, "b", O_RDWR) = 8
{0}pwrite64(7, "x", 1, 0) = 1
{0}pwrite64(8, "x", 1, 0) = 1
{0}fdatasync(8) = 0
{0}+++ exited with 0 +++
"""


@pytest.mark.parametrize("head", ["", "12345 ", "123   "])
def test_flushes_of_processes_with_short_and_long_ids(head: str) -> None:
    counted = processes._count(CALLS.format(head))
    assert counted == {"fsync": 0, "fdatasync": 1, "msync": 0, "sync_write": 1}
