"""A statement that embeds while another connection drops the model: it has its snapshot's."""

from __future__ import annotations

import pathlib

import pytest

import tarsdb
from tarsdb.errors import BindError
from tests.unit.model_ops.conftest import model_dir as model_dir

TEXTS = [f"the time of text {number}" for number in range(400)]
SQL = "SELECT embed('m', body) FROM texts ORDER BY id"


@pytest.fixture
def path(tmp_path: pathlib.Path, model_dir: pathlib.Path) -> pathlib.Path:
    with tarsdb.connect(tmp_path / "t.tars") as db:
        db.execute(f"CREATE MODEL m FROM '{model_dir}'")
        db.execute("CREATE TABLE texts (id INT PRIMARY KEY, body TEXT)")
        db.executemany("INSERT INTO texts VALUES (?, ?)", list(enumerate(TEXTS)))
    return tmp_path / "t.tars"


def vectors(db: tarsdb.Connection) -> list[list[float]]:
    return [vector.tolist() for (vector,) in db.execute(SQL).fetchall()]


def drop_meanwhile(db: tarsdb.Connection, path: pathlib.Path) -> list[int]:
    """Let another connection drop the model when ``db`` has embedded some texts."""
    at: list[int] = []

    def progress(done: int, total: int) -> None:
        if not at and 0 < done < total:
            at.append(done)
            with tarsdb.connect(path) as other:
                other.execute("DROP MODEL m")
                with pytest.raises(BindError, match="'m' does not exist"):
                    other.execute("SELECT embed('m', 'a')")

    db.on_progress(progress)
    return at


def test_a_running_statement_goes_on_and_the_next_one_fails(path: pathlib.Path) -> None:
    with tarsdb.connect(path) as db:
        db.execute("SET inference_cache = off")
        db.execute("SET model_threads = 1")  # which tells of each batch
        usual = vectors(db)
        at = drop_meanwhile(db, path)
        assert vectors(db) == usual
        assert at
        with pytest.raises(BindError, match="'m' does not exist"):
            db.execute(SQL)


def test_one_that_stores_the_vectors_does_not_commit(path: pathlib.Path) -> None:
    with tarsdb.connect(path) as db:
        db.execute("SET inference_cache = off")
        db.execute("SET model_threads = 1")  # which tells of each batch
        ((dim,),) = db.execute("SELECT dim FROM tars_models").fetchall()
        db.execute(f"CREATE TABLE kept (id INT PRIMARY KEY, v VECTOR({dim}))")
        at = drop_meanwhile(db, path)
        with pytest.raises(BindError, match="'m' does not exist"):
            db.execute("INSERT INTO kept SELECT id, embed('m', body) FROM texts")
        assert at
        assert db.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_a_transaction_keeps_the_model_of_its_snapshot(path: pathlib.Path) -> None:
    with tarsdb.connect(path) as db:
        db.execute("SET inference_cache = off")
        db.execute("SET model_threads = 1")  # which tells of each batch
        db.execute("BEGIN")
        usual = vectors(db)
        with tarsdb.connect(path) as other:
            other.execute("DROP MODEL m")
        assert vectors(db) == usual
        db.execute("COMMIT")
        with pytest.raises(BindError, match="'m' does not exist"):
            db.execute(SQL)
