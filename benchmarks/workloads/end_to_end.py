"""Nearest neighbours as an application asks for them, from durable files, beside other databases.

60,000 rows with two scalar columns; the ten nearest and their ``sel``, one query a call, unfiltered
and under filters (1%, 10%, 50%, and a rare label that is correlated with the vectors). Each
database is loaded, then searched in a process of its own; they take turns, block by block, with the
smallest list size that reaches the target recall. Figures are CPU milliseconds of a query, all
threads of the process, medians over blocks. Writes ``results/end_to_end.LEVEL.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

from benchmarks import exact, inputs, processes  # noqa: E402
from benchmarks.adapters import served as adapters  # noqa: E402
from benchmarks.served import Served, rows  # noqa: E402

K = 10
TARGET = 0.985
TUNING = 400
"""Queries that choose a list size, and whose recall is printed."""
BLOCK = 200


@dataclass(frozen=True)
class Plan:
    """What is measured, and how long at most."""

    rows: int
    repeats: int
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    seconds: float
    """Of one block or one tuning step."""


class Truth:
    """Exact answers by the number of rows and the kind of search."""

    def __init__(self, given: adapters.Rows, queries: np.ndarray) -> None:
        self._given, self._queries = given, queries
        self._known: dict[tuple[int, str], np.ndarray] = {}

    def recall(self, count: int, kind: str, start: int, found: list[list[int]]) -> float:
        """Return the share of the true neighbours that was found by queries from ``start`` on."""
        if (count, kind) not in self._known:
            self._known[count, kind] = self._near(count, kind)
        right = self._known[count, kind][start : start + len(found)]
        return exact.recall(found, right)

    def _near(self, count: int, kind: str) -> np.ndarray:
        allowed = np.flatnonzero(self._given.allowed(kind)[:count])
        near = exact.nearest(self._given.vectors[allowed], self._queries, K)
        return np.asarray(allowed[near])


@contextlib.contextmanager
def contenders(
    plan: Plan, folder: pathlib.Path, environment: Mapping[str, str]
) -> Iterator[tuple[dict[str, Served], dict[str, str]]]:
    """Load and open all databases; yield them, and why others are absent."""
    opened: dict[str, Served] = {}
    absent: dict[str, str] = {}
    try:
        for name in plan.names:
            try:
                opened[name] = Served(name, folder / name, plan.rows, environment)
            except processes.ChildError as reason:
                absent[name] = str(reason).rpartition("|")[2].strip()
                print(f"without {name}: {absent[name]}", flush=True)
            else:
                about = opened[name].about
                print(f"{name}: {about['rows'] / about['seconds']:,.0f} rows/s loaded", flush=True)
        yield opened, absent
    finally:
        for contender in opened.values():
            contender.close()


def run(plan: Plan, folder: pathlib.Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    truth = Truth(rows(plan.rows), inputs.vectors(1).queries)
    figures: dict[str, Any] = {}
    with contenders(plan, folder, environment) as (opened, absent):
        for kind in plan.kinds:
            sizes = _all_tuned(opened, absent, plan, truth, kind)
            figures[kind] = _measured(opened, plan, truth, kind, sizes)
            print(_line(kind, figures[kind]), flush=True)
        loaded = {name: c.about for name, c in opened.items()}
    shares = {
        kind: {name: found["tarsdb"]["cpu_ms"] / f["cpu_ms"] for name, f in found.items()}
        for kind, found in figures.items() if "tarsdb" in found
    }  # fmt: skip
    return {
        "data": {"rows": plan.rows, "dim": inputs.DIM, "source": inputs.vectors(1).source, "k": K,
                 "target_recall": TARGET},
        "figures": figures, "tarsdb_share_of": shares, "loaded": loaded, "absent": absent,
        "versions": {c.package: c.about["version"] for c in opened.values()},
    }  # fmt: skip


def _all_tuned(
    opened: dict[str, Served], absent: dict[str, str], plan: Plan, truth: Truth, kind: str
) -> dict[str, int]:
    """Return everybody's list size; who fails is absent from here on."""
    sizes = {}
    for name, contender in list(opened.items()):
        try:
            sizes[name] = _tuned(contender, plan, truth, kind)
        except processes.ChildError as reason:
            absent[name] = f"{kind}: {reason}"
            print(f"without {name}: {absent[name]}", flush=True)
            del opened[name]
    return sizes


def _tuned(contender: Served, plan: Plan, truth: Truth, kind: str) -> int:
    """Return the smallest list size that reaches the target, the largest where none does."""
    sizes = contender.about["sizes"]
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high) // 2
        contender.ask(size=sizes[middle])
        answer = _ask(contender, plan, kind, (0, TUNING), ids=True)
        if truth.recall(contender.about["rows"], kind, 0, answer["found"]) >= TARGET:
            high = middle
        else:
            low = middle + 1
    return int(sizes[low])


def _ask(
    contender: Served, plan: Plan, kind: str, part: tuple[int, int], ids: bool
) -> dict[str, Any]:
    return contender.ask(
        kind=kind, k=K, start=part[0], stop=part[1], seconds=plan.seconds, ids=ids
    )  # fmt: skip


def _measured(
    opened: Mapping[str, Served], plan: Plan, truth: Truth, kind: str, sizes: Mapping[str, int]
) -> dict[str, Any]:
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in opened}
    recalls = {}
    for name, contender in opened.items():  # recall, and everything is warm
        contender.ask(size=sizes[name])
        answer = _ask(contender, plan, kind, (0, TUNING), ids=True)
        recalls[name] = truth.recall(contender.about["rows"], kind, 0, answer["found"])
    for turn in range(plan.repeats):
        start = turn * BLOCK % 1000
        for name, contender in opened.items():
            part = (start, start + BLOCK)
            samples[name].append(_ask(contender, plan, kind, part, ids=False))
    return {
        name: {
            "cpu_ms": 1e3 * statistics.median(s["cpu"] for s in found),
            "wall_ms": 1e3 * statistics.median(s["wall"] for s in found),
            "min_cpu_ms": 1e3 * min(s["cpu"] for s in found),
            "max_cpu_ms": 1e3 * max(s["cpu"] for s in found),
            "recall": recalls[name], "size": sizes[name],
        }
        for name, found in samples.items()
    }  # fmt: skip


def _line(kind: str, figures: Mapping[str, Any]) -> str:
    ordered = sorted(figures.items(), key=lambda item: item[1]["cpu_ms"])
    shown = [f"{n} {f['cpu_ms']:.3f} ({f['recall']:.3f} at {f['size']})" for n, f in ordered]
    return f"  {kind:<12} {', '.join(shown)}"


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=4.0, help="most of one block")
    parser.add_argument("--only", nargs="+", choices=adapters.NAMES, default=adapters.NAMES)
    parser.add_argument("--kinds", nargs="+", choices=adapters.FILTERS, default=[*adapters.FILTERS])
    parser.add_argument("--keep", type=pathlib.Path, help="load into this folder, or reuse it")
    parser.add_argument("--store", default="end_to_end", help="name of the result, '' for none")
    given = parser.parse_args()
    processes.pin()
    plan = Plan(
        given.rows, given.repeats, tuple(given.only), tuple(given.kinds), given.seconds
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        folder = given.keep or stack.enter_context(inputs.scratch())
        record = run(plan, folder, os.environ)
    found = harness.environment(())
    found["versions"] |= record.pop("versions")
    if given.store:
        harness.write(given.store, _with_other_kinds({**record, **found}, given.store))


def _with_other_kinds(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Add the kinds of searches an earlier run measured on the same data and machine."""
    file = harness.stored_at(name, record["isa"])
    if not file.exists():
        return record
    before = json.loads(file.read_text(encoding="utf-8"))
    if any(before[key] != record[key] for key in ("data", "machine", "versions")):
        return record
    for key in ("figures", "tarsdb_share_of"):
        record[key] = {**before[key], **record[key]}
    return record


if __name__ == "__main__":
    main()
