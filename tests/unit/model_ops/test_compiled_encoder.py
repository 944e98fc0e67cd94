"""The compiled encoder beside NumPy by kind of weights, and texts alone beside texts in a batch."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tarsdb.kernels import encoder as kernels
from tarsdb.kernels.forms import form_of
from tarsdb.model_ops.architecture import EncoderSpec, read_spec
from tarsdb.model_ops.transformer import Panel, Transformer, compiled_forward, forward, model_table
from tarsdb.model_ops.weights import EncoderWeights, load_weights
from tests.conftest import ROOT
from tests.golden.models.tiny_models import CONFIGS, tiny_tensors

KINDS = ("f32", "bf16", "int8", "int4")


def random_texts(spec: EncoderSpec, lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, spec.vocabulary, n).astype(np.int32) for n in lengths]


def panel_of(texts: list[np.ndarray]) -> Panel:
    return Panel(np.concatenate(texts), np.cumsum([0, *map(len, texts)]))


def compiled(spec: EncoderSpec, weights: EncoderWeights, kind: str, panel: Panel) -> np.ndarray:
    kernel = kernels.wait(kind)
    if kernel is None:
        pytest.skip("no compiled kernels here")
    model = model_table(spec, weights)
    memory = kernels.Memory(model.shape, len(panel.ids), kernel.variant)
    return compiled_forward(kernel, model, spec, weights, panel, memory)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_compiled_equals_numpy(name: str, kind: str) -> None:
    spec = read_spec(CONFIGS[name])
    form = form_of(kind)
    if form is None:
        pytest.skip("no compiled kernels here")
    weights = load_weights(spec, tiny_tensors(CONFIGS[name]), form)
    panel = panel_of(random_texts(spec, [1, 7, spec.max_tokens, 2, 16, 17]))
    exact, found = forward(spec, weights, panel), compiled(spec, weights, kind, panel)
    # a rounded value may fall on the other side of a half where sums differ in their last bits
    most = {"f32": 5e-5, "bf16": 0.05}.get(kind, 0.1)
    assert np.abs(found - exact).max() < most
    plain = forward(spec, load_weights(spec, tiny_tensors(CONFIGS[name])), panel)
    assert (np.abs(found - plain).max() < 5e-5) == (kind == "f32")  # the others round weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bert", "modernbert", "nomic"])
def test_a_text_does_not_depend_on_its_batch(name: str, kind: str) -> None:
    config = CONFIGS[name]
    spec = read_spec(config)
    transformer = Transformer(spec, tiny_tensors(config), kind)
    if kernels.wait(kind) is None:
        pytest.skip("no compiled kernels here")
    texts = random_texts(spec, [5, 1, 16, 33 % spec.max_tokens, 2, 11, 3] * 9)
    together = transformer.forward(panel_of(texts))
    at = 0
    for text in texts:
        alone = transformer.forward(panel_of([text]))
        assert np.array_equal(alone, together[at : at + len(text)])
        at += len(text)
    changed = [texts[0], *texts[2:]]
    other = transformer.forward(panel_of([(changed[0] + 1) % spec.vocabulary]))
    assert not np.array_equal(other, together[: len(texts[0])])  # the comparison can fail


def test_memory_is_used_again() -> None:
    config = CONFIGS["bert"]
    spec = read_spec(config)
    transformer = Transformer(spec, tiny_tensors(config), "f32")
    if kernels.wait("f32") is None:
        pytest.skip("no compiled kernels here")
    panel = panel_of(random_texts(spec, [9, 4]))
    first = transformer.forward(panel)
    kept = transformer.scratch_bytes
    assert kept > 0
    assert np.array_equal(transformer.forward(panel), first)
    assert transformer.scratch_bytes == kept


PORTABLE = """
import numpy as np
from tarsdb.model_ops import weights
from tarsdb.model_ops.architecture import read_spec
from tarsdb.model_ops.transformer import Transformer
from tests.golden.models.tiny_models import CONFIGS, tiny_tensors
from tests.unit.model_ops.test_compiled_encoder import KINDS, panel_of, random_texts
{patch}
for name, config in CONFIGS.items():
    spec = read_spec(config)
    texts = random_texts(spec, [5, 1, 16, 33 % spec.max_tokens, 2, 11, 3] * 3)
    for kind in KINDS:
        transformer = Transformer(spec, tiny_tensors(config), kind)
        alone = np.concatenate([transformer.forward(panel_of([text])) for text in texts])
        if not np.array_equal(alone, transformer.forward(panel_of(texts))):
            print(name, kind)
"""


def differing(core: str, patch: str = "") -> list[str]:
    """Return models and kinds whose texts alone differ from texts in a batch, by NumPy."""
    environment = {**os.environ, "TARSDB_ISA": "portable", "OPENBLAS_CORETYPE": core,
                   "PYTHONPATH": str(ROOT)}  # fmt: skip
    ran = subprocess.run([sys.executable, "-c", PORTABLE.format(patch=patch)], env=environment,
                         capture_output=True, text=True, check=True)  # fmt: skip
    return ran.stdout.splitlines()


def has_avx2() -> bool:
    processor = pathlib.Path("/proc/cpuinfo")
    return processor.exists() and "avx2" in processor.read_text(encoding="ascii", errors="replace")


@pytest.mark.parametrize("core", ["", "Haswell"])
def test_a_text_does_not_depend_on_its_batch_by_numpy(core: str) -> None:
    """BLAS orders its sums by shape and place; that for AVX2 does so for any number of rows."""
    if core and not has_avx2():
        pytest.skip("another processor's BLAS would not run here")
    assert differing(core) == []
    if core:
        differs = differing(core, "weights.product = lambda rows, weight: rows @ weight.T")
        assert any("f32" in line for line in differs)  # control
