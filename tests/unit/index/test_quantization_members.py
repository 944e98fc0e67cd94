"""All quantisers: errors of decoding, distances to what is decoded, odd data, stored arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tarsdb.errors import CorruptionError, DataError, NotSupportedError
from tarsdb.index import arrays
from tarsdb.index.quantization import (
    KINDS,
    Float16,
    Int4,
    Int8,
    ProductQuantizer,
    Quantizer,
    RaBitQ,
    kmeans,
)
from tarsdb.index.quantization.base import exact
from tarsdb.kernels import quantized, reference

METRICS = (reference.L2, reference.IP, reference.COSINE)
Train = Callable[[np.ndarray, int], Quantizer]
MEMBERS: dict[str, Train] = {
    "rabitq": RaBitQ.train,
    "rabitq4": lambda x, m: RaBitQ.train(x, m, bits=4),
    "float16": Float16.train,
    "int8": Int8.train,
    "int4": Int4.train,
    "pq8": ProductQuantizer.train,
    "pq4": lambda x, m: ProductQuantizer.train(x, m, bits=4),
    "opq4": lambda x, m: ProductQuantizer.train(x, m, bits=4, parts=x.shape[1], rotate=True),
}
member = pytest.mark.parametrize("name", MEMBERS)


def drawn(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, dim)) @ rng.standard_normal((dim, dim))).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", [n for n in MEMBERS if not n.startswith("rabitq")])
def test_distance_is_that_to_the_decoded(name: str, metric: int) -> None:
    rows, queries = drawn(300, 21), drawn(4, 21, 1)
    quantizer = MEMBERS[name](rows, metric)
    codes = quantizer.encode(rows)
    decoded = quantizer.decode(codes)
    for query in queries:
        found = quantizer.distances(quantizer.prepare(query), codes)
        slow = exact(metric, decoded, query)
        assert np.allclose(found, slow, rtol=1e-4, atol=1e-4 * np.abs(slow).max())


@pytest.mark.parametrize("metric", METRICS)
@member
def test_stored_and_read_again(name: str, metric: int) -> None:
    rows = drawn(100, 10)
    quantizer = MEMBERS[name](rows, metric)
    codes = quantizer.encode(rows)
    assert codes.dtype == np.uint8
    assert codes.shape == (100, quantizer.code_size)
    packed = b"".join(bytes(piece) for piece in arrays.pack(quantizer.arrays()))
    again = type(quantizer).from_arrays(arrays.unpack(packed))
    assert type(again) in KINDS.values()
    assert np.array_equal(again.encode(rows), codes)
    assert np.array_equal(again.decode(codes), quantizer.decode(codes))


@member
def test_bad_arrays_are_refused(name: str) -> None:
    quantizer = MEMBERS[name](drawn(50, 8), reference.L2)
    good = quantizer.arrays()
    for key, array in good.items():
        spoiled = [array.astype(np.float64) if array.dtype != np.float64 else array[:0]]
        spoiled.append(array[..., :-1])
        if array.dtype.kind == "f":
            spoiled.append(np.full_like(array, np.nan))
        else:
            spoiled.append(array + 1000000000)
        for bad in spoiled:
            with pytest.raises(CorruptionError):
                type(quantizer).from_arrays({**good, key: bad})
        if key != "rotation" or isinstance(quantizer, RaBitQ):
            with pytest.raises(CorruptionError, match="absent"):
                type(quantizer).from_arrays({k: v for k, v in good.items() if k != key})
    with pytest.raises(CorruptionError, match="codes are"):
        quantizer.decode(np.zeros((3, quantizer.code_size + 1), np.uint8))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@member
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    rows = drawn(50, 8)
    quantizer = MEMBERS[name](rows, reference.L2)
    bad = rows.copy()
    bad[7, 3] = value
    for use in (quantizer.encode, lambda x: MEMBERS[name](x, reference.L2)):
        with pytest.raises(DataError, match="row 7"):
            use(bad)
    with pytest.raises(DataError, match="row 0"):
        quantizer.prepare(bad[7])
    with pytest.raises(DataError, match=r"expected \(n, 8\)"):
        quantizer.encode(rows[:, :5])
    with pytest.raises(DataError, match="at least 1"):
        MEMBERS[name](rows[:0], reference.L2)
    with pytest.raises(NotSupportedError, match="metric 3"):
        MEMBERS[name](rows, reference.L1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 3, 65])
@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
@member
def test_equal_rows(name: str, value: float, dim: int, metric: int) -> None:
    rows = np.full((5, dim), value, np.float32)
    quantizer = MEMBERS[name](rows, metric)
    codes = quantizer.encode(rows)
    decoded = quantizer.decode(codes)
    assert np.allclose(decoded, quantizer.rows(rows), atol=1e-2 * abs(value) + 1e-6)
    found = quantizer.distances(quantizer.prepare(rows[0] + 1), codes)
    assert np.isfinite(found).all()
    assert (found == found[0]).all()
    assert quantizer.encode(rows[:0]).shape == (0, quantizer.code_size)
    assert quantizer.distances(quantizer.prepare(rows[0]), codes[:0]).shape == (0,)


@pytest.mark.parametrize(("name", "most"), [("pq8", 256), ("opq4", 16)])
def test_as_many_rows_as_centroids_lose_nothing(name: str, most: int) -> None:
    for rows, is_kept in ((drawn(most, 24), True), (drawn(2 * most, 24), False)):
        quantizer = MEMBERS[name](rows, reference.L2)
        lost = np.abs(quantizer.decode(quantizer.encode(rows)) - quantizer.rows(rows)).max()
        assert (lost < 1e-5) == is_kept


def test_error_of_scalar_codes() -> None:
    rows = drawn(500, 40)
    reach = np.ptp(rows, axis=1, keepdims=True)
    found = {
        kind: np.abs(kind.decode(kind.encode(rows)) - rows)
        for kind in (Float16.train(rows, 0), Int8.train(rows, 0), Int4.train(rows, 0))
    }
    half, eight, four = found.values()
    assert (half <= np.abs(rows) * 2.0**-11 + 2.0**-25).all()
    assert (eight <= reach / 510 * 1.001).all()
    assert (four <= reach * (0.15 + 1 / 30)).all()  # an element may lie in the part cut off
    whole = Int4.train(rows, 0)
    whole_range = np.square(np.rint((rows - rows.min(axis=1, keepdims=True)) / reach * 15)
                            * reach / 15 + rows.min(axis=1, keepdims=True) - rows)  # fmt: skip
    lost = np.square(whole.decode(whole.encode(rows)) - rows)
    assert lost.sum() < whole_range.sum()


def test_float16_ends_where_it_ends() -> None:
    rows = np.full((2, 2), 65504, np.float32)
    quantizer = Float16.train(rows, reference.L2)
    assert np.array_equal(quantizer.decode(quantizer.encode(rows)), rows)
    with pytest.raises(DataError, match="element 0 of row 0"):
        quantizer.encode(rows + 100)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("parts", [1, 7, 21])
def test_scan_is_within_its_rounding(metric: int, parts: int) -> None:
    rows, query = drawn(500, 21), drawn(1, 21, 3)[0]
    quantizer = ProductQuantizer.train(rows, metric, bits=4, parts=parts)
    codes, tables = quantizer.encode(rows), quantizer.prepare(query)
    found = quantizer.scan(tables, quantizer.pack(codes))[:500]
    exact_keys = quantizer.distances(tables, codes)
    limit = parts * tables.scale / 2 + 1e-4 * np.abs(exact_keys).max()
    assert (np.abs(found - exact_keys) <= limit).all()
    assert tables.small.max(axis=1).astype(int).sum() <= 65535


def test_tables_of_many_parts_fit_16_bits() -> None:
    rows = drawn(20, 600)
    quantizer = ProductQuantizer.train(rows, reference.L2, bits=4, parts=600)
    tables = quantizer.prepare(rows[0] * 3)
    assert tables.small.max(axis=1).astype(int).sum() <= 65535
    tiles = quantizer.pack(quantizer.encode(rows))
    sums = quantized.fastscan_portable(tiles, tables.small[None])
    keys = quantizer.distances(tables, quantizer.encode(rows))
    close = tables.bias + tables.scale * sums[0, :20].astype(np.float32)
    assert np.allclose(close, keys, atol=600 * tables.scale / 2)


def test_centroids_fewer_rows_than_asked_for() -> None:
    rows = drawn(5, 6)
    quantizer = ProductQuantizer.train(rows, reference.L2, parts=2)
    assert np.allclose(quantizer.decode(quantizer.encode(rows)), rows, atol=1e-2)
    with pytest.raises(NotSupportedError, match="7 parts"):
        ProductQuantizer.train(rows, reference.L2, parts=7)


def test_rounds_of_lloyd_lose_less_and_fill_empty_clusters() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.standard_normal((300, 2)) + at for at in ((0, 0), (50, 0), (0, 50))])
    rows = rows.astype(np.float32)
    start = np.repeat(rows[:1], 8, axis=0)  # all alike: seven are empty at first
    centroids = kmeans.train(rows, 8, rng, start)
    names = kmeans.assign(rows, centroids)
    assert len(np.unique(names)) >= 3
    assert np.square(rows - centroids[names]).sum(axis=1).mean() < 100
    slow = np.square(rows[:, None] - centroids[None]).sum(axis=2)
    chosen = np.take_along_axis(slow, names[:, None].astype(np.int64), 1)[:, 0]
    assert np.allclose(chosen, slow.min(axis=1), atol=1e-2)


def test_rotation_helps_where_dimensions_go_together() -> None:
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((2000, 32)) * np.geomspace(1, 0.02, 32)).astype(np.float32)
    plain = ProductQuantizer.train(rows, reference.L2, bits=4, parts=8)
    turned = ProductQuantizer.train(rows, reference.L2, bits=4, parts=8, rotate=True)
    assert turned.rotation is not None
    assert np.allclose(turned.rotation @ turned.rotation.T, np.eye(32), atol=1e-5)
    lost, less = (q.distortion(rows).relative_error for q in (plain, turned))
    assert less < 0.8 * lost


def test_the_report() -> None:
    rows = drawn(400, 16)
    report = Float16.train(rows, reference.L2).distortion(rows)
    assert report.bytes_per_vector == 32
    assert report.relative_error < 1e-6
    assert report.recall > 0.99
    poor = ProductQuantizer.train(rows, reference.L2, bits=4, parts=1).distortion(rows)
    assert poor.relative_error > 0.1
    assert poor.recall < 0.6
