"""Views: what is read through them is what their query gives."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import tarsdb
from tarsdb.errors import BindError, CatalogError, SQLSyntaxError

VIEWS = {
    "plain": "SELECT id, n, v FROM docs WHERE lang = 'en'",
    "either": "SELECT * FROM docs WHERE n < 20 OR lang = 'de'",
    "twice": "SELECT id, n, v FROM plain WHERE n >= 10",
    "renamed": "SELECT id AS n, n AS id, v FROM docs d WHERE d.lang = 'en'",
    "counted": "SELECT count(*) AS n, min(id) AS id, any_value(v) AS v FROM docs GROUP BY lang",
    "joined": "SELECT a.id, b.n, a.v FROM docs a JOIN docs b ON a.id = b.id + 1",
    "newest": "SELECT id, n, v FROM docs ORDER BY id DESC LIMIT 30",
    "nearest": "SELECT id, n, v FROM docs ORDER BY v <-> '[40, 1]' LIMIT 30",
    "of_cte": "WITH docs AS (SELECT 7 AS id, 8 AS n, '[1, 2]'::VECTOR(2) AS v) SELECT * FROM docs",
    "chosen": "SELECT id, n, v FROM docs WHERE id IN (SELECT max(id) FROM docs GROUP BY n % 7)",
}
QUERIES = (
    "SELECT * FROM {0} ORDER BY id, n",
    "SELECT x.* FROM {0} x ORDER BY x.id, x.n LIMIT 5 OFFSET 2",
    "SELECT id, n + 1 AS m FROM {0} WHERE n % 3 = 0 OR id < 9 ORDER BY id, m",
    "SELECT count(*), sum(n), max(id) FROM {0} WHERE n > 3",
    "SELECT n % 5 AS r, count(*) FROM {0} GROUP BY r ORDER BY r",
    "SELECT id FROM {0} ORDER BY v <-> '[33, 1]', id LIMIT 4",
    "SELECT id, v <-> ? AS d FROM {0} WHERE n < 60 ORDER BY d, id LIMIT 3",
    "SELECT a.id, b.n FROM {0} a JOIN {0} b ON a.id = b.id ORDER BY 1, 2",
    "SELECT d.id FROM docs d WHERE EXISTS (SELECT 1 FROM {0} WHERE id = d.id) ORDER BY 1",
    "SELECT (SELECT max(lang) FROM {0} WHERE {1}.id = d.id) FROM docs d ORDER BY d.id LIMIT 50",
    "WITH docs AS (SELECT 1 AS one) SELECT sum(id), min(one) FROM {0}, docs",
    "WITH near AS (SELECT id FROM {0} ORDER BY v <-> '[7, 1]', id LIMIT 3) FROM near ORDER BY id",
    "SELECT id AS n FROM {0} WHERE n > 50 ORDER BY 1",
    "SELECT * EXCLUDE (v) FROM {0} ORDER BY id, n",
    "SELECT DISTINCT n % 2 FROM {0} ORDER BY 1",
    "SELECT id FROM {0} UNION SELECT 1000 ORDER BY 1",
)


@pytest.fixture
def db(tmp_path: pathlib.Path) -> tarsdb.Connection:
    connection = tarsdb.connect(tmp_path / "views.tars")
    connection.execute("CREATE TABLE docs (id INTEGER PRIMARY KEY, lang TEXT, n INT, v VECTOR(2))")
    rows = range(100)
    connection.table("docs").insert(
        {
            "lang": ["en" if i % 2 else "de" for i in rows],
            "n": [i * 37 % 101 for i in rows],
            "v": np.array([(i, 1) for i in rows], np.float32),
        }
    )
    for name, sql in VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {sql}")
    return connection


def plain(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [tuple(x.tolist() if isinstance(x, np.ndarray) else x for x in row) for row in rows]


def without_view(query: str, name: str) -> str:
    """Return a query with a view's query in the place of its name."""
    text = VIEWS[name].replace("FROM plain ", f"FROM ({VIEWS['plain']}) ")
    if query.startswith("WITH docs"):  # must not hide the table the view reads
        return f"WITH kept AS ({text}), " + query.removeprefix("WITH ").format("kept")
    for alias in ("x", "a", "b"):
        query = query.replace(f"{{0}} {alias}", f"({text}) {alias}")
    return query.format(f"({text}) {name}", name)


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_its_query(db: tarsdb.Connection, name: str) -> None:
    for query in QUERIES:
        parameters = (np.array([50, 1], np.float32),) if "?" in query else ()
        through = query.format(name, name)
        try:
            expected = db.execute(without_view(query, name), parameters).fetchall()
        except BindError:  # it has no such column
            assert "lang" in query
            with pytest.raises(BindError):
                db.execute(through, parameters)
            continue
        assert plain(db.execute(through, parameters).fetchall()) == plain(expected), query


def test_searches_through_a_view_use_the_index(db: tarsdb.Connection) -> None:
    db.execute("CREATE INDEX near ON docs USING hnsw (v)")
    for view in ("plain", "twice", "either"):
        sql = f"EXPLAIN SELECT id, n FROM {view} x WHERE n < 90 ORDER BY x.v <-> '[5, 1]' LIMIT 3"
        shown = "\n".join(line for (line,) in db.execute(sql).fetchall())
        assert shown.startswith("Knn docs.v <-> '[5, 1]', k=3"), shown
        assert "filter:" in shown
    shown = db.execute("EXPLAIN SELECT * FROM counted").fetchall()[0][0]
    assert not shown.startswith("Knn")


def test_what_a_view_hides_is_not_there(db: tarsdb.Connection) -> None:
    for sql in ("SELECT lang FROM plain", "SELECT rowid FROM plain", "SELECT x.lang FROM plain x"):
        with pytest.raises(BindError, match=r"lang|rowid"):
            db.execute(sql)
    names = [name for name, *_ in db.execute("SELECT * FROM plain").description or ()]
    assert names == ["id", "n", "v"]


def test_views_follow_their_tables_and_each_other(db: tarsdb.Connection) -> None:
    count = "SELECT count(*) FROM twice"
    before = db.execute(count).fetchall()[0][0]
    db.execute("INSERT INTO docs (lang, n) VALUES ('en', 50)")
    assert db.execute(count).fetchall() == [(before + 1,)]
    db.execute("CREATE OR REPLACE VIEW plain AS SELECT id, n, v FROM docs WHERE n = 50")
    assert (
        db.execute(count).fetchall()
        == db.execute("SELECT count(*) FROM docs WHERE n = 50").fetchall()
    )
    with pytest.raises(BindError, match="view plain stands for itself: plain -> twice -> plain"):
        db.execute("CREATE OR REPLACE VIEW plain AS SELECT * FROM twice")
    db.execute("DROP VIEW plain")
    with pytest.raises(BindError, match="table 'plain' does not exist"):
        db.execute(count)


def test_views_are_part_of_transactions_and_of_the_file(
    db: tarsdb.Connection, tmp_path: pathlib.Path
) -> None:
    db.execute("BEGIN")
    db.execute("CREATE VIEW mine AS SELECT 1 AS one")
    assert db.execute("SELECT * FROM mine").fetchall() == [(1,)]
    db.execute("ROLLBACK")
    with pytest.raises(BindError, match="'mine' does not exist"):
        db.execute("SELECT * FROM mine")
    db.close()
    with tarsdb.connect(tmp_path / "views.tars") as again:
        assert again.execute("SELECT count(*) FROM plain").fetchall() == [(50,)]
        assert [name for (name,) in again.execute("SHOW VIEWS").fetchall()] == sorted(VIEWS)


def test_statements_that_write_may_read_views(db: tarsdb.Connection) -> None:
    db.execute("INSERT INTO docs (lang, n) SELECT 'new', n FROM plain WHERE n < 9")
    db.execute("UPDATE docs SET n = -1 WHERE lang = 'new' AND n IN (SELECT n FROM plain)")
    assert db.execute("SELECT DISTINCT n FROM docs WHERE lang = 'new'").fetchall() == [(-1,)]
    db.execute("DELETE FROM docs USING plain WHERE docs.id = plain.id")
    assert db.execute("SELECT count(*) FROM plain").fetchall() == [(0,)]
    db.execute("CREATE TABLE copy AS SELECT * FROM newest")
    assert db.execute("SELECT count(*) FROM copy").fetchall() == [(30,)]


@pytest.mark.parametrize(
    "sql",
    ["INSERT INTO plain (n) VALUES (1)", "UPDATE plain SET n = 1", "DELETE FROM plain",
     "INSERT INTO plain SELECT * FROM docs", "COPY plain FROM 'x.csv'",
     "CREATE INDEX i ON plain (n)", "ALTER TABLE plain RENAME TO x"],
)  # fmt: skip
def test_a_view_is_not_written(db: tarsdb.Connection, sql: str) -> None:
    with pytest.raises((BindError, CatalogError), match="plain"):
        db.execute(sql)


def test_names_are_shared_with_tables(db: tarsdb.Connection) -> None:
    refused = {
        "CREATE VIEW plain AS SELECT 1": "view 'plain' exists already",
        "CREATE VIEW docs AS SELECT 1": "table 'docs' exists already",
        "CREATE TABLE plain (a INT)": "view 'plain' exists already",
        "ALTER TABLE docs RENAME TO plain": "view 'plain' exists already",
        "DROP TABLE plain": "plain is a view: DROP VIEW",
        "DROP VIEW docs": "docs is a table: DROP TABLE",
        "CREATE VIEW tars_x AS SELECT 1": "begin with tars_",
    }
    for sql, message in refused.items():
        with pytest.raises(CatalogError, match=message):
            db.execute(sql)
    db.execute("CREATE VIEW IF NOT EXISTS plain AS SELECT 1")
    db.execute("DROP VIEW IF EXISTS nothing")
    assert db.execute("SELECT count(*) FROM plain").fetchall() == [(50,)]


def test_a_query_that_cannot_stand_alone_is_refused(db: tarsdb.Connection) -> None:
    frame = pa.table({"a": [1]})
    assert len(frame) == 1
    for query, error, message in (
        ("SELECT nope FROM docs", BindError, "nope"),
        ("SELECT id FROM docs WHERE n > ?", BindError, "cannot have parameters"),
        ("SELECT * FROM frame", BindError, "table 'frame' does not exist"),
        ("DELETE FROM docs", SQLSyntaxError, "expected a query"),
    ):
        with pytest.raises(error, match=message):
            db.execute(f"CREATE VIEW bad AS {query}")
    with pytest.raises(BindError):
        db.execute("CREATE VIEW bad (a, b) AS SELECT 1")
    assert "bad" not in [name for (name,) in db.execute("SHOW VIEWS").fetchall()]


def test_what_is_shown(db: tarsdb.Connection) -> None:
    described = [row[:2] for row in db.execute("DESCRIBE plain").fetchall()]
    assert described == [("id", "INT"), ("n", "INT"), ("v", "VECTOR(2)")]
    db.execute('CREATE VIEW "a b" ("c d", e) AS SELECT 1, 2')
    shown = dict(db.execute("SELECT name, sql FROM tars_views").fetchall())
    assert shown["plain"] == f"CREATE VIEW plain AS {VIEWS['plain']};"
    db.execute('DROP VIEW "a b"')
    db.execute(shown["a b"])
    assert db.execute('SELECT "c d" + e FROM "a b"').fetchall() == [(3,)]


def test_a_sample_is_of_the_rows_of_the_view(db: tarsdb.Connection) -> None:
    sql = "SELECT count(*) FROM (SELECT id FROM plain USING SAMPLE 50 ROWS)"
    assert db.execute(sql).fetchall() == [(50,)]  # all there are; of the table's, half would stay
