"""Print result rows as an aligned table, CSV, JSON or one value a line.

Takes column names and rows of Python values; knows no database.
"""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import itertools
import json
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

import numpy as np

MODES = ("table", "csv", "json", "line")
NULL = "NULL"
_LONGEST_CELL = 200
_SHOWN_COMPONENTS = 3
_NARROWEST = 6

Rows = Iterable[Sequence[Any]]


def table(
    names: Sequence[str],
    rows: Rows,
    out: TextIO,
    *,
    width: int | None = None,
    limit: int | None = None,
) -> int:
    """Write an aligned table and return the number of rows.

    Parameters
    ----------
    width : int, optional
        Columns of the terminal; wider tables get their widest cells cut. No limit when absent.
    limit : int, optional
        Rows to show; the others are counted.
    """  # fmt: skip
    source = iter(rows)
    shown = list(itertools.islice(source, limit))
    hidden = sum(1 for _ in source)
    numeric = [
        all(row[i] is None or _is_number(row[i]) for row in shown) for i in range(len(names))
    ]
    cells = [[cell(value) for value in row] for row in shown]
    widths = [
        max(display_width(name), *(display_width(row[i]) for row in cells), 1)
        for i, name in enumerate(names)
    ]
    if width is not None:
        widths = fit(widths, width)
    rule = "─┼─".join("─" * w for w in widths)
    header = " │ ".join(_pad(name, w, False) for name, w in zip(names, widths, strict=True))
    out.write(f"{header.rstrip()}\n{rule}\n")
    for row in cells:
        line = " │ ".join(_pad(*part) for part in zip(row, widths, numeric, strict=True))
        out.write(line.rstrip() + "\n")
    if hidden:
        out.write(f"… {hidden:,} more rows\n")
    return len(shown) + hidden


def csv_rows(names: Sequence[str], rows: Rows, out: TextIO) -> int:
    """Write CSV with a header line; NULL is an empty field, a vector its JSON text."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    count = 0
    for row in rows:
        writer.writerow(["" if value is None else _csv_value(value) for value in row])
        count += 1
    return count


def json_rows(names: Sequence[str], rows: Rows, out: TextIO) -> int:
    """Write a JSON array of objects, one object a line; columns of one name are all there."""
    keys = [json.dumps(name, ensure_ascii=False) for name in names]
    count = 0
    out.write("[")
    for row in rows:
        values = [json.dumps(plain(v), ensure_ascii=False, allow_nan=False) for v in row]
        members = ", ".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True))
        out.write(",\n " if count else "\n ")
        out.write(f"{{{members}}}")
        count += 1
    out.write("\n]\n" if count else "]\n")
    return count


def line_rows(names: Sequence[str], rows: Rows, out: TextIO) -> int:
    """Write one ``name = value`` a line and an empty line between rows."""
    widest = max((display_width(name) for name in names), default=0)
    count = 0
    for row in rows:
        if count:
            out.write("\n")
        for name, value in zip(names, row, strict=True):
            text = NULL if value is None else _text(value)
            out.write(f"{' ' * (widest - display_width(name))}{name} = {text}\n")
        count += 1
    return count


WRITERS: dict[str, Callable[[Sequence[str], Rows, TextIO], int]] = {
    "table": table, "csv": csv_rows, "json": json_rows, "line": line_rows,
}  # fmt: skip


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: vectors as lists, NaN as null, bytes as hex."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def cell(value: Any) -> str:
    """Return the text of one table cell: one line, long vectors and texts cut."""
    if value is None:
        return NULL
    if isinstance(value, np.ndarray) and value.ndim == 1 and len(value) > _SHOWN_COMPONENTS + 1:
        first = ", ".join(_number(x) for x in value[:_SHOWN_COMPONENTS].tolist())
        return f"[{first}, … {len(value)}]"
    text = _text(value)
    if len(text) > _LONGEST_CELL:
        text = text[: _LONGEST_CELL - 1] + "…"
    return "".join(_visible(text))


def _visible(text: str) -> Iterator[str]:
    for char in text:
        if char == "\n":
            yield "↵"
        elif unicodedata.category(char) in ("Cc", "Cf") and char not in "\u200c\u200d":
            yield " " if char == "\t" else "�"
        else:
            yield char


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)):
        return _number(float(value))
    if isinstance(value, (bytes, bytearray)):
        return f"x'{bytes(value).hex()}'"
    if isinstance(value, (dict, list, np.ndarray)):
        return json.dumps(plain(value), ensure_ascii=False)
    return str(value)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _csv_value(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (dict, list, np.ndarray)):
        return json.dumps(plain(value), ensure_ascii=False)
    return plain(value)


def _is_number(value: Any) -> bool:
    kinds = (int, float, decimal.Decimal, np.number)
    return isinstance(value, kinds) and not isinstance(value, bool)


def display_width(text: str) -> int:
    """Return the terminal columns a text takes: wide characters two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) or c in "\u200d\ufe0f"
        else 2 if unicodedata.east_asian_width(c) in "WF"
        else 1
        for c in text
    )  # fmt: skip


def fit(widths: Sequence[int], total: int) -> list[int]:
    """Shrink the widest columns until all fit into the terminal."""
    fitted = list(widths)
    room = total - 3 * (len(fitted) - 1)
    while sum(fitted) > room:
        widest = max(range(len(fitted)), key=fitted.__getitem__)
        others = sorted(fitted)[-2:-1] or [_NARROWEST]
        if fitted[widest] <= _NARROWEST:
            break
        floor = max(_NARROWEST, others[0] - 1)
        fitted[widest] = max(floor, fitted[widest] - (sum(fitted) - room))
    return fitted


def _pad(text: str, width: int, right: bool) -> str:
    size = display_width(text)
    if size > width:
        text = _cut(text, width)
        size = display_width(text)
    space = " " * (width - size)
    return space + text if right else text + space


def _cut(text: str, width: int) -> str:
    kept, used = [], 0
    for char in text:
        used += display_width(char)
        if used > width - 1:
            break
        kept.append(char)
    return "".join(kept) + "…"
