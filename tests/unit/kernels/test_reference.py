"""The definitions themselves: order, ties, NaN, pairwise distances."""

from __future__ import annotations

import numpy as np
import pytest

from tarsdb.kernels import reference


@pytest.mark.parametrize("k", [0, 1, 3, 6, 7, 50])
@pytest.mark.parametrize("descending", [False, True])
def test_smallest_orders_ties_by_rowid_and_nan_last(k: int, descending: bool) -> None:
    values = np.array([2, np.nan, 1, 2, np.inf, 1, np.nan], np.float32)
    rowids = np.array([9, 1, 8, 3, 2, 7, 0])
    order = reference.smallest(values, rowids, k, descending)
    expected = [4, 3, 0, 5, 2, 6, 1] if descending else [5, 2, 3, 0, 4, 6, 1]
    assert order.tolist() == expected[:k]


def test_zero_vector_has_no_cosine() -> None:
    rows = np.array([[0, 0], [1, 0], [-1, 0]], np.float32)
    found = reference.distances(reference.COSINE, rows, np.array([2, 0], np.float32))
    assert np.isnan(found[0])
    assert found[1:].tolist() == [0, 2]


def test_jaccard_of_nothing_in_common_is_one() -> None:
    rows = np.array([[0], [0b1100_0000], [0b1010_0000]], np.uint8)
    found = reference.distances(reference.JACCARD, rows, np.array([0b1100_0000], np.uint8))
    np.testing.assert_allclose(found, [1, 0, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize("metric", range(4))
def test_pairwise_is_row_by_row(metric: int) -> None:
    left, right = np.random.default_rng(3).standard_normal((2, 1000, 130)).astype(np.float32)
    found = reference.distances(metric, left, right)
    expected = [reference.distances(metric, left[i : i + 1], right[i])[0] for i in range(1000)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_inner_product_of_zero_is_not_negative_zero() -> None:
    found = reference.distances(reference.IP, np.zeros((1, 4), np.float32), np.ones(4, np.float32))
    assert not np.signbit(found[0])
