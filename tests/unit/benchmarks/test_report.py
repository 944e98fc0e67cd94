"""Stored results in documents: sections are written in place, curves are the same bytes again."""

from __future__ import annotations

import pathlib

import pytest

from benchmarks import claims, harness, plots, report
from benchmarks.claim import widest

GROWTH = {
    "machine": {"cpu": "A", "cores": 2}, "isa": "avx2", "date": "2026-01-01",
    "data": {"rows": 1_000_000, "dim": 384, "source": "s"},
    "fit": {"tarsdb": {"times_per_doubling": 1.5}},
    "figures": {
        str(n): {name: {"cpu_us": {"median": n / 100}, "recall": 0.96, "private_bytes": 600.0}
                 for name in ("tarsdb", "tarsdb_sql")}
        for n in (10_000, 1_000_000)
    },
}  # fmt: skip
RECORDS = {"growth": {"avx2": GROWTH}}
FIGURE = next(figure for figure in plots.FIGURES if figure.name == "growth")


def test_sections_are_replaced_and_the_rest_stays() -> None:
    text = "a\n<!-- runs:begin (x) -->\nold\n<!-- runs:end -->\nz\n"
    once = report.replaced(text, RECORDS)
    assert once.startswith("a\n<!-- runs:begin (x) -->\n| Command")
    assert once.endswith("<!-- runs:end -->\nz\n") and "old" not in once
    assert "| `python -m benchmarks.workloads.growth` | AVX2 | A, 2 cores |" in once
    assert "| `python -m benchmarks.workloads.churn` | no result stored |" in once
    assert report.replaced(once, RECORDS) == once


def test_a_document_without_sections_is_refused() -> None:
    with pytest.raises(ValueError, match="no section of figures, bars"):
        report.replaced("<!-- bar:begin -->\n<!-- bar:end -->", RECORDS)


def test_a_missed_and_an_absent_bar_are_rows_too() -> None:
    text = report.bars(RECORDS)
    assert "| at most 1.15 | **1.5** | `growth` |" in text
    assert "| at least 0.95 | 0.96 | `growth` |" in text
    assert "| at most 1.15 | not measured | `growth` |" in text
    assert text.count("\n") == len(claims.CLAIMS) + 2


def test_each_level_of_the_kernels_has_its_column() -> None:
    faster = {**GROWTH, "fit": {"tarsdb": {"times_per_doubling": 1.1}}}
    text = report.bars({"growth": {"avx2": GROWTH, "avx512": faster}})
    assert text.startswith("| Bar | Beside | Goal | AVX2 | AVX-512 | Measured by |")
    assert "| at most 1.15 | **1.5** | 1.1 | `growth` |" in text
    assert "| AVX-512 | A, 2 cores |" in report.runs({"growth": {"avx512": faster}})


def test_a_bar_of_one_level_is_none_at_another() -> None:
    (claim,) = [c for c in claims.CLAIMS if c.levels == ("avx2",) and "0.95" in c.text]
    record = {"tarsdb_times": {"hnswlib": {"0.95": 2.0}}}
    found = claims.values_of(claim, {"graph_index": {"avx2": record, "avx512": record}})
    assert found == {"avx2": 2.0}


def test_results_are_kept_by_level(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    for level, median in (("avx512", 1.0), ("avx2", 2.0)):
        harness.write("growth", {"isa": level, "median": median})
    (tmp_path / "growth.json").write_text("{}")  # one without a level is none
    records = claims.load(tmp_path)
    assert {level: r["median"] for level, r in records["growth"].items()} == {
        "avx2": 2.0, "avx512": 1.0,
    }  # fmt: skip
    widest_one = widest(records, "growth")
    assert widest_one is not None and widest_one["median"] == 1.0


def test_a_smaller_run_reaches_no_bar() -> None:
    smaller = {**GROWTH, "data": {"rows": 300_000, "dim": 384}}
    assert "| at most 1.15 | **1.5** |" not in report.bars({"growth": {"avx2": smaller}})


def test_curves_are_the_same_bytes_again(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = []
    for times in (1, 1, 2):
        record = {**GROWTH, "figures": {
            str(int(n) * times): f for n, f in GROWTH["figures"].items()
        }}  # fmt: skip
        plots.draw(FIGURE, record, tmp_path / "figure.svg")
        drawn.append((tmp_path / "figure.svg").read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_figure_without_its_result_is_removed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "growth.svg").write_text("old")
    assert plots.draw_all({}, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
