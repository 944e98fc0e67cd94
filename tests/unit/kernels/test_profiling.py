"""Kernels with marks compute what the usual ones do, and their stages add up to the calls."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from tarsdb.kernels import decoder, encoder, profiling
from tarsdb.model_ops.directory import read_model_directory
from tarsdb.model_ops.encoder import Encoder
from tarsdb.model_ops.generation.generation_options import GenerationOptions
from tarsdb.model_ops.generation.generator import Generator
from tests.golden.models.tiny_decoders import tiny_prompts, tiny_text, write_tiny_decoder
from tests.unit.model_ops.conftest import model_dir as model_dir
from tests.unit.model_ops.conftest import tiny_encoder as tiny_encoder

ENCODER_STAGES = ["context", "norm", "expand", "reduce", "qkv", "rotary", "attention"]
DECODER_STAGES = ["norm", "qkv", "cache", "attention", "context", "gate and up", "down"]
TEXTS = ["the time of a text", "a", "the the the", "time"]


def checked(times: profiling.StageTimes, stages: list[str], layers: int) -> Any:
    before, found = times.found()
    assert times.stages == stages
    assert found.shape == (layers, len(stages))
    total = before.sum() + found.sum()
    assert 0.2 * times.seconds < total <= 1.01 * times.seconds
    return found


@pytest.mark.skipif(encoder.wait("f32") is None, reason="no compiled kernels here")
def test_an_encoder_with_marks(tiny_encoder: Encoder) -> None:
    usual = [tiny_encoder.encode([text], threads=1) for text in TEXTS]
    with profiling.timing() as times:
        marked = [tiny_encoder.encode([text], threads=1) for text in TEXTS]
    for one, other in zip(usual, marked, strict=True):
        np.testing.assert_array_equal(one, other)
    found = checked(times, ENCODER_STAGES, 2)
    assert times.calls == len(TEXTS)
    assert (found[:, [ENCODER_STAGES.index(name) for name in ("qkv", "expand", "norm")]] > 0).all()
    assert (found[:, ENCODER_STAGES.index("rotary")] == 0).all()
    assert profiling.asked() is None


@pytest.mark.skipif(decoder.wait("f32") is None, reason="no compiled kernels here")
def test_a_decoder_with_marks(tmp_path: pathlib.Path) -> None:
    write_tiny_decoder(tmp_path / "tiny", "qwen3")
    model = read_model_directory(str(tmp_path / "tiny"))
    options = GenerationOptions.from_mapping({"max_tokens": 9, "speculate": False})
    prompts = [tiny_text(prompt) for prompt in tiny_prompts()]

    def written() -> list[str]:
        generator = Generator.from_files(model.files, model.tensors, {"quantize": "none"})
        return [done.text for done in generator.generate(prompts, options)]

    with profiling.timing(marked=False) as whole:
        usual = written()
    with profiling.timing() as times:
        assert written() == usual
    assert min(times.calls, whole.calls) >= 9
    found = checked(times, DECODER_STAGES, len(found_layers(model)))
    assert (found > 0).all()


def found_layers(model: Any) -> set[str]:
    return {name.split(".")[2] for name in model.tensors if ".layers." in name}
