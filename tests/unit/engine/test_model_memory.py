"""What a model will take is known before it is loaded, and ``model_memory`` judges by that."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import tarsdb
from tarsdb.engine.inference import models
from tarsdb.engine.inference.loaded_models import loaded_models
from tarsdb.errors import ModelError
from tarsdb.kernels import dispatch
from tarsdb.metrics import METRICS
from tarsdb.model_ops import TASKS, Classifier, Decoder, Encoder
from tests.golden.models.tiny_decoders import CONFIGS, tiny_decoder_tensors, write_tiny_decoder
from tests.golden.models.tiny_heads import HEADS, head_tensors, words_tokenizer
from tests.golden.models.tiny_models import CONFIGS as ENCODERS
from tests.golden.models.tiny_models import tiny_tensors
from tests.unit.engine.test_narrow_models import narrowed

MODES = ("none", "bf16", "int8", "int4")


@pytest.fixture(params=["portable", "here"], autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[None]:
    dispatch.use(None if request.param == "here" else request.param)
    yield
    dispatch.use(None)


def files_of(config: Mapping[str, Any]) -> dict[str, bytes]:
    tokenizer = words_tokenizer(dict(config)).encode()
    return {"config.json": json.dumps(config).encode(), "tokenizer.json": tokenizer}


@pytest.mark.parametrize("quantize", MODES)
def test_a_model_takes_what_it_was_weighed_as(quantize: str) -> None:
    options = {"quantize": quantize}
    for config in CONFIGS.values():
        files = {"config.json": json.dumps(config).encode()}
        decoder = Decoder.from_files(files, tiny_decoder_tensors(config), options)
        assert TASKS["generate"].weigh(files, options) == decoder.weight_bytes > 10_000
    for config in ENCODERS.values():
        files = files_of(config)
        encoder = Encoder.from_files(files, tiny_tensors(config), options)
        assert TASKS["embed"].weigh(files, options) == encoder.weight_bytes > 10_000
    for config in HEADS.values():
        files = files_of(config)
        classifier = Classifier.from_files(files, head_tensors(config), options)
        assert TASKS["classify"].weigh(files, options) == classifier.weight_bytes > 10_000


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    """A database with a small decoder of float32, and one of bfloat16."""
    write_tiny_decoder(tmp_path / "tiny", "llama")
    narrow, wide = narrowed(tmp_path / "tiny")
    with tarsdb.connect(tmp_path / "db.tars") as db:
        db.execute("SET inference_cache = off")
        db.execute(f"CREATE MODEL wide FROM '{wide}' WITH (quantize = 'int8')")
        db.execute(f"CREATE MODEL narrow FROM '{narrow}' WITH (quantize = 'none')")
        yield db


def sizes(db: tarsdb.Connection, name: str) -> tuple[int, int]:
    """Return a model's bytes in the file and in memory."""
    db.generate(name, "abc", max_tokens=1)
    query = "SELECT bytes_stored, bytes_loaded FROM tars_models WHERE name = ?"
    row = db.execute(query, (name,)).fetchone()
    assert row is not None
    return row


def opened_without_models(path: pathlib.Path) -> tarsdb.Connection:
    """Return a connection; a thread in the background may have kept the file, and models, open."""
    db = tarsdb.connect(path)
    loaded_models(db._require_session().env).keep_only([])
    return db


def bound(db: tarsdb.Connection, nbytes: int) -> None:
    db.execute(f"SET model_memory = '{nbytes / 1000:.3f}KB'")


def test_a_model_smaller_in_memory_than_in_the_file_is_loaded(
    db: tarsdb.Connection, tmp_path: pathlib.Path
) -> None:
    if dispatch.level() == "portable":
        pytest.skip("whole numbers are kept as float32 there")
    stored, loaded = sizes(db, "wide")
    assert loaded < stored
    db.close()
    with opened_without_models(tmp_path / "db.tars") as fresh:
        bound(fresh, loaded)
        fresh.generate("wide", "abc", max_tokens=1)


def test_a_model_larger_in_memory_than_in_the_file_is_refused_unread(
    db: tarsdb.Connection, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, loaded = sizes(db, "narrow")
    _, other = sizes(db, "wide")
    assert 1.9 * stored < loaded
    db.close()
    with opened_without_models(tmp_path / "db.tars") as fresh:
        fresh.generate("wide", "abc", max_tokens=1)
        bound(fresh, loaded - 1)
        evicted = METRICS.snapshot().get("models.evicted", 0)
        with monkeypatch.context() as patched:
            patched.delattr(models._Tensors, "__getitem__")
            message = rf"model narrow takes {loaded} bytes of memory, model_memory is {loaded - 1}"
            with pytest.raises(ModelError, match=message):
                fresh.generate("narrow", "abc", max_tokens=1)
        assert METRICS.snapshot().get("models.evicted", 0) == evicted
        assert fresh.execute(
            "SELECT bytes_loaded FROM tars_models WHERE name = 'wide'"
        ).fetchone() == (other,)
        bound(fresh, loaded)
        fresh.generate("narrow", "abc", max_tokens=1)
        assert METRICS.snapshot()["models.evicted"] == evicted + 1


def test_models_of_the_same_weights_each_say_what_they_take(
    db: tarsdb.Connection, tmp_path: pathlib.Path
) -> None:
    write_tiny_decoder(tmp_path / "same", "llama")
    for mode in ("none", "int4"):
        db.execute(f"CREATE MODEL {mode}s FROM '{tmp_path / 'same'}' WITH (quantize = '{mode}')")
    _, alone = sizes(db, "nones")
    query = "SELECT bytes_loaded FROM tars_models WHERE name = '{}s'"
    assert db.execute(query.format("int4")).fetchall() == [(0,)]
    _, packed = sizes(db, "int4s")
    assert db.execute(query.format("none")).fetchall() == [(alone,)]
    if dispatch.level() != "portable":
        assert 0 < packed < alone
