"""Steps of a decoder on a device: recorded shapes, half precision, adapters, what does not fit."""

from __future__ import annotations

import json
import pathlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tarsdb.errors import DeviceError
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.model_arrays import ArrayKernels
from tarsdb.kernels.gpu.recording import Recorder, Work
from tarsdb.metrics import METRICS
from tarsdb.model_ops import Decoder, read_model_directory
from tarsdb.model_ops.decoder_forward import StepBatch
from tarsdb.model_ops.generation.generation_options import GenerationOptions
from tarsdb.model_ops.generation.generator import Generator
from tarsdb.model_ops.on_device import decoder as on_device
from tarsdb.model_ops.on_device.matrices import Matrices
from tests.golden.models import tiny_decoders, tiny_lora
from tests.unit.model_ops.test_on_device import Session, encoded, numpy_device

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "models"


def recorded() -> float:
    return METRICS.snapshot().get("generate.recorded_steps", 0)


def texts_of(device: Device | None, folder: pathlib.Path, **options: Any) -> list[str]:
    files = {each.name: each.read_bytes() for each in folder.iterdir()}
    tensors = tiny_decoders.tiny_decoder_tensors(tiny_decoders.CONFIGS["qwen3"])
    generator = Generator.from_files(files, tensors, {}, device)
    prompts = [tiny_decoders.tiny_text(prompt) for prompt in tiny_decoders.tiny_prompts()]
    asked = GenerationOptions.from_mapping({"max_tokens": 25, **options})
    return [each.text for each in generator.generate(prompts, asked)]


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen2_sliding", "gemma3"])
def test_a_recorded_step_equals_one_that_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step has other tokens, positions and blocks than the one that was recorded."""
    prompts = tiny_decoders.tiny_prompts()[1:4]
    blocks = [[3, 9], [7, 2], [5, 1]]
    answers = []
    for most in (on_device.MOST_RECORDED, 0):
        monkeypatch.setattr(on_device, "MOST_RECORDED", most)
        session, before = Session(numpy_device(), ArrayKernels(np), name), recorded()
        session.step([(p, 0, b) for p, b in zip(prompts, blocks, strict=True)])
        steps = [
            session.step([
                ([token + 3 * at], len(p) + token, b)
                for at, (p, b) in enumerate(zip(prompts, blocks, strict=True))
                if at < 3 - token % 2
            ])
            for token in range(6)
        ]  # fmt: skip
        assert (recorded() - before > 5) == bool(most)
        answers.append(np.concatenate(steps))
    # a recorded step has room for more sequences: BLAS sums in another order
    np.testing.assert_allclose(*answers, atol=1e-4)
    assert np.abs(np.diff(answers[0], axis=0)).max() > 0.1


def test_a_recording_that_kept_its_first_step_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: arrays of the device are not read again."""

    def once(self: Recorder, work: Work) -> Work:
        found = work()
        return lambda: found

    prompt = tiny_decoders.tiny_prompts()[3]
    whole = Session(numpy_device(), ArrayKernels(np), "llama").step([(prompt, 0, [3, 9])])
    session = Session(numpy_device(), ArrayKernels(np), "llama")
    monkeypatch.setattr(Recorder, "record", once)
    steps = [session.step([([token], at, [3, 9])])[0] for at, token in enumerate(prompt)]
    assert np.abs(steps[0] - whole[0]).max() < 1e-4
    assert np.abs(steps[-1] - whole[-1]).max() > 1e-2


def test_no_kernel_is_asked_for_nothing() -> None:
    class Asked(ArrayKernels):
        def rms_norm(self, rows: Any, *rest: Any) -> Any:
            assert len(rows)
            return super().rms_norm(rows, *rest)

    session = Session(numpy_device(), Asked(np), "llama")
    batch = StepBatch(
        np.array([3, 4], np.int32), np.array([0, 2], np.int32), np.zeros(1, np.int32),
        np.array([[1]], np.int32), np.array([], np.int32),
    )  # fmt: skip
    positions = batch.row_positions()
    angles = session._angles.at(positions)
    logits = session._decoder.logits(batch, positions, angles, session._cache)
    assert logits.shape == (0, session.spec.vocabulary)
    assert session._cache.keys[:, 1].any()  # the prompt was read


def test_a_new_cache_is_recorded_anew() -> None:
    prompt = tiny_decoders.tiny_prompts()[1]
    session = Session(numpy_device(), ArrayKernels(np), "llama")
    first = session.step([(prompt, 0, [3])])
    session._cache = session._decoder.new_cache(4)
    assert not session._cache.recorded
    np.testing.assert_array_equal(session.step([(prompt, 0, [3])]), first)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2"])
def test_half_precision_is_near(name: str) -> None:
    expected = np.load(GOLDEN / "tiny_decoders.npz")[name]
    session = Session(numpy_device(), ArrayKernels(np), name, "bf16")
    logits = session.together()
    assert session._cache.keys.dtype == np.float16
    whole = Session(numpy_device(), ArrayKernels(np), name)
    assert session._decoder.weight_bytes < 0.6 * whole._decoder.weight_bytes
    assert 1e-6 < np.abs(logits - expected).max() < 0.02 * np.abs(expected).max()
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.95


@pytest.mark.parametrize("name", ["bert", "mpnet"])
@pytest.mark.parametrize(("kind", "cosine"), [("bf16", 0.99999), ("int8", 0.999)])
def test_encoders_in_fewer_bits_are_near(name: str, kind: str, cosine: float) -> None:
    expected = np.load(GOLDEN / "tiny.npz")[name]
    found = encoded(numpy_device(), ArrayKernels(np), name, kind)
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
    cosines /= np.linalg.norm(expected, axis=1)
    assert cosine < cosines.min() and np.abs(found - expected).max() > 1e-6


def test_a_running_batch_of_a_device_writes_what_the_processor_writes(
    tmp_path: pathlib.Path,
) -> None:
    folder, before = tmp_path / "tiny", recorded()
    tiny_decoders.write_tiny_decoder(folder, "qwen3")
    for options in ({}, {"speculate": True}):
        assert texts_of(numpy_device(), folder, **options) == texts_of(None, folder, **options)
    assert recorded() - before > 20


@pytest.mark.parametrize("quantize", ["none", "bf16"])
def test_a_real_model_writes_the_same_words(shared_data: pathlib.Path, quantize: str) -> None:
    model = read_model_directory(str(shared_data / "models" / "stories260K"))
    asked, texts = GenerationOptions.from_mapping({"max_tokens": 60}), []
    for device, kind in ((numpy_device(), quantize), (None, "none")):
        options = {"quantize": kind}
        generator = Generator.from_files(model.files, model.tensors, options, device)
        texts.append([each.text for each in generator.generate(["Once upon a time"], asked)])
    assert texts[0] == texts[1] and "there was" in texts[0][0]


def test_an_adapter_on_a_device_is_the_processors() -> None:
    config = tiny_decoders.CONFIGS["qwen3"]
    files = {"config.json": json.dumps(config).encode()}
    tensors = tiny_decoders.tiny_decoder_tensors(config)
    prompt = tiny_decoders.tiny_prompts()[3]
    answers = []
    for device in (numpy_device(), None):
        decoder = Decoder.from_files(files, tensors, {}, device)
        adapter = decoder.new_adapter(
            tiny_lora.lora_files(tiny_lora.ALL), tiny_lora.lora_tensors(config, tiny_lora.ALL, 1)
        )
        for each in (adapter, None):
            batch = StepBatch(
                np.array(prompt, np.int32), np.array([0, len(prompt)], np.int32),
                np.zeros(1, np.int32), np.array([[1, 0]], np.int32),
                np.arange(len(prompt), dtype=np.int32), [each],
            )  # fmt: skip
            answers.append(decoder.step(batch, decoder.new_cache(2)))
    np.testing.assert_allclose(answers[0], answers[2], atol=1e-4)
    np.testing.assert_allclose(answers[1], answers[3], atol=1e-4)
    assert np.abs(answers[0] - answers[1]).max() > 0.05


def test_a_cache_that_does_not_fit_names_its_size() -> None:
    def full(*_: Any) -> Any:
        raise MemoryError("no room")

    session = Session(numpy_device(), ArrayKernels(np), "llama")
    nbytes = 5 * session._decoder.new_cache(1).block_bytes
    driver = SimpleNamespace(Device=lambda: SimpleNamespace(mem_info=(10, 20)))
    xp = SimpleNamespace(zeros=full, float32=np.float32, cuda=driver)
    session._decoder._device = replace(numpy_device(), xp=xp)
    message = rf"at KV cache of 5 blocks, {nbytes} bytes: .*no room \(10 of 20 bytes free\)"
    with pytest.raises(DeviceError, match=message):
        session._decoder.new_cache(5)


def test_weights_that_do_not_fit_name_how_many_did(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Matrices, weight: np.ndarray) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(Matrices, "product", full)
    with pytest.raises(DeviceError, match=r"weights, \d{5} bytes of them brought: MemoryError"):
        Session(numpy_device(), ArrayKernels(np), "llama")
