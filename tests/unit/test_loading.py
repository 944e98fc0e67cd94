"""The collector is paused while modules load, and is then as it was."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from tarsdb.loading import collector_paused


@pytest.fixture(autouse=True)
def running() -> Iterator[None]:
    was_running, was_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.enable()
    yield
    gc.unfreeze()
    if was_frozen:
        gc.freeze()
    (gc.enable if was_running else gc.disable)()


class Ring:
    def __init__(self) -> None:
        self.me = self


def test_pauses_and_goes_on() -> None:
    with collector_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), collector_paused():
        raise KeyError
    assert gc.isenabled()


def test_a_collector_switched_off_stays_off() -> None:
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


def test_nothing_stays_frozen_and_rubbish_is_found() -> None:
    with collector_paused():
        kept = [Ring() for _ in range(2000)]
        seen = weakref.ref(Ring())
    assert len(kept) > gc.get_threshold()[0]
    assert gc.get_freeze_count() == 0
    assert seen() is not None
    gc.collect(1)
    assert seen() is not None, "it counts as old"
    gc.collect()
    assert seen() is None


def test_what_the_program_froze_stays_frozen() -> None:
    gc.freeze()
    count = gc.get_freeze_count()
    with collector_paused():
        pass
    assert gc.get_freeze_count() >= count - 10  # some of it may have died
    assert count > 1000


def test_a_block_that_makes_nothing_does_not_count_what_is_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(gc, "get_freeze_count", lambda: asked.append(1) or 0)
    with collector_paused():
        import json  # noqa: F401  # it is there
    assert asked == []
    with collector_paused():
        kept = [Ring() for _ in range(2000)]
    assert asked == [1] and kept


def test_a_first_query_collects_little() -> None:
    script = (
        "import gc, tarsdb\n"
        "gc.collect()\n"
        "before = [each['collections'] for each in gc.get_stats()]\n"
        "tarsdb.connect().execute('SELECT 1').fetchall()\n"
        "after = [each['collections'] for each in gc.get_stats()]\n"
        "print(after[2] - before[2], gc.isenabled(), gc.get_freeze_count())"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["0", "True", "0"]
