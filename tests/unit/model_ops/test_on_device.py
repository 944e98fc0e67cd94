"""Models on a device, NumPy in its place, against transformers' numbers and the processor's."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from tarsdb.errors import DeviceError, NotSupportedError
from tarsdb.kernels.gpu.coded import quantised
from tarsdb.kernels.gpu.device import Device, choose
from tarsdb.kernels.gpu.memory import DeviceArrays
from tarsdb.kernels.gpu.model_arrays import ArrayKernels
from tarsdb.kernels.gpu.select import partition
from tarsdb.model_ops.architecture import read_spec
from tarsdb.model_ops.decoder_forward import StepBatch
from tarsdb.model_ops.decoder_spec import read_decoder_spec
from tarsdb.model_ops.decoder_weights import DecoderReader
from tarsdb.model_ops.on_device import DeviceDecoder, DeviceEncoder, kernels_on
from tarsdb.model_ops.on_device.matrices import Matrices
from tarsdb.model_ops.rope import Angles
from tarsdb.model_ops.transformer import Panel
from tarsdb.model_ops.weights import load_weights
from tests.golden.models import tiny_decoders, tiny_models

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "models"


def numpy_device() -> Device:
    return Device("NumPy", np, DeviceArrays(1 << 30), partition(np))


def encoded(device: Device, kernels: ArrayKernels, name: str, kind: str = "f32") -> np.ndarray:
    config, texts = tiny_models.CONFIGS[name], tiny_models.tiny_ids()
    spec = read_spec(config)
    weights = load_weights(spec, tiny_models.tiny_tensors(config))
    panel = Panel(np.concatenate(texts).astype(np.int32), np.cumsum([0, *map(len, texts)]))
    return DeviceEncoder(device, kernels, spec, weights, kind).forward(panel)


class Session:
    """A tiny decoder on a device, with a cache of its own."""

    def __init__(self, device: Device, kernels: ArrayKernels, name: str, kind: str = "f32") -> None:
        config = tiny_decoders.CONFIGS[name]
        self.spec = read_decoder_spec(config)
        read = DecoderReader(self.spec, tiny_decoders.tiny_decoder_tensors(config))
        self._decoder = DeviceDecoder(device, kernels, self.spec, read, kind)
        self._cache = self._decoder.new_cache(20)
        self._angles = Angles(self.spec.ropes, self.spec.head_dim)

    def step(self, parts: list[tuple[list[int], int, list[int]]]) -> np.ndarray:
        """Step (tokens, first position, blocks) triples; all rows are wanted."""
        offsets = np.cumsum([0, *(len(tokens) for tokens, _, _ in parts)]).astype(np.int32)
        tables = np.full((len(parts), max(len(own) for _, _, own in parts)), -1, np.int32)
        for table, (_, _, own) in zip(tables, parts, strict=True):
            table[: len(own)] = own
        batch = StepBatch(
            np.concatenate([tokens for tokens, _, _ in parts]).astype(np.int32), offsets,
            np.array([first for _, first, _ in parts], np.int32), tables,
            np.arange(offsets[-1], dtype=np.int32),
        )  # fmt: skip
        positions = batch.row_positions()
        return self._decoder.logits(batch, positions, self._angles.at(positions), self._cache)

    def together(self) -> np.ndarray:
        free = iter(np.random.RandomState(5).permutation(20).tolist())
        prompts = tiny_decoders.tiny_prompts()
        return self.step([(p, 0, [next(free) for _ in range(-(-len(p) // 16))]) for p in prompts])


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_encoders_equal_transformers(name: str) -> None:
    expected = np.load(GOLDEN / "tiny.npz")[name]
    assert np.abs(encoded(numpy_device(), ArrayKernels(np), name) - expected).max() < 2e-5
    assert np.abs(expected).max() > 1.0


@pytest.mark.parametrize("name", tiny_decoders.CONFIGS)
def test_decoders_equal_transformers(name: str) -> None:
    expected = np.load(GOLDEN / "tiny_decoders.npz")
    logits = Session(numpy_device(), ArrayKernels(np), name).together()
    assert np.abs(logits - expected[name]).max() < 5e-5
    names = list(tiny_decoders.CONFIGS)  # the comparison can fail
    other = expected[names[(names.index(name) + 1) % len(names)]]
    assert np.abs(logits - other).max() > 0.1


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen2_sliding"])
def test_a_prompt_then_tokens_equal_the_whole(name: str) -> None:
    prompt = tiny_decoders.tiny_prompts()[4]
    session = Session(numpy_device(), ArrayKernels(np), name)
    whole = session.step([(prompt, 0, [3, 9, 1])])
    session.step([(prompt[:20], 0, [7, 2, 5])])
    steps = [session.step([([token], 20 + at, [7, 2, 5])])[0]
             for at, token in enumerate(prompt[20:])]  # fmt: skip
    np.testing.assert_allclose(np.stack(steps), whole[20:], atol=2e-5)


def test_int8_equals_the_weights_its_codes_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(weight: np.ndarray) -> np.ndarray:
        codes, scales, group = quantised(weight, 8)
        return np.asarray(ArrayKernels(np).decoded(codes, scales, group))

    coded = Session(numpy_device(), ArrayKernels(np), "llama", "int8").together()
    plain = Matrices.product
    monkeypatch.setattr(Matrices, "words", lambda self, w: w.astype(np.float16))
    monkeypatch.setattr(Matrices, "product", lambda self, w: plain(self, rounded(w)))
    monkeypatch.setattr(DeviceDecoder, "_tied", lambda self, w: self._matrices.product(w))
    expected = Session(numpy_device(), ArrayKernels(np), "llama").together()
    np.testing.assert_allclose(coded, expected, atol=5e-5)
    apart = np.abs(coded - np.load(GOLDEN / "tiny_decoders.npz")["llama"])
    assert apart.max() > 1e-3  # coded they are


def test_int4_of_odd_matrices_is_refused() -> None:
    with pytest.raises(NotSupportedError, match=r"int4 of a matrix of .* no multiple of 32"):
        Session(numpy_device(), ArrayKernels(np), "llama", "int4")


def test_what_fails_on_the_device_is_said() -> None:
    class Full(ArrayKernels):
        def bias_activation(self, values: Any, bias: Any, activation: int) -> None:
            raise MemoryError("out of memory")

    with pytest.raises(DeviceError, match="device NumPy at 59 tokens: MemoryError: out of memory"):
        encoded(numpy_device(), Full(np), "bert")


def test_without_cuda_the_namespace_computes() -> None:
    assert type(kernels_on(np)) is ArrayKernels


@pytest.mark.gpu
def test_models_on_a_device() -> None:
    device = choose("auto")
    if device is None:
        pytest.skip("no CUDA device")
    kernels = kernels_on(device.xp)
    for name in tiny_models.CONFIGS:
        expected = np.load(GOLDEN / "tiny.npz")[name]
        assert np.abs(encoded(device, kernels, name) - expected).max() < 5e-5
    for name in tiny_decoders.CONFIGS:
        expected = np.load(GOLDEN / "tiny_decoders.npz")[name]
        assert np.abs(Session(device, kernels, name).together() - expected).max() < 1e-4
