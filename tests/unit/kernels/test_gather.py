"""Values of a few rows out of runs of rows, against NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tarsdb.engine.reading.cells import Cells
from tarsdb.kernels import dispatch
from tarsdb.kernels.native import address

DTYPES = (np.int16, np.int32, np.int64, np.float32, np.float64)


@pytest.fixture(scope="module")
def kernel() -> dispatch.Kernel:
    dispatch.prepare(dispatch.GATHER)
    dispatch.wait()
    found = dispatch.get(dispatch.GATHER)
    if found is None:
        pytest.skip("nothing is compiled here")
    return found


@pytest.mark.parametrize("lengths", [[1], [5], [3, 1, 40], [7] * 9])
@pytest.mark.parametrize("columns", [1, 3, 5])
def test_equals_numpy(kernel: dispatch.Kernel, lengths: Sequence[int], columns: int) -> None:
    rng = np.random.default_rng(len(lengths) + columns)
    runs, first, known = [], 3, {}
    for length in lengths:
        values = [rng.integers(-99, 99, length).astype(DTYPES[c % 5]) for c in range(columns)]
        live = None if length % 2 else rng.random(length) < 0.5
        runs.append((first, live, values))
        for row in range(length):
            if live is None or live[row]:
                known[first + row] = [column[row].item() for column in values]
        first += length + 2  # row ids nobody has
    cells = Cells(runs, 20)

    def read(rowids: np.ndarray) -> list[tuple[object, ...]] | None:
        *table, to = cells.words
        if not kernel(*table, address(rowids), len(rowids), to):
            return None
        return [*zip(*(values[: len(rowids)].tolist() for values in cells.values), strict=True)]

    for _ in range(50):
        asked = np.array(rng.choice(list(known), rng.integers(1, 21)), np.int64)
        assert read(asked) == [tuple(known[r]) for r in asked.tolist()]
    for absent in set(range(-2, first + 3)) - known.keys():
        asked = np.array([next(iter(known)), absent], np.int64)
        assert read(asked) is None
