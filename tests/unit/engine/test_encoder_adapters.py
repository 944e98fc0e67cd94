"""CREATE MODEL ... WITH (adapter_of = ...) over models that embed, classify and rerank."""

from __future__ import annotations

import json
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.inference import shared_batches
from tarsdb.errors import CatalogError, ModelError, ModelFormatError
from tarsdb.model_ops import Classifier, Encoder
from tests.golden.models.tiny_heads import HEADS, head_tensors, words_tokenizer
from tests.golden.models.tiny_lora import encoder_lora_tensors, lora_files, merged, write_lora
from tests.golden.models.tiny_models import CONFIGS, tiny_tensors
from tests.unit.engine.test_model_functions import write_model

TEXTS = ["w5 w6 w7", "w60", "w8 w9 " * 10]
BASES: dict[str, tuple[dict[str, Any], str]] = {
    "vectors": (CONFIGS["bert"], ""),
    "classes": (HEADS["bert"], "bert."),
    "cross": (HEADS["bert_reranker"], "bert."),
}


def adapter(name: str, seed: int = 1) -> dict[str, np.ndarray]:
    config, prefix = BASES[name]
    return encoder_lora_tensors(config, prefix, seed)


def whole(name: str, seed: int = 1) -> Any:
    """Return a model with the adapter merged in."""
    config, _ = BASES[name]
    files = {"tokenizer.json": words_tokenizer(config).encode()}
    files["config.json"] = json.dumps(config).encode()
    base = head_tensors(config) if "architectures" in config else tiny_tensors(config)
    kind = Classifier if "architectures" in config else Encoder
    return kind.from_files(files, merged(base, adapter(name, seed), lora_files(())))


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "t.tars") as db:
        db.execute("SET default_quantize = 'none'")
        for name, (config, _) in BASES.items():
            db.execute(f"CREATE MODEL {name} FROM '{write_model(tmp_path / name, config)}'")
            for seed in (1, 2):
                path = write_lora(tmp_path / f"{name}{seed}", adapter(name, seed), lora_files(()))
                db.execute(f"CREATE MODEL {name}_{seed} FROM '{path}' WITH (adapter_of = '{name}')")
        db.execute("CREATE TABLE docs (id INT PRIMARY KEY, body TEXT)")
        db.executemany("INSERT INTO docs VALUES (?, ?)", list(enumerate(TEXTS)))
        db.execute("SET inference_cache = off")
        yield db


def column(db: tarsdb.Connection, expression: str) -> list[Any]:
    return [row[0] for row in db.execute(f"SELECT {expression} FROM docs ORDER BY id").fetchall()]


def test_they_embed_classify_and_rerank_as_merged_weights_do(db: tarsdb.Connection) -> None:
    found = np.stack(column(db, "embed('vectors_1', body)"))
    assert np.abs(found - whole("vectors").encode(TEXTS)).max() < 1e-4
    assert np.abs(found - np.stack(column(db, "embed('vectors', body)"))).max() > 0.01
    model = whole("classes")
    assert column(db, "classify('classes_1', body)") == [
        model.labels[place] for place in model.logits(TEXTS).argmax(axis=1)
    ]
    scores = column(db, "score('classes_1', body, label => 'label 1')")
    assert scores == pytest.approx(model.probabilities(TEXTS)[:, 1], abs=1e-4)
    relevance = column(db, "rerank('cross_1', 'w5', body)")
    expected = whole("cross").relevance([("w5", text) for text in TEXTS])
    assert relevance == pytest.approx(expected, abs=1e-4)
    assert relevance != pytest.approx(column(db, "rerank('cross', 'w5', body)"), abs=1e-3)
    tasks = dict(db.execute("SELECT name, task FROM tars_models").fetchall())
    assert (tasks["vectors_1"], tasks["classes_2"], tasks["cross_1"]) == (
        "embed", "classify", "rerank",
    )  # fmt: skip


def test_a_vector_column_is_made_by_an_adapter(db: tarsdb.Connection) -> None:
    db.execute(
        "CREATE TABLE v (body TEXT, "
        "e VECTOR(24) GENERATED ALWAYS AS (embed('vectors_2', body)) STORED)"
    )
    db.execute("INSERT INTO v (body) SELECT body FROM docs WHERE id = 0")
    ((stored,),) = db.execute("SELECT e FROM v").fetchall()
    assert np.abs(stored - whole("vectors", 2).encode(TEXTS[:1])[0]).max() < 1e-4


def test_calls_of_several_threads_share_batches_by_adapter(
    db: tarsdb.Connection, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One core, held by a first call, so that the others wait and are computed in groups."""
    groups: list[tuple[Any, int]] = []
    original = Encoder.encode_way
    hold, held = threading.Event(), threading.Event()

    def encode_way(self: Encoder, texts: Any, kind: Any, threads: Any = None) -> np.ndarray:
        if not held.is_set():
            held.set()
            assert hold.wait(30)
        groups.append((kind[1], len(texts)))
        return original(self, texts, kind, threads)

    monkeypatch.setattr(Encoder, "encode_way", encode_way)
    monkeypatch.setattr(shared_batches.os, "cpu_count", lambda: 1)
    names = ["vectors", "vectors_1", "vectors_1", "vectors", "vectors_2"]
    found: dict[int, np.ndarray] = {}

    def call(number: int) -> None:
        with tarsdb.connect(tmp_path / "t.tars") as own:
            own.execute("SET inference_cache = off")
            sql = f"SELECT embed('{names[number]}', 'w5 w6 w7')"
            found[number] = own.execute(sql).fetchone()[0]

    first = threading.Thread(target=call, args=(0,))
    first.start()
    assert held.wait(30)
    others = [threading.Thread(target=call, args=(number,)) for number in range(1, 5)]
    for thread in others:
        thread.start()
    threading.Event().wait(1.0)  # until they wait for the core
    hold.set()
    for thread in (first, *others):
        thread.join(30)
    assert {each for each, _ in groups} >= {None}
    assert len({each for each, _ in groups}) == 3  # no adapter's texts with another's
    assert sum(count for _, count in groups) == len(names)
    for number, name in enumerate(names):
        alone = db.execute(f"SELECT embed('{name}', 'w5 w6 w7')").fetchone()[0]
        assert np.array_equal(found[number], alone)


def test_adapters_that_do_not_fit_leave_nothing_behind(
    db: tarsdb.Connection, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "vectors1"
    wrong = adapter("vectors")
    key = next(iter(wrong))
    write_lora(tmp_path / "wrong", {**wrong, key: wrong[key][:, :-1].copy()}, lora_files(()))
    for statement, error, message in (
        (f"CREATE MODEL x FROM '{tmp_path / 'wrong'}' WITH (adapter_of = 'vectors')",
         ModelFormatError, r"lora_A.*\(4, 23\).*\(4, 24\)"),
        (f"CREATE MODEL x FROM '{path}' WITH (adapter_of = 'vectors_1')", ModelError, "cannot be"),
        (f"CREATE MODEL x FROM '{path}' WITH (adapter_of = 'vectors', task = 'classify')",
         ModelError, "cannot be adapted"),
        (f"CREATE MODEL x FROM '{path}' WITH (adapter_of = 'vectors', pooling = 'cls')",
         ModelError, "no option 'pooling'"),
        ("DROP MODEL vectors", CatalogError, "adapts it"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            db.execute(statement)
    assert not db.execute("SELECT name FROM tars_models WHERE name = 'x'").fetchall()
