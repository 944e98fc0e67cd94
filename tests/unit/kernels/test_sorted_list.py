"""Sorted lists of entries against Python's own sorting."""

from __future__ import annotations

import bisect

import numpy as np
import pytest

pytest.importorskip("numba")

from tarsdb.kernels.cpu import sorted_list
from tarsdb.kernels.graph import LIST_ROOM
from tarsdb.kernels.native import address


@pytest.mark.parametrize("limit", [1, 2, 7, 8, 9, 16, 33, 100])
def test_insertion_is_as_bisect_does_it(limit: int) -> None:
    rng = np.random.default_rng(limit)
    memory = np.full(limit + LIST_ROOM, 12345, np.int64)
    at = sorted_list.start_list(address(memory), limit)
    kept: list[int] = []
    for _ in range(4 * limit + 20):
        key, node = np.float32(rng.choice([-1, 0, 1, 2.5]) * rng.integers(0, 9)), rng.integers(1e6)
        entry = sorted_list.pack(key, node)
        assert sorted_list.node_of(entry) == node
        assert sorted_list.key_of(entry) == key
        if entry in kept:
            continue
        place = sorted_list.insert_into(at, len(kept), limit, entry)
        if len(kept) == limit and entry > kept[-1]:
            assert place == limit
        else:
            assert place == bisect.bisect(kept, entry)
            kept.insert(place, entry)
            del kept[limit:]
        assert memory[1 : 1 + len(kept)].tolist() == kept
        assert (memory[1 + len(kept) : 1 + limit] == sorted_list.MOST).all()


def test_memory_of_a_list_is_as_said() -> None:
    assert sorted_list.room_for(40) == 8 * (40 + LIST_ROOM)


def test_entries_order_by_distance_then_node() -> None:
    keys = np.float32([-np.inf, -2, -0.0, 0.0, 1e-30, 3, np.inf])
    entries = [sorted_list.pack(key, node) for key in keys for node in (0, 5)]
    assert entries == sorted(entries)
