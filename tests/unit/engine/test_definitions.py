"""The ``sql`` of system tables makes the same objects again."""

from __future__ import annotations

import pytest

import tarsdb
from tarsdb.sql.dialect import TarsDB
from tarsdb.sql.names import quoted

FUNCTION = """CREATE FUNCTION sane(x INT) RETURNS BOOLEAN LANGUAGE wasm AS
  $$(module (func (export "sane") (param i32) (result i32) local.get 0 i32.const 0 i32.gt_s))$$;
"""
OBJECTS = """
CREATE TABLE "My table" (
  "a b" INT, "select" TEXT DEFAULT 'x''y' CHECK ("select" <> 'z'), "Üm" REAL, "quo""te" DATE,
  u UUID, d DECIMAL(10, 2) NOT NULL DEFAULT 3.5, ts TIMESTAMP DEFAULT now(),
  v VECTOR(3), bits BIT(8),
  n VECTOR(3) GENERATED ALWAYS AS (l2_normalize(v)) STORED,
  PRIMARY KEY (u, "a b"), UNIQUE ("Üm", u), CONSTRAINT both CHECK ("a b" > "Üm"));
CREATE INDEX "i x" ON "My table" ("select", d);
CREATE UNIQUE INDEX ts ON "My table" (ts);
CREATE INDEX graph ON "My table" USING hnsw (v vector_cosine_ops)
  WITH (m = 8, quantization = 'int4');
CREATE INDEX lists ON "My table" USING ivf (n) WITH (lists = 10, codes = 'int8');
CREATE INDEX chosen ON "My table" USING auto (v vector_ip_ops) WITH (target_recall = 0.9);
CREATE INDEX near ON "My table" USING hnsw (bits bit_jaccard_ops);
CREATE TABLE plain (id INT PRIMARY KEY, x INT);
CREATE TRIGGER "when" BEFORE INSERT ON plain CALL sane;
"""
TABLES = ("tars_tables", "tars_indexes", "tars_triggers")


def definitions(db: tarsdb.Connection) -> list[str]:
    return [
        sql for table in TABLES
        for (sql,) in db.execute(f"SELECT sql FROM {table} WHERE sql IS NOT NULL").fetchall()
    ]  # fmt: skip


def columns(db: tarsdb.Connection) -> list[tuple[object, ...]]:
    everything = "SELECT * FROM tars_columns ORDER BY table_name, position"
    checked = 'SELECT name, table_name, columns, method, "unique", origin FROM tars_indexes'
    return [*db.execute(everything).fetchall(), *db.execute(checked).fetchall()]


def test_statements_make_the_same_again() -> None:
    with tarsdb.connect(":memory:") as first, tarsdb.connect(":memory:") as second:
        for db in (first, second):
            db.execute(FUNCTION)
        first.execute(OBJECTS)
        found = definitions(first)
        for statement in found:
            second.execute(statement)
        assert definitions(second) == found
        assert columns(second) == columns(first)
        with pytest.raises(tarsdb.IntegrityError, match="both"):
            second.execute('INSERT INTO "My table" ("a b", "Üm", u) VALUES (1, 2, uuid())')


def test_show_leaves_statements_out() -> None:
    with tarsdb.connect(":memory:") as db:
        db.execute("CREATE TABLE t (a INT)")
        header = [column[0] for column in db.execute("SHOW TABLES").description or ()]
        assert header == ["name", "rows", "columns", "indexes", "version"]


@pytest.mark.parametrize("name", ["a", "_x9", "value", "description"])
def test_plain_names_are_not_quoted(name: str) -> None:
    assert quoted(name) == name


def test_every_keyword_is_a_name_when_quoted() -> None:
    words = sorted({part.lower() for text in TarsDB.Tokenizer.KEYWORDS for part in text.split()
                    if part.isidentifier()} | {'a"b', "1st", "Upper", "ü", " ", "a;b"})  # fmt: skip
    with tarsdb.connect(":memory:") as db:
        listed = ", ".join(f"{quoted(word)} INT" for word in words)
        db.execute(f"CREATE TABLE t ({listed})")
        again = db.execute("SELECT sql FROM tars_tables").fetchall()[0][0]
        db.execute("DROP TABLE t")
        db.execute(again)
        for word in words:
            db.execute(f"SELECT {quoted(word)} FROM t WHERE {quoted(word)} = 1").fetchall()
