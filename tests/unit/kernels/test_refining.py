"""Further bits: keys of candidates beside the same formula in NumPy, and their order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("numba")

from tarsdb.kernels.cpu import refining
from tarsdb.kernels.cpu.sorted_list import key_of, node_of, pack
from tarsdb.kernels.native import address

STARTS = np.array([0, 0, 7, 7, 40, 41, 90, 90, 90])  # lists without rows among them
LISTS = len(STARTS) - 1


class Case:
    """Rows of lists that lie apart, in descending order in memory, and some candidates."""

    def __init__(self, padded: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.padded, self.rows = padded, int(STARTS[-1])
        self.bits = rng.integers(0, 4, (self.rows, padded)).astype(np.uint8)
        self.constants = rng.standard_normal((self.rows, 4)).astype(np.float32)
        self.constants[:, 3] = self.bits.sum(axis=1)
        self.query = rng.integers(0, 64, padded).astype(np.uint8)
        self.numbers = rng.standard_normal(3).astype(np.float32)
        self.of_lists = rng.standard_normal(LISTS).astype(np.float32)
        self.nodes = rng.permutation(self.rows)[: self.rows // 2]
        self.keys = rng.standard_normal(len(self.nodes)).astype(np.float32)

    def wanted(self) -> np.ndarray:
        """Return the better keys, float32, step by step as the kernel makes them."""
        lists = np.searchsorted(STARTS, self.nodes, "right") - 1
        base, ratio, slope, ones = self.constants[self.nodes].T
        step, low, half = self.numbers
        sums = self.bits[self.nodes].astype(np.int64) @ self.query.astype(np.int64)
        product = (step * sums.astype(np.float32) + low * ones) + np.float32(3) * half
        known = ratio * (self.keys - self.of_lists[lists])
        keys: np.ndarray = (base + self.of_lists[lists] + known) + slope * product
        return keys

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (nodes, keys) as the kernel orders them."""
        quarters = self.bits.reshape(self.rows, 4, -1)
        codes = sum(quarters[:, part] << 2 * part for part in range(4))
        rows = np.concatenate([codes, self.constants.view(np.uint8)], axis=1).astype(np.uint8)
        apart = [rows[a:b].copy() for a, b in itertools.pairwise(STARTS)]
        table = np.full((LISTS + 1, refining.PLACE), -1, np.int64)
        table[:, 0], table[:LISTS, 3] = STARTS, [address(each) for each in apart]
        entries = np.array([pack(*each) for each in zip(self.keys, self.nodes, strict=True)])
        places = np.empty(len(entries), np.int64)
        refining.refine(
            address(table), LISTS, address(self.of_lists), self.padded, address(self.query),
            address(self.numbers), address(entries), len(entries), address(places),
        )  # fmt: skip
        return (np.array([node_of(each) for each in entries]),
                np.array([key_of(each) for each in entries], np.float32))  # fmt: skip


@pytest.mark.parametrize("padded", [64, 128, 384, 4160, 16_384])
def test_keys_are_those_of_the_formula(padded: int) -> None:
    case = Case(padded, padded)
    keys = case.wanted()
    order = np.lexsort((case.nodes, keys))
    nodes, found = case.found()
    np.testing.assert_array_equal(nodes, case.nodes[order])
    np.testing.assert_array_equal(found, keys[order])
    case.bits[case.nodes[5], padded - 1] ^= 2  # a control: one bit of one row
    nodes, changed = case.found()
    assert set(changed.tolist()) ^ set(found.tolist()) == {
        float(keys[5]), float(case.wanted()[5]),
    }  # fmt: skip


def test_the_largest_sums() -> None:
    case = Case(16_384, 1)
    case.bits[:], case.query[:] = 3, 63
    case.constants[:, 3] = case.bits.sum(axis=1)
    np.testing.assert_array_equal(np.sort(case.wanted()), case.found()[1])


def test_no_candidates_and_one() -> None:
    case = Case(64, 2)
    for count in (1, 0):
        case.nodes, case.keys = case.nodes[:count], case.keys[:count]
        assert len(case.found()[0]) == count
