"""k-means over codes: inertia, odd data, the same on every level and at any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tarsdb.index.hnsw.codes import Space
from tarsdb.index.ivf.kmeans import Rows, Work, assign, coded, kmeans, tile_starts, tiled
from tarsdb.kernels import dispatch
from tarsdb.kernels import ivf as kernels
from tarsdb.kernels.ivf import IvfKernels
from tests.unit.index.levels import forced


def ready() -> IvfKernels:
    found = kernels.wait()
    assert found is not None
    return found


def inertia(rows: np.ndarray, centroids: np.ndarray) -> float:
    return float(squares(rows, centroids).min(axis=1).sum())


def squares(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return ((rows[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2)


def groups(rows: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = 4 * np.random.default_rng(dim).standard_normal((20, dim))
    return (centres[rng.integers(0, 20, rows)] + rng.standard_normal((rows, dim))).astype("f4")


@pytest.fixture(params=dispatch.LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from forced(request.param)


@pytest.mark.parametrize("dim", [1, 3, 64, 65, 200])
def test_codes_equal_the_definition(level: str, dim: int) -> None:
    rows = groups(37, dim, 1)
    rows[5] = 0
    space = Space("<->", np.zeros(dim, np.float32), 0.0)
    want, constants = space.coded(rows)
    made = coded(rows, ready())
    assert ((made.codes.view(np.uint8) ^ 128) == want).all()
    np.testing.assert_array_equal(made.constants, constants)


@pytest.mark.parametrize(("rows", "lists", "dim"), [(1, 1, 1), (50, 17, 30), (133, 64, 384)])
def test_assignment_is_the_nearest_code(level: str, rows: int, lists: int, dim: int) -> None:
    made, centroids = coded(groups(rows, dim, 1), ready()), coded(groups(lists, dim, 2), ready())
    labels, distances = assign(made, centroids, Work(ready(), threads=2))
    want = squares(made.decoded(), centroids.decoded())
    size = made.constants[:, 0].max() + centroids.constants[:, 0].max()
    chosen = want[np.arange(rows), labels]
    np.testing.assert_allclose(chosen, want.min(axis=1), atol=1e-5 * size)
    np.testing.assert_allclose(distances, want.min(axis=1), atol=1e-5 * size)


def test_levels_agree() -> None:
    rows = groups(700, 96, 1)
    found = []
    for name in dispatch.LEVELS[dispatch.LEVELS.index(dispatch._best_level()) :]:
        for _ in forced(name):
            found.append(kmeans(coded(rows, ready()), 30, 5, 1, Work(ready())))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_matter(threads: int) -> None:
    made = coded(groups(3001, 20, 1), ready())
    alone = kmeans(made, 50, 6, 1, Work(ready()))
    np.testing.assert_array_equal(alone, kmeans(made, 50, 6, 1, Work(ready(), threads)))
    assert (alone != kmeans(made, 50, 6, 2, Work(ready()))).any()


def test_inertia_falls_to_that_of_lloyd_in_float64() -> None:
    rows = groups(2000, 24, 1)
    found = kmeans(coded(rows, ready()), 40, 12, 1, Work(ready()))
    rng = np.random.default_rng(1)
    exact = rows[np.sort(rng.choice(2000, 40, replace=False))].astype(np.float64)
    start = inertia(rows, exact)
    for _ in range(12):
        labels = squares(rows, exact).argmin(axis=1)
        exact = np.stack([rows[labels == c].mean(axis=0) if (labels == c).any() else exact[c]
                          for c in range(40)])  # fmt: skip
    assert inertia(rows, found) <= 1.02 * inertia(rows, exact)
    assert inertia(rows, found) < 0.7 * start


def test_empty_clusters_take_from_the_largest() -> None:
    rows = np.zeros((400, 8), np.float32)
    rows[200:] = groups(200, 8, 1)  # half of the rows are one point: most of its centroids are idle
    found = kmeans(coded(rows, ready()), 60, 15, 1, Work(ready()))
    labels, _ = assign(coded(rows, ready()), coded(found, ready()), Work(ready()))
    assert len(np.unique(labels)) >= 45
    assert np.isfinite(found).all()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_rows_all_equal(value: float) -> None:
    rows = np.full((50, 5), value, np.float32)
    found = kmeans(coded(rows, ready()), 10, 5, 1, Work(ready()))
    assert found.shape == (10, 5)
    assert inertia(rows, found) <= 1e-6 * (1 + value)


def test_more_clusters_than_rows() -> None:
    rows = groups(3, 4, 1)
    assert kmeans(coded(rows, ready()), 10, 5, 1, Work(ready())).shape == (3, 4)


def test_tiles_hold_the_rows_of_a_list() -> None:
    made = coded(groups(40, 70, 1), ready())
    starts = np.array([0, 0, 17, 40])
    codes, constants = tiled(made, starts)
    assert tile_starts(starts).tolist() == [0, 0, 2, 4]
    rows = codes.transpose(0, 2, 1, 3).reshape(-1, 128)
    np.testing.assert_array_equal(rows[:17], made.codes[:17].view(np.uint8) ^ 128)
    np.testing.assert_array_equal(rows[32:55], made.codes[17:].view(np.uint8) ^ 128)
    assert np.isinf(constants[1, 0, 1:]).all()
    assert (constants[3, 0, :7] == made.constants[33:, 0]).all()


def test_it_stops_when_told() -> None:
    class StopIt(Exception):
        pass

    def stop(rows: int) -> None:
        raise StopIt

    with pytest.raises(StopIt):
        kmeans(coded(groups(50, 4, 1), ready()), 5, 5, 1, Work(ready(), advance=stop))


def test_sizes_are_those_of_the_kernels() -> None:
    from tarsdb.kernels.cpu import ivf as compiled
    from tarsdb.kernels.cpu import sign_bits

    own = (kernels.TILE, kernels.PLAN, kernels.SCRATCH, kernels.BLOCK, kernels.ROUNDS)
    of_bits = (sign_bits.BLOCK, sign_bits.ROUNDS)
    assert own == (compiled.TILE, compiled.PLAN, compiled.SCRATCH, *of_bits)
    assert kernels.STEP % max(compiled.SEVERAL.values()) == 0
    assert Rows.empty(2, 65).codes.shape == (2, 128)
