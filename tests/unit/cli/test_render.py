"""Rows as table, CSV, JSON and lines: alignment, cutting, and values that are not plain."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import io
import json
import uuid
from typing import Any

import numpy as np
import pytest

from tarsdb.cli import render


def table(names: list[str], rows: list[tuple[Any, ...]], **options: Any) -> list[str]:
    out = io.StringIO()
    render.table(names, rows, out, **options)
    return out.getvalue().splitlines()


def test_numbers_right_texts_left() -> None:
    assert table(["name", "n"], [("a", 1), ("bcdef", 1000), (None, None)]) == [
        "name  │ n",
        "──────┼─────",
        "a     │    1",
        "bcdef │ 1000",
        "NULL  │ NULL",
    ]


def test_wide_characters_keep_columns_aligned() -> None:
    lines = table(["t", "n"], [("漢字", 1), ("e\u0301x", 2), ("abcd", 3)])
    columns = {render.display_width(line[: line.index("│")]) for line in lines if "│" in line}
    assert columns == {5}


def test_limit_counts_the_rest() -> None:
    out = io.StringIO()
    assert render.table(["n"], [(i,) for i in range(10)], out, limit=3) == 10
    assert out.getvalue().splitlines()[-1] == "… 7 more rows"


@pytest.mark.parametrize("width", [40, 60, 80])
def test_table_fits_the_terminal(width: int) -> None:
    rows = [("x" * 100, "y" * 30, 5), ("short", "z" * 90, 12345)]
    lines = table(["first", "second", "third"], rows, width=width)
    assert max(render.display_width(line) for line in lines) <= width
    assert any("…" in line for line in lines)


def test_narrow_columns_are_not_cut_for_wide_ones() -> None:
    assert render.fit([100, 5, 8], 60) == [41, 5, 8]
    assert render.fit([10, 10], 80) == [10, 10]


def test_one_line_a_row_whatever_the_text_holds() -> None:
    lines = table(["t"], [("a\nb\tc\x1b[31m\u202e",)])
    assert lines[2] == "a↵b c�[31m�"


def test_long_vectors_are_abbreviated() -> None:
    assert render.cell(np.arange(384, dtype=np.float32) / 8) == "[0, 0.125, 0.25, … 384]"
    assert render.cell(np.array([1.0, 2.0], dtype=np.float32)) == "[1.0, 2.0]"


VALUES = (
    None, True, 7, 0.1, float("nan"), "a,\"b\"\nc", b"\x00\xff", dt.date(2026, 1, 2),
    decimal.Decimal("1.50"), uuid.UUID(int=5), {"k": [1, None]}, np.array([1, 2], dtype=np.int8),
)  # fmt: skip


def test_json_is_json_whatever_the_values() -> None:
    out = io.StringIO()
    names = [f"c{i}" for i in range(len(VALUES))]
    assert render.json_rows(names, [VALUES, VALUES], out) == 2
    read = json.loads(out.getvalue())
    assert len(read) == 2
    assert list(read[0].values()) == [
        None, True, 7, 0.1, None, 'a,"b"\nc', "00ff", "2026-01-02", "1.50",
        str(uuid.UUID(int=5)), {"k": [1, None]}, [1, 2],
    ]  # fmt: skip
    empty = io.StringIO()
    render.json_rows(names, [], empty)
    assert json.loads(empty.getvalue()) == []


def test_json_keeps_columns_of_one_name() -> None:
    out = io.StringIO()
    render.json_rows(("a", 'q"', "a"), [(1, None, "x")], out)
    pairs = json.loads(out.getvalue(), object_pairs_hook=list)
    assert pairs == [[("a", 1), ('q"', None), ("a", "x")]]


def test_csv_reads_back() -> None:
    out = io.StringIO()
    render.csv_rows(["a", "b", "c", "d"], [(None, 'x,"y"\nz', 0.1, np.array([1.5, 2]))], out)
    rows = list(csv.reader(io.StringIO(out.getvalue())))
    assert rows == [["a", "b", "c", "d"], ["", 'x,"y"\nz', "0.1", "[1.5, 2.0]"]]


def test_line_mode_aligns_names() -> None:
    out = io.StringIO()
    render.line_rows(["id", "body"], [(1, "x"), (2, None)], out)
    assert out.getvalue() == "  id = 1\nbody = x\n\n  id = 2\nbody = NULL\n"
