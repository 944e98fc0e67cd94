"""RaBitQ: unbiased, within its bound as often as promised, alike on every level."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from tarsdb.errors import NotSupportedError
from tarsdb.index.quantization import RaBitQ
from tarsdb.index.quantization.base import exact
from tarsdb.kernels import dispatch, reference
from tests.unit.index.levels import forced

METRICS = (reference.L2, reference.IP, reference.COSINE)


@pytest.fixture(params=dispatch.LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from forced(request.param)


def drawn(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, dim)) + rng.standard_normal(dim)).astype(np.float32)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("metric", METRICS)
def test_the_bound_holds_as_often_as_promised(metric: int, bits: int) -> None:
    rows, queries = drawn(2000, 100), drawn(40, 100, 1)
    quantizer = RaBitQ.train(rows, metric, bits=bits)
    codes = quantizer.encode(rows)
    above = []
    for query in queries:
        _, lows = quantizer.bounds(quantizer.prepare(query), codes)
        above.append(exact(metric, quantizer.rows(rows), query) < lows)
    share = np.mean(above)
    assert share <= 0.0287 * 1.3  # one side of 1.9 standard deviations, and some chance
    if bits > 1:  # queries are not rounded: the bound is tight, not merely large
        assert share >= 0.0287 / 2


@pytest.mark.parametrize("bits", [1, 4])
def test_estimates_are_unbiased_over_rotations(bits: int) -> None:
    rows, query = drawn(30, 20), drawn(1, 20, 2)[0]
    truth = exact(reference.L2, rows, query)
    errors = []
    for seed in range(300):
        quantizer = RaBitQ.train(rows, reference.L2, bits=bits, seed=seed)
        found = quantizer.distances(quantizer.prepare(query), quantizer.encode(rows))
        errors.append(found - truth)
    mean, spread = np.mean(errors, axis=0), np.std(errors, axis=0) / np.sqrt(len(errors))
    assert (np.abs(mean) < 4.5 * spread + 1e-4).all()
    assert np.std(errors) > 100 * 1e-4 or bits > 1  # there is an error to be unbiased


@pytest.mark.parametrize("metric", METRICS)
def test_levels_agree(level: str, metric: int) -> None:
    rows, queries = drawn(333, 70), drawn(5, 70, 3)
    quantizer = RaBitQ.train(rows, metric)
    codes = quantizer.encode(rows)
    tiles = quantizer.pack(codes)
    dispatch.use("portable")
    expected = [quantizer.scan(quantizer.prepare(query), tiles) for query in queries]
    dispatch.use(level)
    for query, want in zip(queries, expected, strict=True):
        prepared = quantizer.prepare(query)
        found = quantizer.scan(prepared, tiles)
        assert np.array_equal(found[0], want[0])
        assert np.array_equal(found[1], want[1])
        assert np.array_equal(quantizer.distances(prepared, codes), want[0][0, :333])


@pytest.mark.parametrize("metric", METRICS)
def test_several_centroids_at_once(metric: int) -> None:
    rows, query = drawn(200, 33), drawn(1, 33, 4)[0]
    quantizer = RaBitQ.train(rows, metric)
    centroids = quantizer.rows(drawn(3, 33, 5))
    prepared = quantizer.prepare(query, centroids)
    assert prepared.planes.shape == (3, 4, 1)
    for number, centroid in enumerate(centroids):
        tiles = quantizer.pack(quantizer.encode(rows, centroid))
        one = quantizer.scan(quantizer.prepare(query, centroid), tiles)[0][0]
        assert np.allclose(quantizer.scan(prepared, tiles)[0][number], one, rtol=1e-4, atol=1e-4)
        truth = exact(metric, quantizer.rows(rows), query)
        assert np.corrcoef(one[:200], truth)[0, 1] > 0.5


def test_more_bits_lose_less() -> None:
    rows = drawn(500, 64)
    lost = [RaBitQ.train(rows, 0, bits=b).distortion(rows).relative_error for b in range(1, 9)]
    # a Gaussian source: 1 - 2 / pi for the sign; never below the rate-distortion bound 4^-bits
    assert lost[0] == pytest.approx(1 - 2 / np.pi, abs=0.02)
    for bits, (more, less) in enumerate(itertools.pairwise(lost), start=1):
        assert less < more / 2
        assert more > 4.0**-bits


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("dim", [1, 63, 64, 65])
def test_rows_at_the_centroid_and_zeros(dim: int, bits: int) -> None:
    rows = np.zeros((20, dim), np.float32)
    quantizer = RaBitQ.train(rows, reference.L2, bits=bits)
    codes = quantizer.encode(rows)
    assert not quantizer.decode(codes).any()
    found, lows = quantizer.bounds(quantizer.prepare(np.ones(dim, np.float32)), codes)
    assert np.allclose(found, dim, rtol=1e-5)
    assert (lows <= found).all()


def test_only_sign_bits_are_scanned() -> None:
    quantizer = RaBitQ.train(drawn(10, 8), reference.L2, bits=4)
    with pytest.raises(NotSupportedError, match="4 bits"):
        quantizer.pack(quantizer.encode(drawn(10, 8)))
    with pytest.raises(NotSupportedError, match="9 bits"):
        RaBitQ.train(drawn(10, 8), reference.L2, bits=9)
