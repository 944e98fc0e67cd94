"""Our copy of the settings of DuckDB is sqlglot's; the generator is loaded when needed."""

import subprocess
import sys

import pytest
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.dialects.duckdb import DuckDB

from tarsdb.sql.duckdb_settings import DuckDBSettings

OURS = {"Generator", "generator_class"}  # loaded by generator()


def settings(found: type) -> dict[str, object]:
    """Return the settings of a dialect or tokenizer: no dunder names, classes or functions."""
    named = {name: getattr(found, name) for name in dir(found) if not name.startswith("__")}
    return {name: value for name, value in named.items()
            if not callable(value) and not isinstance(value, (type, property))
            and name not in OURS}  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(DuckDBSettings, DuckDB), (DuckDBSettings.Tokenizer, DuckDB.Tokenizer)],
    ids=["dialect", "tokenizer"],
)
def test_each_setting_is_the_librarys(ours, theirs):
    assert settings(ours) == settings(theirs)
    assert len(settings(theirs)) > 15


def test_a_setting_that_differs_is_noticed():
    class Other(DuckDBSettings):
        INDEX_OFFSET = 0

    assert settings(Other) != settings(DuckDB)
    assert settings(Dialect) != settings(DuckDB)


def test_methods_are_the_librarys():
    own = {name for name, value in vars(DuckDB).items()
           if callable(value) and not isinstance(value, type)}  # fmt: skip
    assert own == {"to_json_path"}
    for text in ("/a/0", "$.a[#-1]", "$.a.b[0]", "a", "$"):
        ours, theirs = (
            dialect().to_json_path(exp.Literal.string(text)) for dialect in (DuckDBSettings, DuckDB)
        )
        assert ours == theirs, text
    assert DuckDBSettings().to_json_path(None) is None


def test_texts_are_the_librarys():
    text = "SELECT a[1], j->'$.x', EPOCH(t), 'x' ^@ 'y' FROM t QUALIFY ROW_NUMBER() OVER () = 1"
    ours, theirs = (
        dialect().generate(dialect().parse(text)[0]) for dialect in (DuckDBSettings, DuckDB)
    )
    assert ours == theirs
    assert isinstance(DuckDBSettings().generator(), DuckDB.Generator)


@pytest.mark.parametrize(
    ("sql", "loaded"),
    [("SELECT id FROM t WHERE id = 7", False), ("SELECT count(DISTINCT id) + 1 FROM t", True)],
)
def test_native_statements_load_no_generator(sql, loaded):
    program = (
        "import sys, tarsdb; db = tarsdb.connect(':memory:');"
        f"db.execute('CREATE TABLE t (id BIGINT PRIMARY KEY)'); db.execute({sql!r}).fetchall();"
        "print('sqlglot.generators.duckdb' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(loaded)]
