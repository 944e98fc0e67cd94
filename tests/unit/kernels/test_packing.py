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
    assert packed.layout == "f32/16"
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
    with pytest.raises(ValueError, match="'f64' is no kind of packed weights; known: f32"):
        packing.pack(normal(1, 2, 2), "f64")
