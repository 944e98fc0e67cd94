"""Threads that run a kernel together: the team, and where its threads wait for each other."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from tarsdb.kernels.native import address
from tarsdb.kernels.packing import aligned
from tarsdb.kernels.team import Team, yielding


def test_every_part_runs_once_on_a_thread_of_its_own() -> None:
    team, seen = Team(), []
    meeting = threading.Barrier(3, timeout=20)

    def call(part: int, parts: int) -> None:
        meeting.wait()
        seen.append((part, parts, threading.get_ident()))

    for _ in range(2):  # threads are kept
        team.run(call, 3)
    assert sorted(seen)[::2] == sorted(seen)[1::2]
    assert [(part, parts) for part, parts, _ in sorted(seen)[::2]] == [(0, 3), (1, 3), (2, 3)]
    assert len({ident for _, _, ident in seen}) == 3
    assert all(ident == threading.get_ident() for part, _, ident in seen if part == 0)


def test_its_threads_end_with_the_team() -> None:
    before = threading.active_count()
    team = Team()
    team.run(lambda part, parts: None, 4)
    threads = [t for t in threading.enumerate() if t.name == "tarsdb-team"]
    assert len(threads) >= 3
    del team
    for thread in threads:
        thread.join(20)
    assert threading.active_count() <= before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_starts_threads_of_its_own() -> None:
    team = Team()
    team.run(lambda part, parts: None, 2)
    child = os.fork()
    if child == 0:
        done: list[int] = []
        team.run(lambda part, parts: done.append(part), 2)
        os._exit(0 if sorted(done) == [0, 1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_wait_for_each_other() -> None:
    """Threads fill a row in turns; without a barrier one would see what is not there yet."""
    numba = pytest.importorskip("numba")
    from tarsdb.kernels.cpu.barrier import BARRIER_BYTES, wait_for_all
    from tarsdb.kernels.cpu.memory import put_long, read_long

    @numba.njit(nogil=True)
    def rounds(part, parts, memory, cells, count, sched_yield):
        wrong = 0
        for number in range(1, count + 1):
            put_long(cells, 8 * part, number)
            wait_for_all(memory, parts, sched_yield)
            for other in range(parts):
                wrong += read_long(cells, 8 * other) != number
            wait_for_all(memory, parts, sched_yield)
        put_long(cells, 8 * part + 1, wrong)

    memory, cells = aligned(BARRIER_BYTES), np.zeros((3, 8), np.int64)
    rounds(0, 1, address(memory), address(cells), 3, 0)
    Team().run(
        lambda part, parts: rounds(part, parts, address(memory), address(cells), 2000, yielding()),
        3,
    )
    assert cells[:, 0].tolist() == [2000] * 3
    assert cells[:, 1].tolist() == [0] * 3
