"""GGUF files: codings, transformers' logits of them, tokenizers, files that are broken."""

from __future__ import annotations

import json
import pathlib
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import tarsdb
from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.kernels import packing
from tarsdb.model_ops import Decoder, ModelFiles, read_model_directory
from tarsdb.model_ops.gguf.blocks import CODINGS
from tarsdb.model_ops.gguf.container import read_gguf
from tarsdb.model_ops.gguf.tokenizer import tokenizer_json
from tarsdb.model_ops.tokenizer import load_tokenizer
from tests.golden.models import gguf_writer
from tests.golden.models.gguf_writer import F16, F32, Q4_0, Q8_0, write_gguf
from tests.golden.models.tiny_decoders import tiny_prompts
from tests.golden.models.varied_texts import varied_texts
from tests.unit.model_ops.test_decoder import together
from tests.unit.model_ops.test_decoder_directory import STORIES

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "models"
SIZES = {"embedding_length": 32, "block_count": 1, "feed_forward_length": 32,
         "attention.head_count": 2, "attention.head_count_kv": 1, "context_length": 64,
         "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10_000.0}  # fmt: skip
LETTERS = [chr(33 + token) for token in range(3, 40)]
VOCABULARY: dict[str, Any] = {
    "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *LETTERS],
    "tokenizer.ggml.scores": [0.0] * 40, "tokenizer.ggml.token_type": [2, 3, 3, *[1] * 37],
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
}  # fmt: skip


def metadata(architecture: str = "llama", **more: Any) -> dict[str, Any]:
    sizes = {f"{architecture}.{key}": value for key, value in SIZES.items()}
    return {"general.architecture": architecture, **sizes, **VOCABULARY, **more}


def tensors(coding: int = F32) -> dict[str, tuple[np.ndarray, int]]:
    random = np.random.RandomState(1)
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32),
              "ffn_gate": (32, 32), "ffn_up": (32, 32), "ffn_down": (32, 32)}  # fmt: skip
    found = {f"blk.0.{name}.weight": (random.standard_normal(shape) * 0.3, coding)
             for name, shape in shapes.items()}  # fmt: skip
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        found[f"{name}.weight"] = (np.ones(32), F32)
    found["token_embd.weight"] = (random.standard_normal((40, 32)), coding)
    return found


@pytest.mark.parametrize("number", CODINGS)
def test_blocks_are_the_floats_of_the_reference(number: int) -> None:
    coding, stored = CODINGS[number], np.load(GOLDEN / "gguf_blocks.npz")
    found, expected = coding.decode(stored[coding.name]), stored[f"{coding.name}_floats"]
    assert np.array_equal(found, expected)
    assert len(found) == len(stored[coding.name]) // coding.nbytes * coding.elements
    assert len(np.unique(found)) > 5
    many = -(-100_000 // len(found))  # decoded in several parts
    assert np.array_equal(coding.decode(np.tile(stored[coding.name], many)), np.tile(found, many))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_logits_are_those_of_transformers_reading_the_same_file(name: str) -> None:
    model = read_model_directory(str(GOLDEN / f"tiny_{name}.gguf"))
    decoder = Decoder.from_files(model.files, model.tensors)
    found, expected = together(decoder, tiny_prompts()), np.load(GOLDEN / "gguf.npz")[name]
    assert np.abs(found - expected).max() < 2e-4
    assert np.abs(expected).max() > 1
    assert decoder.spec.end_tokens == (2,)


def test_logits_equal_those_of_the_same_weights_in_safetensors(tmp_path: pathlib.Path) -> None:
    model = read_model_directory(str(GOLDEN / "tiny_llama.gguf"))
    folder = tmp_path / "same"
    folder.mkdir()
    for name, data in model.files.items():
        (folder / name).write_bytes(data)
    safetensors.numpy.save_file(dict(model.tensors), folder / "model.safetensors")
    same = read_model_directory(str(folder))
    logits = [together(Decoder.from_files(m.files, m.tensors), tiny_prompts())
              for m in (model, same)]  # fmt: skip
    assert np.array_equal(*logits)


def test_a_file_becomes_a_model_of_the_database(tmp_path: pathlib.Path) -> None:
    with tarsdb.connect(tmp_path / "db.tars") as db:
        db.execute(f"CREATE MODEL m FROM '{GOLDEN / 'tiny_llama.gguf'}' WITH (quantize = 'int8')")
        (text,) = db.execute("SELECT generate('m', 'BCD', max_tokens => 5)").fetchone()
        assert len(text) > 1
        with pytest.raises(ModelFormatError, match=r"no file .*none\.gguf"):
            db.execute("CREATE MODEL n FROM 'none.gguf'")


def test_codings_lose_what_they_lose(tmp_path: pathlib.Path) -> None:
    exact, path = tensors()["blk.0.attn_v.weight"][0], tmp_path / "m.gguf"
    errors = []
    for coding in (F32, F16, Q8_0, Q4_0):
        write_gguf(path, metadata(), tensors(coding))
        read = read_model_directory(str(path)).tensors["model.layers.0.self_attn.v_proj.weight"]
        errors.append(float(np.abs(read - exact).max()))
    assert errors[0] < 1e-7 < errors[1] < errors[2] < errors[3] < 0.2


def test_int4_computes_with_the_very_weights_of_q4_0() -> None:
    values = np.random.RandomState(3).standard_normal((48, 256)).astype(np.float32)
    coded = np.frombuffer(gguf_writer.encode(values, Q4_0), np.uint8)
    weights = CODINGS[Q4_0].decode(coded).reshape(values.shape)
    assert np.array_equal(packing.pack(weights, "int4").unpack(), weights)
    assert not np.array_equal(packing.pack(weights, "int8").unpack(), weights)


def read(path: pathlib.Path, head: dict[str, Any], body: dict[str, Any]) -> ModelFiles:
    write_gguf(path, head, body)
    return read_model_directory(str(path))


def test_what_a_file_lacks_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.gguf"
    assert read(path, metadata(), tensors()).max_length == 64
    without = {name: t for name, t in tensors().items() if "ffn_up" not in name}
    with pytest.raises(ModelFormatError, match=r"lacks 1 tensors: model\.layers\.0\.mlp\.up_proj"):
        read(path, metadata(), without)
    wrong = {**tensors(), "blk.0.ffn_up.weight": (np.ones((32, 64)), F32)}
    with pytest.raises(ModelFormatError, match=r"up_proj.*\(32, 64\).*\(32, 32\)"):
        read(path, metadata(), wrong)
    with pytest.raises(NotSupportedError, match=r"architecture 'mamba'.*"):
        read(path, metadata("mamba"), tensors())
    with pytest.raises(ModelFormatError, match="hidden_size"):
        read(path, {k: v for k, v in metadata().items() if "embedding" not in k}, tensors())
    with pytest.raises(ModelFormatError, match=r"holds no vocabulary"):
        read(path, {k: v for k, v in metadata().items() if "ggml.tokens" not in k}, tensors())
    with pytest.raises(NotSupportedError, match="tokenizer of the kind 'bert'"):
        read(path, metadata(**{"tokenizer.ggml.model": "bert"}), tensors())
    with pytest.raises(ModelFormatError, match=r"scores does not score 40"):
        read(path, metadata(**{"tokenizer.ggml.scores": [0.0] * 39}), tensors())
    with pytest.raises(NotSupportedError, match="rotary frequencies"):
        read(path, metadata(), {**tensors(), "rope_freqs.weight": (np.full(8, 3.0), F32)})
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json("m", VOCABULARY))
    assert read(path, {k: v for k, v in metadata().items() if "ggml.t" not in k}, tensors())


def test_damaged_files_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata(), tensors(Q8_0))
    good = path.read_bytes()

    def refused(data: bytes, message: str, kind: type[Exception] = ModelFormatError) -> None:
        path.write_bytes(data)
        with pytest.raises(kind, match=message):
            read_gguf(str(path))

    refused(b"GGML" + good[4:], "begins with b'GGML'")
    refused(good[:4] + struct.pack("<I", 9) + good[8:], "version 9", NotSupportedError)
    refused(good[:8] + b"\xff" * 8 + good[16:], "claims 18446744073709551615 tensors")
    refused(good[:-40], r"token_embd.weight.*needs bytes \d+ to \d+, the file has \d+")
    refused(b"", "cannot read")
    for size in range(4, 2000, 61):
        refused(good[:size], "ends at byte|needs bytes")
    coded = good.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 16
    refused(good[:coded] + struct.pack("<I", 16) + good[coded + 4 :], "IQ2_XXS", NotSupportedError)
    refused(good[:coded] + struct.pack("<I", 12) + good[coded + 4 :], "256 elements of a row")


def test_every_byte_changed_is_an_error_or_another_file(tmp_path: pathlib.Path) -> None:
    path, random = tmp_path / "m.gguf", np.random.RandomState(7)
    write_gguf(path, metadata(), tensors(Q8_0))
    good = bytearray(path.read_bytes())
    refused = 0
    for place in random.randint(0, 1500, 300).tolist():
        data = bytearray(good)
        data[place] ^= 1 << random.randint(8)
        path.write_bytes(bytes(data))
        try:
            read_model_directory(str(path))
        except (ModelFormatError, NotSupportedError):
            refused += 1
    assert 0 < refused < 300


@pytest.mark.parametrize("value", [7, 0.5, "x", [7], ["x"]])
def test_metadata_of_another_type_are_an_error_or_not_read(
    tmp_path: pathlib.Path, value: Any
) -> None:
    named = metadata(**{"split.count": 1, "tokenizer.ggml.eot_token_id": 2})
    for key in named:
        try:
            read(tmp_path / "m.gguf", {**named, key: value}, tensors())
        except (ModelFormatError, NotSupportedError):
            continue
        assert "tokenizer" in key or key in (
            "llama.rope.freq_base", "llama.context_length",
        )  # fmt: skip


def pieces_of(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return a sentence piece vocabulary that has the merges of a tokenizer.json as scores."""
    vocabulary = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(tokenizer["model"]["merges"]):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(first + second, rank)
    types = [2 if t == "<unk>" else 3 if t in ("<s>", "</s>") else 6 if t.startswith("<0x") else 1
             for t in tokens]  # fmt: skip
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [-float(ranks.get(token, 1e6)) for token in tokens],
            "tokenizer.ggml.token_type": types, "tokenizer.ggml.bos_token_id": 1}  # fmt: skip


def test_sentence_pieces_are_those_of_the_real_tokenizer() -> None:
    if not STORIES.is_dir():
        pytest.skip("the real model is not here")
    data = (STORIES / "tokenizer.json").read_bytes()
    real = load_tokenizer(data)
    rebuilt = load_tokenizer(tokenizer_json("m", pieces_of(json.loads(data))))
    texts = [text for text in varied_texts(80) if text]
    for text in texts:
        ids = real.encode(text, add_special_tokens=False).ids
        assert rebuilt.encode(text, add_special_tokens=False).ids == ids
        assert rebuilt.decode(ids) == real.decode(ids)
    assert rebuilt.encode("a").ids == [1, *rebuilt.encode("a", add_special_tokens=False).ids]


@pytest.mark.parametrize("words", ["gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-r1-qwen"])
def test_byte_pairs_are_those_they_were_trained_as(words: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False,
                                  special_tokens=["<|end|>"])  # fmt: skip
    texts = varied_texts(80)
    trained.train_from_iterator(texts, trainer)
    if words == "smollm":  # as its tokenizer.json says it
        digits = pre_tokenizers.Digits(individual_digits=True)
        last = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trained.pre_tokenizer = pre_tokenizers.Sequence([digits, last])
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    stored = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": words,
              "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges,
              "tokenizer.ggml.token_type": [3, *[1] * (len(tokens) - 1)]}  # fmt: skip
    rebuilt = load_tokenizer(tokenizer_json("m", stored))
    for text in texts:
        ids = rebuilt.encode(text).ids
        assert rebuilt.decode(ids) == text or "qwen" in words  # which normalises
        if words in ("gpt-2", "smollm"):
            assert ids == trained.encode(text).ids
    assert rebuilt.encode("a<|end|>").ids[-1] == 0
    numbers = rebuilt.encode("12345678").tokens
    assert max(map(len, numbers)) <= {"gpt-2": 8, "llama-bpe": 3}.get(words, 1)
    with pytest.raises(NotSupportedError, match=r"'other'"):
        tokenizer_json("m", {**stored, "tokenizer.ggml.pre": "other"})


def test_tokens_that_end_a_turn_end_a_text(tmp_path: pathlib.Path) -> None:
    tokens, types = list(VOCABULARY["tokenizer.ggml.tokens"]), [2, 3, 3, *[1] * 37]
    tokens[5], types[5] = "<|im_end|>", 3
    tokens[6], types[6] = "<end_of_turn>", 4
    tokens[7] = "<|eot_id|>"  # written by somebody, no special token
    named = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}

    def ends(**more: Any) -> tuple[int, ...]:
        model = read(tmp_path / "m.gguf", metadata(**{**named, **more}), tensors())
        return Decoder.from_files(model.files, model.tensors).spec.end_tokens

    assert ends() == (2, 5, 6)
    assert ends(**{"tokenizer.ggml.eot_token_id": 9}) == (2, 9, 5, 6)
    assert ends(**{"tokenizer.ggml.eot_token_id": 2, "tokenizer.ggml.eom_token_id": 6}) == (2, 6, 5)
    with pytest.raises(NotSupportedError, match=r"m\.gguf is one of 3 files of a model"):
        ends(**{"split.count": 3})


def test_templates_and_llama_3_frequencies(tmp_path: pathlib.Path) -> None:
    from tarsdb.model_ops.rope import Rope

    head = metadata(**{"tokenizer.chat_template": "{{ bos_token }}", "llama.rope.freq_base": 5e5})
    plain = Rope(5e5).frequencies(16)
    stretched = Rope(5e5, "llama3", 32.0, 8192, 1.0, 4.0).frequencies(16)
    body = {**tensors(), "rope_freqs.weight": (plain / stretched, F32)}
    model = read(tmp_path / "m.gguf", head, body)
    assert json.loads(model.files["tokenizer_config.json"])["bos_token"] == "<s>"
    scaling = json.loads(model.files["config.json"])["rope_scaling"]
    assert scaling["factor"] == pytest.approx(32)
    assert Decoder.from_files(model.files, model.tensors).spec.ropes[0].kind == "llama3"


def test_the_writer_of_these_tests_writes_what_the_reference_reads() -> None:
    values = np.random.RandomState(2).standard_normal((4, 64)).astype(np.float32)
    for coding in (F32, F16, gguf_writer.BF16, Q8_0, Q4_0):
        data = np.frombuffer(gguf_writer.encode(values, coding), np.uint8)
        assert np.abs(CODINGS[coding].decode(data).reshape(4, 64) - values).max() < 0.3
