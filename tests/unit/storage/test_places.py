"""Rows found among overlapping segments: the map of places against a model, old snapshots too."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.options import Durability, OpenOptions
from tarsdb.schema import TableDef
from tarsdb.storage import (
    Environment,
    GroupState,
    Snapshot,
    WriteSet,
    check,
    keys,
    merge,
    places,
    rewrite,
    vacuum,
)  # fmt: skip
from tarsdb.storage.segments import Segment
from tarsdb.storage.tombstones import ALIVE, decode_tombstones, match_run, match_versions
from tests.unit.storage import tables

Row = tuple[Any, ...]
OPTIONS = OpenOptions(durability=Durability.RELAXED, background_merge=False)


@pytest.fixture
def env(tmp_path: pathlib.Path) -> Iterator[Environment]:
    env = Environment.open(tmp_path / "a.tars", OPTIONS)
    yield env
    assert check(env, full=True) == []
    env.release()


class History:
    """One table, changed and merged at random; every snapshot is kept with what it shows."""

    def __init__(self, env: Environment, seed: int) -> None:
        self.env, self.rng = env, random.Random(seed)
        self.table: TableDef = tables.make_table(env)
        new = [(i, f"t{i}", np.array([i, 0, 0, 1], np.float32)) for i in range(300)]
        tables.load(env, self.table, new)
        self.model = {rowid: row for rowid, row in enumerate(new, start=1)}
        self.kept: list[tuple[Snapshot, dict[int, Row]]] = []

    def step(self) -> None:
        kind = self.rng.choice(["update", "update", "update", "delete", "snapshot", "vacuum"])
        some = self.rng.sample(sorted(self.model), 12)
        if kind == "update":
            with Snapshot(self.env) as snapshot:
                writes = WriteSet(self.env, snapshot.commit)
                text = [f"u{self.rng.random()}" for _ in some]
                vectors = [np.array([r, self.rng.random(), 0, 1], np.float32) for r in some]
                named = {2: text} if self.rng.random() < 0.5 else {2: text, 3: vectors}
                writes.update(self.table, snapshot.table(self.table, writes), some, named)
                writes.commit()
            for at, rowid in enumerate(some):
                old = self.model[rowid]
                self.model[rowid] = (old[0], text[at], vectors[at] if 3 in named else old[2])
            if self.rng.random() < 0.8:
                merge(self.env, force=True)
        elif kind == "delete" and len(self.model) > 100:
            tables.delete(self.env, self.table, some[:3])
            for rowid in some[:3]:
                del self.model[rowid]
        elif kind == "snapshot":
            self.kept.append((Snapshot(self.env), dict(self.model)))
        elif kind == "vacuum" and self.rng.random() < 0.2:
            vacuum(self.env, self.table)

    def check(self, snapshot: Snapshot, model: dict[int, Row]) -> None:
        view = snapshot.table(self.table)
        for rowid in self.rng.sample(range(1, 301), 15):
            found = view.row(rowid, [1, 2, 3])
            assert (found is None) == (rowid not in model)
            assert found is None or _same(found, model[rowid])
        rowids = np.array(self.rng.sample(range(1, 301), self.rng.choice([20, 200])))
        columns = [column.to_list() for column in view.rows(rowids, [1, 2, 3])]
        for at, rowid in enumerate(rowids.tolist()):
            expected = model.get(rowid, (None, None, None))
            assert _same(tuple(column[at] for column in columns), expected)
        group = view.scalars()
        sources, positions = group.locate(snapshot.txn, rowids)
        for at, hit in enumerate(group.find_each(snapshot.txn, rowids.tolist())):
            if sources[at] < 0:
                assert hit[1] < 0
            else:
                every = [*group.segments, None]
                assert (every[sources[at]], positions[at]) == hit

    def close(self) -> None:
        for snapshot, _ in self.kept:
            snapshot.close()


def _same(found: Row, expected: Row) -> bool:
    vectors = found[2] is None or expected[2] is None or np.array_equal(found[2], expected[2])
    return found[:2] == expected[:2] and vectors and (found[2] is None) == (expected[2] is None)


def run(env: Environment, seed: int) -> None:
    history = History(env, seed)
    try:
        for _ in range(60):
            history.step()
            with Snapshot(env) as snapshot:
                history.check(snapshot, history.model)
            if history.kept:
                history.check(*history.rng.choice(history.kept))
    finally:
        history.close()


@pytest.mark.parametrize("few", [0, places.FEW])
@pytest.mark.parametrize("seed", range(3))
def test_rows_are_found_in_any_snapshot(
    env: Environment, monkeypatch: pytest.MonkeyPatch, seed: int, few: int
) -> None:
    monkeypatch.setattr(places, "FEW", few)
    walked = []
    walk = places.SegmentList._walk
    monkeypatch.setattr(
        places.SegmentList, "_walk", lambda *given: walked.append(given) or walk(*given)
    )
    if seed:  # small segments stay, and overlap
        monkeypatch.setattr(rewrite, "combine_small", lambda *given: 0)
    run(env, seed)
    assert bool(walked) == bool(seed)  # rows that are not live now


def test_a_wrong_place_is_noticed(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    right = places._live_rows

    def wrong(txn: Any, name: str, segment: Segment) -> tuple[np.ndarray, ...]:
        rowids, positions, created = right(txn, name, segment)
        return rowids, np.roll(positions, 1), created

    monkeypatch.setattr(places, "FEW", 0)
    monkeypatch.setattr(places, "_live_rows", wrong)
    monkeypatch.setattr(rewrite, "combine_small", lambda *given: 0)
    with pytest.raises(AssertionError):
        run(env, 1)


@pytest.mark.parametrize("by_place", [True, False])
def test_tombstones_of_known_places_are_those_of_each_segment(
    env: Environment, monkeypatch: pytest.MonkeyPatch, by_place: bool
) -> None:
    """What all segments hold as deleted, and as live, against a match of all tombstones."""
    monkeypatch.setattr(places, "FEW", 0)
    monkeypatch.setattr(rewrite, "combine_small", lambda *given: 0)
    placed, real = [], places.SegmentList._mark_placed

    def noted(self: places.SegmentList, tombs: np.ndarray) -> np.ndarray:
        others = real(self, tombs) if by_place else tombs
        placed.append(len(tombs) - len(others))
        return others

    monkeypatch.setattr(places.SegmentList, "_mark_placed", noted)
    history, compared = History(env, 5), 0
    for _ in range(60):
        history.step()
        with Snapshot(env) as snapshot:
            history.check(snapshot, history.model)
            view = snapshot.table(history.table)
            for group in (view.scalars(), view.vector_group(history.table.column_by_id(3))):
                compared += _compare_deleted(snapshot, group)
    history.close()
    assert compared > 100
    assert (sum(placed) > 50) == by_place


@pytest.mark.parametrize("seed", range(3))
def test_places_of_a_list_before_count_only_where_they_still_are(
    env: Environment, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Small segments are combined meanwhile, and rows are seldom looked up."""
    monkeypatch.setattr(places, "FEW", 0)
    before, real = [], places.SegmentList._mark_placed

    def noted(self: places.SegmentList, tombs: np.ndarray) -> np.ndarray:
        others = real(self, tombs)
        if self._places is None and len(others) < len(tombs):
            before.append(self)
        return others

    monkeypatch.setattr(places.SegmentList, "_mark_placed", noted)
    history, combine = History(env, seed), rewrite.combine_small
    for number in range(80):
        combines = number % 10 == 9
        monkeypatch.setattr(rewrite, "combine_small", combine if combines else lambda *given: 0)
        history.step()
        if combines:
            merge(env, force=True)
        with Snapshot(env) as snapshot:
            if number % 10 == 8:
                history.check(snapshot, history.model)
            view = snapshot.table(history.table)
            for group in (view.scalars(), view.vector_group(history.table.column_by_id(3))):
                _compare_deleted(snapshot, group)
    history.close()
    assert before


def _compare_deleted(snapshot: Snapshot, group: GroupState) -> int:
    """Compare what segments know of tombstones with the stored ones; return how many rows died."""
    died = 0
    for segment in group.segments:
        start, stop = keys.commits_after(segment.table, segment.group, 0)
        found = b"".join(bytes(key) for key, _ in snapshot.txn.range("tombs", start, stop))
        log = decode_tombstones(found)
        log = log[log[:, 0] <= group.commit]
        created = segment.created(snapshot.txn, group.name)
        at, commits = match_versions(segment.rowids(snapshot.txn, group.name), created, log)
        expected = np.full(segment.rows, ALIVE)
        np.minimum.at(expected, at, commits)
        deleted = np.full(segment.rows, ALIVE) if segment.deleted is None else segment.deleted
        assert np.array_equal(deleted, expected)
        for commit in (group.commit, group.commit - 1):
            live = segment.live(commit)
            whole = np.ones(segment.rows, bool) if live is None else live
            assert np.array_equal(whole, expected > commit)
        died += len(at)
    return died


def test_an_update_is_found_without_looking_everywhere(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "FEW", 0)
    history = History(env, 4)
    for _ in range(12):
        with Snapshot(env) as snapshot:
            writes = WriteSet(env, snapshot.commit)
            view = snapshot.table(history.table, writes)
            writes.update(history.table, view, [5, 77, 290], {2: ["a", "b", "c"]})
            writes.commit()
        merge(env, force=True)
    monkeypatch.setattr(places.SegmentList, "_walk", None)
    with Snapshot(env) as snapshot:
        view = snapshot.table(history.table)
        assert view.row(77, [2]) == ("b",)
        assert view.rows(np.array([5, 6, 290]), [2])[0].to_list() == ["a", "t5", "c"]


@pytest.mark.parametrize("seed", range(20))
def test_few_and_many_tombstones_match_the_same_versions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = sorted({(int(r), int(c)) for r, c in rng.integers(1, 30, (60, 2))})
    rowids, created = np.array(pairs, dtype=np.int64).T
    named = [*rng.choice(pairs, 30).tolist(), *rng.integers(1, 31, (30, 2)).tolist()]
    named += [[r, 7] for r, _ in named[:10]]
    tombs = np.array([(100 + i, r, c) for i, (r, c) in enumerate(named)], dtype=np.int64)
    for known, commits in ((rowids, created), (np.unique(rowids), 7)):
        whole = np.full(len(known), ALIVE)
        positions, deleted = match_versions(known, commits, tombs)
        np.minimum.at(whole, positions, deleted)
        apart = np.full(len(known), ALIVE)
        for tomb in tombs:
            positions, deleted = match_versions(known, commits, tomb[np.newaxis])
            np.minimum.at(apart, positions, deleted)
        assert np.array_equal(whole, apart)
        assert (whole < ALIVE).any()


@pytest.mark.parametrize("seed", range(10))
def test_consecutive_rows_match_the_same_versions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rowids, created = np.arange(5, 45), rng.integers(1, 4, 40)
    pairs = np.stack([rng.permutation(60)[:30], rng.integers(1, 4, 30)], axis=1)
    tombs = np.array([(100 + i, *pair) for i, pair in enumerate(pairs)], dtype=np.int64)
    for commits in (created, 2):
        for named in (tombs, tombs[:6], tombs[:0]):
            found = match_run(5, 40, commits, named)
            expected = match_versions(rowids, commits, named)
            assert dict(zip(*found, strict=True)) == dict(zip(*expected, strict=True))
        assert len(match_run(5, 40, commits, tombs)[0])


def test_a_deleted_row_concerns_the_segment_it_is_in(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Segment] = []
    apply = Segment.apply_tombstones

    def noted(segment: Segment, *rest: Any) -> None:
        asked.append(segment)
        apply(segment, *rest)

    monkeypatch.setattr(Segment, "apply_tombstones", noted)
    with tarsdb.connect(tmp_path / "b.tars") as db:
        db.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)")
        db.execute("INSERT INTO t SELECT i, i FROM range(20000) r(i)")
        db.execute("OPTIMIZE t")
        db.execute("UPDATE t SET n = -1 WHERE id = 9000")  # all rows are of one commit
        assert db.execute("SELECT count(*), min(n) FROM t").fetchall() == [(20000, -1)]
        assert len(set(asked)) == 1
        db.execute("DELETE FROM t WHERE id IN (3, 19999)")
        assert db.execute("SELECT count(n), max(n) FROM t").fetchall() == [(19998, 19998)]
        assert len(set(asked)) == 3
