"""Models of GGUF files are stored in the files' codes, and answer as if stored as float32."""

from __future__ import annotations

import pathlib
import tracemalloc
import types
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.inference import models
from tarsdb.engine.inference.loaded_models import loaded_models
from tarsdb.errors import CorruptionError, NotSupportedError
from tarsdb.kernels import decoder
from tarsdb.model_ops import packed_decoder
from tarsdb.model_ops.gguf import model as gguf_model
from tarsdb.model_ops.gguf.blocks import CODINGS
from tarsdb.schema import BFLOAT16, BLOCKS, ModelVersion, stored_bytes
from tests.golden.models.gguf_writer import F32, Blocks, write_gguf
from tests.golden.models.tiny_decoders import tiny_prompts
from tests.unit.model_ops.test_decoder import together

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "models" / "gguf_blocks.npz"
WORDS = 90


def head(words: int) -> dict[str, Any]:
    tokens = [f"<{n}>" for n in range(3)] + [chr(33 + n) for n in range(3, words)]
    return {
        "general.architecture": "llama", "llama.context_length": 128,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10_000.0,
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * words, "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * (words - 3)],
        "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip


def write_model(
    path: pathlib.Path, hidden: int = 256, layers: int = 2, codings: Any = (), words: int = WORDS
) -> int:
    """Write a decoder whose matrices are coded in turn; returns the bytes of its tensors."""
    sizes = {"llama.embedding_length": hidden, "llama.feed_forward_length": hidden}
    shapes = {"token_embd": (words, hidden), "output": (words, hidden)}
    for number in range(layers):
        for part in ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            shapes[f"blk.{number}.{part}"] = (hidden, hidden)
        for part in ("attn_k", "attn_v"):
            shapes[f"blk.{number}.{part}"] = (hidden // 2, hidden)
    golden, random = np.load(GOLDEN), np.random.RandomState(5)
    tensors: dict[str, tuple[np.ndarray | Blocks, int]] = {}
    chosen = codings or list(CODINGS)
    for place, (name, (rows, columns)) in enumerate(shapes.items()):
        number = chosen[place % len(chosen)]
        coding = CODINGS[number]
        blocks = golden[coding.name].reshape(-1, coding.nbytes)
        picked = blocks[random.randint(0, len(blocks), rows * columns // coding.elements)]
        tensors[f"{name}.weight"] = (Blocks((rows, columns), picked.tobytes()), number)
    for number in range(layers):
        for part in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{number}.{part}.weight"] = (random.rand(hidden) / 50, F32)
    tensors["output_norm.weight"] = (random.rand(hidden) / 50, F32)
    write_gguf(path, {**head(words), "llama.block_count": layers, **sizes}, tensors)
    return sum(
        len(values.data) if isinstance(values, Blocks) else 4 * values.size
        for values, _ in tensors.values()
    )


def as_float32(tensors: Any, name: str) -> tuple[str, tuple[int, ...], np.ndarray]:
    """Return what earlier releases stored of a GGUF file's tensor."""
    array = tensors[name]
    return array.dtype.str, array.shape, array


def create(path: pathlib.Path, source: pathlib.Path, name: str, quantize: str) -> None:
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE MODEL {name} FROM '{source}' WITH (quantize = '{quantize}')")


def answers(path: pathlib.Path, name: str) -> tuple[str, np.ndarray]:
    """Return a text that a model writes, and its logits."""
    with tarsdb.connect(path) as db:
        text = db.generate(name, "BCDEF", max_tokens=12)
        (loaded,) = loaded_models(db._require_session().env)._models.values()
        return text, together(loaded.model.decoder, tiny_prompts())


def kinds(db: tarsdb.Connection, name: str) -> set[str]:
    model = db._require_session().inspect(lambda context: context.catalog.model(name))
    assert model is not None
    return {dtype for dtype, _, _ in model.versions[0].tensors.values()}


@pytest.mark.parametrize("quantize", ["none", "bf16", "int8", "int4"])
def test_codes_answer_as_the_float32_that_earlier_releases_stored(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, quantize: str
) -> None:
    source, path = tmp_path / "m.gguf", tmp_path / "db.tars"
    size = write_model(source)
    create(path, source, "codes", quantize)
    with monkeypatch.context() as patched:
        patched.setattr(gguf_model.DecoderTensors, "stored", as_float32)
        create(path, source, "floats", quantize)
    ours, theirs = (answers(path, name) for name in ("codes", "floats"))
    assert ours[0] == theirs[0]
    np.testing.assert_array_equal(ours[1], theirs[1])
    with tarsdb.connect(path) as db:
        assert kinds(db, "codes") == {*BLOCKS, "<f2", BFLOAT16, "<f4"}
        assert kinds(db, "floats") == {"<f4"}
        stored = dict(db.execute("SELECT name, bytes_stored FROM tars_models").fetchall())
        assert stored["codes"] == size < stored["floats"] / 3
        db.execute("VACUUM")
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert answers(path, "codes")[0] == ours[0]


def test_the_comparison_sees_rows_left_where_the_file_has_them(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = tmp_path / "m.gguf", tmp_path / "db.tars"
    write_model(source)
    create(path, source, "right", "none")
    with monkeypatch.context() as patched:
        patched.setattr(gguf_model, "_halved", lambda name, rows, heads: rows)
        create(path, source, "wrong", "none")
    assert not np.array_equal(answers(path, "right")[1], answers(path, "wrong")[1])


def peak_of_loading(folder: pathlib.Path) -> int:
    """Return the bytes that loading takes beside packed weights, which are mapped."""
    create(folder / "db.tars", folder / "m.gguf", "m", "int8")
    with tarsdb.connect(folder / "db.tars") as db:
        db.execute("SET kv_cache_memory = '1MB'")
        db.execute("SELECT 1").fetchall()
        tracemalloc.start()
        try:
            db.generate("m", "BCD", max_tokens=1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.fixture
def warm(tmp_path: pathlib.Path) -> None:
    """Have imported and compiled what loading needs."""
    (tmp_path / "warm").mkdir()
    write_model(tmp_path / "warm" / "m.gguf")
    peak_of_loading(tmp_path / "warm")


@pytest.mark.skipif(decoder.wait("int8") is None, reason="no compiled kernels here")
@pytest.mark.parametrize("held", [False, True])
def test_loading_makes_one_layer_of_floats_at_a_time(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, warm: None, held: bool
) -> None:
    hidden = 512
    write_model(tmp_path / "m.gguf", hidden, 12, (12, 14))
    if held:  # what the bar is to see: all tensors in memory at a time
        kept: list[Any] = []
        read = models._Tensors.__getitem__
        monkeypatch.setattr(
            models._Tensors, "__getitem__", lambda t, name: kept.append(read(t, name)) or kept[-1]
        )
    layer = 4 * 6 * hidden * hidden
    assert (peak_of_loading(tmp_path) < 3 * layer) is not held


@pytest.mark.skipif(decoder.wait("int8") is None, reason="no compiled kernels here")
@pytest.mark.parametrize("spoiled", ["", "copied", "rounded at once"])
def test_loading_makes_vectors_of_tokens_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, warm: None, spoiled: str
) -> None:
    write_model(tmp_path / "m.gguf", 512, 1, (12, 14), words=16_000)
    if spoiled == "copied":
        monkeypatch.setattr(models._Tensors, "makes_arrays", False)
    if spoiled == "rounded at once":
        monkeypatch.setattr(packed_decoder, "_ROWS", 1 << 30)
    vectors = 4 * 16_000 * 512
    assert (peak_of_loading(tmp_path) < 1.7 * vectors) is not bool(spoiled)


def test_what_is_stored_is_compared_with_what_its_shape_takes() -> None:
    codes = ModelVersion("v1", 0, {}, {"t": ("Q8_0", (4, 64), "digest")})

    def tensor(nbytes: int) -> np.ndarray:
        context: Any = types.SimpleNamespace(read_blob=lambda digest: bytes(nbytes))
        return models._Tensors(context, codes)["t"]

    assert tensor(8 * 34).shape == (4, 64)
    with pytest.raises(CorruptionError, match=r"'t' of type Q8_0 .* takes 272 bytes, 271 are"):
        tensor(271)
    with pytest.raises(NotSupportedError, match="stored as 'Q9_X', which this release"):
        stored_bytes("Q9_X", (4, 64))
