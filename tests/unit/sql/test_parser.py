"""Parsing: every statement form in scope, error positions, parameters, scripts."""

from __future__ import annotations

import pytest

from tarsdb.errors import Error, NotSupportedError, SQLSyntaxError
from tarsdb.sql import parameter_keys, parse, split
from tarsdb.sql import plan as pl

# ruff: noqa: E501 - a table of statements and plans

PLANS: list[tuple[str, pl.Plan]] = [
    ("BEGIN", pl.Transaction("begin")),
    ("begin immediate transaction", pl.Transaction("begin")),
    ("START TRANSACTION;", pl.Transaction("begin")),
    ("COMMIT", pl.Transaction("commit")),
    ("END", pl.Transaction("commit")),
    ("ROLLBACK", pl.Transaction("rollback")),
    ("SAVEPOINT s", pl.Transaction("savepoint", "s")),
    ("RELEASE SAVEPOINT s", pl.Transaction("release", "s")),
    ("RELEASE s", pl.Transaction("release", "s")),
    ("ROLLBACK TO SAVEPOINT s", pl.Transaction("rollback_to", "s")),
    ("ROLLBACK TRANSACTION TO s", pl.Transaction("rollback_to", "s")),
    ("SET target_recall = 0.95", pl.SetOption("target_recall", 0.95)),
    ("SET default_null_order = 'nulls_first'", pl.SetOption("default_null_order", "nulls_first")),
    ("SET threads TO 2", pl.SetOption("threads", 2)),
    ("SET durability = full", pl.SetOption("durability", "full")),
    ("SET threads = DEFAULT", pl.SetOption("threads", None)),
    ("RESET threads", pl.SetOption("threads", None)),
    ("SHOW TABLES", pl.Show("tables")),
    ("SHOW ALL", pl.Show("all")),
    ("SHOW MODELS", pl.Show("models")),
    ("SHOW ef_search", pl.Show("ef_search")),
    ("DESCRIBE docs", pl.Describe("table", "docs")),
    ("DESCRIBE MODEL minilm", pl.Describe("model", "minilm")),
    ("DESC model", pl.Describe("table", "model")),
    ("PRAGMA integrity_check", pl.Pragma("integrity_check")),
    ("PRAGMA durability = group", pl.Pragma("durability", "group")),
    ("PRAGMA integrity_check(10)", pl.Pragma("integrity_check", 10)),
    ("CHECKPOINT", pl.Maintain("checkpoint")),
    ("VACUUM", pl.Maintain("vacuum")),
    ("VACUUM docs", pl.Maintain("vacuum", "docs")),
    ("OPTIMIZE docs", pl.Maintain("optimize", "docs")),
    ("REINDEX docs_h", pl.Maintain("reindex", "docs_h")),
    ("DROP TABLE IF EXISTS docs", pl.Drop("table", "docs", True)),
    ("DROP INDEX docs_l", pl.Drop("index", "docs_l")),
    ("DROP MODEL minilm", pl.Drop("model", "minilm")),
    ("DROP MODULE m", pl.Drop("module", "m")),
    ("DROP FUNCTION f", pl.Drop("function", "f")),
    ("CREATE INDEX docs_l ON docs (lang)", pl.CreateIndex("docs_l", "docs", ("lang",))),
    (
        "CREATE UNIQUE INDEX IF NOT EXISTS i ON docs USING btree (lang, tenant)",
        pl.CreateIndex("i", "docs", ("lang", "tenant"), True, if_not_exists=True),
    ),
    (
        "CREATE INDEX v ON docs USING ivf (emb) WITH (metric = 'cosine', lists = 1024)",
        pl.CreateIndex("v", "docs", ("emb",), False, "ivf", {"metric": "cosine", "lists": 1024}),
    ),
    (
        "CREATE INDEX h ON docs USING hnsw (emb vector_l2_ops) WITH (m = 16)",
        pl.CreateIndex(
            "h", "docs", ("emb",), False, "hnsw",
            {"metric": "l2", "opclass": "vector_l2_ops", "m": 16},
        ),
    ),
    ("CREATE INDEX t ON docs USING fts (body)", pl.CreateIndex("t", "docs", ("body",), False, "fts")),
    ("CREATE INDEX ON docs USING auto (emb)", pl.CreateIndex(None, "docs", ("emb",), False, "auto")),
    ("CREATE MODEL m FROM '/dir'", pl.CreateModel("m", "/dir")),
    (
        "CREATE MODEL IF NOT EXISTS m FROM 'package:x' WITH (task = 'embed')",
        pl.CreateModel("m", "package:x", {"task": "embed"}, True),
    ),
    (
        "CREATE OR REPLACE MODULE k FROM '/k.wasm' WITH (sha256 = 'ab')",
        pl.CreateModule("k", "/k.wasm", {"sha256": "ab"}, False, True),
    ),
    (
        "CREATE FUNCTION lev(a TEXT, b TEXT) RETURNS INT LANGUAGE wasm IMMUTABLE STRICT "
        "FROM textkit::lev WITH (fuel_per_row = 100, max_memory = '16MB')",
        pl.CreateFunction(
            "lev", (("a", "TEXT"), ("b", "TEXT")), "INT", "wasm", None, "textkit", "lev",
            options={"fuel_per_row": 100, "max_memory": "16MB"},
        ),
    ),
    (
        "CREATE FUNCTION f() RETURNS DOUBLE PRECISION LANGUAGE wasm VOLATILE "
        "CALLED ON NULL INPUT AS $$(module 'x')$$",
        pl.CreateFunction(
            "f", (), "DOUBLE PRECISION", "wasm", "(module 'x')", None, "f", False, "VOLATILE"
        ),
    ),
    (
        "CREATE TRIGGER IF NOT EXISTS t AFTER INSERT ON docs CALL f",
        pl.CreateTrigger("t", "docs", "f", "AFTER", True),
    ),
    (
        "CREATE TRIGGER t BEFORE INSERT ON docs CALL f",
        pl.CreateTrigger("t", "docs", "f", "BEFORE"),
    ),
    ("DROP TRIGGER IF EXISTS t", pl.Drop("trigger", "t", True)),
    (
        "CREATE AGGREGATE FUNCTION g(x DOUBLE) RETURNS DOUBLE LANGUAGE wasm FROM stats::gmean",
        pl.CreateFunction(
            "g", (("x", "DOUBLE"),), "DOUBLE", "wasm", None, "stats", "gmean", kind="aggregate"
        ),
    ),
    (
        "CREATE FUNCTION s(t TEXT) RETURNS TABLE (w TEXT, v VECTOR(3)) LANGUAGE wasm FROM k::s",
        pl.CreateFunction(
            "s", (("t", "TEXT"),), "", "wasm", None, "k", "s", kind="table",
            columns=(("w", "TEXT"), ("v", "VECTOR(3)")),
        ),
    ),
    (
        "ALTER TABLE docs ADD COLUMN IF NOT EXISTS z VECTOR(3) NOT NULL",
        pl.AlterTable(
            "docs", "add_column", "z", pl.ColumnSpec("z", "VECTOR(3)", True), None, True
        ),
    ),
    ("ALTER TABLE docs DROP COLUMN IF EXISTS z", pl.AlterTable("docs", "drop_column", "z", None, None, True)),
    ("ALTER TABLE docs DROP z", pl.AlterTable("docs", "drop_column", "z")),
    ("ALTER TABLE docs RENAME COLUMN a TO b", pl.AlterTable("docs", "rename_column", "a", None, "b")),
    ("ALTER TABLE docs ALTER a SET DEFAULT 1 + 2", pl.AlterTable("docs", "set_default", "a", expression="1 + 2")),
    ("ALTER TABLE docs ALTER COLUMN a DROP DEFAULT", pl.AlterTable("docs", "drop_default", "a")),
    ("ALTER TABLE docs ALTER COLUMN a SET NOT NULL", pl.AlterTable("docs", "set_not_null", "a")),
    ("ALTER TABLE docs ALTER a DROP NOT NULL", pl.AlterTable("docs", "drop_not_null", "a")),
    (
        "ALTER TABLE docs ALTER a TYPE DECIMAL(10, 2)",
        pl.AlterTable("docs", "set_type", "a", pl.ColumnSpec("a", "DECIMAL(10, 2)")),
    ),
    (
        "ALTER TABLE docs ALTER COLUMN a SET DATA TYPE TEXT USING upper(a)",
        pl.AlterTable("docs", "set_type", "a", pl.ColumnSpec("a", "TEXT"), expression="upper(a)"),
    ),
    ("ALTER TABLE docs RENAME TO papers", pl.AlterTable("docs", "rename", None, None, "papers")),
]  # fmt: skip


@pytest.mark.parametrize(("text", "plan"), PLANS, ids=[text[:40] for text, _ in PLANS])
def test_own_statements(text: str, plan: pl.Plan) -> None:
    assert parse(text).plan == plan


def test_create_table_of_the_documentation() -> None:
    plan = parse(
        """CREATE TABLE IF NOT EXISTS docs (
        id BIGINT PRIMARY KEY, body TEXT NOT NULL DEFAULT 'a' || 'b' CHECK (length(body) < 9),
        amount DECIMAL(10, 2) UNIQUE, tags INT[], at TIMESTAMP WITH TIME ZONE,
        emb VECTOR(384) GENERATED ALWAYS AS (embed('minilm', body)) STORED, "odd name" double precision,
        UNIQUE (body, amount), CONSTRAINT positive CHECK (id > 0), PRIMARY KEY (id)
        )"""
    ).plan
    assert isinstance(plan, pl.CreateTable)
    assert [(c.name, c.type) for c in plan.columns] == [
        ("id", "BIGINT"), ("body", "TEXT"), ("amount", "DECIMAL(10, 2)"), ("tags", "INT[]"),
        ("at", "TIMESTAMP WITH TIME ZONE"), ("emb", "VECTOR(384)"),
        ("odd name", "double precision"),
    ]  # fmt: skip
    assert plan.columns[0].primary_key
    assert plan.columns[1].not_null
    assert plan.columns[1].default == "'a' || 'b'"
    assert plan.columns[1].checks == ("length(body) < 9",)
    assert plan.columns[5].generated == "embed('minilm', body)"
    assert plan.uniques == ((None, ("body", "amount")),)
    assert plan.checks == (("positive", "id > 0"),)
    assert plan.primary_key == ("id",)
    assert plan.if_not_exists


@pytest.mark.parametrize(
    "text",
    [
        "ALTER MODEL m ADD VERSION v2 FROM '/x'", "ALTER MODEL m ROLLBACK",
        "FINETUNE MODEL clf FROM (SELECT 1)", "BACKUP DATABASE TO 'x.tars'",
        "RESTORE DATABASE FROM 'x.tars'", "OPTIMIZE MODEL minilm FOR 'latency'",
        "CREATE TRIGGER t BEFORE UPDATE ON docs CALL f",
        "CREATE TRIGGER t AFTER UPDATE ON docs CALL f",
        "CREATE OR REPLACE TRIGGER t AFTER INSERT ON docs CALL f",
        "CREATE FUNCTION s(t TEXT) RETURNS TEXT LANGUAGE lua AS $$ x $$",
        "ALTER TABLE docs ALTER COLUMN emb SET MODEL 'm/v2'", "CREATE SEQUENCE s",
        "GRANT SELECT ON docs TO me", "MERGE INTO a USING b ON a.x = b.x", "LOCK TABLE docs",
        "CREATE TABLE a (x INT, FOREIGN KEY (x) REFERENCES b (y))",
        "CREATE INDEX i ON docs (lower(body))", "CREATE INDEX i ON docs (a) WHERE a > 1",
        "CREATE TABLE a (x INT GENERATED ALWAYS AS (1) VIRTUAL)",
    ],
)  # fmt: skip
def test_what_is_not_done_is_named(text: str) -> None:
    with pytest.raises(NotSupportedError, match="not supported"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("SELEC 1", 1, 1),
        ("SELECT * FRM t", 1, 14),
        ("SELECT a,\n  b FROM t WHERE ))", 2, 18),
        ("SELECT 'abc", 1, 8),
        ("SELECT 1 /* abc", 1, 10),
        ("SELECT $$ abc", 1, 8),
        ('SELECT "abc', 1, 8),
        ("SELECT 1; SELECT 2", 1, 9),
        ("CREATE TABLE t (a INT,\n b)", 2, 3),
        ("CREATE TABLE t (a INT", 1, 22),
        ("DROP DOCS", 1, 6),
        ("SET x", 1, 6),
        ("CREATE INDEX i ON t USING foo (a)", 1, 27),
        ("CREATE FUNCTION f(a INT) RETURNS INT LANGUAGE wasm", 1, 51),
        ("SELECT $ + 1", 1, 8),
        ("", 1, 1),
        ("SELECT 1 \0", 1, 10),
    ],
)
def test_errors_say_where(text: str, line: int, column: int) -> None:
    with pytest.raises(SQLSyntaxError) as caught:
        parse(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    source, caret = caught.value.excerpt.split("\n")
    assert caret == " " * (column - 1) + "^"
    assert source.strip() in text.replace("\0", " ")


def test_long_lines_are_clipped_around_the_caret() -> None:
    text = "SELECT " + ", ".join(f"column_{i}" for i in range(500)) + " FRM t x"
    with pytest.raises(SQLSyntaxError) as caught:
        parse(text)
    source, caret = caught.value.excerpt.split("\n")
    assert len(source) < 100
    assert text[caught.value.column - 1] == source[caret.index("^")]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("SELECT 1", ()),
        ("SELECT ?, ?", (0, 1)),
        ("SELECT a FROM t WHERE b = ? LIMIT ? OFFSET ?", (0, 1, 2)),
        ("SELECT ?2, ?1", (0, 1)),
        ("SELECT $1, $1, $2", (0, 1)),
        ("SELECT :a, $b, @c, :a", ("a", "b", "c")),
        ("EXPLAIN SELECT ? + ?", (0, 1)),
        ("INSERT INTO t VALUES ($1,$2),($3,$4)", (0, 1, 2, 3)),
        ("SELECT $1+$2, a FROM t WHERE a IN ($1,$2)", (0, 1)),
        ("SELECT $a||$b,$é", ("a", "b", "é")),
        ("SELECT $t$ $1,$2 $t$, '$3,$4', \"$5,$6\", $1,$2 -- $7,$8", (0, 1)),
        ("INSERT INTO t (a, b) VALUES (?, ?)", (0, 1)),
        ("SELECT '?', \"?\", 1 -- ?", ()),
        ("SELECT x[1:2], {'a': b}, c::int", ()),
        ("WITH a AS (SELECT :x AS y) SELECT :z FROM a", ("x", "z")),
    ],
)
def test_parameters(text: str, keys: tuple[int | str, ...]) -> None:
    assert set(parameter_keys(parse(text))) == set(keys)


def test_parameters_are_numbered_by_their_place_in_the_text() -> None:
    tree = parse("WITH c AS (SELECT ? AS a) SELECT ? FROM c LIMIT ?").take_tree()
    assert (
        tree.args["limit"].expression.this == "3" or str(tree.args["limit"].expression.this) == "3"
    )


def test_a_dollar_within_quotes_stays_one() -> None:
    text = "SELECT $t$ $1,$2 $t$, '$3,$x', \"$y,$z\", E'$1,\\'$2', $$ $a,$b $$, $1,$2, a$b"
    shown = parse(text).take_tree().sql("duckdb")
    assert shown.startswith("SELECT ' $1,$2 ', '$3,$x', \"$y,$z\", ")
    assert "$1,''$2" in shown
    assert shown.endswith("' $a,$b ', $1, $2, a$b")


def test_positional_and_named_do_not_mix() -> None:
    with pytest.raises(SQLSyntaxError, match="mixes"):
        parse("SELECT ?, :a")


def test_split() -> None:
    script = "SELECT ';'; -- a;b\n;; INSERT INTO t VALUES ($$;$$) ; /* ; */"
    assert split(script) == ["SELECT ';'", "INSERT INTO t VALUES ($$;$$)"]
    assert split("") == []


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + "(" * 5000 + "1" + ")" * 5000,
        "SELECT " + "NOT " * 5000 + "true",
        "SELECT " + "- " * 5000 + "1",
        "SELECT " + "+".join("1" * 30_000),
        "SELECT " + "CASE WHEN " * 3000 + "1",
        "SELECT * FROM " + "(SELECT * FROM " * 400 + "t" + ")" * 400,
        "SELECT * FROM a " + "JOIN b " * 40 + "WHERE",
        "SELECT " + "[" * 3000,
        "SELECT " + "f(" * 3000,
    ],
    ids=lambda text: text[:20],
)
def test_deep_nesting_is_a_typed_error(text: str) -> None:
    with pytest.raises(SQLSyntaxError):
        parse(text)


def test_wide_statements_are_fine() -> None:
    parse("SELECT * FROM t WHERE " + " OR ".join(f"a = {i}" for i in range(2000)))
    parse("SELECT * FROM t WHERE a IN (" + ", ".join(map(str, range(5000))) + ")")
    parse("INSERT INTO t VALUES " + ", ".join(f"({i}, 'x')" for i in range(2000)))


def test_errors_are_ours() -> None:
    for text in (
        "'",
        "\ud800",
        "{{",
        "{#",
        "SELECT {% x %}",
        "\x00",
        "((((",
        ")",
        "?",
        "$$",
        "e'\\",
    ):
        with pytest.raises(Error):
            parse(text)
