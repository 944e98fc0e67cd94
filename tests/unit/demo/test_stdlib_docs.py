"""The docstrings the demonstration collects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tarsdb.demo import stdlib_docs


@pytest.fixture(scope="module")
def entries() -> dict[str, stdlib_docs.Docstring]:
    return {entry.name: entry for entry in stdlib_docs.collect()}


def test_thousands_of_public_names(entries: dict[str, stdlib_docs.Docstring]) -> None:
    assert len(entries) > 4_000
    assert not [name for name in entries if any(p.startswith("_") for p in name.split("."))]
    assert all(entry.doc.strip() for entry in entries.values())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("datetime.datetime.strptime", "method"),
        ("json", "module"),
        ("json.loads", "function"),
        ("pathlib.Path", "class"),
        ("math.floor", "function"),
        ("builtins.str.startswith", "method"),
    ],
)
def test_known_objects(entries: dict[str, stdlib_docs.Docstring], name: str, kind: str) -> None:
    assert entries[name].kind == kind


def test_nothing_of_python_source_is_imported() -> None:
    script = (
        "import sys; from tarsdb.demo import stdlib_docs; stdlib_docs.collect();"
        "sys.exit(len({'turtle', 'tkinter', 'antigravity', 'idlelib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_broken_source_is_passed_over(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f(:")
    assert list(stdlib_docs._of_source("bad", bad)) == []
