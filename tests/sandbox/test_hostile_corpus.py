"""Every hostile module, from SQL and inside a transaction: a typed error in time, nothing lost.

On each backend that needs no virtual machine; a module that is refused reaches none.
"""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Iterator

import pytest

import tarsdb
from tarsdb.errors import UdfError, UdfLimitError, UdfTrapError, UdfValidationError
from tests.sandbox.hostile_modules import CORPUS, Hostile, scalar

OPTIONS = {"fuel": "2000000", "fuel_per_row": "1000", "max_memory": "'16MB'", "timeout_ms": "1000"}
BACKENDS = ("wasmtime", "worker")
SLACK_S = 0.1  # beyond the deadline, or a tenth of it
ATTEMPTS = 3  # at being in time, on a busy machine


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tarsdb.Connection]:
    path = tmp_path_factory.mktemp("hostile") / "hostile.tars"
    with tarsdb.connect(path, file_access=True) as connection:
        connection.execute("CREATE TABLE bigint_source (id INT PRIMARY KEY, x BIGINT)")
        connection.execute("CREATE TABLE text_source (id INT PRIMARY KEY, x TEXT)")
        connection.execute("INSERT INTO bigint_source VALUES (1, 1), (2, 2)")
        connection.execute("INSERT INTO text_source VALUES (1, 'some text'), (2, 'more')")
        connection.execute("CREATE TABLE log (name TEXT)")
        yield connection


def create(
    db: tarsdb.Connection, hostile: Hostile, folder: pathlib.Path, backend: str = "wasmtime"
) -> None:
    """Create function ``f``; options of the entry come before those of the tests."""
    given = dict(item.split(" = ") for item in hostile.options.split(", ") if item)
    chosen = {**OPTIONS, **given, "backend": f"'{backend}'"}
    options = ", ".join(f"{name} = {value}" for name, value in chosen.items())
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
    given = dict(item.split(" = ") for item in hostile.options.split(", ") if item)
    return int({**OPTIONS, **given}["timeout_ms"]) / 1000


def late(seconds: float, hostile: Hostile) -> bool:
    limit = deadline(hostile)
    return seconds > limit + max(0.1 * limit, SLACK_S)


@pytest.mark.parametrize(
    ("hostile", "backend"),
    [
        pytest.param(hostile, backend, id=f"{hostile.name}-{backend}")
        for hostile in CORPUS
        for backend in (BACKENDS if hostile.outcome != "refused" else BACKENDS[:1])
    ],
)
def test_hostile_module(
    db: tarsdb.Connection, hostile: Hostile, backend: str, tmp_path: pathlib.Path
) -> None:
    if hostile.outcome == "refused":
        before = db.execute("SELECT name FROM tars_functions ORDER BY name").fetchall()
        with pytest.raises(UdfValidationError):
            create(db, hostile, tmp_path, backend)
        assert db.execute("SELECT name FROM tars_functions ORDER BY name").fetchall() == before
        return
    try:
        create(db, hostile, tmp_path, backend)
    except UdfLimitError as error:  # its memory starts too large
        assert hostile.outcome == f"limit {error.kind}"
        return
    found, seconds = outcome(db, hostile)
    assert agrees(found, hostile.outcome)
    attempts = 1
    while late(seconds, hostile) and attempts < ATTEMPTS:
        attempts += 1
        seconds = min(seconds, outcome(db, hostile)[1])
    assert not late(seconds, hostile)
    check_transactions(db, hostile, found.startswith("harmless"))


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


def test_the_corpus_is_large_and_has_every_outcome() -> None:
    names = [hostile.name for hostile in CORPUS]
    assert len(names) == len(set(names)) >= 120
    kinds = {hostile.outcome.split(" ")[0] for hostile in CORPUS}
    assert kinds == {"refused", "trap", "limit", "error", "harmless"}


CONTROLS = {
    "a trap where another was meant": ("trap UNREACHABLE", "trap STACK_OVERFLOW"),
    "an answer where a trap was meant": ("harmless 1", "trap UNREACHABLE"),
    "a wrong answer": ("harmless 2", "harmless 1"),
    "another limit": ("limit fuel", "limit time"),
    "another message": ("error row 1 is no DATE", "error decrease"),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_outcome_control(name: str) -> None:
    assert not agrees(*CONTROLS[name])


def test_lateness_control(db: tarsdb.Connection, tmp_path: pathlib.Path) -> None:
    """A guest that runs on for three deadlines would be late."""
    loop = "(loop $l (br $l))"
    slow = Hostile("", scalar(loop), "", options="fuel = 4000000000000, timeout_ms = 600")
    quick = Hostile("", scalar(loop), "", options="fuel = 4000000000000, timeout_ms = 200")
    create(db, slow, tmp_path)
    found, seconds = outcome(db, slow)
    assert found == "limit time" and late(seconds, quick) and not late(0.2, quick)
    assert math.isclose(deadline(slow), 0.6)


def test_transaction_control(db: tarsdb.Connection, tmp_path: pathlib.Path) -> None:
    """The check of transactions fails when a hostile statement is taken for a harmless one."""
    create(db, Hostile("", scalar("unreachable"), ""), tmp_path)
    with pytest.raises(AssertionError):
        check_transactions(db, Hostile("", "", ""), True)
    db.execute("ROLLBACK")
