"""Vectors against the reference implementation's, stored in tests/golden/models."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tarsdb.kernels.transformer import REFERENCE, TransformerKernels, wait
from tarsdb.model_ops import Encoder
from tarsdb.model_ops.architecture import read_spec
from tarsdb.model_ops.transformer import Panel, Workspace, forward
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


@pytest.mark.parametrize("compiled", [False, True], ids=["numpy", "compiled"])
@pytest.mark.parametrize("name", CONFIGS)
def test_family_equals_transformers(name: str, compiled: bool) -> None:
    kernels: TransformerKernels = wait() if compiled else REFERENCE
    config = CONFIGS[name]
    spec = read_spec(config)
    weights = load_weights(spec, tiny_tensors(config))
    texts = tiny_ids()
    offsets = np.cumsum([0, *map(len, texts)])
    ids = np.concatenate(texts).astype(np.int32)
    hidden = forward(spec, weights, kernels, Panel(ids, offsets), Workspace(spec, len(ids)))
    expected = np.load(GOLDEN / "tiny.npz")[name]
    assert np.abs(hidden - expected).max() < 2e-5
    assert np.abs(expected).max() > 1.0
