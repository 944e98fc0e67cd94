"""Single values lost or changed inside a file whose pages are sound: noticed, never wrong rows."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pytest

import tarsdb
from tarsdb.errors import CorruptionError
from tarsdb.storage import Environment, check
from tarsdb.storage.catalog import load_objects
from tarsdb.storage.table_meta import read_counters
from tarsdb.storage.transaction import WriteTxn
from tarsdb.storage.values import ValueType, pack, unpack

OPTIONS = tarsdb.OpenOptions(background_merge=False, segment_rows=256)
Spoil = Callable[[WriteTxn], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A table in segments, ends of rows and a delta; a view; a vector index."""
    path = tmp_path_factory.mktemp("lost") / "t.tars"
    rng = np.random.default_rng(3)
    with tarsdb.connect(path, options=OPTIONS) as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n INT, v VECTOR(4))")
        vectors = rng.standard_normal((700, 4)).astype(np.float32)
        db.executemany("INSERT INTO t VALUES (?, ?, ?)", [(i, i, vectors[i]) for i in range(600)])
        db.execute("OPTIMIZE t")
        db.execute("CREATE INDEX near ON t USING hnsw (v)")
        db.execute("DELETE FROM t WHERE id = 300")
        db.executemany("INSERT INTO t VALUES (?, ?, ?)", [(i, i, vectors[i]) for i in (600, 601)])
        db.execute("CREATE VIEW w AS SELECT n FROM t")
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return path


@pytest.fixture
def path(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copy(whole, tmp_path / "t.tars"))


def spoil(path: pathlib.Path, work: Spoil) -> None:
    env = Environment.open(path, OPTIONS)
    env.stage(work)
    env.release()


def first(txn: WriteTxn, db: str, prefix: bytes = b"") -> tuple[bytes, bytes]:
    key, value = next(iter(txn.range(db, prefix, None)))
    return key, bytes(value)


def lose(db: str, prefix: bytes = b"") -> Spoil:
    return lambda txn: txn.delete(db, first(txn, db, prefix)[0])


def lose_last(db: str) -> Spoil:
    return lambda txn: txn.delete(db, list(txn.range(db, b"", None))[-1][0])


def revive(txn: WriteTxn, bit: int = 40, at: int = 0) -> None:
    """Change one bit in the rowid of an end of a row."""
    key = [key for key, _ in txn.range("tombs", b"", None)][at]
    txn.delete("tombs", key)
    changed = int.from_bytes(key[16:24], "big") ^ 1 << bit
    txn.put("tombs", key[:16] + changed.to_bytes(8, "big") + key[24:], b"")


LOST = {
    "segment": lose("segments"),
    "segment of vectors": lose_last("segments"),
    "delta": lose("delta"),
    "delta of vectors": lose_last("delta"),
    "end of a row": lose("tombs"),
    "end of no row": revive,
    "end of another row": lambda txn: revive(txn, 2),
    "end of a vector": lambda txn: revive(txn, 2, at=-1),
    "counters": lose("meta", b"table/"),
}  # fmt: skip


@pytest.mark.parametrize("what", LOST)
def test_rows_are_not_answered_without_what_is_lost(path: pathlib.Path, what: str) -> None:
    spoil(path, LOST[what])
    with tarsdb.connect(path, options=OPTIONS) as db:
        for sql in ("SELECT n FROM t WHERE id = 7", "SELECT sum(n) FROM t", "SELECT n FROM w",
                    "UPDATE t SET n = 1 WHERE id = 7", "DELETE FROM t WHERE n = 8",
                    "SELECT id FROM t ORDER BY v <-> '[1,0,0,0]' LIMIT 3"):  # fmt: skip
            with pytest.raises(CorruptionError, match="table t"):
                db.execute(sql)
        findings = db.execute("PRAGMA integrity_check").fetchall()
        assert findings != [("ok",)]
        assert all("table t" in text for (text,) in findings)


def lost_log(txn: WriteTxn) -> None:
    txn.delete("commits", first(txn, "commits", b"\0" * 7 + b"\3")[0])


def spoilt_log(txn: WriteTxn) -> None:
    key, value = first(txn, "commits", b"\0" * 7 + b"\3")
    txn.put("commits", key, value[:-1] + bytes([value[-1] ^ 1]))


def older_view(txn: WriteTxn) -> None:
    """A definition of another commit under the right key, checksum and all."""
    key, value = first(txn, "catalog", b"view/")
    text = bytes(unpack(ValueType.CATALOG, key, value)[0]).decode()
    number = txn.commit_number
    older = text.replace(f'"version":{number}', f'"version":{number - 1}').encode()
    assert older != text.encode()
    txn.put("catalog", key, pack(ValueType.CATALOG, key, older, 1, number - 1))


@pytest.mark.parametrize(
    ("work", "says", "quick"),
    [
        (lambda txn: revive(txn, 2), "table t", True),  # another row ends, one is back
        (lost_log, "commit log", True),
        (spoilt_log, "log entry of commit 3: checksum", False),
        (lose("catalog", b"view/"), "view w", True),
        (older_view, "view w", True),
        (lose("meta", b"ids"), "object id", True),
        (lose("meta", b"parts/"), "index near", False),
    ],
)
def test_integrity_check_tells(path: pathlib.Path, work: Spoil, says: str, quick: bool) -> None:
    spoil(path, work)
    env = Environment.open(path, OPTIONS)
    findings = check(env, full=True)
    assert findings
    assert all(says.partition(":")[0] in finding for finding in findings)
    assert any(says in finding for finding in findings)
    assert bool(check(env)) is quick
    env.release()


def without_digest(txn: WriteTxn) -> None:
    """The counters of the table as they were before they had a digest of the ends of rows."""
    key, value = first(txn, "meta", b"table/")
    fields = bytes(unpack(ValueType.META, key, value)[0])
    assert len(fields) == 15 * 8
    txn.put("meta", key, pack(ValueType.META, key, fields[:-8], 0, txn.commit_number))


def digest(path: pathlib.Path) -> int | None:
    env = Environment.open(path, OPTIONS)
    with env.read() as txn:
        table = next(iter(load_objects(txn).values()))
        found = read_counters(txn, table.id, "t").tombstone_digest
    env.release()
    return found


def test_a_file_without_a_digest_of_ends_answers(path: pathlib.Path) -> None:
    """It gets one when VACUUM has taken the ends it does not know."""
    spoil(path, without_digest)
    with tarsdb.connect(path, options=OPTIONS) as db:
        assert db.execute("SELECT count(*) FROM t").fetchall() == [(601,)]
        db.execute("DELETE FROM t WHERE id = 4")
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert digest(path) is None
    with tarsdb.connect(path, options=OPTIONS) as db:
        db.execute("VACUUM")
        db.execute("DELETE FROM t WHERE id IN (5, 6)")
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert digest(path)
    spoil(path, lambda txn: revive(txn, 3))
    with tarsdb.connect(path, options=OPTIONS) as db, pytest.raises(CorruptionError, match="ends"):
        db.execute("SELECT sum(n) FROM t")


def test_vacuum_removes_nothing_by_damaged_ends(path: pathlib.Path) -> None:
    spoil(path, lambda txn: revive(txn, 2))
    says = r"2 ends of rows should be there, found 2 others, of rows 297\.\.301"
    with tarsdb.connect(path, options=OPTIONS) as db, pytest.raises(CorruptionError, match=says):
        db.execute("VACUUM")
    spoil(path, lambda txn: revive(txn, 2))  # put right again
    with tarsdb.connect(path, options=OPTIONS) as db:
        assert db.execute("SELECT count(*) FROM t WHERE id <> 300").fetchall() == [(601,)]
        db.execute("VACUUM")
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_ids_are_not_given_out_twice(path: pathlib.Path) -> None:
    spoil(path, lose("meta", b"ids"))
    with tarsdb.connect(path, options=OPTIONS) as db:
        with pytest.raises(CorruptionError, match="object id"):
            db.execute("CREATE TABLE u (a INT)")
        assert db.execute("SELECT count(*) FROM t").fetchall() == [(601,)]


@pytest.mark.parametrize("sql", ["SELECT n FROM w", "VACUUM", "PRAGMA integrity_check"])
@pytest.mark.parametrize("db", ["catalog", "blocks", "garbage"])
def test_keys_that_are_none_are_no_untyped_errors(path: pathlib.Path, db: str, sql: str) -> None:
    key = b"garbage/xyzt" if db == "garbage" else b"\xffno key"
    spoil(path, lambda txn: txn.put("meta" if db == "garbage" else db, key, b"no value"))
    with tarsdb.connect(path, options=OPTIONS) as connection:
        if db == "catalog" and sql.startswith("PRAGMA"):
            (finding,) = connection.execute(sql).fetchall()
            assert "definition: 8 bytes stored" in finding[0]
        elif sql == "VACUUM":
            with pytest.raises(CorruptionError):
                connection.execute(sql)
        else:
            connection.execute(sql)
