"""Every hostile module, from SQL and inside a transaction: a typed error in time, nothing lost.

On each backend that needs no virtual machine; a module that is refused reaches none.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator

import pytest

import tarsdb
from tarsdb.errors import UdfLimitError, UdfValidationError
from tests.sandbox.hostile_calls import (
    agrees,
    check_transactions,
    create,
    deadline,
    late,
    limits,
    opened,
    outcome,
)  # fmt: skip
from tests.sandbox.hostile_modules import CORPUS, GROUPS, Hostile, scalar
from tests.sandbox.tame_modules import TAME

BACKENDS = ("wasmtime", "worker")
ATTEMPTS = 3  # at being in time, on a busy machine


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tarsdb.Connection]:
    with opened(tmp_path_factory.mktemp("hostile") / "hostile.tars") as connection:
        yield connection


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
    given = limits(hostile) | {"backend": f"'{backend}'"}
    if hostile.outcome == "refused":
        before = db.execute("SELECT name FROM tars_functions ORDER BY name").fetchall()
        with pytest.raises(UdfValidationError):
            create(db, hostile, tmp_path, given)
        assert db.execute("SELECT name FROM tars_functions ORDER BY name").fetchall() == before
        return
    try:
        create(db, hostile, tmp_path, given)
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


def test_the_corpus_is_large_and_has_every_outcome() -> None:
    names = [hostile.name for hostile in CORPUS]
    assert len(names) == len(set(names)) >= 120
    kinds = {hostile.outcome.split(" ")[0] for hostile in CORPUS}
    assert kinds == {"refused", "trap", "limit", "error", "harmless"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "tame", [pytest.param(tame, id=tame.name) for group in TAME.values() for tame in group]
)
def test_tame_module(
    db: tarsdb.Connection, tame: Hostile, backend: str, tmp_path: pathlib.Path
) -> None:
    """Control: what a hostile module does is answered as long as it stays within bounds."""
    create(db, tame, tmp_path, limits(tame) | {"backend": f"'{backend}'"})
    found, seconds = outcome(db, tame)
    assert agrees(found, tame.outcome)
    assert seconds <= deadline(tame)
    check_transactions(db, tame, True)


def test_every_kind_has_tame_modules() -> None:
    assert list(TAME) == list(GROUPS)
    assert {tame.outcome.split(" ")[0] for group in TAME.values() for tame in group} == {"harmless"}


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
    create(db, slow, tmp_path, limits(slow))
    found, seconds = outcome(db, slow)
    assert found == "limit time" and late(seconds, quick) and not late(0.2, quick)
    assert math.isclose(deadline(slow), 0.6)


def test_transaction_control(db: tarsdb.Connection, tmp_path: pathlib.Path) -> None:
    """The check of transactions fails when a hostile statement is taken for a harmless one."""
    trapping = Hostile("", scalar("unreachable"), "")
    create(db, trapping, tmp_path, limits(trapping))
    with pytest.raises(AssertionError):
        check_transactions(db, Hostile("", "", ""), True)
    db.execute("ROLLBACK")
