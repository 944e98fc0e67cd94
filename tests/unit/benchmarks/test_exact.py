"""What recall is measured against: exact answers in blocks, beside a whole sort."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import exact, inputs


def sorted_rows(base: np.ndarray, queries: np.ndarray, k: int, metric: str = "l2") -> np.ndarray:
    """Return the k nearest rows by sorting all of them."""
    if metric == "ip":
        return np.argsort(-(queries.astype(np.float64) @ base.T), axis=1, kind="stable")[:, :k]
    differences = queries[:, np.newaxis].astype(np.float64) - base
    return np.argsort((differences**2).sum(axis=2), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("rows", [1, 9, 10, 1024, 1025, 5000])
def test_blocks_agree_with_a_whole_sort(
    rows: int, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "BLOCK_ROWS", 1024)
    rng = np.random.default_rng(rows)
    base = rng.standard_normal((rows, 7)).astype(np.float32)
    queries = rng.standard_normal((20, 7)).astype(np.float32)
    np.testing.assert_array_equal(
        exact.nearest(base, queries, 10, metric), sorted_rows(base, queries, 10, metric)
    )


def test_recall_counts_what_was_found() -> None:
    right = np.array([[1, 2], [3, 4]])
    assert exact.recall([[2, 1], [4, 9]], right) == 0.75
    assert exact.recall([[], [0, 0]], right) == 0


def test_main_axes_keep_what_varies_most() -> None:
    """Data of three dimensions, turned: its first three axes keep all distances, two do not."""
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.standard_normal((16, 16)))[0][:3].astype(np.float32)
    base, queries = (rng.standard_normal((n, 3)).astype(np.float32) @ turn for n in (500, 20))
    data = inputs.Vectors(base, queries, "drawn")
    three, two = (inputs.main_axes(data, dim) for dim in (3, 2))
    assert (three.base.shape, two.queries.shape) == ((500, 3), (20, 2))
    right = exact.nearest(base, queries, 10)
    assert exact.recall(exact.nearest(three.base, three.queries, 10), right) > 0.99
    assert exact.recall(exact.nearest(two.base, two.queries, 10), right) < 0.9


def test_drawn_vectors_vary_as_the_data_does() -> None:
    """Data of three dimensions in sixteen: what is drawn stays there, of length 1, and differs."""
    rng = np.random.default_rng(1)
    base = rng.standard_normal((200, 3)).astype(np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    base = np.pad(base, ((0, 0), (0, 13)))
    near = exact.nearest(base, base, inputs.NEIGHBOURS + 1)[:, 1:]
    drawn = inputs.Expansion(base, 5, near).draw(100)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(drawn[:, 3:], 0)
    distance = np.sqrt(((drawn[:, np.newaxis] - base) ** 2).sum(axis=2)).min(axis=1)
    assert np.median(distance) > 0.01
    np.testing.assert_array_equal(drawn, inputs.Expansion(base, 5, near).draw(100))
    assert not np.array_equal(drawn, inputs.Expansion(base, 6, near).draw(100))
