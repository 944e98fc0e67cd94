"""What a commit hands to this process's delta, and merges take from it, against the file."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tarsdb.options import Durability, OpenOptions
from tarsdb.schema import TableDef
from tarsdb.storage import Environment, Snapshot, check, delta, fresh, merge, segments, values
from tarsdb.storage.fresh import FreshVersions
from tarsdb.storage.segments import Segment
from tarsdb.storage.state import table_cache
from tarsdb.storage.tombstones import ALIVE
from tests.unit.storage import tables

OPTIONS = OpenOptions(background_merge=False, durability=Durability.RELAXED)


@pytest.fixture
def env(tmp_path: pathlib.Path) -> Iterator[Environment]:
    env = Environment.open(tmp_path / "t.tars", OPTIONS)
    yield env
    assert check(env, full=True) == []
    env.release()


def step(env: Environment, table: TableDef, rng: random.Random, next_key: int) -> int:
    """Change the table at random in one commit; return the next free key."""
    rowids = list(tables.contents(env, table))
    kind = rng.choice(["insert", "insert", "update", "update", "delete"])
    if kind == "insert" or len(rowids) < 5:
        tables.insert(env, table, tables.rows(*range(next_key, next_key + 3)))
        return next_key + 3
    if kind == "update":
        tables.update(env, table, rng.choice(rowids), (next_key, "new", tables.vector(next_key)))
        return next_key + 1
    tables.delete(env, table, rng.sample(rowids, 2))
    return next_key


def logs(env: Environment, table: TableDef) -> list[Any]:
    """Return what this process has decoded of the delta of the latest commit."""
    found: list[Any] = []
    with Snapshot(env) as snapshot:
        view = snapshot.table(table)
        for group in (view.scalars(), view.vector_group(table.column_by_id(3))):
            log, count = group.delta, group.count
            found += [log.rowids.prefix(count).tolist(), log.created.prefix(count).tolist()]
            found.append(log.deleted.prefix(count).tolist())
            if count and group is not view.scalars():
                found.append(log.vectors(count).tolist())
            elif count:
                found += [log.column(c, count).to_list() for c in table.scalar_columns]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_what_is_handed_over_is_what_the_file_holds(
    env: Environment, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Commits, merges between, and some that are as of another process: not handed over."""
    handed, real = [], FreshVersions.after

    def noted(self: FreshVersions, *given: int) -> Any:
        found = real(self, *given)
        handed.append(found is not None)
        return found

    monkeypatch.setattr(FreshVersions, "after", noted)
    table, rng, next_key = tables.make_table(env), random.Random(seed), 0
    cache = table_cache(env.caches, table.id)
    for _ in range(60):
        before = cache.fresh
        next_key = step(env, table, rng, next_key)
        if rng.random() < 0.3:
            cache.fresh = before
        if rng.random() < 0.15:
            merge(env, table, force=True)
        if rng.random() < 0.7:  # else two commits are new to it
            mine, contents = logs(env, table), tables.contents(env, table)
            known = env.caches.pop("tables")
            assert logs(env, table) == mine
            assert tables.contents(env, table) == contents
            env.caches["tables"] = known
    assert 10 < sum(handed) < len(handed)


def test_only_the_commit_right_after_is_handed_over() -> None:
    versions = FreshVersions(generation=3, before=10, commit=12)
    versions.add(0, [7], [b"seven"])
    assert versions.after(0, 3, 10, 12) == versions.after(0, 3, 11, 12) == ([7], [b"seven"])
    assert versions.after(5, 3, 10, 12) == ([], [])
    for given in ((0, 4, 10, 12), (0, 3, 9, 12), (0, 3, 10, 13), (0, 3, 10, 11)):
        assert versions.after(*given) is None, given


def test_a_large_commit_is_read_back(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "MOST_ROWS", 5)
    table = tables.make_table(env)
    cache = table_cache(env.caches, table.id)
    tables.insert(env, table, tables.rows(*range(6)))
    assert cache.fresh is None
    tables.insert(env, table, tables.rows(*range(6, 11)))
    assert cache.fresh is not None
    assert len(tables.contents(env, table)) == 11


@pytest.mark.parametrize("is_known", [True, False])
def test_a_merge_writes_the_same_from_memory_and_from_the_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    read, real = [], delta.unpack
    module = __import__("tarsdb.storage.merge", fromlist=["merge"])

    def noted(*given: Any) -> Any:
        read.append(given)
        return real(*given)

    stored = []
    for name in ("a", "b"):
        env = Environment.open(tmp_path / name, OPTIONS)
        table, rng, next_key = tables.make_table(env), random.Random(7), 0
        for _ in range(40):
            next_key = step(env, table, rng, next_key)
        if name == "b":
            monkeypatch.setattr(module, "unpack", noted)
            if not is_known:
                env.caches.clear()
        assert merge(env, table, force=True) > 40
        with env.read() as txn:
            found = [(db, key, bytes(value)) for db in ("delta", "segments", "blocks")
                     for key, value in txn.range(db, b"", None)]  # fmt: skip
        stored.append([(db, key, value[48:]) for db, key, value in found])
        assert check(env, full=True) == []
        env.release()
    assert stored[0] == stored[1]
    assert bool(read) == (not is_known)


@pytest.mark.parametrize("size", [0, 5, 20_000])
def test_headers_of_many_are_those_of_each(size: int) -> None:
    rng = np.random.default_rng(size)
    found = [bytes([number]) * 3 for number in range(9)]
    payloads = [rng.bytes(size + number % 2) for number in range(9)]
    each = [
        values.pack(values.ValueType.DELTA, key, payload, 1, 77)
        for key, payload in zip(found, payloads, strict=True)
    ]
    assert values.pack_each(values.ValueType.DELTA, found, payloads, 77) == each


@pytest.mark.parametrize("ended", [3, 40])
def test_rows_that_end_while_somebody_looks_are_not_remembered_as_live(
    env: Environment, monkeypatch: pytest.MonkeyPatch, ended: int
) -> None:
    """`live` is asked between any two writes of `end`, as another thread could."""
    table = tables.make_table(env)
    tables.load(env, table, tables.rows(*range(400)))
    with Snapshot(env) as snapshot:
        segment = snapshot.table(table).scalars().segments[0]
        segment.end(np.array([399]), np.array([50]))
        first = segment.live(60)
        assert first is not None
        held, seen = first.copy(), []

        class Watched(np.ndarray[Any, Any]):
            def __setitem__(self, key: Any, value: Any) -> None:
                seen.append(_live_as_counted(segment, 60))
                super().__setitem__(key, value)
                seen.append(_live_as_counted(segment, 60))

        assert segment.deleted is not None
        segment.deleted = segment.deleted.view(Watched)
        segment._ends += 1  # nothing is remembered: whoever looks now computes anew
        segment.end(np.arange(ended), np.full(ended, 70))
        assert seen
        assert all((each == held).all() for each in seen)  # rows that end at 70 are live at 60
        assert (first == held).all()
        now = segment.live(80)
        assert now is not None
        assert not now[:ended].any()
        assert now[ended:399].all()
        assert (segment.deleted[:ended] == 70).all()
        assert (segment.deleted[ended:399] == ALIVE).all()


def _live_as_counted(segment: Segment, commit: int) -> np.ndarray:
    found = segment.live(commit)
    assert found is not None
    return np.asarray(found).copy()


def test_few_is_what_it_is_tested_as() -> None:
    assert 3 <= segments._FEW < 40
