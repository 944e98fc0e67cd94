"""Every instruction set level gives the reference's distances, over a grid of shapes."""

from __future__ import annotations

import numpy as np
import pytest

from tarsdb.kernels import dispatch, native, reference
from tarsdb.types import parse_type

scan = pytest.importorskip("tarsdb.kernels.cpu.scan")
disk_cache = pytest.importorskip("tarsdb.kernels.cpu.disk_cache")

DTYPES = {"f32": np.float32, "f16": np.float16, "i8": np.int8, "bit": np.uint8}
METRICS = {kind: range(4) if kind != "bit" else range(4, 6) for kind in DTYPES}


def levels() -> list[str]:
    best = dispatch._best_level()
    if best == "portable":
        pytest.skip("this processor runs NumPy alone")
    return ["avx512", "avx2"] if best == "avx512" else ["avx2"]


def vectors(kind: str, rows: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind in ("i8", "bit"):
        info = np.iinfo(DTYPES[kind])
        return rng.integers(info.min, info.max + 1, (rows, width)).astype(DTYPES[kind])
    return rng.standard_normal((rows, width)).astype(DTYPES[kind])


def unaligned(array: np.ndarray, offset: int) -> np.ndarray:
    """Copy to an address that is ``offset`` modulo 64."""
    raw = np.zeros(array.nbytes + 128, np.uint8)
    start = (offset - native.address(raw)) % 64
    view = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[:] = array
    return view


def oracle(metric: int, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Distances in float64, written without the code under test."""
    if metric in (reference.HAMMING, reference.JACCARD):
        a, b = np.unpackbits(rows, axis=1), np.unpackbits(query)
        common, either = (a & b).sum(1), (a | b).sum(1)
        if metric == reference.HAMMING:
            return (a != b).sum(1).astype(np.float64)
        return np.array([1 - c / e if c else 1.0 for c, e in zip(common, either, strict=True)])
    a, b = rows.astype(np.float64), query.astype(np.float64)
    if metric == reference.L2:
        return np.linalg.norm(a - b, axis=1)
    if metric == reference.IP:
        return -(a @ b)
    if metric == reference.L1:
        return np.abs(a - b).sum(1)
    with np.errstate(invalid="ignore"):
        return 1 - (a @ b) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b))


@pytest.mark.parametrize("width", [1, 3, 8, 17, 31, 64, 384, 385])
@pytest.mark.parametrize("kind", DTYPES)
def test_levels_agree_with_the_oracle(kind: str, width: int) -> None:
    rows = unaligned(vectors(kind, 133, width), 32)
    rows[7] = 0
    query_type = np.float32 if kind == "f16" else rows.dtype
    queries = unaligned(rows[5:12].astype(query_type), 4)
    table = native.BlockTable.of([native.PlacedBlock.of(rows, np.arange(133) + 1000, None)])
    for metric in METRICS[kind]:
        expected = np.stack([oracle(metric, rows, query) for query in queries])
        by_reference = reference.distance_matrix(metric, rows, queries)
        np.testing.assert_allclose(by_reference, expected, rtol=1e-5, atol=2e-4)
        for level in levels():
            kernel = disk_cache.compiled(scan.make_scan(kind, level), scan.SIGNATURE)
            search = native.Scan(kernel, table, metric)
            alone = np.stack([search.everything(query)[1] for query in queries])
            if kind in ("i8", "bit"):
                np.testing.assert_array_equal(alone, by_reference)
            np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=2e-4)
            rowids, batched = search.nearest(queries, 133)
            for query in range(len(queries)):  # a batch sums exactly as a single query does
                np.testing.assert_array_equal(batched[query], alone[query][rowids[query] - 1000])


def test_the_comparison_notices_a_dropped_row() -> None:
    rows = vectors("f32", 65, 17)
    level = levels()[0]
    kernel = disk_cache.compiled(scan.make_scan("f32", level), scan.SIGNATURE)

    def dropping(*arguments: int) -> int:
        return kernel(*arguments[:3], arguments[3] - 1, *arguments[4:])

    table = native.BlockTable.of([native.PlacedBlock.of(rows, np.arange(65), None)])
    complete = native.Scan(kernel, table, reference.L2).nearest(rows[64:], 5)[0]
    short = native.Scan(dropping, table, reference.L2).nearest(rows[64:], 5)[0]
    assert complete[0, 0] == 64
    assert 64 not in short[0]


def test_largest_integers_do_not_overflow() -> None:
    rows = np.full((5, 65_536), -128, np.int8)
    query = np.full(65_536, 127, np.int8)
    for level in levels():
        kernel = disk_cache.compiled(scan.make_scan("i8", level), scan.SIGNATURE)
        table = native.BlockTable.of([native.PlacedBlock.of(rows, np.arange(5), None)])
        for metric in METRICS["i8"]:
            found = native.Scan(kernel, table, metric).everything(query)[1]
            np.testing.assert_array_equal(found, reference.distances(metric, rows, query))


def test_codes_are_the_reference_codes() -> None:
    for name in ("L2", "IP", "COSINE", "L1", "HAMMING", "JACCARD"):
        assert getattr(scan, name) == getattr(reference, name)
    assert tuple(scan.KINDS) == dispatch.KINDS
    assert scan.scratch_bytes(3) == native._SCRATCH_FIXED + native._SCRATCH_QUERY * 4
    assert parse_type("VECTOR(3)").dtype == DTYPES["f32"]
