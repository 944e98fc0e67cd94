"""Packed weights in one region: the same bytes as packed one by one, named by all that counts."""

from __future__ import annotations

import numpy as np
import pytest

from tarsdb.kernels import packing
from tarsdb.kernels.packed_plan import Plan, Slot, bias_slot, matrix_slot, store
from tarsdb.kernels.packing import PackedMatrix

FORMS = [("f32", "avx2"), ("bf16", "avx512"), ("int8", "avx2"), ("int8", "vnni"), ("int4", "vnni")]
SHAPE = (37, 70)


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


@pytest.mark.parametrize(("kind", "variant"), FORMS)
def test_a_matrix_has_the_bytes_it_has_alone(kind: str, variant: str) -> None:
    plan = Plan(
        {
            "odd": Slot("float32", (5,)),
            "plain": matrix_slot(kind, variant, SHAPE),
            "gated": matrix_slot(kind, variant, SHAPE, gated=True),
        }
    )
    memory = packing.aligned(plan.nbytes)
    views = plan.views(memory)
    a, b = weights(1), weights(2)
    store(views["plain"], a)
    store(views["gated"], a, b)
    store(views["odd"], np.arange(5, dtype=np.float32))
    alone = packing.pack(a, kind, variant), packing.pack_gated(a, b, kind, variant)
    for name, wanted in zip(("plain", "gated"), alone, strict=True):
        found = views[name]
        assert isinstance(found, PackedMatrix)
        assert found.layout == wanted.layout
        assert (found.columns, found.depth, found.gated) == (*SHAPE, wanted.gated)
        assert np.array_equal(found.data, wanted.data)
        assert found.address % packing.ALIGNMENT == 0
    assert np.array_equal(plan.views(memory)["odd"], np.arange(5))


def test_a_plan_is_named_by_all_that_counts() -> None:
    slots = {"a": Slot("float32", (4, 4)), "b": matrix_slot("int8", "avx2", (4, 4))}
    others = [
        {"b": slots["b"], "a": slots["a"]},
        {"a": slots["a"], "c": slots["b"]},
        {**slots, "a": Slot("uint16", (4, 4))},
        {**slots, "a": Slot("float32", (4, 5))},
        {**slots, "b": matrix_slot("int8", "vnni", (4, 4))},
        {**slots, "b": matrix_slot("int8", "avx2", (4, 4), gated=True)},
    ]
    names = {Plan(each).name for each in [slots, *others]}
    assert len(names) == 1 + len(others)
    assert Plan(dict(slots)).name == Plan(slots).name


def test_a_plan_has_the_same_name_wherever_kernels_read_the_same_layout() -> None:
    plans = [Plan({"m": matrix_slot("f32", variant, SHAPE)}) for variant in ("avx2", "avx512")]
    assert plans[0].name == plans[1].name


def test_a_bias_has_room_for_whole_tiles() -> None:
    gate, up = np.ones(17, np.float32), np.ones(17, np.float32)
    assert bias_slot(17, 2).nbytes == packing.pack_bias(gate, up).nbytes


def test_weights_of_another_shape_or_type_are_refused() -> None:
    plan = Plan({"m": matrix_slot("f32", "avx2", SHAPE), "v": Slot("uint16", (3,))})
    views = plan.views(packing.aligned(plan.nbytes))
    with pytest.raises(ValueError, match="shape"):
        store(views["m"], weights(1).T)
    with pytest.raises(ValueError, match="2 matrices for one"):
        store(views["m"], weights(1), weights(2))
    with pytest.raises(TypeError, match="cast"):
        store(views["v"], np.zeros(3, np.float32))
