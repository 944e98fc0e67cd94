"""The rotation to principal axes, beside float64 arithmetic."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tarsdb.index.quantization.principal import SAMPLE, PrincipalAxes, principal_axes


def decaying(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Rows whose energy falls from axis to axis, turned out of the coordinate axes."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return np.float32(rng.standard_normal((rows, dim)) * 0.9 ** np.arange(dim) @ turn)


def axes_of(rows: np.ndarray) -> PrincipalAxes:
    """The axes, which there must be."""
    found = principal_axes(rows)
    assert found is not None
    return found


def worst(axes: PrincipalAxes, rows: np.ndarray, queries: np.ndarray) -> float:
    """The largest relative error of inner products of rotated rows."""
    exact = queries.astype(np.float64) @ rows.astype(np.float64).T
    rotated = axes.rotate(queries).astype(np.float64) @ axes.rotate(rows).astype(np.float64).T
    sizes = np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(rows, axis=1))
    return float((np.abs(rotated - exact) / sizes).max())


@pytest.mark.parametrize("dim", [1, 7, 64, 200, 384])
def test_inner_products_stay_within_the_distortion(dim: int) -> None:
    rows, queries = decaying(3000, dim), decaying(20, dim, 1)
    axes = axes_of(rows)
    assert 0 < axes.distortion < 1e-3
    assert worst(axes, rows, queries) <= axes.distortion


def test_a_matrix_that_is_not_orthogonal_has_a_distortion_that_says_so() -> None:
    rows, queries = decaying(300, 64), decaying(20, 64, 1)
    axes = axes_of(rows)
    bent = axes.matrix.copy()
    bent[:, 0] *= 1.01
    skewed = dataclasses.replace(axes, matrix=bent)
    assert worst(skewed, rows, queries) > axes.distortion
    assert worst(skewed, rows, queries) <= skewed.distortion


def test_energies_are_those_of_the_rotated_rows() -> None:
    rows = decaying(SAMPLE, 96)
    axes = axes_of(rows)
    rotated = axes.rotate(rows)
    unit = rotated / np.linalg.norm(rotated, axis=1, keepdims=True)
    np.testing.assert_allclose(axes.energies, (unit**2).mean(axis=0), atol=1e-5)
    assert (np.diff(axes.energies) <= 0).all()
    assert axes.tail(0) == pytest.approx(1)
    assert axes.tail(48) == pytest.approx((unit[:, 48:] ** 2).sum(axis=1).mean(), abs=1e-5)
    assert axes.tail(48) < 0.01 < axes_of(np.eye(96, dtype=np.float32)).tail(48)


def test_a_row_counts_alike_whatever_its_norm() -> None:
    rows = decaying(500, 32)
    louder = rows * np.float32(10.0) ** np.arange(-8, 8).repeat(32)[:500, np.newaxis]
    np.testing.assert_allclose(axes_of(rows).energies, axes_of(louder).energies, atol=1e-5)


@pytest.mark.parametrize("rows", [
    np.zeros((4, 3), np.float32), np.full((4, 3), np.nan, np.float32),
    np.full((4, 3), np.inf, np.float32), np.empty((0, 3), np.float32),
])  # fmt: skip
def test_no_axes_of_rows_that_have_no_direction(rows: np.ndarray) -> None:
    assert principal_axes(rows) is None


def test_some_zero_rows_do_no_harm_and_the_same_rows_give_the_same_axes() -> None:
    rows = decaying(2 * SAMPLE, 16)
    rows[::2] = 0
    one, two = axes_of(rows), axes_of(rows)
    np.testing.assert_array_equal(one.matrix, two.matrix)
    assert one.tail(0) == pytest.approx(1)
