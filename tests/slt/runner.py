"""Run sqllogictest files through a tarsdb connection and count what agrees.

``python -m tests.slt FILE...`` prints a line per file and the first disagreements.
"""

from __future__ import annotations

import pathlib
import random
from dataclasses import dataclass, field

import tarsdb
from tests.slt import records
from tests.slt.records import Record

SEED = 20_26


@dataclass
class Outcome:
    """How a file went: queries and statements that agree, and what did not.

    ``skipped`` are records for other engines. ``refused`` are the failures on records that
    PostgreSQL refuses too; they count as failures in ``rate``.
    """

    name: str
    passed: int = 0
    skipped: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Return the number of records that ran."""
        return self.passed + len(self.failures)

    @property
    def rate_where_postgresql_answers(self) -> float:
        """Return the share that agrees, without the records PostgreSQL refuses."""
        counted = self.total - self.refused
        return self.passed / counted if counted else 1.0

    @property
    def rate(self) -> float:
        """Return the share that agrees; 1 when nothing ran."""
        return self.passed / self.total if self.total else 1.0

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.passed}/{self.total} = {self.rate:.4%}, {self.refused} refused as "
            f"PostgreSQL does, {self.skipped} for other engines"
        )


def run_file(path: pathlib.Path, sample: int | None = None) -> Outcome:
    """Run a file; ``sample`` keeps that many of its queries, chosen by a fixed seed."""
    return run_text(path.name, path.read_text(encoding="utf-8"), sample)


def run_text(name: str, text: str, sample: int | None = None) -> Outcome:
    """Run the records of a text on a fresh database."""
    chosen = list(records.parse(text))
    queries = [r for r in chosen if r.kind == "query" and r.runs_here]
    if sample is not None and len(queries) > sample:
        kept = {id(record) for record in random.Random(SEED).sample(queries, sample)}
        chosen = [r for r in chosen if r.kind == "statement" or id(r) in kept]
    outcome = Outcome(name)
    labels: dict[str, str] = {}
    with tarsdb.connect(":memory:", durability="relaxed") as db:
        db.execute("SET default_null_order = 'nulls_first'")
        for record in chosen:
            if not record.runs_here:
                outcome.skipped += 1
                continue
            problem = _run(db, record, labels)
            if problem is None:
                outcome.passed += 1
            else:
                outcome.failures.append(f"{name}:{record.line}: {problem}\n    {record.sql}")
                outcome.refused += record.refused_by_postgresql
    return outcome


def _run(db: tarsdb.Connection, record: Record, labels: dict[str, str]) -> str | None:
    try:
        cursor = db.execute(record.sql)
        if record.kind == "statement":
            return "succeeded, expected an error" if record.fails else None
        rows = cursor.fetchall()
    except tarsdb.Error as error:
        return None if record.fails else f"{type(error).__name__}: {error}"
    if rows and len(rows[0]) != len(record.types):
        return f"{len(rows[0])} columns, expected {len(record.types)}"
    found = records.values(rows, record.types, record.sort)
    problem = records.mismatch(record, found)
    if problem is None and record.label is not None:
        first = labels.setdefault(record.label, records.digest(found))
        if first != records.digest(found):
            return f"another result than the earlier query labelled {record.label}"
    return problem
