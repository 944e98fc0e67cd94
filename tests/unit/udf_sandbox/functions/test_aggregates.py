"""Aggregate functions against a model in Python, and what a guest may not do in them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tarsdb.columns import Column, from_list
from tarsdb.errors import UdfError, UdfLimitError, UdfTrapError, UdfValidationError
from tarsdb.options import SandboxLimits
from tarsdb.types import DOUBLE, TEXT
from tarsdb.udf_sandbox import AggregateFunction, to_wasm
from tarsdb.udf_sandbox.functions import aggregates
from tests.sandbox.kinds_text import MID, SUM, WEIGHT, aggregate


def random_groups(groups: int, most: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate(([0], np.cumsum(rng.integers(0, most + 1, groups))))
    return rng.integers(-1000, 1000, offsets[-1]).astype(np.float64), offsets


def means(values: np.ndarray, offsets: np.ndarray) -> list[float | None]:
    parts = [values[a:b] for a, b in pairwise(offsets)]
    return [float(part.sum() / len(part)) if len(part) else None for part in parts]


@pytest.mark.parametrize(
    ("groups", "most"), [(0, 0), (1, 0), (1, 5), (9, 3), (1000, 40), (100_000, 3), (3, 200_000)]
)
@pytest.mark.parametrize("memory", [1 << 20, 64 << 20])  # a small one takes many batches
def test_all_groups_at_once(groups: int, most: int, memory: int) -> None:
    values, offsets = random_groups(groups, most)
    limits = SandboxLimits(max_memory_bytes=memory)
    mid = AggregateFunction(to_wasm(MID), "mid", [DOUBLE], DOUBLE, limits=limits)
    for _ in range(2):  # a guest that is used again has forgotten everything
        found = mid.call([Column(DOUBLE, values)], offsets)
        assert found.type == DOUBLE and found.to_list() == means(values, offsets)


def test_nulls_are_left_out_of_strict_functions() -> None:
    values, offsets = random_groups(500, 6)
    valid = np.random.default_rng(1).random(len(values)) < 0.5
    column = Column(DOUBLE, np.where(valid, values, 0), None, valid)
    mid = AggregateFunction(to_wasm(MID), "mid", [DOUBLE], DOUBLE)
    kept = np.concatenate(([0], np.cumsum(valid)))[offsets]
    assert mid.call([column], offsets).to_list() == means(values[valid], kept)
    loose = AggregateFunction(to_wasm(MID), "mid", [DOUBLE], DOUBLE, strict=False)
    assert loose.call([column], offsets).to_list() == means(column.values, offsets)


def test_text_and_several_arguments() -> None:
    texts = ["", "a", "héllo", None, "x" * 50_000, "zz"]
    weights = [1.0, 2.0, 0.5, 7.0, 1.0, None]
    columns = [from_list(TEXT, texts), from_list(DOUBLE, weights)]
    weight = AggregateFunction(to_wasm(WEIGHT), "weight", [TEXT, DOUBLE], DOUBLE)
    offsets = np.array([0, 3, 3, 5, 6])
    assert weight.call(columns, offsets).to_list() == [5.0, None, 50_000.0, None]
    one = np.array([0, 6])
    limits = SandboxLimits(max_memory_bytes=1 << 18)  # the long text takes a batch of its own
    small = AggregateFunction(to_wasm(WEIGHT), "weight", [TEXT, DOUBLE], DOUBLE, limits=limits)
    for function in (weight, small):
        assert function.call(columns, one).to_list() == [50_005.0]


X = "(f64.load (i32.load offset=8 (local.get $d)))"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (aggregate("f", "(unreachable)", SUM), UdfTrapError, "UNREACHABLE"),
        (aggregate("f", X, "(unreachable)"), UdfTrapError, "UNREACHABLE"),
        (aggregate("f", "(f64.load (i32.const -8))", SUM), UdfTrapError, "MEMORY_OUT_OF_BOUNDS"),
        (aggregate("f", "(loop $l (result f64) (br $l))", SUM), UdfLimitError, "out of fuel"),
        (aggregate("f", X, "(loop $l (result f64) (br $l))"), UdfLimitError, "out of fuel"),
        (aggregate("f", X, SUM, size=0), UdfError, "f_state_size gave 0, expected 1..1048576"),
        (aggregate("f", X, SUM, size=-16), UdfError, "f_state_size gave -16"),
        (aggregate("f", X, SUM, size=2_000_000), UdfError, "f_state_size gave 2000000"),
        (aggregate("f", X, SUM).replace("(i32.const 0)))", "(i32.const 9)))"), UdfError,
         "f_final returned status 9"),
        (aggregate("f", X, SUM).replace("(i32.const 0))\n  (func (export \"f_final",
         "(i32.const 7))\n  (func (export \"f_final"), UdfError, "f_step returned status 7"),
        (aggregate("f", X, "(block (result f64) (i32.store offset=8 (local.get $d) (i32.const -4))"
         " (f64.const 1))").replace("f64.store (i32.add (i32.load offset=8 (local.get $d))",
         "f64.store (i32.add (i32.const 64)"), UdfError, "output values at .* outside its memory"),
        (aggregate("f", X, SUM, extra="(data (i32.const 65000) \"x\")").replace(
            "(local.set $p (global.get $top))", "(return (i32.const 0))"), UdfLimitError,
         r"tars_alloc\(\d+\) gave 0"),
    ],
)  # fmt: skip
def test_a_hostile_aggregate(text: str, error: type[Exception], message: str) -> None:
    limits = SandboxLimits(fuel=100_000, fuel_per_row=1000)
    function = AggregateFunction(to_wasm(text), "f", [DOUBLE], DOUBLE, limits=limits)
    column = from_list(DOUBLE, [1.0, 2.0])
    for _ in range(2):
        with pytest.raises(error, match=message):
            function.call([column], np.array([0, 2]))
    good = AggregateFunction(to_wasm(MID), "mid", [DOUBLE], DOUBLE, limits=limits)
    assert good.call([column], np.array([0, 2])).to_list() == [1.5]  # the same, well-meaning


def test_a_state_may_be_large() -> None:
    values, offsets = random_groups(3000, 4)
    wide = AggregateFunction(
        to_wasm(aggregate("f", X.replace("(i32.load offset=8 (local.get $d))",
            "(i32.add (i32.load offset=8 (local.get $d)) (i32.shl (local.get $i) (i32.const 3)))"),
            SUM, size=100_000)), "f", [DOUBLE], DOUBLE,
    )  # fmt: skip
    expected = [None if m is None else m * c
                for m, c in zip(means(values, offsets), np.diff(offsets), strict=True)]  # fmt: skip
    found = wide.call([Column(DOUBLE, values)], offsets).to_list()
    assert [None if x is None else round(x, 6) for x in found] == [
        None if x is None else round(x, 6) for x in expected
    ]


@pytest.mark.parametrize("part", ["state_size", "init", "step", "final"])
def test_a_missing_or_wrong_export_is_named(part: str) -> None:
    for text in (
        MID.replace(f'(export "mid_{part}")', ""),
        MID.replace(f'(export "mid_{part}")', "").replace("(module", f"""(module
          (func (export "mid_{part}") (param f32))""", 1),
        MID.replace('(global (export "tars_abi_v1") i32 (i32.const 1))', ""),
    ):  # fmt: skip
        with pytest.raises(UdfValidationError, match=f"mid_{part} of type|needs a module"):
            AggregateFunction(to_wasm(text), "mid", [DOUBLE], DOUBLE)
    AggregateFunction(to_wasm(MID), "mid", [DOUBLE], DOUBLE)


def test_in_a_worker() -> None:
    limits = SandboxLimits(backend="worker")
    mid = AggregateFunction(to_wasm(MID), "mid", [DOUBLE], DOUBLE, limits=limits)
    values, offsets = random_groups(1000, 200)
    for _ in range(2):
        assert mid.call([Column(DOUBLE, values)], offsets).to_list() == means(values, offsets)
    mid.close()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("groups", "most"), [(1, 4000), (3, 2000), (700, 9), (5, 0)])
def test_shares_of_the_rows_are_merged(
    monkeypatch: pytest.MonkeyPatch, threads: int, groups: int, most: int
) -> None:
    monkeypatch.setattr(aggregates, "PARALLEL_ROWS", 100)
    values, offsets = random_groups(groups, most)
    mid = AggregateFunction(to_wasm(MID), "mid", [DOUBLE], DOUBLE)
    for _ in range(2):
        found = mid.call([Column(DOUBLE, values)], offsets, threads=threads)
        assert found.to_list() == means(values, offsets)
    stuck = aggregate("mid", X, SUM, merge="(unreachable)")
    bad = AggregateFunction(to_wasm(stuck), "mid", [DOUBLE], DOUBLE)
    if threads > 1 and len(values) >= 200:  # it is what the rows went through above
        with pytest.raises(UdfTrapError, match="UNREACHABLE"):
            bad.call([Column(DOUBLE, values)], offsets, threads=threads)
    else:
        bad.call([Column(DOUBLE, values)], offsets, threads=threads)


def test_a_module_that_cannot_merge_takes_all_rows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregates, "PARALLEL_ROWS", 100)
    values, offsets = random_groups(4, 1000)
    alone = MID.replace('(export "mid_merge")', "")
    function = AggregateFunction(to_wasm(alone), "mid", [DOUBLE], DOUBLE)
    found = function.call([Column(DOUBLE, values)], offsets, threads=4)
    assert found.to_list() == means(values, offsets)
    wrong = alone.replace("(module", '(module (func (export "mid_merge") (param f32))', 1)
    with pytest.raises(UdfValidationError, match="mid_merge of type"):
        AggregateFunction(to_wasm(wrong), "mid", [DOUBLE], DOUBLE)


def test_an_error_in_a_share_is_the_call_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregates, "PARALLEL_ROWS", 100)
    limits = SandboxLimits(fuel=0, fuel_per_row=5)
    mid = AggregateFunction(to_wasm(MID), "mid", [DOUBLE], DOUBLE, limits=limits)
    with pytest.raises(UdfLimitError, match="out of fuel"):
        mid.call([Column(DOUBLE, np.ones(5000))], np.array([0, 5000]), threads=2)
