"""Which models ``db.generate`` sees: those that a statement of the connection would."""

from __future__ import annotations

import pathlib

import pytest

import tarsdb
from tarsdb.errors import BindError, CatalogError, ModelError
from tests.unit.engine.generation.conftest import LETTERS

SQL = "SELECT generate('{}', ?, max_tokens => 9)"


def both(db: tarsdb.Connection, model: str) -> str:
    """Return what both ways answer."""
    (text,) = db.execute(SQL.format(model), (LETTERS[1],)).fetchone()
    assert db.generate(model, LETTERS[1], max_tokens=9) == text
    assert "".join(db.generate(model, LETTERS[1], stream=True, max_tokens=9)) == text
    return str(text)


def neither(db: tarsdb.Connection, model: str) -> None:
    with pytest.raises(BindError, match=f"{model}'? does not exist"):
        db.execute(SQL.format(model), (LETTERS[1],)).fetchall()
    with pytest.raises(CatalogError, match=f"{model}'? does not exist"):
        db.generate(model, LETTERS[1], max_tokens=9)


def test_a_model_made_in_the_transaction_is_seen_until_it_is_rolled_back(
    db: tarsdb.Connection, path: pathlib.Path
) -> None:
    usual = both(db, "tiny")
    db.execute("BEGIN")
    db.execute(f"CREATE MODEL new FROM '{path.parent / 'tiny'}'")
    assert both(db, "new") == usual
    db.execute("ROLLBACK")
    neither(db, "new")


def test_one_dropped_or_replaced_in_the_transaction_is_not(
    db: tarsdb.Connection, path: pathlib.Path
) -> None:
    usual = both(db, "tiny")
    db.execute("BEGIN")
    db.execute(f"CREATE OR REPLACE MODEL tiny FROM '{path.parent / 'chatty'}'")
    assert both(db, "tiny") != usual
    db.execute("DROP MODEL chatty")
    neither(db, "chatty")
    db.execute("ROLLBACK")
    assert both(db, "tiny") == usual


def test_a_transaction_keeps_the_models_of_its_snapshot(
    db: tarsdb.Connection, path: pathlib.Path
) -> None:
    usual = both(db, "tiny")
    db.execute("BEGIN")
    assert db.execute("SELECT count(*) FROM prompts").fetchone() == (len(LETTERS),)
    pieces = db.generate("tiny", LETTERS[1], stream=True, max_tokens=9)
    with tarsdb.connect(path) as other:
        other.execute("DROP MODEL tiny")
        neither(other, "tiny")
    assert both(db, "tiny") == usual == "".join(pieces)
    db.execute("ROLLBACK")
    neither(db, "tiny")


def test_without_a_transaction_a_dropped_model_ends_the_text(
    db: tarsdb.Connection, path: pathlib.Path, slow: list[int]
) -> None:
    pieces = db.generate("tiny", LETTERS[1], stream=True, max_tokens=40, speculate=False)
    next(pieces)
    with tarsdb.connect(path) as other:
        other.execute("DROP MODEL tiny")
    with pytest.raises(ModelError, match="model tiny was dropped"):
        list(pieces)
