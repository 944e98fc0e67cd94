"""The progress line: what it announces, and that it ends before anything else is written."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

import tarsdb
from tarsdb.cli.progress import size, watched
from tarsdb.cli.shell import Shell
from tarsdb.kernels import graph as kernels


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    kernels.wait()
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute("CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR(16))")
        vectors = np.random.default_rng(1).standard_normal((3000, 16)).astype(np.float32)
        db.table("t").insert({"id": np.arange(3000), "emb": vectors})
        yield db


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tarsdb.cli.progress._EVERY_S", 0.0)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("interactive", [False, True])
def test_a_terminal_sees_what_a_build_takes_and_how_far_it_is(
    db: tarsdb.Connection, interactive: bool
) -> None:
    out, err = io.StringIO(), Terminal()
    Shell(db, out, err, interactive=interactive).run_one("CREATE INDEX tv ON t USING hnsw (emb)")
    first, *rest = err.getvalue().splitlines()
    assert first.startswith("index tv: 3,000 vectors, about ")
    assert first.endswith(" of disk")
    text = "".join(rest)
    assert "s left" in text
    assert "3,000 of 3,000 vectors" in text
    assert err.getvalue().endswith("\n")


def test_a_terminal_sees_why_a_method_was_chosen(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tarsdb.engine.search.index_choice.FEWEST_ROWS", 1000)
    out, err = io.StringIO(), Terminal()
    Shell(db, out, err).run_one("CREATE INDEX tv ON t USING auto (emb) WITH (memory = '1KB')")
    announced, why, *_ = err.getvalue().splitlines()
    assert announced.startswith("index tv: 3,000 vectors, about ")
    assert why == "  a graph of 3,000 rows takes up to 816.0 kB, memory is 1.0 kB"
    assert why.strip() in out.getvalue()


@pytest.mark.usefixtures("hurried")
def test_a_line_ends_before_an_error_is_printed(db: tarsdb.Connection) -> None:
    err = Terminal()
    db.execute("CREATE INDEX tv ON t USING hnsw (emb)")

    class Stops(Terminal):
        def write(self, text: str) -> int:
            if "of 3,000" in text and "0 of 3,000" not in text:
                db.interrupt()
            return err.write(text)

    shell = Shell(db, io.StringIO(), Stops())
    shell.run_one("REINDEX tv")
    assert shell.failures == 1
    assert "\nInterruptError: " in err.getvalue()


def test_nothing_is_written_where_nobody_looks(db: tarsdb.Connection) -> None:
    err = io.StringIO()
    Shell(db, io.StringIO(), err).run_one("CREATE INDEX tv ON t USING hnsw (emb)")
    assert not err.getvalue()


def test_the_callbacks_are_gone_afterwards(db: tarsdb.Connection) -> None:
    err = Terminal()
    with watched(db, err):
        pass
    db.execute("CREATE INDEX tv ON t USING hnsw (emb)")
    assert not err.getvalue()


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (2_500_000_000, "2.5 GB")],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert size(nbytes) == text
