"""Sorting keys as numbers gives the order of sorting them as bytes."""

from __future__ import annotations

import numpy as np
import pytest

from tarsdb.storage import key_order as module
from tarsdb.storage.key_order import key_order


def keys(rows: int, width: int, least: int, seed: int) -> list[bytes]:
    drawn = np.random.default_rng(seed).integers(least, 256, (rows, width), dtype=np.uint8)
    return [b"\x05\x01" + bytes(row) for row in drawn]


@pytest.mark.parametrize("width", [1, 2, 4, 5, 6, 9])
@pytest.mark.parametrize("least", [0, 250])
def test_order_is_that_of_bytes(width: int, least: int) -> None:
    found = keys(3000, width, least, width)
    order = key_order(found)
    assert order == sorted(range(len(found)), key=found.__getitem__)


def test_keys_of_several_widths() -> None:
    found = keys(1500, 3, 0, 1) + keys(1500, 2, 0, 2)
    assert key_order(found) == sorted(range(len(found)), key=found.__getitem__)


def test_few_and_ordered_and_no_keys() -> None:
    assert key_order([]) is None
    assert key_order([b"a"]) is None
    assert key_order([b"a", b"a", b"b"]) is None
    assert key_order([b"b", b"a", b"b"]) == [1, 0, 2]
    assert key_order([b"x"] * 5000) is None


def test_short_keys_are_numbers_and_long_ones_are_not() -> None:
    """Control: the quick way is taken where it should be, and only there."""
    assert module._as_numbers(keys(2000, 5, 0, 1)) is not None
    assert module._as_numbers(keys(2000, 6, 0, 1)) is None
    assert module._as_numbers([b"ab", b"a"] * 1000) is None
