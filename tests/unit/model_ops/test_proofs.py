"""Kernels that compute something else are not used, and are counted; good ones are tried once."""

from __future__ import annotations

import ctypes
import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from tarsdb.kernels import decoder as decoder_kernels
from tarsdb.kernels import encoder as encoder_kernels
from tarsdb.metrics import METRICS
from tarsdb.model_ops import decoder, proofs, transformer
from tarsdb.model_ops.architecture import read_spec
from tarsdb.model_ops.transformer import Panel, Transformer, forward
from tests.golden.models.tiny_decoders import CONFIGS, tiny_decoder_tensors
from tests.golden.models.tiny_models import CONFIGS as ENCODERS
from tests.golden.models.tiny_models import tiny_tensors

KINDS = ("f32", "bf16", "int8", "int4")


def disproved() -> float:
    return METRICS.snapshot().get("kernels.disproved", 0)


def require(kernel: Any) -> Any:
    if kernel is None:
        pytest.skip("no compiled kernels here")
    return kernel


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_this_machine_are_proven(kind: str) -> None:
    before = disproved()
    assert transformer.is_proven(require(encoder_kernels.wait(kind)))
    assert decoder.is_proven(require(decoder_kernels.wait(kind)))
    assert disproved() == before


def test_an_encoder_that_is_a_little_wrong_is_computed_by_numpy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = require(encoder_kernels.wait("f32"))

    def without_last_row(model: int, offsets: int, texts: int, *rest: int) -> None:
        good.encode(model, offsets, texts - 1, *rest)  # one text is left out

    broken = dataclasses.replace(good, encode=without_last_row)
    before = disproved()
    assert not transformer.is_proven(broken)
    assert not transformer.is_proven(broken)
    assert disproved() == before + 1
    monkeypatch.setattr(encoder_kernels, "current", lambda kind: broken)
    spec, tensors = read_spec(ENCODERS["bert"]), tiny_tensors(ENCODERS["bert"])
    panel = Panel(np.arange(9, dtype=np.int32), np.array([0, 4, 9]))
    made = Transformer(spec, tensors, "f32")
    assert np.array_equal(made.forward(panel), forward(spec, made._weights, panel))


def test_a_decoder_that_is_a_little_wrong_is_computed_by_numpy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = require(decoder_kernels.wait("f32"))
    from tarsdb.kernels.cpu.decoder import MODEL

    def without_last_layer(part: int, parts: int, model: int, batch: int) -> None:
        table = np.ctypeslib.as_array((ctypes.c_int64 * len(MODEL)).from_address(model)).copy()
        table[MODEL.index("layers")] -= 1
        good.step(part, parts, table.ctypes.data, batch)

    def failing(*arguments: int) -> None:
        raise FloatingPointError

    for step in (failing, without_last_layer):
        broken, before = dataclasses.replace(good, step=step), disproved()
        assert not decoder.is_proven(broken)
        assert disproved() == before + 1
    monkeypatch.setattr(decoder_kernels, "wait", lambda kind: broken)
    config = CONFIGS["llama"]
    files = {"config.json": json.dumps(config).encode()}
    made = decoder.Decoder.from_files(files, tiny_decoder_tensors(config))
    assert type(made._forward).__name__ == "NumpyForward"


@pytest.mark.parametrize("kind", KINDS)
def test_the_tolerance_tells_wrong_sums_from_rounding(kind: str) -> None:
    exact = np.random.default_rng(1).standard_normal((20, 40)).astype(np.float32)
    rounded = exact * np.float32(1 + proofs.TOLERANCE[kind] / 2)
    wrong = exact.copy()
    wrong[-1] = 0  # a row that was left out
    assert proofs.is_proven(object(), kind, lambda: (exact, rounded))
    assert not proofs.is_proven(object(), kind, lambda: (exact, wrong))
    assert not proofs.is_proven(object(), kind, lambda: (exact, exact * np.float32("nan")))
