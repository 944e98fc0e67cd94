"""The time and the version as SQLite and PostgreSQL ask for them, and PRAGMA table_info."""

import configparser
import datetime
import pathlib
import sqlite3

import pytest

import tarsdb
from tarsdb import ProgrammingError


@pytest.fixture
def db():
    with tarsdb.connect(":memory:") as connection:
        yield connection


def one(db, sql, *parameters):
    return db.execute(sql, parameters).fetchall()[0][0]


@pytest.mark.parametrize(("call", "of"), [
    ("datetime('now')", lambda now: now), ("DATE('NOW')", lambda now: now.date()),
    ("time('now')", lambda now: now.time()),
])  # fmt: skip
def test_now_is_utc(db, call, of):
    before, found, after = (
        datetime.datetime.now(datetime.UTC).replace(tzinfo=None) if at != 1
        else one(db, f"SELECT {call}") for at in range(3)
    )  # fmt: skip
    assert of(before) <= found <= of(after) or of(after) < of(before)  # midnight


def test_texts_are_moments(db):
    assert one(db, "SELECT datetime('2024-05-06 07:08:09')") == datetime.datetime(
        2024, 5, 6, 7, 8, 9
    )
    assert one(db, "SELECT date('2024-05-06')") == datetime.date(2024, 5, 6)
    assert one(db, "SELECT datetime(?)", "2024-05-06") == datetime.datetime(2024, 5, 6)


def test_defaults(db):
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, at TIMESTAMP DEFAULT (datetime('now')))")
    db.execute("INSERT INTO t DEFAULT VALUES")
    at = one(db, "SELECT at FROM t")
    assert abs(at - datetime.datetime.now(datetime.UTC).replace(tzinfo=None)).total_seconds() < 60


@pytest.mark.parametrize("call", ["datetime('now', 'localtime')", "date('now', '-1 day')"])
def test_modifiers_are_named(db, call):
    with pytest.raises(tarsdb.NotSupportedError, match=r"modifiers.*line 1") as raised:
        db.execute(f"SELECT {call}")
    assert "INTERVAL" in str(raised.value.hint)


def test_version_is_ours(db):
    assert one(db, "SELECT version()") == f"tarsdb {tarsdb.__version__}"
    setup = configparser.ConfigParser()
    setup.read(pathlib.Path(__file__).parents[3] / "setup.cfg")
    assert setup["metadata"]["version"] == tarsdb.__version__


def test_table_info_is_sqlites(db):
    create = "CREATE TABLE t (a INT NOT NULL, b TEXT DEFAULT 'x', c INT, PRIMARY KEY (c, a))"
    theirs = sqlite3.connect(":memory:")
    theirs.execute(create)
    db.execute(create)
    found = db.execute("PRAGMA table_info('t')")
    names = [column[0] for column in found.description]
    rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    cursor = theirs.execute("PRAGMA table_info('t')")
    assert names == [column[0] for column in cursor.description]
    for ours, other in zip(rows, cursor.fetchall(), strict=True):
        wanted = dict(zip(names, other, strict=True))
        assert ours.pop("type") in (wanted.pop("type"), "INTEGER")
        wanted["notnull"] = 1 if wanted["pk"] else wanted["notnull"]  # a key is never NULL here
        assert ours == wanted
    assert db.execute("PRAGMA table_info(t)").fetchall()
    with pytest.raises(ProgrammingError, match="nothing"):
        db.execute("PRAGMA table_info(nothing)")
