"""``generate`` with adapters of one model: texts, batches, errors, results that are kept."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import tarsdb
from tarsdb.errors import (
    CatalogError,
    DatabaseError,
    ModelError,
    ModelFormatError,
)
from tarsdb.model_ops import Decoder
from tests.golden.models.tiny_decoders import (
    CONFIGS,
    tiny_decoder_tensors,
    write_tiny_decoder,
)
from tests.golden.models.tiny_lora import ALL, lora_files, lora_tensors, merged, write_tiny_lora
from tests.unit.engine.generation.conftest import LETTERS, golden


@pytest.fixture
def adapters(db: tarsdb.Connection, path: pathlib.Path) -> dict[str, list[str]]:
    """Two adapters of 'tiny', and the texts of 'tiny' with each of them merged in."""
    config, texts = CONFIGS["qwen3"], {}
    for seed, name in enumerate(("poet", "cook")):
        write_tiny_lora(path.parent / name, config, seed)
        db.execute(f"CREATE MODEL {name} FROM '{path.parent / name}' WITH (adapter_of = 'tiny')")
        whole = path.parent / f"{name}_whole"
        write_tiny_decoder(whole, "qwen3")
        lora = lora_tensors(config, ALL, seed)
        weights = merged(tiny_decoder_tensors(config), lora, lora_files(ALL))
        safetensors.numpy.save_file(weights, whole / "model.safetensors")
        db.execute(f"CREATE MODEL {name}_whole FROM '{whole}'")
        sql = f"SELECT generate('{name}_whole', body, max_tokens => 25) FROM prompts ORDER BY id"
        texts[name] = [text for (text,) in db.execute(sql).fetchall()]
    return texts


def test_adapters_of_one_model_write_what_merged_weights_write(
    db: tarsdb.Connection, adapters: dict[str, list[str]]
) -> None:
    sql = "SELECT id, {} FROM prompts ORDER BY id"
    calls = ", ".join(f"generate('{m}', body, max_tokens => 25)" for m in ("tiny", "poet", "cook"))
    rows = db.execute(sql.format(calls)).fetchall()
    expected = (golden(), adapters["poet"], adapters["cook"])
    for column, texts in enumerate(expected, start=1):
        assert [row[column] for row in rows] == texts
    assert len({*map(tuple, expected)}) == 3
    assert db.generate("poet", LETTERS[1], max_tokens=25) == adapters["poet"][1]
    drafted = "SELECT generate('poet', body, max_tokens => 25, draft => 'tiny') FROM prompts"
    assert {text for (text,) in db.execute(drafted).fetchall()} == {*adapters["poet"]}


def test_texts_of_several_adapters_run_in_one_batch(
    db: tarsdb.Connection, adapters: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixtures: list[int] = []
    step = Decoder.step

    def watched(self: Decoder, batch: Any, cache: Any) -> Any:
        mixtures.append(len({id(adapter) for adapter in batch.adapters}))
        return step(self, batch, cache)

    monkeypatch.setattr(Decoder, "step", watched)
    streams = {name: db.generate(name, LETTERS[3], stream=True, max_tokens=25)
               for name in ("tiny", "poet", "cook")}  # fmt: skip
    found = {name: "".join(stream) for name, stream in streams.items()}
    assert found == {"tiny": golden()[3], **{name: adapters[name][3] for name in adapters}}
    assert max(mixtures) == 3
    # a beginning computed with one adapter is no beginning of another's
    for name, texts in {
        "poet": adapters["poet"],
        "tiny": golden(),
        "cook": adapters["cook"],
    }.items():
        for _ in range(2):
            assert db.generate(name, LETTERS[4], max_tokens=25) == texts[4]


def test_an_adapter_needs_its_model(
    db: tarsdb.Connection, adapters: dict[str, list[str]], path: pathlib.Path
) -> None:
    with pytest.raises(CatalogError, match="cannot drop model tiny: model cook adapts it"):
        db.execute("DROP MODEL tiny")
    source = path.parent / "poet"
    for statement, error, message in (
        (f"CREATE MODEL x FROM '{source}' WITH (adapter_of = 'none')", CatalogError, "'none'"),
        (f"CREATE MODEL x FROM '{source}' WITH (adapter_of = 'poet')", ModelError, "cannot be"),
        (f"CREATE MODEL x FROM '{source}' WITH (adapter_of = 'tiny', quantize = 'int8')",
         ModelError, "no option 'quantize'"),
        (f"CREATE MODEL x FROM '{source}' WITH (adapter_of = 'chatty')", DatabaseError, "asks for"),
        (f"CREATE MODEL x FROM '{path.parent}' WITH (adapter_of = 'tiny')", ModelFormatError,
         "no adapter_config.json"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            db.execute(statement)
    db.execute(f"CREATE OR REPLACE MODEL tiny FROM '{path.parent / 'chatty'}'")
    with pytest.raises(DatabaseError, match="asks for"):
        db.generate("poet", LETTERS[1])
    for name in ("poet", "cook", "tiny"):
        db.execute(f"DROP MODEL {name}")


def test_results_of_an_adapter_are_kept_by_its_model_too(
    db: tarsdb.Connection, adapters: dict[str, list[str]], path: pathlib.Path
) -> None:
    db.execute("SET inference_cache = on")
    sql = "SELECT generate('poet', ?, max_tokens => 25)"
    assert db.execute(sql, (LETTERS[1],)).fetchone() == (adapters["poet"][1],)
    other = path.parent / "other_base"
    write_tiny_decoder(other, "qwen3")
    weights = {name: array * np.float32(1.3)
               for name, array in tiny_decoder_tensors(CONFIGS["qwen3"]).items()}  # fmt: skip
    safetensors.numpy.save_file(weights, other / "model.safetensors")
    db.execute(f"CREATE OR REPLACE MODEL tiny FROM '{other}'")
    (text,) = db.execute(sql, (LETTERS[1],)).fetchone()
    assert text != adapters["poet"][1]
