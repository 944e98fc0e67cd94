"""What models did: counters, rates, the lines of EXPLAIN ANALYZE, and what a model takes."""

from __future__ import annotations

import pathlib
import re
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.inference import inference_figures
from tarsdb.metrics import METRICS, Metrics
from tarsdb.model_ops.encode_figures import EncodeFigures
from tests.unit.model_ops.conftest import model_dir as model_dir


@pytest.fixture
def db(tmp_path: pathlib.Path, model_dir: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "t.tars") as db:
        db.execute(f"CREATE MODEL m FROM '{model_dir}' WITH (quantize = 'none')")
        yield db


def plan(db: tarsdb.Connection, sql: str) -> str:
    return "\n".join(row[0] for row in db.execute(f"EXPLAIN ANALYZE {sql}").fetchall())


def test_explain_analyze_tells_what_the_statement_did(db: tarsdb.Connection) -> None:
    query = "SELECT embed('m', t) FROM (VALUES ('a'), ('the time'), ('a'), (NULL)) v(t)"
    first = plan(db, query)
    assert "inference cache: 0 of 3 results known" in first
    found = re.search(r"encoder: 2 texts, (\d+) tokens in (\d) batches, (\d) of padding", first)
    assert found is not None
    assert [int(n) for n in found.groups()] == [3 + 4, int(found[2]), 2 * 4 - 7]
    for stage in ("tokenize", "queue", "forward", "pool"):
        assert re.search(rf"{stage} \d+\.\d+ ms", first)
    assert re.search(r"; [1-9]\d* tokens/s", first)
    again = plan(db, query)
    assert "inference cache: 3 of 3 results known" in again
    assert "encoder" not in again
    assert "inference" not in plan(db, "SELECT 1 + 1")


def test_counters_and_rates_are_in_tars_metrics(db: tarsdb.Connection) -> None:
    before = METRICS.snapshot()
    db.execute("SET inference_cache = off")
    db.execute("SELECT embed('m', t) FROM (VALUES ('a'), ('the time')) v(t)").fetchall()
    after = dict(db.execute("SELECT * FROM tars_metrics").fetchall())

    def grown(name: str) -> float:
        return float(after[name] - before.get(name, 0))

    assert grown("encode.tokens") == 7
    assert grown("encode.texts") == 2
    assert grown("embed_texts") == 2
    assert 1 <= grown("encode.batches") <= 2
    stages = [grown(f"encode.{stage}_seconds") for stage in ("tokenize", "forward", "pool")]
    assert all(seconds > 0 for seconds in stages)
    assert grown("encode.seconds") >= grown("encode.tokenize_seconds")
    rate = after["encode.tokens"] / after["encode.seconds"]
    assert after["encode.tokens_per_second"] == pytest.approx(rate)


@pytest.mark.parametrize("texts", [1, 3, 40])
def test_texts_that_were_cut_are_counted(db: tarsdb.Connection, texts: int) -> None:
    def cut() -> int:
        return int(METRICS.snapshot().get("embed_truncated", 0))

    db.execute("SET inference_cache = off")
    before = cut()
    query = "SELECT embed('m', 'date ' || repeat('date ', i % 2 * 30)) FROM range(?) r(i)"
    db.execute(query, [2 * texts]).fetchall()
    assert cut() == before + texts


def test_each_text_that_was_cut_is_counted_once_beside_other_threads(
    db: tarsdb.Connection, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "t.tars"
    before = METRICS.snapshot().get("embed_truncated", 0)

    def ask(name: int) -> None:
        with tarsdb.connect(path) as own:
            own.execute("SET inference_cache = off")
            for i in range(10):
                own.execute("SELECT embed('m', ?)", [f"{name} {i} " + "date " * 30]).fetchall()

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert METRICS.snapshot()["embed_truncated"] - before == 40


def test_padding_is_what_batches_in_the_order_given_would_have_added() -> None:
    figures = EncodeFigures()
    figures.tokenized(np.array([1] * 31 + [9] + [5], np.int64), 0.0)
    figures.tokenized(np.zeros(0, np.int64), 0.0)
    with METRICS.recorded() as done:
        figures.report()
    assert done["encode.padding_avoided"] == 32 * 9 - (31 + 9)
    assert done["encode.tokens"] == 31 + 9 + 5


def test_a_record_holds_what_its_own_thread_added() -> None:
    metrics = Metrics()
    with metrics.recorded() as outer:
        metrics.add("a")
        thread = threading.Thread(target=lambda: metrics.add("a", 5))
        thread.start()
        thread.join()
        with metrics.recorded() as inner:
            metrics.add_all({"a": 2, "b": 3})
    metrics.add("a", 10)
    assert outer == {"a": 1}
    assert inner == {"a": 2, "b": 3}
    assert metrics.snapshot() == {"a": 18, "b": 3}


def test_generation_has_a_line() -> None:
    values = {"generate.tokens": 20, "generate.steps": 10, "generate.step_seconds": 0.5,
              "generate.prompt_tokens": 100, "generate.cached_tokens": 64}  # fmt: skip
    (line,) = inference_figures.lines(values)
    assert "100 tokens read, 64 of them known, 20 written in 10 steps" in line
    assert line.endswith("40 tokens/s")


def test_sizes_and_mode_of_a_model_are_shown(
    db: tarsdb.Connection, model_dir: pathlib.Path
) -> None:
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(model_dir / "model.safetensors")
    stored = sum(tensor.nbytes for tensor in tensors.values())
    query = "SELECT task, numeric_mode, bytes_stored, bytes_loaded FROM tars_models"
    assert db.execute(query).fetchall() == [("embed", "fp32", stored, 0)]
    db.execute("SELECT embed('m', 'a')").fetchall()
    ((*_, loaded),) = db.execute(query).fetchall()
    assert loaded >= stored / 2
    shown = dict(db.execute("DESCRIBE MODEL m").fetchall())
    assert shown["numeric mode"] == "fp32"
    assert shown["bytes stored"] == str(stored)
    assert shown["bytes loaded"] == str(loaded)
