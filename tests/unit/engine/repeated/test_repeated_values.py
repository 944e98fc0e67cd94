"""Values of searches asked again: looked up, or copied by row id; those of the usual way."""

from __future__ import annotations

import gc
import pathlib
import subprocess
import sys
import weakref

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.reading import cells
from tarsdb.engine.search.repeated_search import COPIED_ROWS
from tarsdb.index.base import OFTEN
from tarsdb.storage import ByRow, GroupState, Snapshot
from tests.unit.engine.repeated.asking import (
    DIM,
    ROWS,
    SQL,
    Ways,
    ask,
    insert,
    repeated,
    vectors,
)

# --- values that are no numbers, or NULL: looked up row by row ---

LOOKED_UP = "SELECT word, rare, flag, emb <-> ? AS far, id FROM t ORDER BY far LIMIT 10"


@pytest.mark.parametrize("is_scattered", [False, True])
def test_texts_booleans_and_nulls_are_looked_up(
    request: pytest.FixtureRequest, used: Ways, is_scattered: bool
) -> None:
    db = request.getfixturevalue("scattered" if is_scattered else "db")
    first = ask(db, LOOKED_UP)
    assert ask(db, LOOKED_UP) == first
    assert used == [False] * 3  # two at first, and one that tries a copy
    assert used.looked_up == 21
    assert {type(value) for rows in first for row in rows for value in row} == {
        str, int, float, bool, type(None),
    }  # fmt: skip
    known = repeated(db, LOOKED_UP)
    assert not known.is_compiled


def test_what_is_made_of_the_distance_beside_a_text(db: tarsdb.Connection, used: Ways) -> None:
    found = ask(db, "SELECT word, 1 - (emb <-> ?) AS s, id FROM t ORDER BY s DESC LIMIT 10")
    assert used == [False] * 3
    assert used.looked_up == 9
    plain = ask(db, "SELECT word, emb <-> ? AS far, id FROM t ORDER BY far LIMIT 10")
    for rows, near in zip(found, plain, strict=True):
        far = [float(np.float32(1) - np.float32(row[1])) for row in near]
        assert rows == [(row[0], s, row[2]) for row, s in zip(near, far, strict=True)]


@pytest.mark.parametrize("op", ["<#>", "<=>"])
def test_texts_of_a_filter_are_looked_up(unindexed: tarsdb.Connection, used: Ways, op: str) -> None:
    sql = f"SELECT id, word FROM t WHERE a < 300 AND id < 900 ORDER BY emb {op} ? LIMIT 10"
    first = ask(unindexed, sql)
    assert ask(unindexed, sql) == first
    assert used.looked_up >= 18
    assert not any(used)


def test_what_is_looked_up_is_of_the_newest_state(
    db: tarsdb.Connection, used: Ways, tmp_path: pathlib.Path
) -> None:
    before = ask(db, LOOKED_UP)
    gone = before[0][0][4]
    code = "import sys, tarsdb\nwith tarsdb.connect(sys.argv[1]) as db: db.execute(sys.argv[2])"
    statement = f"UPDATE t SET word = 'new', rare = NULL WHERE id = {gone}"
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.tars", statement], check=True)
    assert ask(db, LOOKED_UP)[0][0][:2] == ("new", None)
    ask(db, LOOKED_UP)
    with tarsdb.connect(tmp_path / "a.tars") as other:
        other.execute("DELETE FROM t WHERE id = ?", (gone,))
    after = ask(db, LOOKED_UP)
    assert after[0][0][4] != gone
    used.looked_up = 0
    db.execute("BEGIN")
    db.execute("UPDATE t SET word = 'own' WHERE id = ?", (after[0][0][4],))
    assert ask(db, LOOKED_UP)[0][0][0] == "own"
    assert not used.looked_up
    db.execute("ROLLBACK")
    assert ask(db, LOOKED_UP) == after


def test_a_stale_look_up_would_be_noticed(db: tarsdb.Connection, used: Ways) -> None:
    """Control: one that takes another state for its own finds rows that are gone."""
    gone = ask(db, LOOKED_UP)[0][0][4]
    held = list(db._require_session().env.caches["placed"].values())
    db.execute("DELETE FROM t WHERE id = ?", (gone,))
    with Snapshot(db._require_session().env) as snapshot:
        repeated(db, LOOKED_UP)._state = snapshot.txn.file_state()
    with pytest.raises(AssertionError):
        ask(db, LOOKED_UP)
    assert held


# --- rows of the delta and of segments that overlap: copied once they are asked for often ---

SCATTER = "UPDATE t SET b = 77 WHERE id % 10 = 0"


def test_scattered_rows_are_copied_when_asked_often(
    scattered: tarsdb.Connection, used: Ways
) -> None:
    group = scalars(scattered)
    assert group.overlapping
    assert group.count
    first = ask(scattered)
    assert ask(scattered) == first
    assert used == [False] * 3 + [True] * (len(used) - 3)
    assert used.looked_up == OFTEN + ROWS // COPIED_ROWS - 2
    ids = {int(str(row[0])) for rows in first for row in rows}
    assert any(i % 20 == 0 for i in ids) and any(i >= ROWS for i in ids)
    assert not any(i % 11 == 0 for i in ids)
    near = scattered.execute(SQL, (vectors(ROWS, 1)[420],)).fetchall()[0]
    assert near[:5] == (420, 10, -417, 63, 0.5)


def test_a_short_delta_that_answers_are_in_is_copied(db: tarsdb.Connection, used: Ways) -> None:
    insert(db, ROWS, 20, 5)
    query = vectors(20, 5)[0]
    found = [db.execute(SQL, (query,)).fetchall() for _ in range(20)]
    assert found == found[:1] * 20
    often = OFTEN + ROWS // COPIED_ROWS
    assert used == [False] * (often + 1) + [True] * (19 - often)


@pytest.mark.parametrize("other_process", [False, True])
def test_copies_end_with_their_state(
    scattered: tarsdb.Connection, used: Ways, tmp_path: pathlib.Path, other_process: bool
) -> None:
    ask(scattered)
    before = ask(scattered)
    copies = weakref.ref(copied(scattered)[0])
    gone = before[0][0][0]
    statement = f"UPDATE t SET a = 9999 WHERE id = {gone}"
    if other_process:
        code = "import sys, tarsdb\nwith tarsdb.connect(sys.argv[1]) as db: db.execute(sys.argv[2])"
        subprocess.run([sys.executable, "-c", code, tmp_path / "a.tars", statement], check=True)
    else:
        with tarsdb.connect(tmp_path / "a.tars") as other:
            other.execute(statement)
    used.clear()
    after = ask(scattered)
    assert not used[0]
    assert after[0][0][:2] == (gone, 9999)
    assert ask(scattered) == after
    assert used[-1]
    gc.collect()
    assert copies() is None


def test_copies_in_a_transaction(scattered: tarsdb.Connection, used: Ways) -> None:
    ask(scattered)
    before = ask(scattered)
    scattered.execute("BEGIN")
    scattered.execute("UPDATE t SET a = 77 WHERE id = ?", (before[0][0][0],))
    used.clear()
    assert ask(scattered)[0][0][1] == 77
    assert not any(used)
    scattered.execute("ROLLBACK")
    assert ask(scattered) == before


def test_copies_are_shared_and_bounded(
    scattered: tarsdb.Connection, used: Ways, monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:  # fmt: skip
    ask(scattered)
    ask(scattered)
    (known,) = copied(scattered)
    rows = ROWS + 200
    assert known.nbytes <= (1 + 8 + 2 + 4 + 4 + 8 + 4) * rows
    with tarsdb.connect(tmp_path / "a.tars") as other:  # it need not ask often
        used.clear()
        ask(other, "SELECT id, a FROM t ORDER BY emb <-> ? LIMIT 5")
        assert used == [False, False, *[True] * 10]
    assert copied(scattered) == [known]
    monkeypatch.setattr(cells, "COPIED_BYTES", 20 * rows)
    scattered.execute(SCATTER)
    used.clear()
    ask(scattered)
    ask(scattered)
    assert not any(used)
    assert copied(scattered) in ([], [known])
    narrow = "SELECT id, a FROM t ORDER BY emb <-> ? LIMIT 10"
    wider = "SELECT id, b, c FROM t ORDER BY emb <-> ? LIMIT 10"  # 17 bytes; no room for both
    for sql in (narrow, wider, narrow, wider):
        assert ask(scattered, sql) == ask(scattered, sql)
    assert used[-1]
    assert sum(each.nbytes for each in copied(scattered)) <= 20 * rows


def test_copies_of_tables_make_room(
    scattered: tarsdb.Connection, used: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 10"
    ask(scattered, sql)
    ask(scattered, sql)
    (known,) = copied(scattered)
    scattered.execute(f"CREATE TABLE u (id BIGINT PRIMARY KEY, emb VECTOR({DIM}))")
    scattered.table("u").insert({"id": np.arange(ROWS), "emb": vectors(ROWS, 3)})
    scattered.execute("CREATE INDEX uv ON u USING hnsw (emb)")
    scattered.execute("UPDATE u SET id = id + 10000 WHERE id % 10 = 0")
    monkeypatch.setattr(cells, "COPIED_BYTES", known.nbytes + 5 * ROWS)
    used.clear()
    other = sql.replace(" t ", " u ")
    first = ask(scattered, other)
    assert ask(scattered, other) == first
    assert used[-1]
    assert known not in copied(scattered)
    assert len(copied(scattered)) == 1


@pytest.mark.parametrize("what", ["id, word", "id, flag", "id, rare"])
def test_what_cannot_be_copied(
    scattered: tarsdb.Connection, used: Ways, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    tried: list[bool] = []
    real = cells.Cells.copied
    monkeypatch.setattr(
        cells.Cells, "copied", staticmethod(lambda *args: tried.append(True) or real(*args))
    )
    sql = f"SELECT {what} FROM t ORDER BY emb <-> ? LIMIT 10"
    assert ask(scattered, sql) == ask(scattered, sql)
    assert not any(used)
    assert len(tried) == 1
    assert not copied(scattered)


def test_nulls_of_rows_that_are_gone_do_not_count(db: tarsdb.Connection, used: Ways) -> None:
    db.execute("UPDATE t SET rare = 5 WHERE rare IS NULL")
    sql = "SELECT id, rare FROM t ORDER BY emb <-> ? LIMIT 10"
    assert ask(db, sql) == ask(db, sql)
    assert used[-1]


def test_a_copy_with_a_wrong_value_would_be_noticed(
    scattered: tarsdb.Connection, used: Ways
) -> None:
    """Control: the comparison of each answer with the usual way fails."""
    ask(scattered)
    ask(scattered)
    (known,) = copied(scattered)
    for values in known._columns.values():
        values += values.dtype.type(1)
    with pytest.raises(AssertionError):
        ask(scattered)


def scalars(db: tarsdb.Connection) -> GroupState:
    with Snapshot(db._require_session().env) as snapshot:
        return snapshot.table(snapshot.catalog.table("t")).scalars()


def copied(db: tarsdb.Connection) -> list[ByRow]:
    kept = db._require_session().env.caches.get("cells by row", {})
    return [copies for _, copies in kept.values()]
