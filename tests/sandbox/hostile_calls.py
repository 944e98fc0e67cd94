"""Calls of hostile modules from SQL, what they came to, and the transaction around them."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping

import tarsdb
from tarsdb.errors import UdfError, UdfLimitError, UdfTrapError, UdfValidationError
from tests.sandbox.hostile_modules import Hostile

OPTIONS = {"fuel": "2000000", "fuel_per_row": "1000", "max_memory": "'16MB'", "timeout_ms": "1000"}
SLACK_S = 0.1  # beyond the deadline, or a tenth of it


def opened(path: pathlib.Path) -> tarsdb.Connection:
    """Open a new file with what the calls need."""
    connection = tarsdb.connect(path, file_access=True)
    connection.execute("CREATE TABLE bigint_source (id INT PRIMARY KEY, x BIGINT)")
    connection.execute("CREATE TABLE text_source (id INT PRIMARY KEY, x TEXT)")
    connection.execute("INSERT INTO bigint_source VALUES (1, 1), (2, 2)")
    connection.execute("INSERT INTO text_source VALUES (1, 'some text'), (2, 'more')")
    connection.execute("CREATE TABLE log (name TEXT)")
    return connection


def limits(hostile: Hostile) -> dict[str, str]:
    """Return the limits a module is given; options of the entry come before those of all."""
    given = dict(item.split(" = ") for item in hostile.options.split(", ") if item)
    return {**OPTIONS, **given}


def create(
    db: tarsdb.Connection, hostile: Hostile, folder: pathlib.Path, given: Mapping[str, str]
) -> None:
    """Create function ``f`` with these options."""
    options = ", ".join(f"{name} = {value}" for name, value in given.items())
    head = f"CREATE OR REPLACE FUNCTION f(x {hostile.argument}) RETURNS {hostile.returns} " \
        "LANGUAGE wasm"  # fmt: skip
    if isinstance(hostile.code, str):
        text = hostile.code.replace("'", "''")
        db.execute(f"{head} AS '{text}' WITH ({options})")
        return
    (folder / "hostile.wasm").write_bytes(hostile.code)
    db.execute(f"CREATE OR REPLACE MODULE hostile FROM '{folder / 'hostile.wasm'}'")
    db.execute(f"{head} FROM hostile::f WITH ({options})")


def outcome(db: tarsdb.Connection, hostile: Hostile) -> tuple[str, float]:
    """Return what a call came to, in the words of ``Hostile.outcome``, and its seconds."""
    sql = f"SELECT f(x) FROM {hostile.argument.lower()}_source ORDER BY id"
    start = time.monotonic()
    try:
        rows = db.execute(sql).fetchall()
    except UdfTrapError as error:
        found = f"trap {error.code}"
    except UdfLimitError as error:
        found = f"limit {error.kind}"
    except UdfValidationError as error:
        found = f"refused late: {error}"
    except UdfError as error:
        found = f"error {error}"
    else:
        found = f"harmless {rows[0][0]}"
        assert len(rows) == 2
    return found, time.monotonic() - start


def agrees(found: str, wanted: str) -> bool:
    kind, _, words = wanted.partition(" ")
    exact = kind == "trap" or (kind == "harmless" and wanted != "harmless")
    return found == wanted if exact else found.startswith(kind) and words in found


def deadline(hostile: Hostile) -> float:
    return int(limits(hostile)["timeout_ms"]) / 1000


def late(seconds: float, hostile: Hostile) -> bool:
    limit = deadline(hostile)
    return seconds > limit + max(0.1 * limit, SLACK_S)


def check_transactions(db: tarsdb.Connection, hostile: Hostile, harmless: bool) -> None:
    """The statement is undone whole or kept whole, and the transaction around it goes on."""
    source = f"{hostile.argument.lower()}_source"
    db.execute("DELETE FROM log")
    db.execute("BEGIN")
    db.execute("INSERT INTO log VALUES ('before')")
    try:
        db.execute(f"INSERT INTO log SELECT 'inside' FROM {source} WHERE f(x) IS NOT NULL")
        done = True
    except UdfError:
        done = False
    assert done == harmless
    db.execute("INSERT INTO log VALUES ('after')")
    db.execute("COMMIT")
    kept = [name for (name,) in db.execute("SELECT name FROM log ORDER BY name").fetchall()]
    assert kept == ["after", "before", *["inside"] * (2 if done else 0)]
