"""Inverted lists on arrays: recall, filters, odd data, determinism, arrays not to be trusted."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tarsdb.columns import VectorBlock
from tarsdb.errors import CorruptionError, DataError, DimensionMismatchError
from tarsdb.index import arrays
from tarsdb.index.course import Course
from tarsdb.index.flat import FlatIndex
from tarsdb.index.ivf import Ivf, IvfOptions, Resources, build_ivf
from tarsdb.index.ivf.products import Products
from tarsdb.index.navigation import as_numbers
from tarsdb.kernels import dispatch
from tarsdb.kernels import ivf as kernels
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.memory import DeviceArrays
from tarsdb.kernels.gpu.select import partition
from tarsdb.types import parse_type
from tests.unit.index.levels import forced

OPERATORS = ("<->", "<#>", "<=>")
CODES = ("none", "int8", "bits", "pq")
SHARED = pathlib.Path(__file__).parents[4] / "shared" / "data" / "minilm384"


def clustered(rows: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(dim).standard_normal((max(rows // 60, 2), dim))
    drawn = centres[rng.integers(0, len(centres), rows)]
    return (drawn + 0.5 * rng.standard_normal((rows, dim))).astype(np.float32)


def built(rows: np.ndarray, op: str = "<->", **options: object) -> Ivf:
    return build_ivf(rows, np.arange(len(rows)), op, IvfOptions(**options))  # type: ignore[arg-type]


def exact(rows: np.ndarray) -> FlatIndex:
    block = VectorBlock(np.arange(len(rows)), np.ascontiguousarray(rows))
    return FlatIndex([block], parse_type(f"VECTOR({rows.shape[1]})"))


def nearest(ivf: Ivf, flat: FlatIndex, query: np.ndarray, effort: int, k: int = 10) -> list[int]:
    places = np.sort(ivf.rowids[ivf.search(query, ivf.candidates(k), effort)])
    found: list[int] = flat.search(query[None], k, ivf.space.op, positions=places)[0][0].tolist()
    return found


def recall(ivf: Ivf, rows: np.ndarray, queries: np.ndarray, effort: int) -> float:
    flat = exact(rows)
    hits = 0
    for query in queries:
        truth = flat.search(query[None], 10, ivf.space.op)[0][0]
        hits += len(set(nearest(ivf, flat, query, effort)) & set(truth.tolist()))
    return hits / (10 * len(queries))


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("op", OPERATORS)
def test_all_lists_give_the_exact_answer(op: str, code: str) -> None:
    rows, queries = clustered(2500, 48, 1), clustered(40, 48, 2)
    ivf = built(rows, op, codes=code)
    assert recall(ivf, rows, queries, ivf.lists) >= (0.999 if code == "none" else 0.99)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("op", OPERATORS)
def test_recall_of_a_few_lists(op: str, code: str) -> None:
    rows, queries = (
        np.random.default_rng(s).standard_normal((n, 12)) for s, n in ((1, 6000), (2, 60))
    )
    rows, queries = rows.astype(np.float32), queries.astype(np.float32)
    ivf = built(rows, op, codes=code)
    few, more = (recall(ivf, rows, queries, ivf.lists // part) for part in (100, 8))
    assert more >= 0.9
    assert few < more  # a control: what is measured can fall


def test_recall_on_sentence_embeddings() -> None:
    if not SHARED.is_dir():
        pytest.skip("no shared/data/minilm384 beside the project")
    rows = np.load(SHARED / "base.f16.npy")[:20_000].astype(np.float32)
    queries = np.load(SHARED / "query.f16.npy")[:100].astype(np.float32)
    ivf = built(rows)
    assert recall(ivf, rows, queries, ivf.lists // 8) >= 0.93
    assert ivf.nbytes - ivf.codes.nbytes < 0.25 * rows.nbytes  # with the codes left in a file


def packed(rows: int, dim: int, seed: int) -> np.ndarray:
    """Return bits as they are stored, some rows with many set, some with few, one with none."""
    rng = np.random.default_rng(seed)
    found = rng.random((rows, dim)) < rng.beta(1, 2, (rows, 1))
    found[rows // 2] = False
    return np.packbits(found, axis=1)


@pytest.mark.parametrize("dim", [3, 64, 65, 200])
@pytest.mark.parametrize("op", ["<->", "<=>"])
@pytest.mark.parametrize("level", dispatch.LEVELS)
def test_bits_are_coded_exactly(level: str, op: str, dim: int) -> None:
    """All lists give the order of full distances, on every level."""
    rows, queries = packed(900, dim, 1), packed(30, dim, 2)
    for _ in forced(level):
        ivf = built(rows, op)
        assert ivf.codes.dtype == np.uint32
        assert ivf.codes.nbytes <= (len(rows) + 15 * ivf.lists) * 8 * -(-dim // 64)
        wide = ivf.space.moved(rows)
        for query in [*as_numbers(queries), *as_numbers(rows[:10])]:
            unit = query / (np.linalg.norm(query) or 1) if op == "<=>" else query
            apart = ((wide - unit) ** 2).sum(1)
            if op == "<=>" and not query.any():
                continue  # no direction: all rows but those without one are as near
            found = ivf.rowids[ivf.search(query, 40, ivf.lists)]
            np.testing.assert_allclose(apart[found], np.sort(apart)[:40], rtol=1e-5, atol=1e-5)


def test_bits_in_lists_of_the_nearest_centroids() -> None:
    rows = packed(5000, 96, 3)
    flat = FlatIndex([VectorBlock(np.arange(5000), rows)], parse_type("BIT(96)"))
    ivf = built(rows)
    hits = []
    for query in packed(60, 96, 4):
        true = flat.search(query[None], 10, "<~>")[1][0]
        for effort in (2, ivf.lists // 2):
            near = np.sort(ivf.rowids[ivf.search(as_numbers(query), 20, effort)])
            found = flat.search(query[None], 10, "<~>", positions=near)[1][0]
            hits.append((found <= true[-1]).mean())
    few, more = np.mean(hits[::2]), np.mean(hits[1::2])
    assert few < 0.9
    assert more > 0.95


@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_the_length_of_a_query_says_nothing_by_inner_product(scale: float) -> None:
    rows, queries = clustered(3000, 48, 1) + 1, clustered(30, 48, 2)
    ivf = built(rows, "<#>")
    assert recall(ivf, rows, queries * np.float32(scale), ivf.lists // 4) >= 0.97


@pytest.mark.parametrize("code", CODES)
def test_rows_without_a_direction_come_last(code: str) -> None:
    rows = clustered(2000, 48, 1)
    rows[::3] = 0
    ivf = built(rows, "<=>", codes=code)
    for query in np.random.default_rng(2).standard_normal((10, 48)):  # near to no row
        assert (ivf.rowids[ivf.search(query, 500, ivf.lists)] % 3 != 0).all()


@pytest.mark.parametrize("share", [0.5, 0.05, 0.001])
@pytest.mark.parametrize("code", CODES)
def test_a_filter(code: str, share: float) -> None:
    rows, queries = clustered(4000, 24, 1), clustered(30, 24, 2)
    ivf, flat = built(rows, codes=code), exact(rows)
    allowed = np.random.default_rng(5).random(len(rows)) < share
    mask = allowed[ivf.rowids].astype(np.uint8)
    hits = total = 0
    for query in queries:
        wanted = min(20, int(allowed.sum()))
        near = ivf.rowids[ivf.search(query, wanted, ivf.lists, mask)]
        assert len(near) == wanted
        assert allowed[near].all()
        truth = flat.search(query[None], 10, "<->", positions=np.flatnonzero(allowed))[0][0]
        hits += len(set(truth.tolist()) & set(near.tolist()))
        total += len(truth)
    assert hits >= 0.98 * total


def test_as_many_as_match() -> None:
    rows = clustered(900, 12, 1)
    ivf = built(rows)
    query = rows[3]
    mask = np.zeros(900, np.uint8)
    assert len(ivf.search(query, 10, 1, mask)) == 0
    mask[[0, 450, 899]] = 1
    assert sorted(ivf.search(query, 10, 1, mask).tolist()) == [0, 450, 899]
    assert sorted(ivf.search(query, 2000, 1).tolist()) == list(range(900))
    assert len(ivf.search(query, 2000, 1, reach=3)) < 900
    assert len(ivf.search(query, 0, 1)) == 0


@pytest.mark.parametrize("code", CODES)
def test_more_wanted_begins_with_the_same(code: str) -> None:
    """Nodes and lists that are many are kept in another way than few."""
    rows = clustered(3000, 24, 1)
    ivf = built(rows, codes=code, lists=1300)
    if code == "pq":  # lists are passed over by true distances; rough ones can be below these
        ivf = replace(ivf, radii=np.full_like(ivf.radii, np.inf))
    for query in rows[:5]:
        every = ivf.search(query, len(rows), 1)
        assert sorted(every.tolist()) == list(range(len(rows)))
        for wanted in (1, 20, 1023, 1024, 1025, 2999):
            np.testing.assert_array_equal(ivf.search(query, wanted, ivf.lists), every[:wanted])
    near = ivf.search(rows[0], 20, 3)
    assert not np.array_equal(near, ivf.search(rows[9], 20, 3))  # a control: it can differ


def test_passing_over_far_lists_loses_nothing() -> None:
    """Where clusters are far apart the triangle inequality ends searches early."""
    rng = np.random.default_rng(1)
    rows = (100 * rng.standard_normal((40, 2))[rng.integers(0, 40, 3000)]).astype(np.float32)
    rows += rng.standard_normal(rows.shape).astype(np.float32)
    ivf = built(rows)
    blind = Ivf(**{**vars(ivf), "radii": np.full_like(ivf.radii, np.inf)})
    for query in rows[:60]:
        np.testing.assert_array_equal(
            ivf.search(query, 20, ivf.lists), blind.search(query, 20, ivf.lists)
        )


@pytest.mark.parametrize("code", CODES)
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
def test_odd_rows(op: str, rows: np.ndarray, code: str) -> None:
    rows = rows.astype(np.float32)
    ivf = built(rows, op, codes=code, lists=16)
    near = ivf.search(rows[0], len(rows) + 5, 1)
    assert sorted(ivf.rowids[near].tolist()) == list(range(len(rows)))
    again = Ivf.from_arrays(ivf.to_arrays())
    np.testing.assert_array_equal(again.search(rows[0], 5, 2), ivf.search(rows[0], 5, 2))


def test_a_query_of_no_numbers_finds_nothing_or_anything() -> None:
    ivf = built(clustered(200, 8, 1))
    for value in (np.nan, np.inf):
        near = ivf.search(np.full(8, value, np.float32), 10, 2)
        assert set(near.tolist()) <= set(range(200))


@pytest.mark.parametrize("code", CODES)
def test_levels_agree(code: str) -> None:
    rows, queries = clustered(1500, 70, 1), clustered(20, 70, 2)
    found = []
    for name in dispatch.LEVELS[dispatch.LEVELS.index(dispatch._best_level()) :]:
        for _ in forced(name):
            assert kernels.wait() is not None
            ivf = built(rows, codes=code)
            found.append((ivf, [ivf.search(query, 20, 5) for query in queries]))
    for ivf, near in found[1:]:
        for name, array in ivf.to_arrays().items():
            np.testing.assert_array_equal(array, found[0][0].to_arrays()[name], err_msg=name)
        np.testing.assert_array_equal(near, found[0][1])


def test_the_same_at_any_number_of_threads_and_on_a_device() -> None:
    rows, device = clustered(5000, 33, 1), Device("NumPy", np, DeviceArrays(1 << 30), partition(np))
    alone, together, there = (
        build_ivf(rows, np.arange(5000), "<=>", resources=resources).to_arrays()
        for resources in (Resources(), Resources(3), Resources(1, device))
    )
    for name, array in alone.items():
        np.testing.assert_array_equal(array, together[name], err_msg=name)
        np.testing.assert_array_equal(array, there[name], err_msg=name)


def test_through_packed_bytes_used_where_they_lie() -> None:
    rows = clustered(700, 20, 1)
    ivf = built(rows)
    named = arrays.unpack(b"".join(bytes(part) for part in arrays.pack(ivf.to_arrays())))
    again = Ivf.from_arrays(named)
    assert np.shares_memory(again.codes, named["codes"])
    for query in rows[:20]:
        np.testing.assert_array_equal(again.search(query, 10, 4), ivf.search(query, 10, 4))


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("op", OPERATORS)
def test_codes_left_in_several_runs(op: str, codes: str) -> None:
    """Lists that a run's end cuts are copied, the others searched where they lie."""
    rows = clustered(3000, 40, 1)
    ivf = built(rows, op, codes=codes, lists=60)
    whole = memoryview(b"".join(bytes(part) for part in arrays.pack(ivf.to_arrays())))
    for size in (10_000, 1 << 15, len(whole)):
        runs = [whole[at : at + size] for at in range(0, len(whole), size)]
        named, left = arrays.unpack_runs(runs, ["codes"])
        again = Ivf.from_arrays({**named, **left})
        held = again.nbytes - (ivf.nbytes - ivf.codes.nbytes)
        assert held < ivf.codes.nbytes
        assert size < len(whole) or not held
        for query in rows[:40]:
            np.testing.assert_array_equal(again.search(query, 10, 7), ivf.search(query, 10, 7))


def _set(name: str, at: object, value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(named: dict[str, np.ndarray]) -> None:
        named[name] = named[name].copy()
        named[name][at] = value  # type: ignore[index]

    return change


def _cut(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(named: dict[str, np.ndarray]) -> None:
        named[name] = named[name][:-1]

    return change


NAMES = ("rowids", "constants", "starts", "centroids", "shapes", "radii", "mean", "codes")
DAMAGE = [
    *[_cut(name) for name in NAMES],
    *[lambda named, name=name: named.pop(name) for name in (*NAMES, "op", "largest")],
    _set("starts", 0, 1), _set("starts", 3, 10**9), _set("starts", 2, -5), _set("starts", -1, 301),
    _set("op", 0, 65), _set("mean", 0, np.nan), _set("radii", 0, np.nan), _set("radii", 0, -1),
    _set("constants", (0, 0, 0), np.nan), _set("shapes", (0, 0, 0), np.nan),
    lambda named: named.update(codes=named["codes"].astype(np.float64)),
    lambda named: named.update(rowids=named["rowids"].astype(np.int32)),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_arrays_are_refused(damage: Callable[[dict[str, np.ndarray]], None]) -> None:
    named = dict(built(clustered(300, 65, 1)).to_arrays())
    Ivf.from_arrays(named)
    damage(named)
    with pytest.raises(CorruptionError):
        Ivf.from_arrays(named)


PRODUCT_ARRAYS = ("axes", "scales", "products")
PRODUCT_DAMAGE = [
    *[_cut(name) for name in (*PRODUCT_ARRAYS, "codes", "constants")],
    *[lambda named, name=name: named.pop(name) for name in PRODUCT_ARRAYS],
    _set("scales", (0, 1, 0), np.inf), _set("products", (0, 0, 3), np.nan),
    lambda named: named.update(rotation=np.ones((3, 64), np.float32)),
]  # fmt: skip


@pytest.mark.parametrize("damage", PRODUCT_DAMAGE)
def test_damaged_product_codes_are_refused(
    damage: Callable[[dict[str, np.ndarray]], None],
) -> None:
    named = dict(built(clustered(300, 60, 1), codes="pq").to_arrays())
    Ivf.from_arrays(named)
    damage(named)
    with pytest.raises(CorruptionError):
        Ivf.from_arrays(named)


@pytest.mark.parametrize("op", OPERATORS)
def test_product_codes_are_ordered_by_what_they_stand_for(op: str) -> None:
    """Beside the same estimate made of the arrays in NumPy, without tables of bytes."""
    rows, queries = clustered(2000, 70, 1), clustered(8, 70, 2)
    ivf = built(rows, op, codes="pq")
    made = ivf.products
    assert made is not None
    lists = np.repeat(np.arange(ivf.lists), np.diff(ivf.starts))
    tiles = np.concatenate([[0], np.cumsum(-(-np.diff(ivf.starts) // 16))])[lists]
    tile, lane = np.divmod(np.arange(len(rows)) - ivf.starts[lists] + 16 * tiles, 16)
    words = np.asarray(ivf.codes)[tile, :, lane]
    names = (words[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15).reshape(len(rows), -1)
    coded, constants = made.named(names.astype(np.uint8)), ivf.constants[tile, :, lane]
    turn = ivf.centroids.transpose(0, 2, 1, 3).reshape(-1, ivf.centroids[0].size // 16)
    means = (turn.astype(np.float32) - 128) * ivf.shapes[:, 1].reshape(-1, 1)
    means = means[: ivf.lists, : len(ivf.space.mean)]
    for query in queries:
        q = _moved(ivf, query)
        near = np.square(means).sum(axis=1) - 2 * means @ q
        keys = constants[:, 0] + near[lists] + constants[:, 1] * (coded @ made.turned(q[None])[0])
        found = ivf.search(query, 200, ivf.lists)
        spread = np.ptp(keys)
        assert (np.diff(keys[found]) > -0.02 * spread).all()
        assert keys[found].max() < np.sort(keys)[199] + 0.02 * spread
        assert (np.diff(keys[found[::-1]]) < -0.02 * spread).any()  # a control


def test_training_of_product_codes_can_be_stopped() -> None:
    found = kernels.wait()
    assert found is not None
    left = [3]

    def check() -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Products.train(clustered(500, 100, 1), 1, found, check)
    left[0] = 100
    Products.train(clustered(500, 100, 1), 1, found, check)
    assert left[0] == 100 - 32  # once for each part


def _moved(ivf: Ivf, query: np.ndarray) -> np.ndarray:
    """Return a query in the space of the index, as kernels bring it there."""
    wide = query if ivf.space.op == "<->" else query / np.linalg.norm(query) * ivf.space.norm
    return np.append(wide, np.zeros(len(ivf.space.mean) - len(query), np.float32)) - ivf.space.mean


@pytest.mark.parametrize(
    "options", [{"lists": -1}, {"codes": "pq8"}, {"seed": 1.5}, {"sample": 0}, {"iterations": True}]
)
def test_options_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(DataError):
        IvfOptions(**options)  # type: ignore[arg-type]


def test_a_query_or_mask_of_another_length() -> None:
    ivf = built(clustered(100, 8, 1))
    with pytest.raises(DimensionMismatchError):
        ivf.search(np.zeros(7, np.float32), 5, 1)
    with pytest.raises(DataError):
        ivf.search(np.zeros(8, np.float32), 5, 1, np.ones(99, np.uint8))


def test_building_stops_when_told() -> None:
    class StopIt(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise StopIt

    with pytest.raises(StopIt):
        build_ivf(clustered(300, 8, 1), np.arange(300), "<->", course=Course(stop))
