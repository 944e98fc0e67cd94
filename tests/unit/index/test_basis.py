"""Codes in another basis: the same answers, and the bounds that they rest on."""

from __future__ import annotations

import numpy as np
import pytest

from tarsdb.columns import VectorBlock
from tarsdb.index import basis, coded
from tarsdb.index.basis import Basis
from tarsdb.index.coded import CodeCache
from tarsdb.index.flat import FlatIndex
from tarsdb.index.quantization.principal import PrincipalAxes, principal_axes
from tarsdb.types import parse_type
from tests.unit.index import test_coded as plain_codes
from tests.unit.index.test_coded import (
    KINDS,
    OPERATORS,
    ROWS,
    Maker,
    assert_all_same,
    assert_same,
    blocks_of,
    counted,
    equal,
    pair,
    random,
    violations,
    zeros,
)  # fmt: skip

level = plain_codes.level  # the fixture


def turned(rows: np.ndarray, head: int) -> Basis:
    """The principal axes of rows as a basis; any axes where they have none."""
    axes = principal_axes(rows)
    if axes is None:
        dim = rows.shape[1]
        axes = PrincipalAxes(np.eye(dim, dtype=np.float32), np.full(dim, 1 / dim))
    return Basis(axes.spread(head), head, len(rows))


def turned_pair(
    blocks: list[VectorBlock], dim: int, chosen: Basis, monkeypatch: pytest.MonkeyPatch
) -> tuple[FlatIndex, FlatIndex]:
    """Return the index without codes, and that with codes in the basis given."""
    flat, with_codes = pair(blocks, dim)
    monkeypatch.setattr(Basis, "next", lambda self, blocks: chosen)
    with_codes.search(np.ones((1, dim), np.float32), 1, "<->")
    monkeypatch.undo()
    assert with_codes._coded is not None
    sound = [codes is not None for codes in with_codes._coded._sieve._held]
    assert not sound or with_codes._coded._sieve.basis is chosen
    return flat, with_codes


def decaying(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Rows with most of their energy on few axes, some of them on others alone."""
    found = rng.standard_normal((rows, dim)) * 0.95 ** np.arange(dim)
    found[::7, : dim // 2] = 0
    found[3::50] = np.eye(dim)[-1] * found[3::50].sum(axis=1, keepdims=True)
    return found @ np.linalg.qr(np.random.default_rng(0).standard_normal((dim, dim)))[0]


@pytest.mark.parametrize("dim", [65, 130, 384])
@pytest.mark.parametrize("maker", [*KINDS, decaying], ids=lambda maker: maker.__name__)
def test_answers_of_turned_codes_are_the_scans(
    level: str, maker: Maker, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(dim)
    rows = maker(rng, ROWS, dim).astype(np.float32)
    near = (rows[::40] * np.float32(1.01)).astype(np.float32)
    queries = np.concatenate([near, maker(rng, 3, dim), np.zeros((1, dim))]).astype(np.float32)
    for mask, head in ((False, 64), (True, (dim - 1) // 64 * 64)):
        monkeypatch.setattr(coded, "worth_coding", lambda block: len(block.rowids) >= 64)
        chosen = turned(rows, head)
        flat, with_codes = turned_pair(blocks_of(rows, mask), dim, chosen, monkeypatch)
        parts = (slice(None), slice(6), slice(-1, None), slice(1))
        assert_all_same(flat, with_codes, queries, (1, 10, 300), parts)


def test_turned_codes_certify_and_look_at_few_rows(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = decaying(np.random.default_rng(1), 5000, 256).astype(np.float32)
    flat, with_codes = turned_pair(blocks_of(rows, False), 256, turned(rows, 64), monkeypatch)
    before = counted("certified")
    for op in OPERATORS:
        for query in rows[:10]:
            assert_same(flat, with_codes, query[None], 10, op)
        assert_same(flat, with_codes, rows[:40], 10, op)
    assert counted("certified") - before >= 135


@pytest.mark.parametrize("maker", [*KINDS, decaying], ids=lambda maker: maker.__name__)
def test_distances_lie_within_the_bounds_of_turned_codes(level: str, maker: Maker) -> None:
    for dim in (65, 131, 400):
        rng = np.random.default_rng(dim)
        rows = maker(rng, 40, dim).astype(np.float32)
        queries = np.concatenate([maker(rng, 3, dim), rows[:3]]).astype(np.float32)
        for op in OPERATORS:
            assert violations(rows, queries, op, turned(rows, 64)) == 0


def adversarial_to_tails(dim: int = 130) -> tuple[np.ndarray, np.ndarray]:
    """Rows of which the nearest is so by its tail alone, which points along the query's."""
    query = np.zeros((1, dim), np.float32)
    query[0, 0], query[0, -1] = 10, 10
    rows = np.zeros((200, dim), np.float32)
    rows[:, 0] = 1 + np.arange(200) / 1000
    rows[-1, 0], rows[-1, -1] = 1, 1
    return rows, query


@pytest.mark.parametrize("count", [1, 5, 40])
def test_part_of_a_tail_is_noticed(level: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, query = adversarial_to_tails()
    dim = rows.shape[1]
    monkeypatch.setattr(coded, "worth_coding", lambda block: True)
    plain = Basis(PrincipalAxes(np.eye(dim, dtype=np.float32), np.full(dim, 1 / dim)), 64, 200)
    blocks = [VectorBlock(np.arange(200), rows)]
    flat, right = turned_pair(blocks, dim, plain, monkeypatch)
    queries = np.repeat(query, count, axis=0)
    assert_same(flat, right, queries, 1, "<#>")
    assert (right.search(queries, 1, "<#>")[0] == 199).all()
    assert right._coded is not None
    right._coded._sieve._held[0].constants[:, 5] /= 8
    assert (right.search(queries, 1, "<#>")[0] != 199).all()


def test_a_distortion_left_out_is_noticed(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = decaying(rng, 40, 130).astype(np.float32)
    bent = turned(rows, 64)
    assert bent.axes is not None
    bent.axes.matrix[...] *= np.float32(1.05)
    assert bent.distortion > 0.05
    assert violations(rows, rows[:5], "<#>", bent) == 0
    monkeypatch.setattr(Basis, "distortion", 0.0)
    assert violations(rows, rows[:5], "<#>", bent) > 0


def test_vectors_are_turned_after_many_searches_and_again_when_they_have_grown(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(basis, "MIN_TURNED", 2000)
    rng = np.random.default_rng(0)
    rows = decaying(rng, 13_500, 192).astype(np.float32)
    sql_type, cache, count = parse_type("VECTOR(192)"), CodeCache(), basis.SEARCHES * 192
    blocks = [VectorBlock(np.arange(at, at + 1500), rows[at : at + 1500].copy())
              for at in range(0, 13_500, 1500)]  # fmt: skip
    flat, other = FlatIndex(blocks[:2], sql_type), FlatIndex(blocks[:2], sql_type, cache)
    for _ in range(3):
        other.search(rows[:1], 3, "<->")
    assert chosen_for(other).axes is None
    other.search(rows[:count], 3, "<->")
    assert_same(flat, other, rows[:9], 10, "<->")
    first = chosen_for(other)
    assert first.axes is not None
    assert first.head == 64
    assert first.rows == 3000
    grown = FlatIndex(blocks, sql_type, cache)  # later blocks are coded in the basis of the first
    for _ in range(3):
        grown.search(rows[:1], 3, "<->")
    assert chosen_for(grown) is first
    held = cache.nbytes
    grown.search(rows[:count], 3, "<->")
    assert_same(FlatIndex(blocks, sql_type), grown, rows[:9], 10, "<->")
    assert chosen_for(grown).rows == 9 * 1500
    assert chosen_for(grown) is not first
    assert cache.nbytes == held


@pytest.mark.parametrize("maker", [random, equal, zeros], ids=lambda maker: maker.__name__)
def test_vectors_of_no_preferred_axes_are_not_turned(
    level: str, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(basis, "MIN_TURNED", 1000)
    rows = maker(np.random.default_rng(0), 3000, 192).astype(np.float32)
    flat, other = pair(blocks_of(rows, False), 192)
    before = chosen_for(other)
    for _ in range(3):
        other.search(rows[: basis.SEARCHES * 192], 3, "<->")
    assert_same(flat, other, rows[:9], 10, "<->")
    assert chosen_for(other) is before
    assert before.axes is None


def chosen_for(index: FlatIndex) -> Basis:
    """The basis of an index's codes."""
    assert index._coded is not None
    return index._coded._sieve.basis
