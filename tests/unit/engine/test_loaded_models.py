"""Models in memory: shared, within a budget, gone with their last user, safe for who uses them."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.inference.loaded_models import (
    LoadedModels,
    loaded_models,
    memory_bytes,
    numeric_mode,
)
from tarsdb.errors import BindError, DataError, ModelError
from tarsdb.metrics import METRICS
from tests.unit.model_ops.conftest import model_dir as model_dir


class Model:
    def __init__(self, nbytes: int) -> None:
        self.weight_bytes = nbytes


def get(models: LoadedModels, name: str, nbytes: int = 100, budget: int = 250) -> Any:
    key = (name.encode(), "embed")
    return models.get(key, lambda: Model(nbytes), lambda: nbytes, budget, name)


def test_a_model_is_loaded_once_and_the_one_used_longest_ago_leaves() -> None:
    models = LoadedModels()
    a, b = get(models, "a"), get(models, "b")
    assert get(models, "a") is a
    assert models.nbytes() == 200
    get(models, "c")  # b was used longest ago
    assert models.nbytes() == 200
    assert models.nbytes(b"b") == 0
    assert get(models, "a") is a
    assert get(models, "b") is not b
    assert models.nbytes(b"c") == 0


def test_a_model_larger_than_the_budget_is_refused_and_leaves_the_others() -> None:
    models = LoadedModels()
    a = get(models, "a")
    with pytest.raises(
        ModelError, match="model big takes 300 bytes of memory, model_memory is 250"
    ):
        get(models, "big", 300)
    assert get(models, "a") is a
    key = (b"grown", "embed")  # more than it was weighed as
    with pytest.raises(ModelError, match="grown"):
        models.get(key, lambda: Model(300), lambda: 10, 250, "grown")
    assert models.nbytes(b"grown") == 0


def test_threads_that_ask_at_once_load_once() -> None:
    models, loads = LoadedModels(), []
    barrier = threading.Barrier(8)

    def load() -> Model:
        loads.append(1)
        return Model(1)

    def ask() -> None:
        barrier.wait()
        models.get((b"a", "embed"), load, lambda: 1, 10, "a")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1


def test_a_mode_has_one_name() -> None:
    assert numeric_mode({}) == numeric_mode({"quantize": "none"}) == "fp32"
    assert numeric_mode({"quantize": "int8"}) == "int8"


def test_auto_is_half_of_the_memory() -> None:
    assert memory_bytes("auto") > 1 << 28
    assert memory_bytes("3MB") == 3_000_000


@pytest.fixture
def db(tmp_path: pathlib.Path, model_dir: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "t.tars") as db:
        db.execute("SET inference_cache = off")
        db.execute(f"CREATE MODEL m FROM '{model_dir}'")
        yield db


def embed(db: tarsdb.Connection, text: str, model: str = "m") -> np.ndarray:
    row = db.execute(f"SELECT embed('{model}', ?)", (text,)).fetchone()
    assert row is not None
    return np.asarray(row[0])


def loaded(db: tarsdb.Connection) -> int:
    return loaded_models(db._require_session().env).nbytes()


def test_the_setting_bounds_what_is_loaded(db: tarsdb.Connection, model_dir: pathlib.Path) -> None:
    db.execute(f"CREATE MODEL raw FROM '{model_dir}' WITH (normalize = false)")
    embed(db, "a")
    one = loaded(db)
    assert one > 0
    embed(db, "a", "raw")
    assert loaded(db) == 2 * one
    evicted = METRICS.snapshot().get("models.evicted", 0)
    db.execute(f"SET model_memory = '{one * 3 // 2 // 1024 + 1}KiB'")
    db.execute(f"CREATE MODEL cls FROM '{model_dir}' WITH (pooling = 'cls')")
    embed(db, "a", "cls")
    assert loaded(db) == one
    assert METRICS.snapshot()["models.evicted"] == evicted + 2
    db.execute("SET model_memory = '1KB'")
    embed(db, "a", "cls")  # it is there: what is loaded is not taken from its user
    with pytest.raises(ModelError, match="model_memory is 1000"):
        embed(db, "a")
    with pytest.raises(DataError):
        db.execute("SET model_memory = 'much'")
    db.execute("RESET model_memory")
    embed(db, "a")


def test_a_dropped_model_leaves_memory(db: tarsdb.Connection, model_dir: pathlib.Path) -> None:
    db.execute(f"CREATE MODEL twin FROM '{model_dir}'")
    embed(db, "a")
    db.execute("DROP MODEL m")
    assert loaded(db) > 0  # twin has the same weights
    embed(db, "a", "twin")
    db.execute("DROP MODEL twin")
    assert loaded(db) == 0


OTHER = """
import sys, tarsdb
with tarsdb.connect(sys.argv[1]) as db:
    for sql in sys.argv[2:]:
        db.execute(sql)
"""


def elsewhere(path: pathlib.Path, *statements: str) -> None:
    """Execute statements in another process."""
    subprocess.run([sys.executable, "-c", OTHER, str(path), *statements], check=True)


@pytest.fixture
def paused(
    db: tarsdb.Connection, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, ...]]:
    """Let another process execute what the list holds, in the middle of the next embedding."""
    from tarsdb.model_ops import Encoder

    statements: list[tuple[str, ...]] = []
    encode = Encoder.encode

    def slow(self: Encoder, *args: Any, **options: Any) -> np.ndarray:
        vectors = encode(self, *args, **options)
        if statements:
            elsewhere(tmp_path / "t.tars", *statements.pop())
        return vectors

    monkeypatch.setattr(Encoder, "encode", slow)
    return statements


def test_a_query_finishes_on_the_model_it_began_with(
    db: tarsdb.Connection, paused: list[tuple[str, ...]]
) -> None:
    expected = embed(db, "the time")
    paused.append(("DROP MODEL m",))
    np.testing.assert_array_equal(embed(db, "the time"), expected)
    with pytest.raises(BindError, match="does not exist"):
        embed(db, "the time")


def test_a_write_notices_that_its_model_was_dropped(
    db: tarsdb.Connection, paused: list[tuple[str, ...]]
) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, e VECTOR(24))")
    paused.append(("DROP MODEL m",))
    with pytest.raises(BindError, match="does not exist"):
        db.execute("INSERT INTO t VALUES (1, embed('m', 'the time'))")
    assert db.execute("SELECT count(*) FROM t").fetchall() == [(0,)]


def test_a_write_whose_model_was_replaced_runs_again_with_the_new_one(
    db: tarsdb.Connection, model_dir: pathlib.Path, paused: list[tuple[str, ...]]
) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, e VECTOR(24))")
    other = f"CREATE MODEL m FROM '{model_dir}' WITH (pooling = 'cls')"
    paused.append(("DROP MODEL m", other))
    db.execute("INSERT INTO t VALUES (1, embed('m', 'the time'))")
    stored = db.execute("SELECT e FROM t").fetchall()[0][0]
    np.testing.assert_array_equal(stored, embed(db, "the time"))
    db.execute("DROP MODEL m")
    db.execute(f"CREATE MODEL m FROM '{model_dir}'")
    assert not np.array_equal(stored, embed(db, "the time"))
