"""Definitions damaged or lost in a sound file: only what names them fails, and checks tell."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable

import pytest

import tarsdb
from tarsdb.errors import BindError, CorruptionError
from tarsdb.storage import Environment
from tarsdb.storage.catalog import object_key
from tarsdb.storage.transaction import WriteTxn
from tarsdb.storage.values import ValueType, pack, unpack

OPTIONS = tarsdb.OpenOptions(background_merge=False)
Spoil = Callable[[WriteTxn, bytes], object]
WAT = '(module (func (export "f") (param i64) (result i64) local.get 0))'
USES = {
    "table a": "SELECT x FROM a",
    "view w": "SELECT x FROM w",
    "function f": "SELECT f(x) FROM b",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("catalog") / "t.tars"
    with tarsdb.connect(path, options=OPTIONS) as db:
        for name in ("a", "b"):
            db.execute(f"CREATE TABLE {name} (x BIGINT PRIMARY KEY)")
            db.execute(f"INSERT INTO {name} VALUES (1)")
        db.execute("CREATE VIEW w AS SELECT x FROM b")
        db.execute("CREATE VIEW w2 AS SELECT x FROM b")
        db.execute(f"CREATE FUNCTION f(n BIGINT) RETURNS BIGINT LANGUAGE wasm IMMUTABLE AS '{WAT}'")
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return path


@pytest.fixture
def path(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copy(whole, tmp_path / "t.tars"))


def spoil(path: pathlib.Path, work: Callable[[WriteTxn], object]) -> None:
    env = Environment.open(path, OPTIONS)
    env.stage(work)
    env.release()


def change(at: int, bit: int = 0) -> Spoil:
    """Change one bit of a stored definition."""

    def work(txn: WriteTxn, key: bytes) -> None:
        value = bytearray(txn.get("catalog", key) or b"")
        value[at] ^= 1 << bit
        txn.put("catalog", key, bytes(value))

    return work


def cut(txn: WriteTxn, key: bytes) -> None:
    txn.put("catalog", key, bytes(txn.get("catalog", key) or b"")[:20])


def lose(txn: WriteTxn, key: bytes) -> None:
    txn.delete("catalog", key)


def older(txn: WriteTxn, key: bytes) -> None:
    """Put a definition of another commit under the right key, checksum and all."""
    payload, _, made = unpack(ValueType.CATALOG, key, txn.get("catalog", key) or b"")
    text = bytes(payload).decode()
    stale = text.replace(f'"version":{made}', f'"version":{made - 1}').encode()
    assert stale != text.encode()
    txn.put("catalog", key, pack(ValueType.CATALOG, key, stale, 1, made - 1))


WAYS: dict[str, Spoil] = {
    "payload": change(-3), "magic": change(0), "version": change(4), "checksum": change(33),
    "cut": cut, "lost": lose, "older": older,
}  # fmt: skip


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("what", USES)
@pytest.mark.parametrize("way", WAYS)
def test_only_what_names_a_damaged_object_fails(
    path: pathlib.Path, way: str, what: str, read_only: bool
) -> None:
    kind, name = what.split()
    spoil(path, lambda txn: WAYS[way](txn, object_key(kind, name)))
    with tarsdb.connect(path, read_only=read_only, options=OPTIONS) as db:
        for used, sql in USES.items():
            if used == what:
                with pytest.raises(CorruptionError, match=what):
                    db.execute(sql)
            else:
                assert db.execute(sql).fetchall() == [(1,)]
        assert db.execute("SELECT x FROM w2").fetchall() == [(1,)]
        shown = db.execute(f"SHOW {kind}s").fetchall()
        assert [row[1:] for row in shown if row[0] == name] == [(None,) * (len(shown[0]) - 1)]
        for pragma in ("integrity_check", "quick_check"):
            findings = [row[0] for row in db.execute(f"PRAGMA {pragma}").fetchall()]
            assert len(findings) == 1
            assert findings[0].startswith(what)


def test_the_rest_is_changed_and_a_damaged_name_is_not_taken(path: pathlib.Path) -> None:
    spoil(path, lambda txn: change(-3)(txn, object_key("table", "a")))
    with tarsdb.connect(path, options=OPTIONS) as db:
        db.execute("INSERT INTO b VALUES (2)")
        db.execute("CREATE TABLE c AS SELECT x FROM b")
        db.execute("CREATE VIEW v AS SELECT x FROM c")
        db.execute("DROP VIEW w")
        db.execute("VACUUM b")
        for sql in ("CREATE TABLE a (y INT)", "CREATE TABLE IF NOT EXISTS a (y INT)",
                    "CREATE VIEW a AS SELECT 1", "DROP TABLE a", "DROP TABLE IF EXISTS a",
                    "INSERT INTO a VALUES (2)", "ALTER TABLE a ADD COLUMN y INT", "VACUUM",
                    "ALTER TABLE b RENAME TO a", "DESCRIBE a"):  # fmt: skip
            with pytest.raises(CorruptionError, match="table a: definition: checksum"):
                db.execute(sql)
        assert db.execute("SELECT x FROM v ORDER BY x").fetchall() == [(1,), (2,)]
        assert len(db.execute("PRAGMA integrity_check").fetchall()) == 1
    spoil(path, lambda txn: change(-3)(txn, object_key("table", "a")))  # put right again
    with tarsdb.connect(path, options=OPTIONS) as db:
        assert db.execute("SELECT x FROM a").fetchall() == [(1,)]
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_file_without_a_count_of_objects_answers(path: pathlib.Path) -> None:
    """It gets one with the next definition; until then a lost one is found by the full check."""

    def before(txn: WriteTxn) -> None:
        assert txn.delete("meta", b"objects")

    spoil(path, before)
    with tarsdb.connect(path, options=OPTIONS) as db:
        assert db.execute("SELECT x FROM a").fetchall() == [(1,)]
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    lost = path.with_suffix(".lost")
    shutil.copy(path, lost)
    spoil(lost, lambda txn: lose(txn, object_key("view", "w")))
    with tarsdb.connect(lost, options=OPTIONS) as db:
        with pytest.raises(BindError, match="'w' does not exist"):
            db.execute("SELECT x FROM w")
        assert db.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        assert "view w" in db.execute("PRAGMA integrity_check").fetchall()[0][0]
    with tarsdb.connect(path, options=OPTIONS) as db:
        db.execute("CREATE VIEW v AS SELECT 1")
    spoil(path, lambda txn: lose(txn, object_key("view", "w")))
    with (
        tarsdb.connect(path, options=OPTIONS) as db,
        pytest.raises(CorruptionError, match="view w"),
    ):
        db.execute("SELECT x FROM w")


def test_a_damaged_count_fails_no_query(path: pathlib.Path) -> None:
    spoil(path, lambda txn: txn.put("meta", b"objects", b"no count"))
    with tarsdb.connect(path, options=OPTIONS) as db:
        assert db.execute("SELECT x FROM a").fetchall() == [(1,)]
        assert "catalog: count of objects" in str(db.execute("PRAGMA quick_check").fetchall())
        with pytest.raises(CorruptionError, match="count of objects"):
            db.execute("CREATE VIEW v AS SELECT 1")


def test_vacuum_keeps_the_blobs_of_a_lost_function(path: pathlib.Path) -> None:
    stored: list[tuple[bytes, bytes]] = []

    def lost(txn: WriteTxn) -> None:
        key = object_key("function", "f")
        stored.append((key, bytes(txn.get("catalog", key) or b"")))
        txn.delete("catalog", key)

    spoil(path, lost)
    with (
        tarsdb.connect(path, options=OPTIONS) as db,
        pytest.raises(CorruptionError, match="function f"),
    ):
        db.execute("VACUUM")
    spoil(path, lambda txn: txn.put("catalog", *stored[0]))
    with tarsdb.connect(path, options=OPTIONS) as db:
        assert db.execute("SELECT f(x) FROM a").fetchall() == [(1,)]
