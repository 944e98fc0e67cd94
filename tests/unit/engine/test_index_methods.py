"""The seam of the methods of a vector index, and what is measured of their parts."""

from __future__ import annotations

import numpy as np
import pytest

from tarsdb.columns import VectorBlock
from tarsdb.engine.search.calibration import (
    Calibration,
    Truth,
    count_right,
    harder_half,
    measured,
    others,
)
from tarsdb.engine.search.index_methods import METHODS, Method, Part, Rows
from tarsdb.engine.search.vector_index import PlacedPart
from tarsdb.errors import NotSupportedError
from tarsdb.index import arrays
from tarsdb.index.course import UNWATCHED
from tarsdb.index.flat import FlatIndex
from tarsdb.kernels import graph, ivf
from tarsdb.types import parse_type

DIM = 16


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    graph.wait()
    ivf.wait()


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[str(request.param)]


def source(vectors: np.ndarray, op: str = "<->") -> Rows:
    rowids = np.arange(7, 7 + len(vectors))
    kind = parse_type(f"VECTOR({vectors.shape[1]})")
    return Rows(rowids, vectors.astype(np.float32), kind, op, 1, UNWATCHED)


def gaussian(rows: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, DIM))


def built(method: Method, vectors: np.ndarray, op: str = "<->") -> tuple[Part, np.ndarray]:
    rows = source(vectors, op)
    part = method.build(rows, method.options()())
    return part, measured(part, method, rows, lambda: None)


def test_a_part_is_what_its_arrays_say(method: Method) -> None:
    part, _ = built(method, gaussian(900))
    whole = b"".join(bytes(piece) for piece in arrays.pack(part.to_arrays()))
    again = method.read(*arrays.unpack_runs([memoryview(whole)], method.left))
    assert (len(again), again.dim) == (900, DIM)
    assert again.nbytes <= part.nbytes
    for query in gaussian(20, 2).astype(np.float32):
        np.testing.assert_array_equal(again.search(query, 10, 20), part.search(query, 10, 20))


def test_all_codes_of_lists_stay_in_the_file() -> None:
    lists = METHODS["ivf"]
    part = lists.build(source(gaussian(900)), lists.options()(codes="bits", refine_bits=2))
    whole = b"".join(bytes(piece) for piece in arrays.pack(part.to_arrays()))
    again = lists.read(*arrays.unpack_runs([memoryview(whole)], lists.left))
    codes = sum(part.to_arrays()[name].nbytes for name in ("codes", "further"))
    assert again.nbytes == part.nbytes - codes
    for query in gaussian(20, 2).astype(np.float32):
        np.testing.assert_array_equal(again.search(query, 10, 20), part.search(query, 10, 20))


def test_more_effort_is_measured_to_find_more(method: Method) -> None:
    _, steps = built(method, gaussian(3000))
    assert steps.shape[1] == 1 + len(method.calibrated)
    assert (np.diff(steps[:, 0]) > 0).all()
    assert (steps[0, 1:] < steps[-1, 1:]).all()
    assert (steps[-1, 1:] >= 0.95).all()
    known = Calibration(steps, method)
    efforts = [known.effort_for(recall, 10) for recall in (0.5, 0.8, 0.95)]
    assert 0 < efforts[0] <= efforts[1] <= efforts[2]
    assert efforts[0] < efforts[2]


def test_the_harder_half_counts() -> None:
    hits = np.array([[10, 5], [10, 5], [1, 5], [8, 1], [10, 5]])
    totals = np.array([[10, 5]] * 5)
    np.testing.assert_allclose(harder_half(hits, totals), [1 - 11 / 30, 1 - 4 / 15])
    np.testing.assert_allclose(harder_half(totals, totals), 1)
    np.testing.assert_allclose(harder_half(hits * 0, totals * 0), 1)


def test_dead_nodes_want_more_effort(method: Method) -> None:
    part, steps = built(method, gaussian(3000))
    known, nodes = Calibration(steps, method), np.arange(3000)
    whole, most, half = (PlacedPart(part, nodes, None, known, eighths) for eighths in (8, 7, 4))
    efforts = [each.effort_for(0.9, 10) for each in (whole, most, half)]
    assert efforts[0] == known.effort_for(0.9, 10)
    assert efforts[0] <= efforts[1] <= efforts[2]
    assert efforts[2] == known.effort_for(0.975, 10) > efforts[0]


def test_any_of_equally_near_rows_counts(method: Method) -> None:
    """Every vector is there 40 times: which copies exact search names is chance."""
    vectors = np.repeat(gaussian(75), 40, axis=0).astype(np.float32)
    part, steps = built(method, vectors)
    effort = int(steps[-1, 0])
    flat = FlatIndex([VectorBlock(np.arange(7, 3007), vectors)], parse_type(f"VECTOR({DIM})"))
    same = 0
    for query in vectors[::40]:
        near = part.search(query, method.candidates(part, 11, effort), effort)
        assert near is not None
        at = np.sort(flat.positions(part.rowids[near]))
        found, _ = flat.search(query[np.newaxis], 11, "<->", positions=at)
        true, _ = flat.search(query[np.newaxis], 11, "<->")
        same += len(set(found[0].tolist()) & set(true[0].tolist()))
    apart = {"hnsw": 0.2, "ivf": 0}[
        method.name
    ]  # lists, like exact search, take the first of equals
    assert steps[-1, 1] >= same / (75 * 11) + apart


@pytest.mark.parametrize("op", ["<->", "<#>", "<=>"])
@pytest.mark.parametrize("data", ["plain", "pairs", "copies", "zeros", "lattice", "few"])
def test_rows_known_to_be_right_are_those_compared(
    method: Method, data: str, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        "plain": gaussian(700), "pairs": np.repeat(gaussian(350), 2, axis=0),
        "copies": np.repeat(gaussian(4), 175, axis=0),
        "zeros": gaussian(700) * (np.arange(700) % 2)[:, None],
        "lattice": np.rint(gaussian(700) / 2), "few": gaussian(9),
    }[data]  # fmt: skip
    part, steps = built(method, rows, op)
    known = []

    def unknown(self: Truth, column: int, rowids: np.ndarray) -> None:
        known.append(self._right[column] is not None)

    monkeypatch.setattr(Truth, "count", unknown)
    compared = measured(part, method, source(rows, op), lambda: None)
    np.testing.assert_allclose(steps, compared, atol=1e-3)
    assert all(known) or data not in ("plain", "few")
    assert not all(known) or data != "copies"


def test_farther_rows_do_not_count() -> None:
    true = np.array([1.0, 2.0, 3.0], np.float32)
    assert count_right(np.array([1.0, 2.0, 3.0], np.float32), true) == 3
    assert count_right(np.array([1.0, 3.0, 3.0], np.float32), true) == 3
    assert count_right(np.array([1.0, 3.00001, 3.1], np.float32), true) == 2
    assert count_right(np.array([-3.0, -2.0], np.float32), np.array([-4.0, -3.0])) == 1
    assert count_right(true, true[:0]) == 0
    ids = np.array([4, 9, -1, 5])
    assert others(ids, np.arange(4.0), 9, 3).tolist() == [0.0, 3.0]
    assert others(ids, np.arange(4.0), 8, 1).tolist() == [0.0]


def test_rows_without_a_direction_do_not_spoil_what_is_measured(method: Method) -> None:
    """The cosine to a zero vector is not defined."""
    rows = gaussian(2000)
    rows[::2] = 0
    _, steps = built(method, rows, "<=>")
    assert steps[-1, 1] >= 0.95


def test_effort_grows_with_the_neighbours_wanted() -> None:
    steps = np.array([[1, 0.5, 0.2], [10, 1, 0.6], [40, 1, 1]], np.float64)
    known = Calibration(steps, METHODS["ivf"])
    assert [known.effort_for(0.95, k) for k in (1, 10, 100)] == [10, 10, 40]
    assert known.effort_for(0.95, 31.6) == 20
    assert known.effort_for(0.95, 1000) == 160
    assert known.effort_for(0.95, 10**10) == known.effort_for(0.95, 10**11)
    # a recall of 100 neighbours nothing was enough for
    known = Calibration(steps[:2], METHODS["ivf"])
    assert known.effort_for(0.95, 10) == 10
    assert known.effort_for(0.95, 50) >= 1 << 20
    assert known.effort_for(0.95, 100) == 0
    # of a graph one number is measured
    known = Calibration(steps[:, :2], METHODS["hnsw"])
    assert [known.effort_for(0.95, k) for k in (1, 10, 1000)] == [10, 10, 10]
    assert Calibration(np.empty((0, 2)), METHODS["hnsw"]).effort_for(0.95, 10) == 64


def test_no_more_lists_are_looked_at_than_there_are() -> None:
    method = METHODS["ivf"]
    part, steps = built(method, gaussian(1000))
    lists = round(4 * 1000**0.5)
    assert method.ladder(part, False)[-1] == lists
    assert steps[-1, 0] <= lists
    assert method.settled(10**6, 10, [part]) == lists
    assert method.settled(5, 10, [part]) == 5
    assert method.pool(part, 10, lists) == 1000
    assert method.pool(part, 10, 1) == method.candidates(part, 10, 1) == 20


def test_few_allowed_rows_are_compared_exactly(method: Method) -> None:
    part, _ = built(method, gaussian(3000))

    def most(is_coded: bool) -> int:
        """Return how many rows are compared exactly at most."""
        exact = [
            allowed
            for allowed in range(0, 30_001, 10)
            if method.prefers_exact(50, (allowed, 30_000), [part], is_coded=is_coded)
        ]
        assert exact == list(range(0, len(exact) * 10, 10))
        return exact[-1]

    assert 10 <= most(is_coded=False) < most(is_coded=True)
    assert not method.prefers_exact(50, (29_000, 30_000), [part], is_coded=True)


def test_words_are_of_any_case() -> None:
    assert METHODS["ivf"].checked({"codes": "BITS", "lists": 3}, "i") == {
        "codes": "bits",
        "lists": 3,
    }
    assert METHODS["hnsw"].checked({"quantization": "INT4"}, "i") == {"quantization": "int4"}


def test_an_option_of_another_method_is_refused(method: Method) -> None:
    assert method.checked({"seed": 3}, "i") == {"seed": 3}
    with pytest.raises(NotSupportedError, match="index i: option 'wrong' is not known"):
        method.checked({"wrong": 3}, "i")
