"""The figures as Markdown, from stored results: ``python -m benchmarks.report [--write FILE]``.

``--write`` replaces what stands between ``<!-- figures:begin`` and ``<!-- figures:end`` in a file.
Rows we lose are in the table like all others; what was not measured is left out.
"""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from benchmarks import claims, harness

MARKS = re.compile(r"(<!-- figures:begin[^>]*-->\n).*?(<!-- figures:end -->)", re.DOTALL)


def markdown(records: Mapping[str, claims.Record]) -> str:
    """Return the table, the speeds beside peers, and what they were measured on."""
    rows = []
    for claim in claims.applicable(records):
        value = claims.value_of(claim, records)
        if value is None:
            continue
        sign, _, bar = claim.bar.partition(" ")
        words = {"<=": "at most", ">=": "at least", "==": ""}[sign]
        result = "yes" if claim.passes(value) else "**no**"
        goal = f"{words} {bar}".strip()
        rows.append(f"| {claim.text} | {claim.peer or '-'} | {_short(value)} | {goal} | {result} |")
    if not rows:
        return "No results are stored yet. `make bench` measures on your machine.\n"
    head = ["| What | Beside | Measured | Goal | Reached |", "|---|---|---:|---|---|"]
    return "\n".join([*head, *rows, "", *_speeds(records), _machine(records), ""])


def _speeds(records: Mapping[str, claims.Record]) -> list[str]:
    """Return times of everybody where several were measured."""
    parts = []
    knn = records.get("exact_knn")
    if knn is not None:
        parts.append(("Exact kNN, one query, ms CPU", knn["figures"]["l2_batch1"]["seconds"], 1e3))
    reads = records.get("point_read")
    if reads is not None:
        parts.append(("kNN among 1% of the rows, ms CPU", reads["filtered"]["seconds"], 1e3))
        parts.append(("Point read, microseconds CPU", reads["point"]["seconds"], 1e6))
    lines = []
    for title, seconds, scale in parts:
        ordered = sorted(seconds.items(), key=lambda item: item[1]["median"])
        shown = ", ".join(f"{name} {_short(f['median'] * scale)}" for name, f in ordered)
        lines.append(f"- {title}: {shown}")
    bulk = records.get("bulk_insert")
    if bulk is not None:
        speeds = sorted(bulk["rows_per_second"].items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {speed:,}" for name, speed in speeds)
        lines.append(f"- Bulk insert, rows/s: {shown} (Chroma builds its index on the way)")
    return [*lines, ""] if lines else []


def _short(value: float) -> str:
    return f"{float(value):.3g}" if abs(value) < 1000 else f"{float(value):,.0f}"


def _machine(records: Mapping[str, claims.Record]) -> str:
    """Name the machines and data of all records."""
    found: dict[str, None] = {}
    for record in records.values():
        machine: dict[str, Any] = record.get("machine", {})
        text = f"{machine.get('cpu')}, {machine.get('cores')} cores, {record.get('date')}"
        found[text] = None
    sources = {record.get("data", {}).get("source") for record in records.values()} - {None}
    return (
        f"Measured on {'; '.join(found)}. Vectors: {', '.join(sorted(sources))}, 384 dimensions. "
        "Medians of one run, contenders in turn; see `benchmarks/README.md`."
    )


def main() -> None:
    """Print the Markdown, or put it into a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=pathlib.Path, default=harness.RESULTS)
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE")
    given = parser.parse_args()
    text = markdown(claims.load(given.results))
    if given.write is None:
        print(text, end="")
        return
    before = given.write.read_text(encoding="utf-8")
    if not MARKS.search(before):
        parser.error(f"{given.write} has no figures:begin and figures:end marks")
    after = MARKS.sub(lambda match: match[1] + text + match[2], before)
    given.write.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
