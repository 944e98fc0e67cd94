"""Vectors against the reference implementation's, stored in tests/golden/models."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tarsdb.kernels import encoder as kernels
from tarsdb.model_ops import Encoder, transformer
from tarsdb.model_ops.architecture import read_spec
from tarsdb.model_ops.transformer import Panel, compiled_forward, forward, model_table
from tarsdb.model_ops.weights import load_weights
from tests.golden.models.tiny_models import CONFIGS, tiny_ids, tiny_tensors
from tests.golden.models.varied_texts import HAND_WRITTEN

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "models"


def test_minilm_equals_sentence_transformers(minilm: Encoder) -> None:
    expected = np.load(GOLDEN / "minilm.npz")["vectors"]
    vectors = minilm.encode(HAND_WRITTEN)
    cosine = (vectors * expected).sum(axis=1)
    assert cosine.min() >= 0.999999
    assert np.abs(vectors - expected).max() < 1e-5
    # the comparison can fail: other texts' vectors are far away
    assert (vectors[1:] * expected[:-1]).sum(axis=1).min() < 0.5


@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert"])
def test_queries_of_long_texts_are_taken_in_turns(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, texts = read_spec(CONFIGS[name]), tiny_ids()
    panel = Panel(np.concatenate(texts).astype(np.int32), np.cumsum([0, *map(len, texts)]))
    monkeypatch.setattr(transformer, "_MOST_SCORES", 3 * 40 * 7)  # 7 of the 40 queries at a time
    hidden = forward(spec, load_weights(spec, tiny_tensors(CONFIGS[name])), panel)
    assert np.abs(hidden - np.load(GOLDEN / "tiny.npz")[name]).max() < 2e-5


@pytest.mark.parametrize("compiled", [False, True], ids=["numpy", "compiled"])
@pytest.mark.parametrize("name", CONFIGS)
def test_family_equals_transformers(name: str, compiled: bool) -> None:
    config = CONFIGS[name]
    spec = read_spec(config)
    texts = tiny_ids()
    offsets = np.cumsum([0, *map(len, texts)])
    panel = Panel(np.concatenate(texts).astype(np.int32), offsets)
    if compiled:
        kernel = kernels.wait("f32")
        if kernel is None:
            pytest.skip("no compiled kernels here")
        weights = load_weights(spec, tiny_tensors(config), kernel.variant)
        model = model_table(spec, weights)
        memory = kernels.Memory(model.shape, len(panel.ids), kernel.variant)
        hidden = compiled_forward(kernel, model, spec, weights, panel, memory)
    else:
        hidden = forward(spec, load_weights(spec, tiny_tensors(config)), panel)
    expected = np.load(GOLDEN / "tiny.npz")[name]
    assert np.abs(hidden - expected).max() < 2e-5
    assert np.abs(expected).max() > 1.0
