"""Inverted lists of sign bits with further bits: recall, order, filters, storage, damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tarsdb.errors import CorruptionError, DataError, NotSupportedError
from tarsdb.index import arrays
from tarsdb.index.ivf import Ivf, IvfOptions, build_ivf, estimated_bytes, on_device
from tarsdb.index.ivf.build import rotation_matrix
from tarsdb.index.ivf.refining import further
from tarsdb.kernels import dispatch
from tarsdb.kernels import ivf as kernels
from tests.unit.index.levels import forced
from tests.unit.index.test_ivf import OPERATORS, _moved, built, clustered, packed, recall
from tests.unit.index.test_lists_on_device import numpy_device


def refined(rows: np.ndarray, op: str = "<->", **options: object) -> Ivf:
    return built(rows, op, codes="bits", refine_bits=2, **options)


def drawn(rows: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


@pytest.mark.parametrize("op", OPERATORS)
def test_fewer_candidates_find_as_much(op: str) -> None:
    """Of data that signs alone say little about."""
    rows, queries = drawn(6000, 96, 1), drawn(100, 96, 2)
    rough, ivf = built(rows, op, codes="bits"), refined(rows, op)
    assert (rough.candidates(10), ivf.candidates(10)) == (80, 20)
    np.testing.assert_array_equal(rough.codes, ivf.codes)
    least = recall(rough, rows, queries, ivf.lists // 2)
    assert recall(ivf, rows, queries, ivf.lists // 2) >= least - 0.001
    assert ivf.further is not None
    others = replace(ivf, further=np.roll(np.asarray(ivf.further), 1, axis=0))
    assert recall(others, rows, queries, ivf.lists // 2) < least - 0.2  # a control


@pytest.mark.parametrize("op", OPERATORS)
def test_the_nearest_are_ordered_by_the_better_keys(op: str) -> None:
    """Beside the same estimate made of the arrays in NumPy, of a query that is not cut to bytes."""
    rows, queries = clustered(2000, 70, 1), clustered(8, 70, 2)
    ivf = refined(rows, op)
    lists = np.repeat(np.arange(ivf.lists), np.diff(ivf.starts))
    tiles = np.concatenate([[0], np.cumsum(-(-np.diff(ivf.starts) // 16))])[lists]
    tile, lane = np.divmod(np.arange(len(rows)) - ivf.starts[lists] + 16 * tiles, 16)
    words = np.ascontiguousarray(np.asarray(ivf.codes)[tile, :, lane])
    signs = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    constants, more = ivf.constants[tile, :, lane], np.asarray(ivf.further)
    four = more[:, :-16, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    low = four.swapaxes(1, 2).reshape(len(rows), -1)
    base, ratio, slope, ones = np.ascontiguousarray(more[:, -16:]).view(np.float32).T
    np.testing.assert_array_equal(ones, low.sum(axis=1))
    turn = ivf.centroids.transpose(0, 2, 1, 3).reshape(-1, ivf.centroids[0].size // 16)
    means = (turn.astype(np.float32) - 128) * ivf.shapes[:, 1].reshape(-1, 1)
    means = means[: ivf.lists, : len(ivf.space.mean)]
    matrix = rotation_matrix(ivf.rotation, means.shape[1])
    wide = ivf.space.moved(rows)[ivf.rowids]
    for query in queries:
        q = _moved(ivf, query)
        near, turned = (np.square(means).sum(axis=1) - 2 * means @ q)[lists], q @ matrix
        signed = constants[:, 0] + constants[:, 1] * ((signs - 0.5) @ turned)
        keys = base + ratio * signed + slope * ((low - 1.5) @ turned) + near
        true = np.square(wide - q).sum(axis=1) - q @ q
        assert np.abs(keys - true).mean() < 0.4 * np.abs(near + signed - true).mean()
        found = ivf.search(query, 200, ivf.lists)
        spread = np.ptp(keys)
        assert (np.diff(keys[found]) > -0.01 * spread).all()
        assert keys[found].max() < np.sort(keys)[199] + 0.01 * spread
        assert (np.diff((near + signed)[found]) < -0.01 * spread).any()  # a control


def test_bits_are_levels_beside_their_signs() -> None:
    rotated = drawn(50, 128, 1)
    signs = rotated > 0
    rotated[:, ::9] = np.where(signs[:, ::9], -1e-9, 1e-9)  # rounded to the other side
    more = further(rotated, np.zeros_like(rotated), signs, np.ones((50, 3), np.float32))
    four = more[:, :-16, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3
    y = 4.0 * (signs - 0.5) + four.swapaxes(1, 2).reshape(50, -1) - 1.5
    steps = 0.586 * np.sqrt(np.square(rotated).mean(axis=1, keepdims=True))
    assert np.abs(y - (rotated / steps).clip(-3.5, 3.5)).max() <= 0.51
    wrong = 4.0 * ((rotated > 0) - 0.5) + y - 4.0 * (signs - 0.5)  # a control
    assert np.abs(wrong - (rotated / steps).clip(-3.5, 3.5)).max() > 3


def test_levels_agree() -> None:
    rows, queries = clustered(1500, 70, 1), clustered(20, 70, 2)
    found = []
    for name in dispatch.LEVELS[dispatch.LEVELS.index(dispatch._best_level()) :]:
        for _ in forced(name):
            assert kernels.wait() is not None
            ivf = refined(rows)
            found.append((ivf, [ivf.search(query, 20, 5) for query in queries]))
    for ivf, near in found[1:]:
        for name, array in ivf.to_arrays().items():
            np.testing.assert_array_equal(array, found[0][0].to_arrays()[name], err_msg=name)
        np.testing.assert_array_equal(near, found[0][1])


@pytest.mark.parametrize("share", [0.5, 0.05, 0.001])
def test_a_filter_and_places(share: float) -> None:
    rows, queries = clustered(4000, 24, 1), clustered(30, 24, 2)
    ivf = refined(rows)
    allowed = np.random.default_rng(5).random(len(rows)) < share
    mask, names = allowed[ivf.rowids].astype(np.uint8), ivf.rowids + 7
    wanted, hits, total = min(20, int(allowed.sum())), 0, 0
    for query in queries:
        near = ivf.search(query, wanted, ivf.lists, mask, places=names) - 7
        assert len(set(near.tolist())) == wanted
        assert allowed[near].all()
        apart = np.where(allowed, np.square(rows - query).sum(axis=1), np.inf)
        true = np.argsort(apart)[: min(10, wanted)]
        hits, total = hits + len(set(near.tolist()) & set(true.tolist())), total + len(true)
    assert hits >= 0.98 * total


def test_as_many_as_there_are() -> None:
    rows = clustered(3000, 24, 1)
    ivf = refined(rows, lists=1300)
    for query in rows[:5]:
        for wanted in (1, 20, 500, 1023, 1025, 2999, 3000, 5000):
            found = ivf.search(query, wanted, 1)
            assert len(set(found.tolist())) == min(wanted, 3000)
    assert len(ivf.search(rows[0], 3000, 1, reach=3)) < 3000
    mask = np.zeros(3000, np.uint8)
    mask[[0, 450, 2999]] = 1
    assert sorted(ivf.search(rows[3], 10, 1, mask).tolist()) == [0, 450, 2999]
    others = ivf.search_others(5, rows[ivf.rowids[5]], 10, ivf.lists)
    assert len(others) == 10
    assert 5 not in others


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((40, 7)), np.full((40, 7), 2.5), np.repeat(np.eye(5), 20, axis=0), np.ones((1, 3)),
        np.arange(60.0)[:, None], np.random.default_rng(1).standard_normal((30, 4096)),
        np.random.default_rng(1).standard_normal((9, 3)) * 1e-20,
    ],
    ids=["zeros", "equal", "duplicates", "one row", "dim 1", "dim 4096", "tiny"],
)  # fmt: skip
@pytest.mark.parametrize("op", OPERATORS)
def test_odd_rows(op: str, rows: np.ndarray) -> None:
    rows = rows.astype(np.float32)
    ivf = refined(rows, op, lists=16)
    near = ivf.search(rows[0], len(rows) + 5, 1)
    assert sorted(ivf.rowids[near].tolist()) == list(range(len(rows)))
    again = Ivf.from_arrays(ivf.to_arrays())
    np.testing.assert_array_equal(again.search(rows[0], 5, 2), ivf.search(rows[0], 5, 2))
    for value in (np.nan, np.inf):
        near = ivf.search(np.full(rows.shape[1], value, np.float32), 5, 2)
        assert set(near.tolist()) <= set(range(len(rows)))


def test_rows_without_a_direction_come_last() -> None:
    rows = clustered(2000, 48, 1)
    rows[::3] = 0
    ivf = refined(rows, "<=>")
    for query in drawn(10, 48, 2):
        assert (ivf.rowids[ivf.search(query, 500, ivf.lists)] % 3 != 0).all()


@pytest.mark.parametrize("op", OPERATORS)
def test_left_in_several_runs(op: str) -> None:
    """Lists that a run's end cuts are copied, the others searched where they lie."""
    rows = clustered(3000, 40, 1)
    ivf = refined(rows, op, lists=60)
    whole = memoryview(b"".join(bytes(part) for part in arrays.pack(ivf.to_arrays())))
    assert ivf.further is not None
    lying = ivf.codes.nbytes + ivf.further.nbytes
    for size in (10_000, 1 << 15, len(whole)):
        runs = [whole[at : at + size] for at in range(0, len(whole), size)]
        named, left = arrays.unpack_runs(runs, ["codes", "further"])
        assert left.keys() == {"codes", "further"}
        again = Ivf.from_arrays({**named, **left})
        held = again.nbytes - (ivf.nbytes - lying)
        assert held < lying
        assert size < len(whole) or not held
        for query in rows[:40]:
            np.testing.assert_array_equal(again.search(query, 10, 7), ivf.search(query, 10, 7))


DAMAGE: list[Callable[[dict[str, Any]], object]] = [
    lambda named: named.update(further=named["further"][:-1]),
    lambda named: named.update(further=named["further"][:, :-4].copy()),
    lambda named: named.update(further=named["further"][:, ::-1]),
    lambda named: named.update(further=named["further"].view(np.int8)),
    lambda named: named.update(further=named["further"].reshape(-1)),
    lambda named: named.update(codes=named["codes"][:, ::-1]),
    lambda named: named.update(built(clustered(300, 65, 1)).to_arrays()),
    lambda named: named.update(built(clustered(300, 65, 1), codes="pq").to_arrays()),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_arrays_are_refused(damage: Callable[[dict[str, Any]], object]) -> None:
    named: dict[str, Any] = dict(refined(clustered(300, 65, 1)).to_arrays())
    Ivf.from_arrays(named)
    damage(named)
    with pytest.raises(CorruptionError):
        Ivf.from_arrays(named)


def test_parts_without_further_bits_are_searched_as_before() -> None:
    rows = clustered(1000, 33, 1)
    ivf, rough = refined(rows), built(rows, codes="bits")
    named = ivf.to_arrays()
    del named["further"]
    without = Ivf.from_arrays(named)
    assert without.candidates(10) == rough.candidates(10)
    for query in rows[:20]:
        np.testing.assert_array_equal(without.search(query, 30, 5), rough.search(query, 30, 5))


@pytest.mark.parametrize(("op", "dim"), [("<->", 65), ("<#>", 384)])
def test_sizes_are_told_before(op: str, dim: int) -> None:
    rows, options = clustered(2000, dim, 1), IvfOptions(codes="bits", refine_bits=2)
    held = sum(array.nbytes for array in refined(rows, op).to_arrays().values())
    memory, told = estimated_bytes(len(rows), dim, 4 * dim, op, options)
    assert 0.9 * held <= told <= 1.1 * held
    without = estimated_bytes(len(rows), dim, 4 * dim, op, replace(options, refine_bits=0))
    assert told - without[1] == 2000 * (-(-(dim + (op == "<#>")) // 64) * 16 + 16)
    assert memory > without[0]


@pytest.mark.parametrize(
    "options", [{"refine_bits": n, "codes": "bits"} for n in (1, 3, -2, True, 2.0, "2")]
    + [{"refine_bits": 2, "codes": codes} for codes in ("auto", "int8", "none", "pq")],
)  # fmt: skip
def test_other_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="refine_bits"):
        IvfOptions(**options)


def test_rows_of_bits_have_none() -> None:
    with pytest.raises(NotSupportedError, match="rows of bits"):
        build_ivf(packed(100, 64, 1), np.arange(100), "<->", IvfOptions(0, "bits", refine_bits=2))


def test_a_device_leaves_them_to_the_processor() -> None:
    rows = clustered(1500, 32, 1)
    assert on_device.search(numpy_device(), built(rows), rows[:20], 20, 5) is not None
    assert on_device.search(numpy_device(), refined(rows), rows[:20], 20, 5) is None
