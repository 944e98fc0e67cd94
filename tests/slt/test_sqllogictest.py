"""SQLite's own logic tests, through a tarsdb connection on tarsdb's storage."""

from __future__ import annotations

import pathlib

import pytest

from tests.conftest import ROOT
from tests.slt import runner

FOLDER = ROOT.parent / "shared" / "data" / "sqllogictest"
SELECTS = ("select1.test", "select2.test", "select3.test")
RANDOM = sorted(path.name for path in (FOLDER / "random").glob("*.test"))
SAMPLE = 250
RANDOM_RATE = 0.998

needs_files = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="no ../shared/data/sqllogictest beside the checkout"
)


def _report(outcome: runner.Outcome) -> str:
    return "\n".join([str(outcome), *outcome.failures[:5]])


@needs_files
@pytest.mark.parametrize("name", SELECTS)
def test_select_files_agree(name: str) -> None:
    outcome = runner.run_file(FOLDER / name)
    assert outcome.total > 900
    assert not outcome.failures, _report(outcome)


@needs_files
@pytest.mark.parametrize("name", RANDOM)
def test_sample_of_random_files_agrees(name: str) -> None:
    outcome = runner.run_file(FOLDER / "random" / name, sample=SAMPLE)
    assert outcome.total >= SAMPLE
    assert outcome.rate_where_postgresql_answers >= RANDOM_RATE, _report(outcome)


@needs_files
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", RANDOM)
def test_random_files_agree(name: str) -> None:
    outcome = runner.run_file(FOLDER / "random" / name)
    assert outcome.rate_where_postgresql_answers >= RANDOM_RATE, _report(outcome)


def test_a_wrong_answer_is_counted(tmp_path: pathlib.Path) -> None:
    text = "query I nosort\nSELECT 1\n----\n2\n\nstatement error\nSELECT 1\n\nstatement ok\nSELEC\n"
    outcome = runner.run_text("wrong", text)
    assert len(outcome.failures) == 3
    assert outcome.passed == 0
