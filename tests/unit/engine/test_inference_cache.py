"""Results of models from the file: equal to computing, in nobody's way, erased on request."""

from __future__ import annotations

import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.inference import inference_cache
from tarsdb.errors import BindError, DataError, NotSupportedError, ReadOnlyError
from tarsdb.kernels import encoder as kernels
from tarsdb.metrics import METRICS
from tarsdb.storage import inference
from tarsdb.storage.transaction import WriteTxn
from tests.unit.model_ops.conftest import model_dir as model_dir

TEXTS = ["parse a date", "the time", "how do i parse the string ?", "", "date . time"]


@pytest.fixture
def path(tmp_path: pathlib.Path, model_dir: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "t.tars"
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE MODEL m FROM '{model_dir}'")
    return path


@pytest.fixture
def db(path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(path) as db:
        yield db


def counted(name: str) -> float:
    return METRICS.snapshot().get(f"inference_cache.{name}", 0)


def wait(db: tarsdb.Connection) -> None:
    inference_cache.queue_of(db._require_session().env).wait()


def embed(db: tarsdb.Connection, *texts: str, model: str = "m") -> np.ndarray:
    rows = [db.execute(f"SELECT embed('{model}', ?)", (text,)).fetchall() for text in texts]
    return np.stack([row[0][0] for row in rows])


def results(db: tarsdb.Connection) -> int:
    found = db.execute("PRAGMA inference_cache_size").fetchone()
    assert found is not None
    return int(found[2])


def test_a_known_text_is_looked_up_and_equal_to_computing(path: pathlib.Path) -> None:
    kernels.wait("f32")  # what NumPy computes meanwhile may differ in the last bits
    with tarsdb.connect(path) as db:
        db.execute("SET inference_cache = off")
        expected = embed(db, *TEXTS)
        wait(db)
        assert results(db) == 0
        db.execute("SET inference_cache = on")
        np.testing.assert_array_equal(embed(db, *TEXTS), expected)
        wait(db)
        assert results(db) == len(TEXTS)
    computed = METRICS.snapshot().get("models.loaded", 0)
    with tarsdb.connect(path) as db:  # a new environment: nothing is loaded
        hits = counted("hits")
        np.testing.assert_array_equal(embed(db, *TEXTS), expected)
        assert counted("hits") == hits + len(TEXTS)
    assert METRICS.snapshot().get("models.loaded", 0) == computed


def test_a_call_can_do_without(db: tarsdb.Connection) -> None:
    known = embed(db, "the time")
    wait(db)
    hits = counted("hits")
    query = "SELECT embed('m', ?, cache => {})"
    for text in ("the time", "a date"):
        found = db.execute(query.format("false"), (text,)).fetchall()[0][0]
        assert found.shape == (24,)
    wait(db)
    assert results(db) == 1
    assert counted("hits") == hits
    found = db.execute(query.format("true"), ("the time",)).fetchall()[0][0]
    np.testing.assert_array_equal(found, known[0])
    assert counted("hits") == hits + 1
    with pytest.raises(BindError, match="cache is 'no'"):
        db.execute(query.format("'no'"), ("the time",))


def test_results_waiting_to_be_written_are_found(db: tarsdb.Connection) -> None:
    hits = counted("hits")
    first = embed(db, "parse the date")
    np.testing.assert_array_equal(embed(db, "parse the date"), first)
    assert counted("hits") == hits + 1


def test_generated_columns_go_through_it(db: tarsdb.Connection) -> None:
    db.execute(
        "CREATE TABLE docs (id BIGINT PRIMARY KEY, body TEXT, "
        "e VECTOR(24) GENERATED ALWAYS AS (embed('m', body)) STORED)"
    )
    rows = [(n, TEXTS[n % len(TEXTS)]) for n in range(20)]
    misses = counted("misses")
    db.executemany("INSERT INTO docs (id, body) VALUES (?, ?)", rows)
    assert counted("misses") == misses + len(rows)
    wait(db)
    db.execute("UPDATE docs SET body = 'the time' WHERE id = 0")
    assert counted("misses") == misses + len(rows)
    stored = dict(db.execute("SELECT id, e FROM docs").fetchall())
    np.testing.assert_array_equal(stored[0], embed(db, "the time")[0])
    db.execute("INSERT INTO docs (id, body) VALUES (100, NULL)")
    assert db.execute("SELECT e FROM docs WHERE id = 100").fetchall() == [(None,)]


def test_options_of_a_model_make_other_results(
    db: tarsdb.Connection, model_dir: pathlib.Path
) -> None:
    db.execute(f"CREATE MODEL raw FROM '{model_dir}' WITH (normalize = false)")
    normal, raw = embed(db, "the time"), embed(db, "the time", model="raw")
    wait(db)
    assert not np.array_equal(normal, raw)
    np.testing.assert_array_equal(embed(db, "the time", model="raw"), raw)
    np.testing.assert_array_equal(embed(db, "the time"), normal)


def test_dropping_the_last_model_with_the_weights_empties_it(
    db: tarsdb.Connection, model_dir: pathlib.Path
) -> None:
    db.execute(f"CREATE MODEL twin FROM '{model_dir}'")
    embed(db, *TEXTS)
    wait(db)
    db.execute("DROP MODEL m")
    wait(db)
    assert results(db) == len(TEXTS)
    db.execute("DROP MODEL twin")
    wait(db)
    assert results(db) == 0


def test_a_select_never_waits_for_a_writer(db: tarsdb.Connection) -> None:
    env = db._require_session().env
    held, let_go = threading.Event(), threading.Event()

    def hold(_: WriteTxn) -> None:
        held.set()
        let_go.wait(30)

    writer = threading.Thread(target=lambda: env.stage(hold))
    writer.start()
    held.wait(30)
    try:
        found = embed(db, *TEXTS)  # with the writer held all the time
        assert writer.is_alive()
        np.testing.assert_array_equal(embed(db, *TEXTS), found)
    finally:
        let_go.set()
        writer.join()
    wait(db)
    assert results(db) == len(TEXTS)


def test_what_the_queue_has_no_room_for_is_dropped_and_counted(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_cache, "MOST_WAITING_BYTES", 2 * 24 * 4)
    dropped = counted("dropped")
    rows = db.execute("SELECT embed('m', t) FROM (VALUES ('a'), ('b'), ('the'), ('do')) v(t)")
    assert len(rows.fetchall()) == 4
    wait(db)
    assert counted("dropped") == dropped + 2
    assert results(db) == 2


def test_what_cannot_be_written_is_dropped_and_counted(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise tarsdb.OperationalError("no")

    monkeypatch.setattr(inference, "write", refuse)
    dropped = counted("dropped")
    embed(db, *TEXTS)
    wait(db)
    assert counted("dropped") == dropped + len(TEXTS)
    assert results(db) == 0


def test_read_only_connections_read_it_and_leave_it(path: pathlib.Path) -> None:
    with tarsdb.connect(path) as db:
        known = embed(db, "the time")
        wait(db)
    with tarsdb.connect(path, read_only=True) as db:
        hits = counted("hits")
        np.testing.assert_array_equal(embed(db, "the time"), known)
        assert counted("hits") == hits + 1
        embed(db, "a date")
        wait(db)
        assert results(db) == 1
        for statement in (
            "PRAGMA forget_inference('the time')",
            "PRAGMA inference_cache_size = '9MB'",
        ):
            with pytest.raises(ReadOnlyError):
                db.execute(statement)


def test_a_text_is_erased_on_request(db: tarsdb.Connection) -> None:
    embed(db, "the time", "a date")
    wait(db)
    for nothing in ("", "(NULL)", "(3)"):
        with pytest.raises(DataError, match="takes a text in quotes"):
            db.execute(f"PRAGMA forget_inference{nothing}")
    assert db.execute("PRAGMA forget_inference('the time')").fetchall() == [(1,)]
    assert results(db) == 1
    misses = counted("misses")
    embed(db, "a date")
    assert counted("misses") == misses
    embed(db, "the time")
    assert counted("misses") == misses + 1


def test_erasing_reaches_what_waits_to_be_written(db: tarsdb.Connection) -> None:
    embed(db, "the time")
    db.execute("PRAGMA forget_inference('the time')")
    wait(db)
    assert results(db) == 0


def test_its_size_is_set_and_kept_with_the_file(path: pathlib.Path) -> None:
    with tarsdb.connect(path) as db:
        assert db.execute("PRAGMA inference_cache_size").fetchall() == [(256 << 20, 0, 0)]
        db.execute("PRAGMA inference_cache_size = '2MiB'")
        for wrong in ("'1KB'", "'much'", "-1"):
            with pytest.raises(DataError):
                db.execute(f"PRAGMA inference_cache_size = {wrong}")
        with pytest.raises(NotSupportedError, match="inference_cache_size"):
            db.execute("PRAGMA inference_size")
    with tarsdb.connect(path) as db:
        assert db.execute("PRAGMA inference_cache_size").fetchall() == [(2 << 20, 0, 0)]


def test_writing_results_makes_no_commits(db: tarsdb.Connection) -> None:
    before = db.execute("SELECT count(*) FROM tars_commits").fetchall()
    embed(db, *TEXTS)
    wait(db)
    assert results(db) == len(TEXTS)
    assert db.execute("SELECT count(*) FROM tars_commits").fetchall() == before


def test_a_model_of_an_open_transaction_works_and_is_not_stored(
    db: tarsdb.Connection, model_dir: pathlib.Path
) -> None:
    db.execute("DROP MODEL m")
    with pytest.raises(RuntimeError), db.transaction():
        db.execute(f"CREATE MODEL m FROM '{model_dir}'")
        embed(db, *TEXTS)
        wait(db)
        raise RuntimeError
    assert results(db) == 0


def test_closing_leaves_what_waits_to_the_thread(path: pathlib.Path) -> None:
    db = tarsdb.connect(path)
    env = db._require_session().env
    embed(db, *TEXTS)
    queue = inference_cache.queue_of(env)
    start = time.monotonic()
    db.close()
    queue.wait()
    assert time.monotonic() - start < 30
    with tarsdb.connect(path) as db:
        assert results(db) == len(TEXTS)
