"""Packed weights come back as they were, padding is zero, memory is aligned."""

from __future__ import annotations

import numpy as np
import pytest

from tarsdb.kernels import packing


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 1), (16, 3), (17, 40), (50, 7), (5, 0)])
def test_float_weights_come_back(shape: tuple[int, int]) -> None:
    gate, up = normal(1, *shape), normal(2, *shape)
    packed = packing.pack(gate)
    assert np.array_equal(packed.unpack(), gate)
    assert packed.data.size == 0 or packed.address % packing.ALIGNMENT == 0
    assert packed.layout.name == "f32/16"
    both = packing.pack_gated(gate, up)
    assert np.array_equal(both.unpack(), np.stack([gate, up]))
    assert both.tiles == 2 * packed.tiles


def test_columns_past_the_last_are_zero() -> None:
    data = packing.pack(normal(1, 17, 3)).data.view(np.float32).reshape(2, 3, 16)
    assert (data[1, :, 1:] == 0).all()
    assert (data[1, :, 0] != 0).all()


def test_bias_lies_as_the_tiles_do() -> None:
    one, two = normal(1, 20), normal(2, 20)
    assert np.array_equal(packing.pack_bias(one)[:20], one)
    lines = packing.pack_bias(one, two).reshape(2, 2, 16)
    assert np.array_equal(lines[0], np.stack([one[:16], two[:16]]))
    assert np.array_equal(lines[1, :, :4], np.stack([one[16:], two[16:]]))
    assert (lines[1, :, 4:] == 0).all()


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="'f64' is no kind of packed weights; known: f32, "):
        packing.pack(normal(1, 2, 2), "f64")


KINDS = [("f32", "avx2"), ("bf16", "avx2"), ("int8", "avx2"), ("int8", "vnni"), ("int4", "avx2")]


@pytest.mark.parametrize("shape", [(1, 1), (16, 3), (17, 40), (50, 7)])
@pytest.mark.parametrize(("kind", "variant"), KINDS)
def test_weights_come_back_as_near_as_the_kind_allows(
    kind: str, variant: str, shape: tuple[int, int]
) -> None:
    gate, up = normal(1, *shape), normal(2, *shape)
    both = packing.pack_gated(gate, up, kind, variant)
    found = both.unpack()
    largest = np.abs(np.stack([gate, up])).max(axis=2, keepdims=True)
    step = {"f32": 0, "bf16": 2.0**-8, "int8": 0.5001 / 127, "int4": 1.2 / 8}[kind]
    assert (np.abs(found - np.stack([gate, up])) <= step * largest).all()
    assert np.array_equal(packing.pack(up, kind, variant).unpack(), found[1])


def test_layouts_of_int8_hold_the_same_codes() -> None:
    w = normal(1, 37, 70)
    two, four = (packing.pack(w, "int8", variant) for variant in ("avx2", "vnni"))
    assert two.layout.name != four.layout.name
    assert np.array_equal(two.elements(), four.elements())
    assert np.array_equal(two.scales(), four.scales())
    assert np.abs(two.elements()).max() == 127


def test_sums_of_columns_stand_behind_their_tile() -> None:
    packed = packing.pack(normal(1, 20, 70), "int8", "vnni")
    tile = packed.data[: packed.layout.tile_bytes(70)]
    sums = tile[-64:].view(np.int32)
    assert np.array_equal(sums, 128 * packed.elements()[:16].sum(axis=1, dtype=np.int32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_integers_stand_for_no_nan(bad: float) -> None:
    w = normal(1, 3, 3)
    w[1, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        packing.pack(w, "int8")
    with pytest.raises(ValueError, match="NaN or infinite"):
        packing.pack(w, "int4")
    assert not np.isfinite(packing.pack(w, "bf16").unpack()[1, 1])


def test_bfloat16_is_the_nearest() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800001,
                     0x26800000, 0x267FFFFF, 0x80000000], np.uint32)  # fmt: skip
    assert packing.to_bfloat16(bits.view(np.float32)).tolist() == [
        0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7FC0, 0x2680, 0, 0,
    ]  # fmt: skip


def test_groups_of_int4_have_scales_of_their_own() -> None:
    w = np.ones((3, 70), np.float32)
    w[:, 32:64] = 1000
    w[1] = -8
    w[2, :32] = 0
    packed = packing.pack(w, "int4")
    assert packed.scales()[0].tolist() == [-0.125, -125, -0.125]
    assert np.array_equal(packed.unpack(), w)
    assert packed.elements().min() == -8


def test_scales_of_int4_groups_lose_less_than_those_of_the_largest_weight() -> None:
    w = normal(3, 64, 320)
    groups = w.reshape(64, 10, 32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)
    scales = (largest / -8).astype(np.float16).astype(np.float32)
    plain = np.rint(groups / scales).clip(-8, 7) * scales
    found = packing.pack(w, "int4").unpack().reshape(groups.shape)
    errors, before = (np.square(each - groups).sum(axis=2) for each in (found, plain))
    assert (errors <= before * 1.0001).all()  # of every group
    assert 0.85 < errors.sum() / before.sum() < 0.95
    assert (np.abs(found - groups) > np.abs(largest) / 8).any()  # the largest was cut somewhere


def test_a_weight_may_be_too_large_for_int4() -> None:
    w = normal(1, 2, 40)
    w[1, 35] = 1e6
    with pytest.raises(ValueError, match="a weight is 1e\\+06, int4 reaches 524032"):
        packing.pack(w, "int4")
