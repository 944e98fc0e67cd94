"""Kernels come in the background, from a cache where there is one, and never hurt the process."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
SETUP = """
import sys, numpy as np
from tarsdb.columns import VectorBlock
from tarsdb.index.flat import FlatIndex
from tarsdb.kernels import dispatch
from tarsdb.types import parse_type
rows = np.arange(40, dtype=np.float32).reshape(10, 4)
index = FlatIndex([VectorBlock(np.arange(10), rows)], parse_type("VECTOR(4)"))
def ask(): return index.search(rows[3:4], 2, "<->")[0].tolist()
"""


def run(code: str, **environment: str) -> str:
    outcome = subprocess.run(
        [sys.executable, "-c", SETUP + code], capture_output=True, text=True, check=False,
        cwd=ROOT, env={**os.environ, **environment}, timeout=120,
    )  # fmt: skip
    assert outcome.returncode == 0, (outcome.returncode, outcome.stderr)
    assert outcome.stderr == ""
    return outcome.stdout.strip()


READY = "ask(); dispatch.wait(); print(dispatch.level(), dispatch.get('f32') is not None, ask())"


def test_first_answer_does_not_import_numba() -> None:
    code = "assert ask() == [[3, 2]]\nassert 'numba' not in sys.modules\nprint('ok')"
    assert run(code) == "ok"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A cache that one process filled."""
    pytest.importorskip("numba")
    folder = tmp_path_factory.mktemp("cache")
    level, ready, answer = run(READY, TARSDB_CACHE_DIR=str(folder)).split(" ", 2)
    assert (ready, answer) == (str(level != "portable"), "[[3, 2]]")
    assert level == "portable" or len(list(folder.rglob("*.nbc"))) == 1
    return folder


def test_kernel_swaps_in_and_is_cached(filled: pathlib.Path) -> None:
    level, ready, answer = run(READY, TARSDB_CACHE_DIR=str(filled)).split(" ", 2)
    assert (ready, answer) == (str(level != "portable"), "[[3, 2]]")
    assert level == "portable" or len(list(filled.rglob("*.nbc"))) == 1


def test_unusable_cache_compiles_in_memory(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("numba")
    (tmp_path / "file").write_text("in the way")
    level, ready, answer = run(READY, TARSDB_CACHE_DIR=str(tmp_path / "file")).split(" ", 2)
    assert (ready, answer) == (str(level != "portable"), "[[3, 2]]")


def test_damaged_cache_is_replaced(filled: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = shutil.copytree(filled, tmp_path / "cache")
    for path in [*folder.rglob("*.nbc"), *folder.rglob("*.nbi")]:
        path.write_bytes(b"\x80garbage" + path.read_bytes()[50:])
    level, ready, answer = run(READY, TARSDB_CACHE_DIR=str(folder)).split(" ", 2)
    assert (ready, answer) == (str(level != "portable"), "[[3, 2]]")


def test_without_numba_numpy_answers() -> None:
    code = "sys.modules['numba'] = None\n" + READY
    assert run(code) == "portable False [[3, 2]]"


@pytest.mark.parametrize("level", ["avx2", "portable"])
def test_level_can_be_forced(level: str) -> None:
    expected = f"{level} {level != 'portable'} [[3, 2]]"
    if level == "avx2":
        from tarsdb.kernels import dispatch

        if dispatch._best_level() == "portable":
            pytest.skip("this processor runs NumPy alone")
    assert run(READY, TARSDB_ISA=level) == expected


@pytest.mark.parametrize("pause", [0, 0.05, 0.06, 0.1, 0.2, 0.3, 0.45, 0.7, 1.5])
def test_exit_during_background_compile(tmp_path: pathlib.Path, pause: float) -> None:
    # of bits: as the others, but compiled in half the time, which the end of the process waits for
    code = f"import time\ndispatch.prepare('bit')\ntime.sleep({pause})\nprint('bye')"
    assert run(code, TARSDB_CACHE_DIR=str(tmp_path)) == "bye"


def test_fork_during_background_compile() -> None:
    code = """
import os, time
ask(); time.sleep(0.3)
child = os.fork()
if child == 0:
    os._exit(0 if ask() == [[3, 2]] else 1)
print(os.waitpid(child, 0)[1])
"""
    assert run(code, PYTHONWARNINGS="ignore") == "0"
