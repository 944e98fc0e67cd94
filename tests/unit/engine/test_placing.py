"""Placing parts step by step equals placing them anew, over random histories."""

from __future__ import annotations

import itertools
import pathlib
import random

import numpy as np
import pytest

import tarsdb
from tarsdb import storage
from tarsdb.columns import VectorBlock
from tarsdb.engine.search import index_build, placing, vector_index
from tarsdb.engine.search.placing import Cover, Placement
from tarsdb.index.flat import FlatIndex
from tarsdb.kernels import graph as kernels
from tarsdb.metrics import METRICS
from tarsdb.storage import PROVISIONAL

DIM = 4
Shape = list[tuple[np.ndarray, np.ndarray]]


def place_anew(flat: FlatIndex, covers: list[tuple[np.ndarray, int, int]]) -> tuple[Shape, list]:
    """Return position and liveness of each node, and fresh rows, by looking at everything."""
    live, created = flat.live(), flat.created()
    rowids = flat.rowids(np.arange(flat.rows))
    at = {int(r): p for p, r in enumerate(rowids.tolist()) if live[p]}
    fresh = set(at.values())
    shape = []
    for nodes, after, upto in covers:
        positions = np.array([at.get(r, -1) for r in nodes.tolist()], dtype=np.int64)
        for node, position in enumerate(positions.tolist()):
            if position >= 0 and not after < created[position] <= upto:
                positions[node] = -1
        fresh -= set(positions.tolist())
        shape.append((positions, positions >= 0))
    return shape, sorted(fresh)


def check(flat: FlatIndex, placement: Placement, covers: list[tuple[np.ndarray, int, int]]) -> None:
    shape, fresh = place_anew(flat, covers)
    for part, (positions, live) in enumerate(shape):
        assert np.array_equal(placement.live[part] != 0, live)
        assert np.array_equal(placement.positions[part][live], positions[live])
    assert placement.fresh.tolist() == fresh


class History:
    """Random commits on one table, with the blocks a snapshot of each would show."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.commit = 0
        self.versions: list[tuple[int, int]] = []  # (row id, created), in the delta, in order
        self.ended: dict[tuple[int, int], int] = {}
        self.segments: list[tuple[object, list[tuple[int, int]]]] = []
        self.delta: object = object()
        self.next_rowid = 1

    def live(self) -> list[tuple[int, int]]:
        known = [v for _, versions in self.segments for v in versions] + self.versions
        return [v for v in known if v not in self.ended]

    def step(self) -> None:
        self.commit += 1
        live = self.live()
        kind = self.rng.choice(["insert", "update", "update", "delete", "merge", "combine"])
        if kind == "insert" or len(live) < 3:
            for _ in range(self.rng.randrange(1, 20)):
                self.versions.append((self.next_rowid, self.commit))
                self.next_rowid += 1
        elif kind in ("update", "delete"):
            for version in self.rng.sample(live, self.rng.randrange(1, min(len(live), 12))):
                self.ended[version] = self.commit
                if kind == "update":
                    self.versions.append((version[0], self.commit))
        elif kind == "merge" and self.versions:
            self.segments.append((object(), sorted(self.versions)))
            self.versions, self.delta = [], object()
        elif len(self.segments) > 1:  # what is dead goes, as in VACUUM
            taken = [self.segments.pop(self.rng.randrange(len(self.segments))) for _ in range(2)]
            kept = [v for _, versions in taken for v in versions if v not in self.ended]
            if kept:
                self.segments.insert(0, (object(), sorted(kept)))

    def blocks(self, own: bool = False) -> list[VectorBlock]:
        found = [self._block(origin, versions) for origin, versions in self.segments]
        found = [b for b in found if b.live is None or b.live.any()]
        if self.versions:
            found.append(self._block(self.delta, self.versions))
        if own:  # rows of an open transaction
            rowids = PROVISIONAL + np.arange(3)
            found.append(VectorBlock(rowids, np.zeros((3, DIM), np.float32), None, 1 << 62))
        return found

    def _block(self, origin: object, versions: list[tuple[int, int]]) -> VectorBlock:
        rowids, created = np.array(versions, dtype=np.int64).T
        live = np.array([v not in self.ended for v in versions])
        data = np.zeros((len(versions), DIM), np.float32)
        return VectorBlock(rowids, data, None if live.all() else live, created, origin)

    def covers(self) -> list[tuple[np.ndarray, int, int]]:
        """Return parts over some of the commits so far."""
        cuts = sorted({0, *(self.rng.randrange(self.commit + 1) for _ in range(3))})
        covers = []
        for after, upto in itertools.pairwise(cuts):
            nodes = [r for r, created in self.live() if after < created <= upto]
            self.rng.shuffle(nodes)
            covers.append((np.array(nodes, dtype=np.int64), after, upto))
        return covers


def run(seed: int) -> int:
    """Place after every step of a history; return how often blocks moved."""
    history = History(seed)
    for _ in range(15):
        history.step()
    covers = history.covers()
    sql_type = tarsdb.types.parse_type(f"VECTOR({DIM})")
    made = [Cover(*cover) for cover in covers]
    placement, seen, moved = None, [], 0
    for _ in range(60):
        for _ in range(history.rng.choice([1, 1, 4])):
            history.step()
        blocks = history.blocks(own=history.rng.random() < 0.2)
        seen.append(blocks)
        if history.rng.random() < 0.2:  # a snapshot taken before
            blocks = history.rng.choice(seen)
        flat = FlatIndex(blocks, sql_type)
        before = placement
        placement = Placement(made, flat.blocks, before)
        check(flat, placement, covers)
        moved += before is not None and before.positions is not placement.positions
    return moved


@pytest.mark.parametrize("seed", range(12))
def test_step_by_step_equals_anew(seed: int) -> None:
    assert run(seed)


def test_a_change_that_is_missed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = placing._changes

    def wrong(old: VectorBlock | None, new: VectorBlock) -> tuple[np.ndarray, np.ndarray]:
        ended, begun = right(old, new)
        return ended[1:], begun

    monkeypatch.setattr(placing, "_changes", wrong)
    with pytest.raises(AssertionError):
        for seed in range(12):
            run(seed)


def test_rows_move_only_with_their_blocks() -> None:
    history = History(3)
    for _ in range(10):
        history.step()
    origin = object()
    blocks = [VectorBlock(np.arange(9), np.zeros((9, DIM), np.float32), None, 1, origin)]
    first = Placement([Cover(np.arange(9), 0, 1)], blocks, None)
    live = np.ones(9, dtype=bool)
    live[4] = False
    changed = [VectorBlock(blocks[0].rowids, blocks[0].data, live, 1, origin)]
    second = Placement(first.covers, changed, first)
    assert second.positions[0] is first.positions[0]
    assert first.live[0].all()
    assert not second.live[0][4]


# --- through SQL ---


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Check all that searches place; hold whether each began from a placement before."""
    seen: list[bool] = []
    place = vector_index._place

    def checked(context, index, flat, stored, before):  # type: ignore[no-untyped-def]
        found = place(context, index, flat, stored, before)
        covers = [
            (part.part.rowids, each.after, each.upto)
            for part, each in zip(found.parts, stored, strict=True)
        ]
        check(flat, found.placement, covers)
        seen.append(before is not None)
        return found

    monkeypatch.setattr(vector_index, "_place", checked)
    return seen


class Table:
    """A table with an index, changed at random."""

    def __init__(self, db: tarsdb.Connection, seed: int) -> None:
        self.db = db
        self.rng = np.random.default_rng(seed)
        self.ids = set(range(400))
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, n INT, emb VECTOR({DIM}))")
        emb = [self.vector() for _ in self.ids]
        db.table("t").insert({"id": list(self.ids), "n": [0] * 400, "emb": np.array(emb)})
        db.execute("CREATE INDEX tv ON t USING hnsw (emb)")

    def vector(self) -> np.ndarray:
        return self.rng.standard_normal(DIM).astype(np.float32)

    def some(self) -> list[int]:
        found: list[int] = self.rng.choice(
            sorted(self.ids), self.rng.integers(1, 9), False
        ).tolist()
        return found

    def step(self) -> None:
        kinds = [self.vectors, self.vectors, self.scalars, self.insert, self.delete, self.merge]
        kinds[self.rng.integers(len(kinds))]()

    def vectors(self) -> None:
        pairs = [(self.vector(), i) for i in self.some()]
        self.db.executemany("UPDATE t SET emb = ? WHERE id = ?", pairs)

    def scalars(self) -> None:
        pairs = [(i % 7, i) for i in self.some()]
        self.db.executemany("UPDATE t SET n = ? WHERE id = ?", pairs)

    def insert(self) -> None:
        new = max(self.ids) + 1
        self.ids.add(new)
        self.db.execute("INSERT INTO t VALUES (?, 0, ?)", (new, self.vector()))

    def delete(self) -> None:
        gone = self.some()
        self.ids -= set(gone)
        self.db.executemany("DELETE FROM t WHERE id = ?", [(i,) for i in gone])

    def merge(self) -> None:
        storage.merge(self.db._require_session().env, force=True)
        if self.rng.random() < 0.3:
            self.db.execute("VACUUM")

    def search(self, db: tarsdb.Connection) -> list[int]:
        sql = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 5"
        return [row[0] for row in db.execute(sql, (self.vector(),)).fetchall()]


def test_a_search_after_a_commit_sorts_no_rows(
    tmp_path: pathlib.Path, placed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels.wait()
    with tarsdb.connect(tmp_path / "a.tars") as db:
        table = Table(db, 6)
        db.execute("SET ef_search = 64")
        monkeypatch.setattr(index_build, "TIER", 0)
        monkeypatch.setattr(index_build, "FRESH_ROWS", 20)
        ids = sorted(table.ids)[:60]
        db.executemany("UPDATE t SET emb = ? WHERE id = ?", [(table.vector(), i) for i in ids])
        index_build.wait(db._require_session().env)
        table.merge()
        table.search(db)
        monkeypatch.setattr(FlatIndex, "_sorted_places", None)
        for _ in range(5):
            table.vectors()
            table.search(db)
        (kept,) = db._require_session().env.caches["placed"].values()
        assert len(kept[2].parts) == 2
        assert kept[2].fresh.size
        with pytest.raises(TypeError):  # a filter looks its rows up
            db.execute("SELECT id FROM t WHERE n = 0 ORDER BY emb <-> ? LIMIT 5",
                       (table.vector(),)).fetchall()  # fmt: skip


@pytest.mark.parametrize("rows", [3, 300])
def test_row_ids_at_positions(rows: int) -> None:
    history = History(1)
    for _ in range(30):
        history.step()
    flat = FlatIndex(history.blocks(), tarsdb.types.parse_type(f"VECTOR({DIM})"))
    every = np.concatenate([block.rowids for block in flat.blocks])
    positions = np.random.default_rng(rows).integers(0, flat.rows, rows)
    assert np.array_equal(flat.rowids(positions), every[positions])


@pytest.mark.parametrize("seed", range(3))
def test_a_history_through_sql(tmp_path: pathlib.Path, placed: list[bool], seed: int) -> None:
    kernels.wait()
    path = tmp_path / "a.tars"
    with tarsdb.connect(path) as db, tarsdb.connect(path) as old:
        table = Table(db, seed)
        for number in range(60):
            table.step()
            assert set(table.search(db)) <= table.ids
            if number % 7 == 0:  # a transaction that stays behind
                old.execute("ROLLBACK" if old.in_transaction else "BEGIN")
            if old.in_transaction:
                assert len(table.search(old)) == 5
    assert sum(placed) > 20


def test_scalar_updates_leave_the_placement_alone(
    tmp_path: pathlib.Path, placed: list[bool]
) -> None:
    kernels.wait()
    with tarsdb.connect(tmp_path / "a.tars") as db:
        table = Table(db, 5)
        table.vectors()
        table.search(db)
        fresh = dict(db._require_session().env.caches["fresh vectors"])
        count, built = len(placed), METRICS.snapshot().get("index.parts_built", 0)
        vectors = shown(db)
        for _ in range(5):
            table.scalars()
            table.search(db)
        assert shown(db) is vectors
        assert len(placed) == count
        assert METRICS.snapshot().get("index.parts_built", 0) == built
        assert db._require_session().env.caches["fresh vectors"] == fresh
        table.vectors()  # and others do not
        table.search(db)
        assert shown(db) is not vectors
        assert len(placed) == count + 1


def shown(db: tarsdb.Connection) -> list[VectorBlock]:
    with storage.Snapshot(db._require_session().env) as snapshot:
        (table,) = snapshot.catalog.tables()
        return snapshot.table(table).vectors(3)
