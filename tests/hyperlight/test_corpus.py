"""Every hostile module that is not refused, in micro virtual machines and inside a transaction.

The same modules and the same checks as ``tests/sandbox/test_hostile_corpus.py``. Two outcomes have
other names here: fuel is not counted, so a loop ends by its time; and the guest's runtime often
does not tell one trap from another.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pytest

import tarsdb
from tarsdb.errors import UdfLimitError
from tests.sandbox.hostile_calls import agrees, check_transactions, create, opened, outcome
from tests.sandbox.hostile_modules import CORPUS, Hostile, scalar

HANG_MS = 6_000 if os.environ.get("TARSDB_EMULATED") else 1_000  # loading counts too
OTHERWISE_MS = 60_000
MEMORY, LARGER = "'2MB'", "'8MB'"  # the second for modules that start with so much
FINITE = {"memory that grows and is written all over"}
"""What ends by fuel elsewhere and here by itself."""
FINE = scalar("").replace('"f"', '"fine"')
RUNNING = [hostile for hostile in CORPUS if hostile.outcome != "refused"]


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tarsdb.Connection]:
    with opened(tmp_path_factory.mktemp("hostile") / "hostile.tars") as connection:
        connection.execute(
            f"CREATE FUNCTION fine(x BIGINT) RETURNS BIGINT LANGUAGE wasm AS '{FINE}' "
            "WITH (backend = 'hyperlight', max_memory = '2MB', timeout_ms = 60000)"
        )
        yield connection


def wanted(hostile: Hostile) -> str:
    """Return what a module comes to here: all traps are one, and all endless work ends by time."""
    kind, _, words = hostile.outcome.partition(" ")
    if hostile.name in FINITE:
        return "harmless 1"
    if kind == "trap":
        return "trap"
    return "limit time" if kind == "limit" and words != "memory" else hostile.outcome


def stopped_as(found: str) -> str:
    """Return an outcome without the trap's name."""
    return "trap" if found.startswith("trap ") else found


@pytest.mark.parametrize("hostile", RUNNING, ids=lambda hostile: hostile.name)
def test_hostile_module(db: tarsdb.Connection, hostile: Hostile, tmp_path: pathlib.Path) -> None:
    hangs = wanted(hostile) == "limit time"
    given = {
        "backend": "'hyperlight'", "timeout_ms": str(HANG_MS if hangs else OTHERWISE_MS),
        "max_memory": LARGER if "(memory 128)" in str(hostile.code) else MEMORY,
    }  # fmt: skip
    try:
        create(db, hostile, tmp_path, given)
    except UdfLimitError as error:  # its memory starts too large
        assert hostile.outcome == f"limit {error.kind}"
        return
    found, _ = outcome(db, hostile)
    assert agrees(stopped_as(found), wanted(hostile)), found
    check_transactions(db, hostile, found.startswith("harmless"))
    assert db.execute("SELECT fine(x) FROM bigint_source ORDER BY id").fetchall() == [(1,), (2,)]


def test_the_whole_corpus_is_here() -> None:
    assert len(RUNNING) >= 80


@pytest.mark.parametrize(
    ("found", "hostile"),
    [("harmless 1", "trap UNREACHABLE"), ("limit time", "trap UNREACHABLE"),
     ("trap SANDBOX_STOPPED", "limit fuel"), ("harmless 2", "harmless 1"),
     ("error its Hyperlight process 7 died", "limit memory")],
)  # fmt: skip
def test_outcome_control(found: str, hostile: str) -> None:
    assert not agrees(stopped_as(found), wanted(Hostile("", "", hostile)))
