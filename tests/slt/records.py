"""SQLite's sqllogictest format: records of a ``.test`` file.

A file is blocks separated by empty lines: ``statement ok|error``, or ``query TYPES SORT [LABEL]``
with the expected values, or their number and MD5. Knows no database.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

ENGINE = "tarsdb"
_STRICTER = ("strict column usage", "DIV/0")
"""Notes on what PostgreSQL refuses and SQLite answers; we refuse it too."""

_HASHED = re.compile(r"(\d+) values hashing to ([0-9a-f]{32})")


class FormatError(Exception):
    """The file is not in sqllogictest's format."""


@dataclass(frozen=True)
class Record:
    """One statement or query with what is expected of it."""

    line: int
    sql: str
    kind: str  # 'statement' or 'query'
    fails: bool = False
    types: str = ""
    sort: str = "nosort"
    label: str | None = None
    expected: tuple[str, ...] = ()
    runs_here: bool = True
    refused_by_postgresql: bool = False


@dataclass
class _Conditions:
    only: set[str] = field(default_factory=set)
    skip: set[str] = field(default_factory=set)
    refused: bool = False

    def hold(self) -> bool:
        return ENGINE not in self.skip and (not self.only or ENGINE in self.only)


def parse(text: str) -> Iterator[Record]:
    """Yield the records of a file, those meant for other engines too (``runs_here`` False)."""
    number = 0
    for block in re.split(r"(\n[ \t]*(?=\n))", text):
        record = _record(block, number + 1)
        if record is not None:
            if record.kind == "halt":
                return
            yield record
        number += block.count("\n")


def _record(block: str, first_line: int) -> Record | None:
    conditions = _Conditions()
    lines = block.split("\n")
    for position, raw in enumerate(lines):
        words = raw.split("#")[0].split()
        if not words:
            continue
        if words[0] == "onlyif":
            conditions.only.add(words[1])
        elif words[0] == "skipif":
            conditions.skip.add(words[1])
            refused = words[1] == "postgresql" and any(note in raw for note in _STRICTER)
            conditions.refused = conditions.refused or refused
        elif words[0] == "hash-threshold":
            continue
        else:
            rest = lines[position + 1 :]
            record = _body(words, rest, first_line + position)
            here = conditions.hold()
            if record.kind == "halt" and not here:
                return None
            return replace(record, runs_here=here, refused_by_postgresql=conditions.refused)
    return None


def _body(words: list[str], rest: list[str], line: int) -> Record:
    if words[0] == "halt":
        return Record(line, "", "halt")
    if words[0] == "statement" and words[1] in ("ok", "error"):
        return Record(line, "\n".join(rest).strip(), "statement", words[1] == "error")
    if words[0] != "query" or len(words) < 2 or set(words[1]) - set("ITR"):
        raise FormatError(f"line {line}: {' '.join(words)!r} is no record")
    sort = words[2] if len(words) > 2 else "nosort"
    label = words[3] if len(words) > 3 else None
    cut = rest.index("----") if "----" in rest else len(rest)
    expected = tuple(value for value in rest[cut + 1 :] if value != "")
    sql = "\n".join(rest[:cut]).strip()
    return Record(line, sql, "query", False, words[1], sort, label, expected)


def values(rows: Sequence[Sequence[Any]], types: str, sort: str) -> list[str]:
    """Return a result as sqllogictest writes it: one text a value, in the order asked for."""
    table = [[_text(value, kind) for value, kind in zip(row, types, strict=True)] for row in rows]
    if sort == "rowsort":
        table.sort()
    flat = [value for row in table for value in row]
    return sorted(flat) if sort == "valuesort" else flat


def _text(value: Any, kind: str) -> str:
    if value is None:
        return "NULL"
    if kind == "I":
        return str(int(value))
    if kind == "R":
        return f"{float(value):.3f}"
    text = str(value)
    return "".join(c if " " <= c <= "~" else "@" for c in text) if text else "(empty)"


def digest(found: Sequence[str]) -> str:
    """Return the MD5 that stands for a long result."""
    joined = "".join(value + "\n" for value in found)
    return hashlib.md5(joined.encode(), usedforsecurity=False).hexdigest()


def mismatch(record: Record, found: Sequence[str]) -> str | None:
    """Return how a result differs from what the record expects, or None."""
    if len(record.expected) == 1 and (hashed := _HASHED.fullmatch(record.expected[0])):
        count, wanted = int(hashed[1]), hashed[2]
        if len(found) != count:
            return f"{len(found)} values, expected {count}"
        return None if digest(found) == wanted else f"values hash to {digest(found)}, not {wanted}"
    if tuple(found) == record.expected:
        return None
    return f"found {list(found)[:10]}, expected {list(record.expected)[:10]}"
