"""Aggregate and table functions give in Hyperlight what they give in wasmtime."""

from __future__ import annotations

import numpy as np
import pytest

from tarsdb.columns import Column, from_list
from tarsdb.errors import UdfLimitError, UdfTrapError
from tarsdb.options import SandboxLimits
from tarsdb.types import DOUBLE, INT, TEXT
from tarsdb.udf_sandbox import AggregateFunction, TableFunction, to_wasm
from tests.hyperlight.conftest import MEMORY, SLOW
from tests.hyperlight.test_modules import same
from tests.sandbox.kinds_text import LETTERS, MID, SUM, WEIGHT, aggregate


def limits(backend: str, timeout_ms: int = SLOW) -> SandboxLimits:
    return SandboxLimits(
        fuel=10**12, timeout_ms=timeout_ms, max_memory_bytes=MEMORY, backend=backend
    )


def mid(text: str = MID, backend: str = "hyperlight", timeout_ms: int = SLOW) -> AggregateFunction:
    return AggregateFunction(
        to_wasm(text), "mid", [DOUBLE], DOUBLE, limits=limits(backend, timeout_ms)
    )


def test_aggregates_are_equal_to_wasmtime_bit_by_bit() -> None:
    """Twice: the second call finds nothing of the first."""
    rng = np.random.default_rng(3)
    offsets = np.concatenate(([0], np.cumsum(rng.integers(0, 90, 700))))
    columns = [Column(DOUBLE, rng.normal(size=offsets[-1]))]
    function = mid()
    wanted = mid(backend="wasmtime").call(columns, offsets)
    for _ in range(2):
        assert same(function.call(columns, offsets), wanted)
    assert function.figures.transitions > 10


def test_aggregates_of_text_and_nulls() -> None:
    columns = [from_list(TEXT, ["", "a", "héllo", None, "x" * 50_000, "zz"]),
               from_list(DOUBLE, [1.0, 2.0, 0.5, 7.0, 1.0, None])]  # fmt: skip
    found = AggregateFunction(
        to_wasm(WEIGHT), "weight", [TEXT, DOUBLE], DOUBLE, limits=limits("hyperlight")
    )
    assert found.call(columns, np.array([0, 3, 3, 5, 6])).to_list() == [5.0, None, 50_000.0, None]


def test_table_functions_are_equal_to_wasmtime() -> None:
    texts = from_list(TEXT, ["ab", "", None, "x" * 9_000, *(f"row {i}" for i in range(300))])
    results = [
        TableFunction(to_wasm(LETTERS), "letters", [TEXT], [TEXT, INT], limits=limits(name))
        .call([texts], len(texts))
        for name in ("hyperlight", "wasmtime")
    ]  # fmt: skip
    (found, offsets), (wanted, wanted_offsets) = results
    assert offsets.tolist() == wanted_offsets.tolist()
    assert all(same(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))


X = "(f64.load (i32.load offset=8 (local.get $d)))"


def test_a_trap_or_a_hang_in_a_part_ends_the_call_only() -> None:
    columns, offsets = [from_list(DOUBLE, [1.0, 2.0])], np.array([0, 2])
    with pytest.raises(UdfTrapError, match="mid"):
        mid(aggregate("mid", X, "(unreachable)")).call(columns, offsets)
    hang = aggregate("mid", "(loop $l (result f64) (br $l))", SUM)
    with pytest.raises(UdfLimitError, match="timeout_ms"):
        mid(hang, timeout_ms=2_000).call(columns, offsets)
    assert mid().call(columns, offsets).to_list() == [1.5]
