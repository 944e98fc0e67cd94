"""Machine code of several processes, loaded into one."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("numba")

SCRIPT = """
import sys
from numba import njit, types
from tarsdb.kernels.cpu import disk_cache
from tarsdb.kernels.cpu.memory import keep_apart

def make(number):
    @njit
    def inner(x):
        keep_apart()
        return x + number

    @njit
    def outer(x):
        return inner(x)

    return outer

for word in sys.argv[1:]:
    kernel = disk_cache.compiled(make(int(word)), types.int64(types.int64), word)
    print(kernel(0), sum(kernel.stats.cache_hits.values()))
"""


def test_forms_of_a_kernel_from_two_processes_do_not_mix(tmp_path: pathlib.Path) -> None:
    """What they call has the same name in both; each must call its own."""
    script = tmp_path / "kernels.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "TARSDB_CACHE_DIR": str(tmp_path / "cache")}

    def run(*words: str) -> list[str]:
        command = [sys.executable, str(script), *words]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return found.stdout.splitlines()

    assert run("100") == ["100 0"]
    assert run("200") == ["200 0"]
    assert run("100", "200") == ["100 1", "200 1"]  # both loaded
