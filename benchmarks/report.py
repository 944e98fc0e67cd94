"""Stored results as Markdown: ``python -m benchmarks.report [--write FILE...]``.

``--write`` replaces what stands between ``<!-- NAME:begin`` and ``<!-- NAME:end -->`` in files, for
each section they have: ``figures`` (bars that were measured, and speeds), ``bars`` (all bars),
``curves`` (the drawings of ``benchmarks.plots``) and ``runs`` (who measured what, on what). Bars we
miss are in the tables like all others.
"""

from __future__ import annotations

import argparse
import pathlib
import pkgutil
import re
from collections.abc import Callable
from typing import Any

from benchmarks import claims, harness, plots, workloads
from benchmarks.claim import LEVELS, Claim, Record, Records, widest

NAMES = {"portable": "portable", "avx2": "AVX2", "avx512": "AVX-512", "amx": "AMX"}
"""Levels of the kernels as headings."""


def figures(records: Records) -> str:
    """Return the bars that were measured, the speeds beside peers, and the machines."""
    levels = _levels(records)
    rows = [row for claim in claims.CLAIMS if (row := _row(claim, records, levels))]
    if not rows:
        return "No results are stored yet. `make bench` measures on your machine.\n"
    head = _head(["What", "Beside", "Goal"], levels, [])
    return "\n".join([*head, *rows, "", *_speeds(records), _machines(records), ""])


def bars(records: Records) -> str:
    """Return every bar, measured or not, and the workload that measures it."""
    levels = _levels(records)
    lines = _head(["Bar", "Beside", "Goal"], levels, ["Measured by"])
    for claim in claims.CLAIMS:
        row = _row(claim, records, levels) or _unmeasured(claim, levels)
        lines.append(f"{row} `{claim.workload}` |")
    return "\n".join([*lines, ""])


def _levels(records: Records) -> list[str]:
    """Return the levels at which anything was measured."""
    return [level for level in LEVELS if any(level in found for found in records.values())]


def _head(before: list[str], levels: list[str], after: list[str]) -> list[str]:
    cells = [*before, *(NAMES[level] for level in levels), *after]
    rule = ["---"] * len(before) + ["---:"] * len(levels) + ["---"] * len(after)
    return [f"| {' | '.join(cells)} |", f"|{'|'.join(rule)}|"]


def _row(claim: Claim, records: Records, levels: list[str]) -> str:
    """Return a bar and its figures, misses in bold; empty where nothing was measured."""
    values = claims.values_of(claim, records)
    if not values:
        return ""
    cells = []
    for level in levels:
        value = values.get(level)
        shown = "" if value is None else _short(value)
        cells.append(shown if value is None or claim.passes(value) else f"**{shown}**")
    return f"| {' | '.join((claim.text, claim.peer or '-', _goal(claim), *cells))} |"


def _unmeasured(claim: Claim, levels: list[str]) -> str:
    cells = ["not measured"] * bool(levels) + [""] * (len(levels) - 1)
    return f"| {' | '.join((claim.text, claim.peer or '-', _goal(claim), *cells))} |"


def curves(records: Records) -> str:
    """Return the drawings whose results are stored, and what would measure the others."""
    parts = []
    for figure in plots.FIGURES:
        drawn = f"figures/{figure.name}.svg"
        command = f"`{_command(figure.workload)}`"
        if figure.record(records) and (plots.FOLDER / f"{figure.name}.svg").exists():
            parts.append(f"![{figure.title}]({drawn})\n\n{figure.about} From {command}.\n")
        else:
            parts.append(f"*{figure.title}*: no result is stored; {command} measures it.\n")
    return "\n".join(parts)


def runs(records: Records) -> str:
    """Return what each workload was measured on, and the command that does it."""
    lines = ["| Command | Kernels | Processor | Date | Data |", "|---|---|---|---|---|"]
    names = sorted(module.name for module in pkgutil.iter_modules(workloads.__path__))
    for name in names:
        command = f"`{_command(name)}`"
        stored = [key for key in records if _owner(key, names) == name]
        for key in stored:
            for level, record in records[key].items():
                cells = (command, NAMES[level], *_conditions(record))
                lines.append(f"| {' | '.join(cells)} |")
        if not stored:
            lines.append(f"| {command} | no result stored | - | - | - |")
    return "\n".join([*lines, ""])


def _owner(stored: str, names: list[str]) -> str:
    """Return the workload a result is of; one may store several, each with an ending."""
    return max((n for n in names if stored == n or stored.startswith(f"{n}_")), key=len)


SECTIONS: dict[str, Callable[[Records], str]] = {
    "figures": figures, "bars": bars, "curves": curves, "runs": runs,
}  # fmt: skip


def replaced(text: str, records: Records) -> str:
    """Return a document with its sections written anew.

    Raises
    ------
    ValueError
        It has none.
    """
    count = 0
    for name, section in SECTIONS.items():
        marks = re.compile(rf"(<!-- {name}:begin[^>]*-->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        body = section(records)
        text, found = marks.subn(lambda match, body=body: match[1] + body + match[2], text)
        count += found
    if not count:
        raise ValueError(f"no section of {', '.join(SECTIONS)} between begin and end marks")
    return text


def _command(workload: str) -> str:
    return f"python -m benchmarks.workloads.{workload}"


def _conditions(record: Record) -> tuple[str, str, str]:
    """Return processor, date and data of a result."""
    machine, data = record.get("machine", {}), record.get("data", {})
    cpu = f"{machine.get('cpu')}, {machine.get('cores')} cores"
    shape = f"{data['rows']:,} x {data['dim']}, " if "dim" in data else ""
    source = data.get("source") or record.get("shape", "-")
    return cpu, str(record.get("date")), f"{shape}{source}"


def _goal(claim: Claim) -> str:
    sign, _, bar = claim.bar.partition(" ")
    words = {"<=": "at most", ">=": "at least", "==": ""}[sign]
    return f"{words} {bar}".strip()


def _speeds(records: Records) -> list[str]:
    """Return times of everybody where several were measured, at the widest level."""
    parts = []
    if knn := widest(records, "exact_knn"):
        parts.append(("Exact kNN, one query, ms CPU", knn["figures"]["l2_batch1"]["seconds"], 1e3))
    if reads := widest(records, "point_read"):
        parts.append(("kNN among 1% of the rows, ms CPU", reads["filtered"]["seconds"], 1e3))
        parts.append(("Point read, microseconds CPU", reads["point"]["seconds"], 1e6))
    lines = []
    if peers := widest(records, "graph_index_peers"):
        reached = {n: f["0.95"] for n, f in peers["queries_per_second"].items() if f["0.95"]}
        ordered = sorted(reached.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {_short(speed)}" for name, speed in ordered)
        lines.append(f"- One query by an index at recall 0.95, queries/s of CPU: {shown}")
    for title, seconds, scale in parts:
        ordered = sorted(seconds.items(), key=lambda item: item[1]["median"])
        shown = ", ".join(f"{name} {_short(f['median'] * scale)}" for name, f in ordered)
        lines.append(f"- {title}: {shown}")
    if bulk := widest(records, "bulk_insert"):
        speeds = sorted(bulk["rows_per_second"].items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {speed:,}" for name, speed in speeds)
        lines.append(f"- Bulk insert, rows/s: {shown} (Chroma builds its index on the way)")
    return [*lines, ""] if lines else []


def _short(value: float) -> str:
    return f"{float(value):.3g}" if abs(value) < 1000 else f"{float(value):,.0f}"


def _machines(records: Records) -> str:
    """Name the machines and data of all records."""
    found: dict[str, None] = {}
    every = [record for by_level in records.values() for record in by_level.values()]
    for record in every:
        machine: dict[str, Any] = record.get("machine", {})
        text = f"{machine.get('cpu')}, {machine.get('cores')} cores, {record.get('date')}"
        found[text] = None
    sources = {record.get("data", {}).get("source") for record in every} - {None}
    return (
        "A column is a level of the kernels; bold misses its goal. "
        f"Measured on {'; '.join(found)}. Vectors: {', '.join(sorted(sources))}, 384 dimensions. "
        "Medians of one run, contenders in turn; see `benchmarks/README.md`."
    )


def main() -> None:
    """Print a section, or put all into files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=pathlib.Path, default=harness.RESULTS)
    parser.add_argument("--section", choices=SECTIONS, default="figures", help="what is printed")
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE", nargs="+")
    given = parser.parse_args()
    records = claims.load(given.results)
    if given.write is None:
        print(SECTIONS[given.section](records), end="")
        return
    for file in given.write:
        try:
            text = replaced(file.read_text(encoding="utf-8"), records)
        except ValueError as reason:
            parser.error(f"{file}: {reason}")
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
