"""Adapters: equal to weights with the adapter merged in, alone and beside others in a step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tarsdb.errors import DataError, ModelFormatError, NotSupportedError
from tarsdb.kernels import dispatch
from tarsdb.model_ops import Decoder, StepBatch
from tarsdb.model_ops.decoder_forward import Adapter
from tests.golden.models.tiny_decoders import CONFIGS, tiny_decoder_tensors, tiny_prompts
from tests.golden.models.tiny_lora import ALL, lora_files, lora_tensors, merged

Make = Callable[[str, str], Decoder]


@pytest.fixture(params=["numpy", "compiled", "compiled, two threads"])
def make(request) -> Iterator[Callable[..., Decoder]]:
    """Make tiny decoders by family and mode, computed in each way."""
    if request.param == "numpy":
        dispatch.use("portable")
    elif dispatch.level() == "portable":
        pytest.skip("no compiled kernels here")

    def made(config: dict[str, Any], tensors: Any, quantize: str = "none") -> Decoder:
        files = {"config.json": json.dumps(config).encode()}
        decoder = Decoder.from_files(files, tensors, {"quantize": quantize})
        assert (type(decoder._forward).__name__ == "NumpyForward") == (request.param == "numpy")
        decoder.threads = 2 if "two" in request.param else 1
        return decoder

    yield made
    dispatch.use(None)


def step(decoder: Decoder, adapters: list[Adapter | None]) -> list[np.ndarray]:
    """Compute the tiny prompts together, each with its adapter; returns logits by prompt."""
    prompts = tiny_prompts()
    offsets = np.cumsum([0, *map(len, prompts)]).astype(np.int32)
    tables = np.arange(3 * len(prompts), dtype=np.int32).reshape(-1, 3)
    batch = StepBatch(
        np.concatenate(prompts).astype(np.int32), offsets, np.zeros(len(prompts), np.int32),
        tables, np.arange(offsets[-1], dtype=np.int32), adapters,
    )  # fmt: skip
    return np.split(decoder.step(batch, decoder.new_cache(tables.size)), offsets[1:-1])


@pytest.mark.parametrize(
    ("name", "targets"),
    [("llama", ALL), ("llama", ("q_proj", "v_proj")), ("gemma2", ALL), ("llama_biased", ALL),
     ("qwen3", ("up_proj",)), ("qwen2", ("o_proj", "gate_proj", "k_proj"))],
)  # fmt: skip
def test_an_adapter_equals_merged_weights(name: str, targets: tuple[str, ...], make) -> None:
    config = CONFIGS[name]
    base, lora = tiny_decoder_tensors(config), lora_tensors(config, targets, seed=1)
    whole = make(config, merged(base, lora, lora_files(targets)))
    adapted = make(config, base)
    adapter = adapted.new_adapter(lora_files(targets), lora)
    prompts = len(tiny_prompts())
    expected, found = step(whole, [None] * prompts), step(adapted, [adapter] * prompts)
    plain = step(adapted, [None] * prompts)
    for ours, theirs, without in zip(found, expected, plain, strict=True):
        assert np.abs(ours - theirs).max() < 2e-4
        assert np.abs(ours - without).max() > 0.01  # and something is added


@pytest.mark.parametrize(
    "quantize",
    ["none", "int8", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("bf16", "int4"))],
)  # a kernel for each is compiled
def test_rows_of_several_adapters_in_a_step_are_those_of_each_alone(quantize: str, make) -> None:
    config = CONFIGS["llama"]
    decoder = make(config, tiny_decoder_tensors(config), quantize)
    first, second = (
        decoder.new_adapter(lora_files(targets), lora_tensors(config, targets, seed=seed))
        for seed, targets in ((1, ALL), (2, ("q_proj", "down_proj")))
    )
    alone = {each: step(decoder, [each] * 5) for each in (None, first, second)}
    for mixture in ([first, first, None, second, first], [None, second, second, first, None]):
        found = step(decoder, mixture)
        for number, adapter in enumerate(mixture):
            assert np.array_equal(found[number], alone[adapter][number])
    assert not np.array_equal(alone[first][4], alone[second][4])
    assert first.weight_bytes > second.weight_bytes > 0


def test_what_peft_writes_is_read(make) -> None:
    config = CONFIGS["llama"]
    decoder = make(config, tiny_decoder_tensors(config))
    lora = lora_tensors(config, ("q_proj",), seed=3)
    files = lora_files(("q_proj",), use_rslora=True)
    rooted = decoder.new_adapter(
        files, {k.removeprefix("base_model.model."): v for k, v in lora.items()}
    )
    scaled = {k: v * np.float32(2) if "lora_B" in k else v for k, v in lora.items()}
    plain = decoder.new_adapter(lora_files(("q_proj",)), scaled)  # rank 4: alpha / 2, not alpha / 4
    for ours, theirs in zip(step(decoder, [rooted] * 5), step(decoder, [plain] * 5), strict=True):
        assert np.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"peft_type": "IA3"}, NotSupportedError, "kind 'IA3'"),
        ({"use_dora": True}, NotSupportedError, "use_dora is True"),
        ({"bias": "all"}, NotSupportedError, "with biases"),
        ({"modules_to_save": ["lm_head"]}, NotSupportedError, "modules_to_save"),
        ({"r": 0}, ModelFormatError, "r is 0"),
        ({"lora_alpha": "x"}, ModelFormatError, "lora_alpha"),
        ({"alpha_pattern": {"q_proj": 3}}, NotSupportedError, "alpha_pattern"),
    ],
)
def test_other_adapters_are_refused(change: dict, error: type[Exception], message: str) -> None:
    config = CONFIGS["llama"]
    decoder = Decoder.from_files(
        {"config.json": json.dumps(config).encode()}, tiny_decoder_tensors(config)
    )
    with pytest.raises(error, match=message):
        decoder.new_adapter(lora_files(ALL, **change), lora_tensors(config, ALL, seed=1))


def test_tensors_that_do_not_fit_are_named() -> None:
    config = CONFIGS["llama"]
    decoder = Decoder.from_files(
        {"config.json": json.dumps(config).encode()}, tiny_decoder_tensors(config)
    )
    files, good = lora_files(ALL), lora_tensors(config, ALL, seed=1)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"

    def refused(tensors: dict, message: str, error: type[Exception] = ModelFormatError) -> None:
        with pytest.raises(error, match=message):
            decoder.new_adapter(files, tensors)

    refused({}, "has no tensors")
    refused({**good, name: good[name].T}, r"up_proj\.lora_B.*\(4, 56\).*\(56, 4\)")
    refused({**good, name: np.where(good[name] > 0, np.nan, 0)}, r"lora_B.*NaN")
    refused({k: v for k, v in good.items() if k != name}, r"lacks lora_B of .*layers\.1\.mlp\.up")
    refused(
        {**good, "base_model.model.lm_head.lora_A.weight": good[name]}, "lm_head", NotSupportedError
    )
    refused(
        {**good, name.replace("layers.1", "layers.7"): good[name]}, "layers.7", NotSupportedError
    )
    batch = StepBatch(
        *(np.array(v, np.int32) for v in ([3], [0, 1], [0], [[0]], [0])), [None, None]
    )
    with pytest.raises(DataError, match="1 sequences has 2 adapters"):
        decoder.step(batch, decoder.new_cache(1))
