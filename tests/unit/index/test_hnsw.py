"""The graph index on arrays: recall, determinism, odd data, filters, arrays not to be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tarsdb.columns import VectorBlock
from tarsdb.errors import (
    CorruptionError,
    DataError,
    DimensionMismatchError,
    NotSupportedError,
)
from tarsdb.index.course import Course
from tarsdb.index.flat import FlatIndex
from tarsdb.index.hnsw import Graph, GraphOptions, build_graph
from tarsdb.index.hnsw.codes import Space
from tarsdb.index.navigation import as_numbers
from tarsdb.kernels import dispatch
from tarsdb.kernels import graph as kernels
from tarsdb.types import parse_type
from tests.unit.index.levels import forced

OPERATORS = ("<->", "<#>", "<=>")


def clustered(rows: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(dim).standard_normal((max(rows // 60, 2), dim))
    drawn = centres[rng.integers(0, len(centres), rows)]
    return (drawn + 0.5 * rng.standard_normal((rows, dim))).astype(np.float32)


def recall(graph: Graph, rows: np.ndarray, op: str, ef: int, queries: np.ndarray) -> float:
    block = VectorBlock(graph.rowids, rows[graph.rowids])
    flat = FlatIndex([block], parse_type(f"VECTOR({rows.shape[1]})"))
    k = min(10, len(rows))
    hits = 0
    for query in queries:
        truth, _ = flat.search(query[np.newaxis], k, op)
        near = graph.search(query, 2 * k, max(ef, 2 * k))
        assert near is not None
        found, _ = flat.search(query[np.newaxis], k, op, positions=near.astype(np.int64))
        hits += len(set(found[0].tolist()) & set(truth[0].tolist()))
    return hits / (k * len(queries))


def built(rows: np.ndarray, op: str = "<->", **options: object) -> Graph:
    return build_graph(rows, np.arange(len(rows)), op, GraphOptions(**options))  # type: ignore[arg-type]


@pytest.fixture
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    for level in forced(request.param):
        assert kernels.wait() is not None
        yield level


@pytest.mark.parametrize("op", OPERATORS)
def test_recall(op: str) -> None:
    rows = clustered(4000, 48, 1)
    graph = built(rows, op)
    assert recall(graph, rows, op, 64, clustered(100, 48, 2)) >= 0.97


def test_recall_in_tight_clusters() -> None:
    """Where neighbours differ by little, the rounding of codes must not decide."""
    rng = np.random.default_rng(1)
    centres = 5 * rng.standard_normal((40, 128))
    rows, queries = (
        (centres[rng.integers(0, 40, n)] + 0.3 * rng.standard_normal((n, 128))).astype(np.float32)
        for n in (3000, 60)
    )
    assert recall(built(rows), rows, "<->", 64, queries) >= 0.9


def test_a_short_list_finds_less() -> None:
    """Control: what recall measures can fall."""
    rows = clustered(4000, 48, 1)
    graph = built(rows, m=2, ef_construction=8)
    assert recall(graph, rows, "<->", 20, clustered(100, 48, 2)) < 0.97


@pytest.mark.parametrize("op", OPERATORS)
def test_norms_far_apart(op: str) -> None:
    rows = clustered(2000, 16, 1)
    spread = 0.5 if op == "<#>" else 1.0
    rows *= np.random.default_rng(3).lognormal(0, spread, (len(rows), 1)).astype(np.float32)
    rows[7] *= 1 if op == "<#>" else 1000
    graph = built(rows, op)
    assert recall(graph, rows, op, 100, clustered(60, 16, 2)) >= 0.9


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("level", dispatch.LEVELS, indirect=True)
def test_every_level_builds_the_same_graph(level: str, quantization: str) -> None:
    rows = clustered(1500, 133, 5)
    graph = built(rows, quantization=quantization)
    queries = clustered(20, 133, 6)
    found = [graph.search(query, 10, 40) for query in queries]
    dispatch.use("portable")
    plain = built(rows, quantization=quantization)
    assert (graph.edges == plain.edges).all()
    assert (graph.codes == plain.codes).all()
    for query, near in zip(queries, found, strict=True):
        assert (near == plain.search(query, 10, 40)).all()


def test_threads_do_not_change_the_graph() -> None:
    rows = clustered(3000, 20, 7)
    one = build_graph(rows, np.arange(3000), "<->")
    for threads in (2, 3):
        other = build_graph(rows, np.arange(3000), "<->", threads=threads)
        for name, array in one.to_arrays().items():
            assert (array == other.to_arrays()[name]).all(), name


def test_another_seed_is_another_graph() -> None:
    rows = clustered(500, 8, 7)
    assert (built(rows, seed=1).rowids != built(rows, seed=2).rowids).any()


@pytest.mark.parametrize(
    "rows",
    [
        np.ones((1, 3)),
        np.eye(2),
        np.ones((300, 5)),
        np.zeros((100, 4)),
        np.repeat(np.eye(9), 40, axis=0),
        np.arange(200).reshape(-1, 1) * 1.0,
        np.random.default_rng(1).standard_normal((70, 1025)),
        np.random.default_rng(1).standard_normal((3, 4096)),
    ],
    ids=["one", "two", "equal", "zero", "copies", "dim 1", "dim 1025", "dim 4096"],
)
@pytest.mark.parametrize("op", OPERATORS)
def test_odd_data(rows: np.ndarray, op: str) -> None:
    rows = rows.astype(np.float32)
    graph = built(rows, op)
    assert sorted(graph.rowids.tolist()) == list(range(len(rows)))
    near = graph.search(rows[0], 10, 50)
    assert near is not None
    assert len(set(near.tolist())) == len(near) == min(10, len(rows))
    every = graph.search(rows[0], len(rows) + 5, len(rows) + 5)
    assert every is not None
    assert len(set(every.tolist())) == len(every) <= len(rows)


def decoded(graph: Graph) -> np.ndarray:
    """Return the integers of a graph's codes, from their definition."""
    if graph.bits == 8:
        return graph.codes.astype(np.int64) - 128
    halves = np.stack([graph.codes & 15, graph.codes >> 4]).astype(np.int64)
    runs = halves.reshape(2, len(graph), -1, 64).transpose(1, 2, 0, 3)
    return 2 * runs.reshape(len(graph), -1) - 15


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_distances_of_codes_are_as_defined(quantization: str) -> None:
    """The order of the nearest by codes is that of the definition in NumPy."""
    rows = clustered(400, 130, 3)
    for op in OPERATORS:
        graph = built(rows, op, quantization=quantization)
        assert graph.bits == (8 if quantization == "int8" else 4)
        for query in clustered(10, 130, 4):
            code, factor = graph.space.query(query, graph.padded)
            dots = decoded(graph) @ code.astype(np.int64)
            keys = graph.constants[:, 0] - factor * graph.constants[:, 1] * dots.astype(np.float32)
            near = graph.search(query, 5, 400)
            assert near is not None
            assert np.allclose(np.sort(keys)[:5], keys[near], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [20, 200])
def test_codes_of_bits_are_exact(dim: int) -> None:
    """Distances by codes are Hamming distances; many bits take four bits each."""
    rng = np.random.default_rng(5)
    rows = np.packbits(rng.random((500, dim)) < rng.beta(1, 2, (500, 1)), axis=1)
    graph = built(rows)
    width = 8 * rows.shape[1]
    assert graph.dim == width
    assert graph.codes.shape[1] == (64 if dim == 20 else 128)
    for query in np.packbits(rng.random((20, dim)) < 0.3, axis=1):
        near = graph.search(as_numbers(query), 10, 500)
        assert near is not None
        apart = np.bitwise_count(rows ^ query).sum(1)
        assert apart[graph.rowids[near]].tolist() == np.sort(apart)[:10].tolist()


@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_the_length_of_a_query_says_nothing_by_inner_product(scale: float) -> None:
    rows, queries = clustered(3000, 48, 1) + 1, clustered(30, 48, 2)
    graph = built(rows, "<#>")
    assert recall(graph, rows, "<#>", 100, queries * np.float32(scale)) >= 0.95


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_rows_without_a_direction_come_last(quantization: str) -> None:
    rows = clustered(2000, 48, 1)
    rows[::3] = 0
    graph = built(rows, "<=>", quantization=quantization)
    for query in np.random.default_rng(2).standard_normal((10, 48)):  # near to no row
        near = graph.search(query, 500, 1000)
        assert near is not None
        assert (graph.rowids[near] % 3 != 0).all()


@pytest.mark.parametrize(("bits", "steps"), [(8, 254), (4, 15)])
def test_codes_reconstruct_the_vectors(bits: int, steps: int) -> None:
    rows = np.random.default_rng(3).uniform(-1, 1, (200, 130)).astype(np.float32)
    space = Space.of(rows, "<->")
    codes, constants = space.coded(rows, bits)
    nodes = np.arange(200)
    graph = Graph(nodes, codes, constants, nodes[:, None], nodes[:1], space)
    back = decoded(graph)[:, :130] * constants[:, 1:] + space.mean
    assert np.abs(back - rows).max() <= np.abs(rows - space.mean).max() / steps + 1e-6


def test_codes_of_4_bits_are_chosen_where_they_do() -> None:
    """Not for copies with noise too small for them, nor where they are no smaller."""
    rng = np.random.default_rng(3)
    spread = (rng.standard_normal((3000, 20)) @ rng.standard_normal((20, 200))).astype(np.float32)
    tight = spread[rng.integers(0, 30, 3000)] + 0.01 * rng.standard_normal((3000, 200))
    assert Space.of(spread, "<->").bits_for(spread) == 4
    assert Space.of(tight, "<->").bits_for(tight) == 8
    assert Space.of(spread[:, :60], "<->").bits_for(spread[:, :60]) == 8
    assert built(spread[:500]).bits == 4


def test_every_node_can_be_reached() -> None:
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((40, 16))
    rows = centres[rng.integers(0, 40, 6000)] + 0.02 * rng.standard_normal((6000, 16))
    for options in ({}, {"m": 3, "ef_construction": 10}):
        graph = built(rows.astype(np.float32), **options)
        reached, new = set(graph.entries.tolist()), graph.entries.tolist()
        while new:
            beyond = set(graph.edges[new].ravel().tolist()) - {-1} - reached
            reached |= beyond
            new = list(beyond)
        assert len(reached) == 6000


@pytest.mark.parametrize(
    ("rows", "op", "quantization"),
    [
        (np.random.default_rng(0).standard_normal((60, 24)), "<=>", "int4"),
        (np.random.default_rng(0).standard_normal((2000, 24)), "<#>", "int4"),
        (np.random.default_rng(0).integers(0, 2, (300, 3)), "<->", "int8"),
        (np.zeros((300, 24)), "<->", "int8"),
    ],
    ids=["few", "inner products", "duplicates", "zeros"],
)
def test_a_list_as_long_as_all_nodes_finds_them_all(
    rows: np.ndarray, op: str, quantization: str
) -> None:
    """From the few entries a search starts from, whichever these are."""
    rows = rows.astype(np.float32)
    graph = built(rows, op, quantization=quantization)
    for query in rows[:20]:
        found = graph.search(query, len(rows), len(rows))
        assert found is not None
        assert sorted(found.tolist()) == list(range(len(rows)))


def test_a_node_is_left_out() -> None:
    rows = clustered(1500, 24, 1)
    graph = built(rows)
    for node in {*range(0, 1500, 97), *graph.entries[:5].tolist()}:
        query = rows[graph.rowids[node]]
        before = graph.search(query, 50, 64)
        others = graph.search_others(node, query, 50, 64)
        assert before is not None
        assert before[0] == node
        assert node not in others
        assert len(others) == 50
        assert sorted([node, *graph.search_others(node, query, 1499, 1499)]) == list(range(1500))
        np.testing.assert_array_equal(graph.search(query, 50, 64), before)


def test_rows_left_out_are_as_hard_to_search_as_other_queries() -> None:
    rng = np.random.default_rng(1)
    rows, queries = (rng.standard_normal((n, 64)).astype(np.float32) for n in (4000, 300))
    graph, block = built(rows), VectorBlock(np.arange(4000), rows)
    flat = FlatIndex([block], parse_type("VECTOR(64)"))
    nodes = np.argsort(graph.rowids)
    hits = np.zeros(3)
    for row, query in enumerate(queries):
        near = flat.search(rows[row][np.newaxis], 11, "<->")[0][0][1:]
        itself = graph.search(rows[row], 25, 24)
        without = graph.search_others(int(nodes[row]), rows[row], 24, 24)
        other = graph.search(query, 24, 24)
        assert itself is not None
        assert other is not None
        hits[:2] += [len(np.intersect1d(near, graph.rowids[found])) for found in (itself, without)]
        truth = flat.search(query[np.newaxis], 10, "<->")[0][0]
        hits[2] += len(np.intersect1d(truth, graph.rowids[other]))
    easy, fair, true = hits / 3000
    assert abs(fair - true) < 0.04
    assert easy > true + 0.08  # a control: what its own edges give away


def test_places_stand_for_nodes() -> None:
    rows = clustered(500, 24, 1)
    graph = built(rows)
    near = graph.search(rows[3], 10, 30)
    assert near is not None
    places = np.arange(500) * 7
    found = graph.search(rows[3], 10, 30, places=places)
    assert found is not None
    assert found.tolist() == places[near].tolist()


def test_a_query_of_another_length_is_refused() -> None:
    graph = built(clustered(100, 24, 1))
    with pytest.raises(DimensionMismatchError, match=r"\(25,\).*24"):
        graph.search(np.zeros(25, np.float32), 5, 10)


def test_filters() -> None:
    rows = clustered(3000, 24, 1)
    graph = built(rows)
    rng = np.random.default_rng(1)
    for share in (0.9, 0.5, 0.1):
        allowed = (rng.random(3000) < share).astype(np.uint8)
        hits = 0
        for query in clustered(30, 24, 2):
            near = graph.search(query, 20, 60, allowed, 3000)
            assert near is not None
            assert allowed[near].all()
            apart = np.linalg.norm(rows[graph.rowids] - query, axis=1)
            truth = np.argsort(np.where(allowed, apart, np.inf))[:10]
            hits += len(set(truth.tolist()) & set(near.tolist()))
        assert hits >= 0.95 * 300


def test_a_filter_no_node_near_passes_is_not_cut_short() -> None:
    rows = clustered(3000, 24, 1)
    graph = built(rows)
    hits = 0
    for query in clustered(10, 24, 2):
        apart = np.linalg.norm(rows[graph.rowids] - query, axis=1)
        far = (apart > np.quantile(apart, 0.7)).astype(np.uint8)
        assert graph.search(query, 20, 60, far, 64) is None
        near = graph.search(query, 20, 150, far, 3000)
        assert near is not None
        assert far[near].all()
        truth = np.argsort(np.where(far, apart, np.inf))[:10]
        hits += len(set(truth.tolist()) & set(near.tolist()))
    assert hits >= 80


def test_none_allowed() -> None:
    rows = clustered(300, 8, 1)
    near = built(rows).search(rows[0], 5, 20, np.zeros(300, np.uint8), 400)
    assert near is not None
    assert not len(near)


# --- arrays from outside ---


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return built(clustered(300, 20, 1)).to_arrays()


def test_arrays_come_back(arrays: dict[str, np.ndarray]) -> None:
    again = Graph.from_arrays(arrays)
    assert all((again.to_arrays()[name] == array).all() for name, array in arrays.items())
    query = clustered(1, 20, 2)[0]
    near = again.search(query, 10, 40)
    assert near is not None
    assert len(near) == 10


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("edges", lambda a: np.where(a == a.max(), np.int32(300), a)),
        ("edges", lambda a: np.where(a == a.max(), np.int32(-2), a)),
        ("edges", lambda a: a[:-1]),
        ("edges", lambda a: a.astype(np.int64)),
        ("entries", lambda a: a + 300),
        ("entries", lambda a: a * 0),
        ("entries", lambda a: a[:0]),
        ("codes", lambda a: a[:, :-1]),
        ("codes", lambda a: a[:5]),
        ("constants", lambda a: a * np.float32(np.nan)),
        ("mean", lambda a: np.append(a, np.zeros(200, np.float32))),
        ("op", lambda a: a[:2]),
        ("largest", lambda a: a[:0]),
        ("rowids", lambda a: a.astype(np.int32)),
    ],
)
def test_broken_arrays_are_refused(
    arrays: dict[str, np.ndarray], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    broken = {**arrays, name: change(arrays[name])}
    with pytest.raises(CorruptionError):
        Graph.from_arrays(broken)


def test_missing_arrays_are_refused(arrays: dict[str, np.ndarray]) -> None:
    for name in arrays:
        with pytest.raises(CorruptionError, match=name):
            Graph.from_arrays({n: a for n, a in arrays.items() if n != name})


@pytest.mark.parametrize(
    "options",
    [
        {"m": 1},
        {"m": 2.5},
        {"m": True},
        {"ef_construction": 0},
        {"alpha": 0.5},
        {"seed": -1},
        {"m": "x"},
        {"quantization": "pq"},
    ],
)
def test_options_have_limits(options: dict[str, object]) -> None:
    with pytest.raises((DataError, NotSupportedError), match=next(iter(options))):
        GraphOptions(**options)  # type: ignore[arg-type]


def test_building_can_be_stopped() -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_graph(clustered(3000, 8, 1), np.arange(3000), "<->", course=Course(stop))


def test_a_filtered_search_finds_what_following_everything_finds() -> None:
    """Nodes that could not be expanded any more are not kept; the answers stay the same."""
    rows = clustered(2000, 24, 5)
    graph = built(rows)
    rng = np.random.default_rng(4)
    for query in clustered(20, 24, 6):
        everything = graph.search(query, 2000, 2000)
        assert everything is not None
        assert len(everything) == 2000
        plain = graph.search(query, 40, 40)
        all_allowed = graph.search(query, 40, 40, np.ones(2000, np.uint8), 2000)
        assert plain is not None
        assert all_allowed is not None
        assert all_allowed.tolist() == plain.tolist()
        for share in (0.7, 0.3, 0.05):
            allowed = (rng.random(2000) < share).astype(np.uint8)
            truth = everything[allowed[everything] != 0]
            found = graph.search(query, 10, 80, allowed, 2000)
            assert found is not None
            assert len(set(found.tolist()) & set(truth[:10].tolist())) >= 9
            places = [truth.tolist().index(node) for node in found.tolist()]
            assert places == sorted(places)
