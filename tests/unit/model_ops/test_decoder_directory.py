"""Directories of language models: a tiny one to break, and a real one where it is at hand."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from tarsdb.errors import ModelError, ModelFormatError
from tarsdb.model_ops import Decoder, read_model_directory
from tests.golden.models.tiny_decoders import CONFIGS, tiny_decoder_tensors
from tests.unit.model_ops.conftest import write_json
from tests.unit.model_ops.test_decoder import step

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "models"
STORIES = pathlib.Path(__file__).parents[4] / "shared" / "data" / "models" / "stories260K"
LLAMA = CONFIGS["llama"]


def tokenizer_json(size: int) -> str:
    import tokenizers

    words = {f"word{n}": n for n in range(size)}
    model = tokenizers.models.WordLevel(words, unk_token="word0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return str(tokenizer.to_str())


@pytest.fixture
def decoder_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "decoder"
    write_json(folder / "config.json", LLAMA)
    (folder / "tokenizer.json").write_text(tokenizer_json(90))
    tensors = {**tiny_decoder_tensors(LLAMA), "unused": np.zeros(3, np.int64)}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_language_model_is_recognised(decoder_dir) -> None:
    write_json(decoder_dir / "generation_config.json", {"eos_token_id": [2, 5]})
    model = read_model_directory(str(decoder_dir), {"task": "generate"})
    assert (model.task, model.dim, model.max_length) == ("generate", 0, 70)
    assert "unused" not in model.tensors
    assert Decoder.from_files(model.files, model.tensors).spec.end_tokens == (2, 5)
    with pytest.raises(ModelError, match="no option 'pooling'"):
        read_model_directory(str(decoder_dir), {"pooling": "mean"})


def test_weights_of_no_float_type_are_named_with_it(decoder_dir) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = safetensors.numpy.load_file(decoder_dir / "model.safetensors")
    tensors[name] = tensors[name].astype(np.int32)
    safetensors.numpy.save_file(tensors, decoder_dir / "model.safetensors")
    with pytest.raises(ModelFormatError, match=name) as caught:
        read_model_directory(str(decoder_dir))
    assert f"{name} (int32)" in (caught.value.hint or "")


def test_shards_are_put_together(decoder_dir) -> None:
    whole = read_model_directory(str(decoder_dir)).tensors
    parts = [dict(list(whole.items())[start::2]) for start in range(2)]
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        safetensors.numpy.save_file(part, decoder_dir / name)
    weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    write_json(decoder_dir / "model.safetensors.index.json", {"weight_map": weight_map})
    (decoder_dir / "model.safetensors").unlink()
    found = read_model_directory(str(decoder_dir)).tensors
    assert found.keys() == whole.keys()
    (decoder_dir / names[1]).unlink()
    with pytest.raises(ModelFormatError, match="lacks 1: model-00002"):
        read_model_directory(str(decoder_dir))


def test_parts_that_disagree_are_named(decoder_dir) -> None:
    (decoder_dir / "tokenizer.json").write_text(tokenizer_json(91))
    with pytest.raises(ModelFormatError, match="names token 90, the model knows 90"):
        read_model_directory(str(decoder_dir))
    (decoder_dir / "tokenizer.json").write_text(tokenizer_json(90))
    write_json(decoder_dir / "config.json", {**LLAMA, "intermediate_size": 57})
    with pytest.raises(ModelFormatError, match=r"gate_proj.*\(56, 40\).*\(57, 40\)"):
        read_model_directory(str(decoder_dir))


@pytest.fixture(scope="module")
def stories() -> Decoder:
    if not STORIES.is_dir():
        pytest.skip("the real model is not here")
    model = read_model_directory(str(STORIES))
    return Decoder.from_files(model.files, model.tensors)


def greedy(decoder: Decoder, count: int) -> list[int]:
    cache, tokens = decoder.new_cache(-(-count // 16) + 1), [decoder.spec.begin_token]
    blocks = list(range(cache.blocks))
    for position in range(count):
        logits = step(decoder, cache, [(tokens[-1:], position, blocks)])
        tokens.append(int(logits[0].argmax()))
    return tokens


def test_the_real_model_tells_the_same_story(stories: Decoder) -> None:
    expected = np.load(GOLDEN / "stories260k.npz")["tokens"]
    assert greedy(stories, len(expected) - 1) == expected.tolist()
    text = (STORIES / "tokenizer.json").read_text()
    vocabulary = {n: word for word, n in json.loads(text)["model"]["vocab"].items()}
    story = "".join(vocabulary[n] for n in expected[1:]).replace("\u2581", " ").strip()
    assert story.startswith("Once upon a time, there was a little girl named Lily.")


@pytest.mark.parametrize(("quantize", "least"), [("bf16", 0.99), ("int8", 0.96), ("int4", 0.85)])
def test_quantized_weights_of_the_real_model_choose_the_same_tokens(
    quantize: str, least: float
) -> None:
    if not STORIES.is_dir():
        pytest.skip("the real model is not here")
    model = read_model_directory(str(STORIES), {"quantize": quantize})
    decoder = Decoder.from_files(model.files, model.tensors, {"quantize": quantize})
    expected = np.load(GOLDEN / "stories260k.npz")["tokens"]
    logits = step(decoder, decoder.new_cache(26), [(expected[:-1], 0, list(range(26)))])
    assert (logits.argmax(axis=1) == expected[1:]).mean() >= least
