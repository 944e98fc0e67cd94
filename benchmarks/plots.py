"""Curves of stored results as SVG, into ``docs/figures``: ``python -m benchmarks.plots``.

The same results give the same bytes (with the same matplotlib, which the ``bench`` extra brings):
no date, identifiers from a fixed salt, text as text. A figure whose result is absent is left out,
and a drawing of it from before is removed.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import harness
from benchmarks.claim import Record, Records, widest
from benchmarks.claims import KINDS, load

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "docs" / "figures"
STYLE = {
    "svg.hashsalt": "tarsdb", "svg.fonttype": "none", "font.family": "DejaVu Sans",
    "font.size": 9.0, "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip
COLOURS = {
    "tarsdb": "#c1272d", "tarsdb_sql": "#e88b8e", "tarsdb_fast_build": "#8a1a1f",
    "hnswlib": "#0065a4", "svs-lvq8": "#3b8f3f", "usearch": "#17888c", "scann": "#7d4ba0",
    "faiss": "#b8860b", "numpy": "#6b6b6b", "sqlite-vec": "#7d4ba0", "zvec": "#3b8f3f",
    "hnswlib_sqlite": "#0065a4", "lancedb": "#b8860b", "chroma": "#6b6b6b",
    "milvus_lite": "#17888c", "sqlite_vec": "#7d4ba0", "duckdb": "#a0522d", "qdrant": "#333333",
}  # fmt: skip
WORDS = {
    "tarsdb_sql": "tarsdb through SQL", "hnswlib_sqlite": "hnswlib and SQLite",
    "tarsdb_fast_build": "tarsdb, built fast",
}  # fmt: skip
"""Contenders whose name does not say what they are."""


@dataclass(frozen=True)
class Figure:
    """One drawing: the result it is made from, and how."""

    name: str
    workload: str
    title: str
    about: str
    draw: Callable[[Any, Record], None]
    """Draws a record into matplotlib axes."""
    level: str | None = None
    """Of the kernels; without one, the widest that is stored."""

    def record(self, records: Records) -> Record | None:
        """Return the result that is drawn."""
        if self.level is None:
            return widest(records, self.workload)
        return records.get(self.workload, {}).get(self.level)


def _line(axes: Any, name: str, x: list[float], y: list[float]) -> None:
    axes.plot(x, y, marker="o", markersize=3, color=COLOURS[name], label=WORDS.get(name, name))


def _recall_and_speed(axes: Any, record: Record) -> None:
    """Draw with the recall on a scale by what is missed, as wide for each halving."""
    for name, curve in record["curves"].items():
        speed = [1e6 / point["microseconds"] for point in curve]
        _line(axes, name, [1 - min(point["recall"], 0.9999) for point in curve], speed)
    axes.set(xlabel="recall@10", ylabel="queries a second of CPU, one thread", xscale="log",
             yscale="log")  # fmt: skip
    axes.set_xticks([0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001],
                    ["0.8", "0.9", "0.95", "0.98", "0.99", "0.995", "0.998", "0.999"])  # fmt: skip
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.invert_xaxis()
    axes.legend()


def _growth(axes: Any, record: Record) -> None:
    for name in ("tarsdb", "tarsdb_sql", "hnswlib"):
        found = {int(n): f[name]["cpu_us"]["median"] for n, f in record["figures"].items()
                 if name in f}  # fmt: skip
        counts = sorted(found)
        _line(axes, name, [float(n) for n in counts], [found[n] for n in counts])
    axes.set(xlabel="rows", ylabel="microseconds of CPU a query", xscale="log")
    axes.set_ylim(bottom=0)
    axes.legend()


def _filters(axes: Any, record: Record) -> None:
    kinds = [kind for kind in KINDS if kind in record["figures"]]
    names = [n for n in COLOURS if any(n in record["figures"][kind] for kind in kinds)]
    width = 0.8 / max(1, len(names))
    target = record["data"]["target_recall"]
    for at, name in enumerate(names):
        found = {k: f[name] for k in kinds if name in (f := record["figures"][k])}
        places = [kinds.index(kind) + (at - (len(names) - 1) / 2) * width for kind in found]
        reached = [COLOURS[name] if f["recall"] >= target else "none" for f in found.values()]
        axes.bar(places, [f["cpu_ms"] for f in found.values()], width, color=reached,
                 edgecolor=COLOURS[name])  # fmt: skip
        axes.bar(0, 0, color=COLOURS[name], label=WORDS.get(name, name))  # for the legend
    axes.set_xticks(range(len(kinds)), [KINDS[kind].removeprefix("filter of ") for kind in kinds])
    axes.set(xlabel="rows that match", ylabel="milliseconds of CPU a query", yscale="log")
    axes.legend(ncols=2)


def _batches(axes: Any, record: Record) -> None:
    batches = {1: "l2_batch1", 128: "l2_batch128", 1000: "l2_batch1000"}
    for name in ("tarsdb", "faiss", "numpy", "sqlite-vec"):
        found = {
            size: 1e3 * seconds[name]["median"] for size, kind in batches.items()
            if name in (seconds := record["figures"][kind]["seconds"])
        }  # fmt: skip
        if found:
            _line(axes, name, [float(size) for size in found], list(found.values()))
    axes.set(xlabel="queries a call", ylabel="milliseconds of CPU a query", xscale="log",
             yscale="log")  # fmt: skip
    axes.legend()


FIGURES = (
    Figure("recall_and_speed", "graph_index", "Recall and speed of graph search",
           "One query a call, 100,000 rows unless the table below says other; each point is a list "
           "size. Up and right is better.", _recall_and_speed),
    Figure("recall_and_speed_avx2", "graph_index", "Recall and speed with AVX2 only",
           "The same with kernels for processors without AVX-512; hnswlib as it was compiled.",
           _recall_and_speed, "avx2"),
    Figure("growth", "growth", "Time of a query as the data grows",
           "Each point with the smallest list size that reaches a recall of 0.95. A straight line "
           "is logarithmic growth. Beyond 100,000 rows vectors are drawn around the real ones.",
           _growth),
    Figure("filters", "end_to_end", "Search under filters, through SQL or what stands for it",
           "With the smallest list size that reaches the target recall on the queries that choose "
           "it. An empty bar is below it on those that are measured.", _filters),
    Figure("exact_batches", "exact_knn", "Exact search by queries a call",
           "L2, recall 1 throughout. sqlite-vec has no batches.", _batches),
)  # fmt: skip


def draw(figure: Figure, record: Record, path: pathlib.Path) -> None:
    """Draw one figure into a file."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    with mpl.rc_context(STYLE):
        canvas, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
        figure.draw(axes, record)
        axes.set_title(figure.title, loc="left")
        canvas.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(canvas)


def draw_all(records: Records, folder: pathlib.Path) -> list[str]:
    """Draw all figures whose results are there; return their names."""
    folder.mkdir(exist_ok=True)
    drawn = []
    for figure in FIGURES:
        path = folder / f"{figure.name}.svg"
        path.unlink(missing_ok=True)
        if record := figure.record(records):
            draw(figure, record, path)
            drawn.append(figure.name)
    return drawn


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("--results", type=pathlib.Path, default=harness.RESULTS)
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER)
    given = parser.parse_args()
    print(", ".join(draw_all(load(given.results), given.folder)) or "no results are stored")


if __name__ == "__main__":
    main()
