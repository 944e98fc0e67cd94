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
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import claims, harness, plots, workloads

Records = Mapping[str, claims.Record]


def figures(records: Records) -> str:
    """Return the bars that were measured, the speeds beside peers, and the machines."""
    rows = []
    for claim in claims.applicable(records):
        value = claims.value_of(claim, records)
        if value is not None:
            goal, result = _goal(claim), _reached(claim, value)
            shown = f"{claim.text} | {claim.peer or '-'} | {_short(value)} | {goal} | {result}"
            rows.append(f"| {shown} |")
    if not rows:
        return "No results are stored yet. `make bench` measures on your machine.\n"
    head = ["| What | Beside | Measured | Goal | Reached |", "|---|---|---:|---|---|"]
    return "\n".join([*head, *rows, "", *_speeds(records), _machines(records), ""])


def bars(records: Records) -> str:
    """Return every bar, measured or not, and the workload that measures it."""
    lines = ["| Bar | Beside | Goal | Measured | Reached | Measured by |",
             "|---|---|---|---:|---|---|"]  # fmt: skip
    applicable = claims.applicable(records)
    for claim in (*claims.CLAIMS, claims.CONDITIONAL):
        value = claims.value_of(claim, records) if claim in applicable else None
        shown = ("-", "not measured") if value is None else (_short(value), _reached(claim, value))
        cells = (claim.text, claim.peer or "-", _goal(claim), *shown, f"`{claim.workload}`")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def curves(records: Records) -> str:
    """Return the drawings whose results are stored, and what would measure the others."""
    parts = []
    for figure in plots.FIGURES:
        drawn = f"figures/{figure.name}.svg"
        command = f"`{_command(figure.workload)}`"
        if figure.workload in records and (plots.FOLDER / f"{figure.name}.svg").exists():
            parts.append(f"![{figure.title}]({drawn})\n\n{figure.about} From {command}.\n")
        else:
            parts.append(f"*{figure.title}*: no result is stored; {command} measures it.\n")
    return "\n".join(parts)


def runs(records: Records) -> str:
    """Return what each workload was measured on, and the command that does it."""
    lines = ["| Command | Processor | Kernels | Date | Data |", "|---|---|---|---|---|"]
    for name in sorted(module.name for module in pkgutil.iter_modules(workloads.__path__)):
        record = records.get(name)
        about = ("no result stored", "-", "-", "-") if record is None else _conditions(record)
        lines.append(f"| {' | '.join((f'`{_command(name)}`', *about))} |")
    return "\n".join([*lines, ""])


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


def _conditions(record: claims.Record) -> tuple[str, str, str, str]:
    """Return processor, level of the kernels, date and data of a result."""
    machine, data = record.get("machine", {}), record.get("data", {})
    cpu = f"{machine.get('cpu')}, {machine.get('cores')} cores"
    shape = f"{data['rows']:,} x {data['dim']}, " if "dim" in data else ""
    source = f"{shape}{data.get('source', '-')}"
    return cpu, str(record.get("isa", "not recorded")), str(record.get("date")), source


def _goal(claim: claims.Claim) -> str:
    sign, _, bar = claim.bar.partition(" ")
    words = {"<=": "at most", ">=": "at least", "==": ""}[sign]
    return f"{words} {bar}".strip()


def _reached(claim: claims.Claim, value: Any) -> str:
    return "yes" if claim.passes(value) else "**no**"


def _speeds(records: Records) -> list[str]:
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


def _machines(records: Records) -> str:
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
