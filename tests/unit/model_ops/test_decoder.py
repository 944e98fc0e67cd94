"""Decoders against transformers' logits, and rows that do not depend on their batch."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tarsdb.errors import DataError, InternalError, ModelError, ModelFormatError
from tarsdb.kernels import dispatch
from tarsdb.kernels.team import cores
from tarsdb.model_ops import Decoder, KVCache, StepBatch
from tarsdb.model_ops.decoder_forward import NumpyForward
from tarsdb.model_ops.decoder_weights import DecoderReader
from tests.golden.models.tiny_decoders import CONFIGS, tiny_decoder_tensors, tiny_prompts

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "models"


@pytest.fixture(params=["numpy", "compiled", "compiled, two threads"])
def tiny(request) -> Iterator[Callable[[str], Decoder]]:
    """Make tiny decoders by name, computed in each way."""
    if request.param == "numpy":
        dispatch.use("portable")
    elif dispatch.level() == "portable":
        pytest.skip("no compiled kernels here")

    def make(name: str, quantize: str = "none") -> Decoder:
        config = CONFIGS[name]
        files = {"config.json": json.dumps(config).encode()}
        tensors = tiny_decoder_tensors(config)
        decoder = Decoder.from_files(files, tensors, {"quantize": quantize})
        is_compiled = type(decoder._forward).__name__ == "CompiledForward"
        assert is_compiled == (request.param != "numpy")  # a kernel that fails falls back silently
        decoder.threads = 2 if "two" in request.param else 1
        return decoder

    yield make
    dispatch.use(None)


def step(decoder: Decoder, cache: KVCache, parts, wanted=None) -> np.ndarray:
    """Step (tokens, first position, blocks) triples; every row is wanted unless told."""
    rows = [tokens for tokens, _, _ in parts]
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    widest = max(len(blocks) for _, _, blocks in parts)
    tables = np.full((len(parts), widest), -1, np.int32)
    for table, (_, _, blocks) in zip(tables, parts, strict=True):
        table[: len(blocks)] = blocks
    wanted = np.arange(offsets[-1]) if wanted is None else wanted
    positions = np.array([first for _, first, _ in parts], np.int32)
    tokens = np.concatenate(rows).astype(np.int32)
    batch = StepBatch(tokens, offsets, positions, tables, np.asarray(wanted, np.int32))
    return decoder.step(batch, cache)


def scattered(prompts: list[list[int]]) -> list[list[int]]:
    """Blocks of some prompts, in no order."""
    needed = [-(-len(prompt) // 16) for prompt in prompts]
    order = iter(np.random.RandomState(5).permutation(sum(needed)).tolist())
    return [[next(order) for _ in range(count)] for count in needed]


def together(decoder: Decoder, prompts: list[list[int]]) -> np.ndarray:
    parts = [(prompt, 0, own) for prompt, own in zip(prompts, scattered(prompts), strict=True)]
    return step(decoder, decoder.new_cache(20), parts)


@pytest.mark.parametrize("name", CONFIGS)
def test_family_equals_transformers(name: str, tiny) -> None:
    expected = np.load(GOLDEN / "tiny_decoders.npz")
    logits = together(tiny(name), tiny_prompts())
    assert np.abs(logits - expected[name]).max() < 5e-5
    # the comparison can fail: the next family's logits are far away
    names = list(CONFIGS)
    other = expected[names[(names.index(name) + 1) % len(names)]]
    assert np.abs(logits - other).max() > 0.1


@pytest.mark.parametrize(("quantize", "error"), [("bf16", 0.04), ("int8", 0.2), ("int4", 2)])
def test_quantized_weights_lose_little(quantize: str, error: float, tiny) -> None:
    expected = np.load(GOLDEN / "tiny_decoders.npz")["qwen3"]
    logits = together(tiny("qwen3", quantize), tiny_prompts())
    found = np.sqrt(np.square(logits - expected).mean())
    assert error / 4 < found < error  # and something is lost
    assert np.sqrt(np.square(expected).mean()) > 2


@pytest.mark.parametrize(("name", "quantize"), [("llama", "none"), ("gemma2", "bf16")])
def test_where_blocks_lie_does_not_matter(name: str, quantize: str, tiny) -> None:
    """Neighbouring blocks are taken several at a time."""
    decoder = tiny(name, quantize)
    prompt = [3 + i % 60 for i in range(70)]
    places = [[0, 1, 2, 3, 4], [9, 8, 7, 6, 5], [0, 2, 4, 6, 7], [7, 1, 9, 0, 3]]
    caches = [decoder.new_cache(10) for _ in places]
    for cache, blocks in zip(caches, places, strict=True):
        step(decoder, cache, [(prompt[:-1], 0, blocks)])
    found = [step(decoder, cache, [(prompt[-1:], 69, blocks)])
             for cache, blocks in zip(caches, places, strict=True)]  # fmt: skip
    for other in found[1:]:
        assert np.array_equal(found[0], other)
    wrong = step(decoder, caches[0], [(prompt[-1:], 69, places[1])])
    assert not np.array_equal(found[0], wrong)


@pytest.mark.parametrize(
    ("name", "quantize"),
    [
        ("llama", "none"),
        ("gemma2", "none"),
        ("qwen2_sliding", "bf16"),
        ("qwen2", "int8"),
        ("llama_biased", "int4"),
    ],
)
def test_a_row_does_not_depend_on_batch_or_chunks(name: str, quantize: str, tiny) -> None:
    decoder, prompts = tiny(name, quantize), tiny_prompts()
    expected = together(decoder, prompts)
    bounds = np.cumsum([0, *map(len, prompts)])
    for prompt, start, stop in zip(prompts, bounds, bounds[1:], strict=False):
        alone = step(decoder, decoder.new_cache(3), [(prompt, 0, [2, 0, 1])])
        assert np.array_equal(alone, expected[start:stop])
        for size in (1, 3, 16):
            cache = decoder.new_cache(3)
            chunks = [step(decoder, cache, [(prompt[at : at + size], at, [1, 2, 0])])
                      for at in range(0, len(prompt), size)]  # fmt: skip
            assert np.array_equal(np.concatenate(chunks), expected[start:stop])


def test_prompts_and_single_rows_mix_in_a_step(tiny) -> None:
    decoder, prompts = tiny("llama"), tiny_prompts()
    expected = np.split(together(decoder, prompts), np.cumsum([*map(len, prompts)])[:-1])
    cache = decoder.new_cache(8)
    step(decoder, cache, [(prompts[4][:20], 0, [0, 1]), (prompts[3][:16], 0, [4])])
    parts = [(prompts[4][20:], 20, [0, 1, 2]), (prompts[3][16:], 16, [4, 5]), (prompts[1], 0, [7])]
    logits = step(decoder, cache, parts, wanted=[20, 21, 26])
    assert np.array_equal(logits[0], expected[4][40])
    assert np.array_equal(logits[1], expected[3][16])
    assert np.array_equal(logits[2], expected[1][4])


def test_sequences_share_the_blocks_of_a_common_beginning(tiny) -> None:
    decoder, prompt = tiny("llama"), tiny_prompts()[4]
    other = [*prompt[:32], *range(5, 12)]
    alone = step(decoder, decoder.new_cache(3), [(other, 0, [0, 1, 2])])
    cache = decoder.new_cache(4)
    step(decoder, cache, [(prompt, 0, [0, 1, 2])])
    before = cache.read(0, np.arange(3), 48, 12)
    shared = step(decoder, cache, [(other[32:], 32, [0, 1, 3])])
    assert np.array_equal(shared, alone[32:])
    after = cache.read(0, np.arange(3), 48, 12)  # only own positions are written
    assert all(map(np.array_equal, before, after))
    assert np.abs(before[0]).max() > 0.1


@pytest.mark.parametrize(
    ("quantize", "nan"), [("none", np.nan), ("bf16", 0x7FC0), ("int8", 0x7FC0)]
)
def test_stale_blocks_do_not_show(quantize: str, nan: float, tiny) -> None:
    decoder, prompt = tiny("llama", quantize), tiny_prompts()[3]
    clean = step(decoder, decoder.new_cache(2), [(prompt, 0, [0, 1])])
    cache = decoder.new_cache(2)
    cache.keys[:] = nan
    cache.values[:] = nan
    assert np.array_equal(step(decoder, cache, [(prompt, 0, [0, 1])]), clean)


def test_memory_of_a_cache(tiny) -> None:
    cache = tiny("llama").new_cache(7)
    assert cache.blocks == 7
    assert cache.block_bytes == 3 * 2 * 16 * (12 + 16) * 4  # layers, heads, tokens, padded values
    for kind in ("bf16", "int8", "int4"):
        assert tiny("llama", kind).new_cache(7).block_bytes == cache.block_bytes // 2
    with pytest.raises(DataError, match="0 blocks"):
        tiny("llama").new_cache(0)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "qwen2_sliding"])
def test_keys_and_values_of_bfloat16_are_rounded_once(name: str, tiny) -> None:
    """What a step stores is the nearest bfloat16 of what it would store otherwise."""
    decoder, prompt = tiny(name, "bf16"), tiny_prompts()[4]
    table, heads = np.arange(3), decoder.spec.head_dim
    cache, exact = decoder.new_cache(3), KVCache.for_model(decoder.spec, 3)
    numpy = NumpyForward(
        decoder.spec, DecoderReader(decoder.spec, tiny_decoder_tensors(CONFIGS[name])), "bf16"
    )
    batch = StepBatch(
        *(np.array(v, np.int32) for v in (prompt, [0, len(prompt)], [0], [table], [0]))
    )
    decoder.step(batch, cache)
    positions = batch.row_positions()
    numpy.logits(batch, positions, decoder._angles.at(positions), exact)
    for stored, wide in zip(cache.read(0, table, 41, heads), exact.read(0, table, 41, heads),
                            strict=True):  # fmt: skip
        assert not np.array_equal(stored, wide)
        assert np.allclose(stored, wide, rtol=2**-8, atol=1e-6)
        assert not (stored.view(np.uint32) & 0xFFFF).any()


def test_a_cache_of_the_other_kind_is_refused(tiny) -> None:
    decoder = tiny("llama", "bf16")
    if type(decoder._forward).__name__ == "NumpyForward":
        return  # reads both
    with pytest.raises(InternalError, match="keys of 2 bytes, the cache holds float32"):
        step(decoder, KVCache.for_model(decoder.spec, 2), [([3, 4], 0, [0, 1])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [3, 90]}, "token 3 to 90, there are 90"),
        ({"tokens": [-1, 5]}, "token -1"),
        ({"wanted": [2]}, "wanted row"),
        ({"positions": [-1]}, "position -1"),
        ({"positions": [69]}, "71 tokens is longer than the model's 70"),
        ({"positions": [31]}, "33 tokens is longer.*32 of its block table"),
        ({"block_tables": [[0, 9]], "positions": [15]}, "block 0 to 9, there are 2"),
        ({"offsets": [0, 1]}, "do not cover its 2 rows"),
        ({"offsets": [0, 0, 2]}, "do not cover"),
        ({"offsets": [0]}, "do not cover"),
        ({"positions": [0, 0]}, "2 positions"),
    ],
)
def test_a_step_outside_its_arrays_is_refused(change: dict, message: str, tiny) -> None:
    decoder = tiny("llama")
    good = StepBatch(*(np.array(v, np.int32) for v in ([3, 4], [0, 2], [0], [[0, 1]], [1])))
    assert decoder.step(good, decoder.new_cache(2)).shape == (1, 90)
    wrong = {name: np.array(value, np.int32) for name, value in change.items()}
    with pytest.raises(DataError, match=message):
        decoder.step(dataclasses.replace(good, **wrong), decoder.new_cache(2))


def test_threads_and_their_number_change_no_bit(tiny) -> None:
    decoder, prompts = tiny("qwen3"), tiny_prompts()
    expected = together(decoder, prompts)
    for threads in (1, 2, 1):
        decoder.threads = threads
        assert np.array_equal(together(decoder, prompts), expected)


def test_several_threads_step_one_model(tiny) -> None:
    decoder, prompts = tiny("llama"), tiny_prompts()
    expected = together(decoder, prompts)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: together(decoder, prompts), range(12)))
    assert all(np.array_equal(logits, expected) for logits in found)


def test_memory_is_reported(tiny) -> None:
    decoder = tiny("llama")
    floats = sum(array.size for array in tiny_decoder_tensors(CONFIGS["llama"]).values())
    assert 4 * floats <= decoder.weight_bytes <= 6 * floats  # tiles of 16 columns are filled up
    together(decoder, tiny_prompts())
    before = decoder.workspace_bytes
    together(decoder, tiny_prompts())
    assert decoder.workspace_bytes == before


def test_wrong_tensors_are_named() -> None:
    config = CONFIGS["llama"]
    files = {"config.json": json.dumps(config).encode()}
    tensors = tiny_decoder_tensors(config)
    name = "model.layers.1.mlp.up_proj.weight"
    good = tensors.pop(name)
    with pytest.raises(ModelFormatError, match=r"lacks 1 tensors: model\.layers\.1\.mlp\.up"):
        Decoder.from_files(files, tensors)
    with pytest.raises(ModelFormatError, match=r"up_proj.*\(40, 56\).*\(56, 40\)"):
        Decoder.from_files(files, {**tensors, name: good.T})
    with pytest.raises(ModelFormatError, match=r"up_proj.*int64, not a float"):
        Decoder.from_files(files, {**tensors, name: good.astype(np.int64)})
    for value in (np.nan, np.inf):
        broken = good.copy()
        broken[3, 7] = value
        with pytest.raises(ModelFormatError, match=r"up_proj.*NaN or infinity"):
            Decoder.from_files(files, {**tensors, name: broken})


def test_options_and_generation_config() -> None:
    config = {"config.json": json.dumps(CONFIGS["llama"]).encode()}
    tensors = tiny_decoder_tensors(CONFIGS["llama"])
    assert Decoder.from_files(config, tensors).spec.end_tokens == (2,)
    more = {**config, "generation_config.json": b'{"eos_token_id": [2, 7]}'}
    assert Decoder.from_files(more, tensors, {"task": "generate"}).spec.end_tokens == (2, 7)
    with pytest.raises(ModelError, match="no option 'pooling'"):
        Decoder.from_files(config, tensors, {"pooling": "mean"})
    with pytest.raises(ModelError, match="task cannot be 'embed'"):
        Decoder.from_files(config, tensors, {"task": "embed"})
    with pytest.raises(ModelError, match=r"quantize cannot be 'int3'.*'bf16'"):
        Decoder.from_files(config, tensors, {"quantize": "int3"})


def test_threads_can_be_limited(tiny) -> None:
    decoder = tiny("llama")
    decoder.limit_threads(1)
    assert decoder.threads == 1
    decoder._threads = 2  # as of a model that is large enough
    decoder.limit_threads(None)
    assert decoder.threads == min(2, cores())
    decoder.limit_threads(1)
    assert decoder.threads == 1
