"""``SET device`` and models: NumPy in a device's place, through functions, cache and EXPLAIN."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.inference import inference_cache
from tarsdb.errors import DeviceError
from tarsdb.kernels.gpu import device as devices
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.memory import DeviceArrays
from tarsdb.kernels.gpu.model_arrays import ArrayKernels
from tarsdb.kernels.gpu.select import partition
from tarsdb.metrics import METRICS
from tests.golden.models.tiny_decoders import CONFIGS, tiny_prompts, tiny_text, write_tiny_decoder
from tests.golden.models.tiny_lora import write_tiny_lora
from tests.unit.engine.test_model_functions import HEADS, write_model
from tests.unit.model_ops.conftest import model_dir as model_dir

PROMPT = tiny_text(tiny_prompts()[2])
CALLS = {
    "vectors": "embed('vectors', ?)", "classes": "score('classes', ?)",
    "cross": "rerank('cross', 'a date', ?)",
    "story": "generate('story', ?, max_tokens => 25)", "poet": "generate('poet', ?)",
}  # fmt: skip


@pytest.fixture
def db(tmp_path: pathlib.Path, model_dir: pathlib.Path) -> Iterator[tarsdb.Connection]:
    write_model(tmp_path / "classes", HEADS["bert"])
    write_model(tmp_path / "cross", HEADS["bert_reranker"])
    write_tiny_decoder(tmp_path / "story", "qwen3")
    write_tiny_lora(tmp_path / "poet", CONFIGS["qwen3"], 1)
    with tarsdb.connect(tmp_path / "a.tars") as found:
        found.execute("SET default_quantize = 'none'")
        found.execute(f"CREATE MODEL vectors FROM '{model_dir}'")
        for name in ("classes", "cross", "story"):
            found.execute(f"CREATE MODEL {name} FROM '{tmp_path / name}'")
        found.execute(f"CREATE MODEL poet FROM '{tmp_path / 'poet'}' WITH (adapter_of = 'story')")
        yield found


def make_present(monkeypatch: pytest.MonkeyPatch, budget: int = 1 << 30) -> None:
    found = Device("NumPy", np, DeviceArrays(budget), partition(np))
    monkeypatch.setattr(devices, "_found", found)


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> None:
    make_present(monkeypatch)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, present: None) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError("no room")

    for kernel in ("residual_norm", "rms_norm"):
        monkeypatch.setattr(ArrayKernels, kernel, full)


def value(db: tarsdb.Connection, name: str) -> Any:
    text = PROMPT if name in ("story", "poet") else "the time"
    return db.execute(f"SELECT {CALLS[name]}", [text]).fetchall()[0][0]


def plan(db: tarsdb.Connection, name: str, verb: str) -> str:
    text = PROMPT if name == "story" else "the time"
    return "\n".join(row[0] for row in db.execute(f"{verb} SELECT {CALLS[name]}", [text]))


def count(name: str) -> float:
    return METRICS.snapshot().get(name, 0)


def modes(db: tarsdb.Connection) -> set[str]:
    return {mode for (mode,) in db.execute("SELECT numeric_mode FROM tars_models").fetchall()}


@pytest.mark.parametrize("name", CALLS)
def test_a_device_answers_as_the_processor(db: tarsdb.Connection, present: None, name: str) -> None:
    expected = value(db, name)
    counters = ("encode.device_batches", "generate.device_steps")
    before = sum(map(count, counters))
    db.execute("SET device = 'gpu'")
    found, there = value(db, name), sum(map(count, counters))
    assert there > before
    if isinstance(expected, str):
        assert found == expected
    else:
        np.testing.assert_allclose(found, expected, atol=1e-5)
    db.execute("RESET device")
    db.execute("SET inference_cache = off")
    value(db, name)
    assert sum(map(count, counters)) == there


def test_a_model_is_loaded_once_for_each_place(db: tarsdb.Connection, present: None) -> None:
    db.execute("SET inference_cache = off")
    before = count("models.loaded")
    for device in ("cpu", "gpu", "auto", "cpu"):
        db.execute(f"SET device = '{device}'")
        for _ in range(2):
            value(db, "vectors")
    assert count("models.loaded") == before + 2


def test_results_of_a_device_are_kept_apart(db: tarsdb.Connection, present: None) -> None:
    hits = count("inference_cache.hits")
    for device, known in (("cpu", 0), ("gpu", 0), ("gpu", 1), ("cpu", 2)):
        db.execute(f"SET device = '{device}'")
        value(db, "vectors")
        inference_cache.queue_of(db._require_session().env).wait()
        assert count("inference_cache.hits") == hits + known


def test_explain_names_the_device(db: tarsdb.Connection, present: None) -> None:
    assert "model" not in plan(db, "vectors", "EXPLAIN").lower().split("\n")[-1]
    assert modes(db) == {"fp32"}
    db.execute("SET device = 'gpu'")
    assert "model vectors: by device NumPy, gpu fp32" in plan(db, "vectors", "EXPLAIN")
    assert "1 batches on the device" in plan(db, "vectors", "EXPLAIN ANALYZE")
    text = plan(db, "story", "EXPLAIN ANALYZE")
    assert "model story: by device NumPy, gpu fp32" in text
    assert "steps on the device" in text and "of them recorded" in text
    assert modes(db) == {"gpu fp32"}
    db.execute("CREATE TABLE t (id INT PRIMARY KEY, body TEXT, emb VECTOR(16))")
    deep = "SELECT id FROM (SELECT id, length(classify('classes', body)) n FROM t) WHERE n > 3"
    lines = [row[0] for row in db.execute(f"EXPLAIN {deep}").fetchall()]
    assert "model classes: by device NumPy, gpu fp32" in lines
    search = db.execute("EXPLAIN SELECT id FROM t ORDER BY emb <-> ? LIMIT 3", [np.zeros(16)])
    assert "exact searches and lists by device NumPy" in str(search.fetchall())


def test_generating_from_python(db: tarsdb.Connection, present: None) -> None:
    expected = db.generate("story", PROMPT, max_tokens=20)
    before = count("generate.device_steps")
    db.execute("SET device = 'gpu'")
    assert db.generate("story", PROMPT, max_tokens=20) == expected
    drafted = db.generate("poet", PROMPT, max_tokens=20, draft="story", speculate=True)
    assert "".join(db.generate("poet", PROMPT, max_tokens=20, stream=True)) == drafted
    assert count("generate.device_steps") > before + 20


def test_half_precision_of_a_device(
    db: tarsdb.Connection, present: None, model_dir: pathlib.Path
) -> None:
    exact = value(db, "vectors")
    db.execute(f"CREATE MODEL half FROM '{model_dir}' WITH (quantize = 'bf16')")
    db.execute("SET device = 'gpu'")
    found = db.execute("SELECT embed('half', 'the time')").fetchall()[0][0]
    assert float(found @ exact) > 0.9999 and np.abs(found - exact).max() > 1e-6
    assert modes(db) == {"gpu fp32", "gpu fp16"}


def test_without_a_device(db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_found", DeviceError("device 'gpu': none here"))
    expected = value(db, "vectors")
    with pytest.raises(DeviceError, match="none here"):
        db.execute("SET device = 'gpu'")
    np.testing.assert_array_equal(value(db, "vectors"), expected)
    db.execute("SET device = 'auto'")
    hits = count("inference_cache.hits")
    np.testing.assert_array_equal(value(db, "vectors"), expected)
    assert count("inference_cache.hits") == hits + 1
    assert "model vectors: by the processor, fp32" in plan(db, "vectors", "EXPLAIN")


def test_a_model_larger_than_the_device(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = value(db, "vectors")
    make_present(monkeypatch, budget=1000)
    db.execute("SET inference_cache = off")
    db.execute("SET device = 'gpu'")
    with pytest.raises(
        DeviceError, match=r"vectors takes \d+ bytes or more, device NumPy has 1000"
    ):
        value(db, "vectors")
    db.execute("SET device = 'auto'")
    np.testing.assert_array_equal(value(db, "vectors"), expected)


@pytest.mark.parametrize("name", ["vectors", "story"])
def test_a_device_that_fails(
    db: tarsdb.Connection, name: str, request: pytest.FixtureRequest
) -> None:
    db.execute("SET inference_cache = off")
    expected = value(db, name)
    request.getfixturevalue("failing")
    db.execute("SET device = 'gpu'")
    with pytest.raises(DeviceError, match=r"device NumPy at (\d+ tokens|step of \d+ rows): Mem"):
        value(db, name)
    db.execute("SET device = 'auto'")
    before = count("models.device_failures")
    np.testing.assert_array_equal(value(db, name), expected)
    assert count("models.device_failures") == before + 1
