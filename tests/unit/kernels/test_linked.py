"""Functions that are compiled as parts of kernels only."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("numba")

from numba import njit, types

from tarsdb.kernels.cpu import disk_cache, linked
from tarsdb.kernels.cpu.memory import keep_apart

LONG = types.int64
PLAIN, GIVEN_UP, BROKEN = "plain", "given up", "broken"
SCRIPT = """
import sys
from numba import njit, types
from tarsdb.kernels.cpu import disk_cache, linked

if sys.argv[1] == "given up":
    linked.give_up()
elif sys.argv[1] == "broken":
    linked._Offer.run_pass = lambda self, state: 1 / 0

@linked.linked
def added(x):
    return x + 40

@njit
def kernel(x):
    return added(x)

print(disk_cache.compiled(kernel, types.int64(types.int64))(2), linked._is_given_up)
"""


def make(number: int, mark: Any = linked.linked) -> tuple[Any, Any, Any]:
    """Return a kernel, what it calls out of line, and what both call."""

    @mark
    def added(x):  # type: ignore[no-untyped-def] # Numba types it
        return x + number

    @mark
    def doubled(x):  # type: ignore[no-untyped-def] # Numba types it
        keep_apart()
        return added(x) * 2

    @njit
    def kernel(x):  # type: ignore[no-untyped-def] # Numba types it
        return doubled(x) + added(x)

    return kernel, doubled, added


@pytest.mark.parametrize(("mark", "is_on_its_own"), [(linked.linked, False), (njit, True)])
def test_what_is_inlined_has_no_machine_code(
    mark: Any, is_on_its_own: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARSDB_CACHE_DIR", str(tmp_path))
    kernel, _, added = make(1000, mark)
    found = disk_cache.compiled(kernel, LONG(LONG))
    assert found(7) == 3021
    assert not found.stats.cache_hits
    (made,) = added.overloads.values()
    address = made.library.get_pointer_to_function(made.fndesc.llvm_func_name)
    assert bool(address) == is_on_its_own


def test_called_from_python_it_compiles_on_its_own() -> None:
    _, doubled, added = make(3)
    assert added(4) == 7
    assert doubled(4) == 14
    assert added(0.5) == 3.5


@pytest.mark.parametrize("case", [PLAIN, GIVEN_UP, BROKEN])
def test_another_numba_leads_back_to_what_it_does(case: str, tmp_path: pathlib.Path) -> None:
    environment = {**os.environ, "TARSDB_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT, case]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["42", str(case != PLAIN)]
