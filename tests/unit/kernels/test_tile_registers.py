"""Instructions on tile registers are what the compiler makes for a processor that has them."""

from __future__ import annotations

import os
import pathlib
import platform
import subprocess
import sys

import pytest

pytest.importorskip("numba")
if platform.machine() not in ("x86_64", "AMD64"):
    pytest.skip("LLVM compiles for another architecture here", allow_module_level=True)

ROOT = pathlib.Path(__file__).resolve().parents[3]
FEATURES = "+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512vnni,+avx512bf16,+avx2,+fma,+f16c"
TILES = "+amx-tile,+amx-int8,+amx-bf16"
CODE = """
from numba import njit, types
from tarsdb.kernels.cpu import tile_registers as tiles
for kind, name in tiles.PRODUCTS.items():
    @njit
    def product(memory, a, columns, turns, sums):
        tiles.open_tiles(memory)
        tiles.multiply_tiles(kind, 2, 2, a, 64, 64, 1024, columns, 1024, turns, sums, 128, 1)
        tiles.close_tiles()
    product.compile(types.void(*[types.int64] * 5))
    lines = product.inspect_asm(product.signatures[0]).splitlines()
    made = {line.split()[0] for line in lines if line.startswith(chr(9))}
    wanted = {name, "ldtilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored"}
    print(kind, sorted(wanted - made))
"""


def compiled_for(features: str) -> subprocess.CompletedProcess[str]:
    """Compile the products, without running them, in a process that takes itself for another."""
    environment = {"NUMBA_CPU_NAME": "sapphirerapids", "NUMBA_CPU_FEATURES": features}
    return subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, **environment}, timeout=300,
    )  # fmt: skip


def test_products_become_their_instructions() -> None:
    outcome = compiled_for(f"{FEATURES},{TILES}")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines() == ["int8 []", "codes []", "bf16 []"]


def test_a_processor_without_them_cannot_have_the_products() -> None:
    without = TILES.replace("+", "-")
    assert compiled_for(f"{FEATURES},{without}").returncode != 0
