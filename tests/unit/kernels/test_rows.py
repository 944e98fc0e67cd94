"""Row operations and paged attention against NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("numba")
import numba

from tarsdb.kernels import decoder_reference as reference
from tarsdb.kernels.cpu import paged_attention, rows
from tarsdb.kernels.native import address
from tarsdb.kernels.packing import aligned, from_bfloat16, to_bfloat16

WIDTHS = (0, 1, 15, 16, 17, 40, 64)
RANDOM = np.random.default_rng(9)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


@numba.njit
def run_all(x, w, z, out, count):  # type: ignore[no-untyped-def]
    rows.scale(out, x, np.float32(0.7), count)
    rows.scale_by(out + 4 * count, x, w, np.float32(0.7), count)
    rows.add_scaled_by(out + 8 * count, x, w, z, np.float32(0.7), count)
    rows.soft_cap(out + 12 * count, x, np.float32(0.7), np.float32(2.0), count)
    rows.fill(out + 16 * count, np.float32(5.0), count - 1)
    return rows.norm_factor(x, count, np.float32(0.25))


@pytest.mark.parametrize("count", WIDTHS)
def test_elementwise(count: int) -> None:
    x, w, z = normal(count), normal(count), normal(count)
    out = np.zeros((5, count), np.float32)
    factor = run_all(address(x), address(w), address(z), address(out), count)
    assert np.allclose(out[0], x * 0.7, rtol=1e-6)
    assert np.allclose(out[1], x * 0.7 * w, rtol=1e-6)
    assert np.allclose(out[2], x * 0.7 * w + z, atol=1e-6)
    assert np.allclose(out[3], np.tanh(x * 0.7 / 2.0) * 2.0, atol=1e-6)
    assert (out[4] == ([5.0] * (count - 1) + [0.0] if count else [])).all()
    if count:
        assert np.isclose(factor, 1.0 / np.sqrt(np.square(x).mean() + 0.25), rtol=1e-6)


@numba.njit
def rotate(heads, angles, half):  # type: ignore[no-untyped-def]
    rows.rotate(heads, angles, half)


@numba.njit
def soften(scores, count, scaling):  # type: ignore[no-untyped-def]
    return rows.softmax_terms(scores, count, scaling)


@pytest.mark.parametrize("half", [1, 6, 16, 20, 32])
def test_rotation(half: int) -> None:
    head, angles = normal(1, 1, 2 * half), normal(1, 2 * half)
    expected = reference.rotate(head, angles)
    rotate(address(head), address(angles), half)
    assert np.allclose(head, expected, atol=1e-6)


def test_softmax_does_not_see_what_is_hidden() -> None:
    scores = normal(64) * 9
    padded = np.full(96, -np.inf, np.float32)
    padded[16:80] = scores
    total = soften(address(scores), 4, np.float32(0.5))
    again = soften(address(padded), 6, np.float32(0.5))
    assert again == total
    assert np.array_equal(padded[16:80], scores)
    assert not padded[:16].any()
    assert not padded[80:].any()
    assert np.isclose(scores.sum(), total, rtol=1e-5)
    assert scores.max() == 1.0


HEAD_DIM, COUNT, POSITION, KV_HEADS, OWN_HEAD = 20, 9, 110, 2, 1


@functools.cache
def attention(level: str, size: int) -> Callable[..., None]:
    attend = paged_attention.make_attend(level, size)

    @numba.njit
    def call(step, window, cap, addresses):  # type: ignore[no-untyped-def]
        queries, out, scratch, keys, values, table = addresses
        place = 16 * size * paged_attention.piece(OWN_HEAD, KV_HEADS, 0)
        attend(queries, 4 * HEAD_DIM, COUNT, POSITION, step, table, keys + HEAD_DIM * place,
               values + 32 * place, KV_HEADS, HEAD_DIM, 32, window, np.float32(0.4), cap, out,
               4 * HEAD_DIM, scratch)  # fmt: skip

    return call


@pytest.mark.parametrize("level", ["avx2", "avx512"])
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (5, 0.0), (20, 1.5)])
def test_paged_attention(level: str, window: int, cap: float) -> None:
    head_dim, count, position, kv_heads, head = HEAD_DIM, COUNT, POSITION, KV_HEADS, OWN_HEAD
    keys, values = normal(3, kv_heads, 16, head_dim, 16), np.zeros((3, kv_heads, 16, 16, 32))
    values = values.astype(np.float32)
    values[..., :head_dim] = normal(3, kv_heads, 16, 16, head_dim)
    # alone, neighbours up to the end of a group and on, backwards, with gaps
    table = np.array([40, 14, 15, 16, 4, 3, 9, 11], np.int32)
    blocks = len(table)
    keys, values = from_bfloat16(to_bfloat16(keys)), from_bfloat16(to_bfloat16(values))
    narrow = to_bfloat16(keys), to_bfloat16(values)
    call, call_narrow = attention(level, 4), attention(level, 2)

    scratch = aligned(int(paged_attention.scratch_bytes(blocks, 32)))
    own = np.divmod(table, paged_attention.GROUP)
    flat_keys = np.moveaxis(keys[own[0], head, own[1]], 0, 1).reshape(1, head_dim, -1)
    flat_values = values[own[0], head, own[1]].reshape(1, -1, 32)[:, :, :head_dim]
    spec = reference.AttentionSpec(0.4, window, cap)
    for step in (1, 0):
        queries, out = normal(count, head_dim), np.zeros((count, head_dim), np.float32)
        call(
            step,
            window,
            np.float32(cap),
            tuple(map(address, (queries, out, scratch, keys, values, table))),
        )
        shaped = queries[:, None] if step else queries[None]
        expected = np.concatenate(
            [reference.attend(one[None], flat_keys, flat_values, position + step * row, spec)
             for row, one in enumerate(shaped)]
        ).reshape(count, head_dim)  # fmt: skip
        assert np.allclose(out, expected, atol=1e-5)
        assert np.abs(expected).max() > 0.1
        same = np.zeros_like(out)
        call_narrow(
            step,
            window,
            np.float32(cap),
            tuple(map(address, (queries, same, scratch, *narrow, table))),
        )
        assert np.array_equal(same, out)


@numba.njit
def store_narrow(row, out, column, count):  # type: ignore[no-untyped-def]
    rows.narrow(out, row, count)
    rows.scatter_narrow(column, row, count)


@pytest.mark.parametrize("count", WIDTHS)
def test_rows_become_bfloat16(count: int) -> None:
    row = normal(count) * np.float32(2.0) ** np.arange(
        -60, count - 60, dtype=np.float32
    )  # some below 2^-50
    out, column = np.zeros(count + 1, np.uint16), np.zeros((count + 1, 16), np.uint16)
    store_narrow(address(row), address(out), address(column) + 2 * 3, count)
    assert np.array_equal(out[:count], to_bfloat16(row))
    assert np.array_equal(column[:count, 3], out[:count])
    column[:, 3] = 0
    assert not column.any()
    assert not out[count]


def test_groups_of_blocks_are_those_of_the_cache() -> None:
    assert paged_attention.GROUP == reference.BLOCK_GROUP
