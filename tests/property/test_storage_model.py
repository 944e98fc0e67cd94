"""Random histories against a dict model: every snapshot shows its own commit, always."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tarsdb.errors import ConflictError
from tarsdb.options import OpenOptions
from tarsdb.storage import (
    Environment,
    Snapshot,
    apply_rows,
    check,
    column_changes,
    merge,
    staging,
    vacuum,
)
from tests.property.storage_model import Row, Transaction, create_table, verify

HISTORIES = int(os.environ.get("TARSDB_HISTORIES", "12"))
OPTIONS = OpenOptions(segment_rows=64, delta_limit_rows=50, background_merge=False)


@pytest.fixture(autouse=True)
def _small_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "STAGE_BYTES", 6000)


@pytest.fixture(params=[1, 24, 10**6], ids=["columns", "mixed", "rows"])
def _ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows from which updates and deletes go as columns, and the least rows of a segment."""
    monkeypatch.setattr(column_changes, "MANY_ROWS", request.param)
    monkeypatch.setattr(apply_rows, "MIN_SEGMENT_ROWS", 16)


class History:
    """One random history on one file."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.rng = path, random.Random(seed)
        self.env = Environment.open(path, OPTIONS)
        self.table = create_table(self.env)
        self.model: dict[int, Row] = {}
        self.held: list[tuple[Snapshot, dict[int, Row]]] = []
        self.conflicts = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if self.rng.random() < 0.3:
                self.held.append((Snapshot(self.env), self.model))
            action = self.rng.choice(["one", "one", "one", "two", "two", "care", "reopen", "look"])
            getattr(self, action)()
            with Snapshot(self.env) as snapshot:
                verify(snapshot.table(self.table), self.model, self.rng)
        self.look()
        self.close()

    def _transaction(self) -> Transaction:
        txn = Transaction(self.env, self.table, self.model, self.rng)
        for _ in range(self.rng.randint(1, 6)):
            txn.step()
        return txn

    def one(self) -> None:
        txn = self._transaction()
        if self.rng.random() < 0.8:
            txn.look()
            self._commit(txn)
        else:
            txn.finish()
            txn.writes.discard()

    def _commit(self, txn: Transaction) -> bool:
        txn.finish()
        try:
            txn.writes.commit()
        except ConflictError:
            txn.writes.discard()
            return False
        self.model = txn.committed_model(self.model)
        return True

    def two(self) -> None:
        first, second = self._transaction(), self._transaction()
        between = self.rng.choice(["nothing", "merge", "vacuum"])
        assert self._commit(first)
        if between != "nothing":
            self._care(between)
        overlap = bool(first.touched & second.touched) or bool(first.keys & second.keys)
        done = self._commit(second)
        self.conflicts += not done
        if overlap:
            assert not done, "the second writer of a row or key committed"
        if not done and between != "vacuum":
            # (c3, c2) is derived from the key; a pair can only clash where keys did before
            assert overlap or second.touched or second.keys

    def _care(self, what: str) -> None:
        if what == "merge":
            merge(self.env, force=True)
        else:
            vacuum(self.env)

    def care(self) -> None:
        self._care(self.rng.choice(["merge", "vacuum"]))
        assert check(self.env, full=True) == []

    def look(self) -> None:
        for snapshot, model in self.held:
            verify(snapshot.table(self.table), model, self.rng)
        while len(self.held) > 4:
            self.held.pop(self.rng.randrange(len(self.held)))[0].close()

    def reopen(self) -> None:
        self.close()
        self.env = Environment.open(self.path, OPTIONS)
        assert check(self.env, full=True) == []

    def close(self) -> None:
        for snapshot, _ in self.held:
            snapshot.close()
        self.held.clear()
        self.env.release()


@pytest.mark.usefixtures("_ways")
@pytest.mark.parametrize("seed", range(HISTORIES))
def test_random_history_equals_model(tmp_path: Path, seed: int) -> None:
    History(tmp_path / "h.tars", seed).run(14)
