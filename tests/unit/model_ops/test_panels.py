from __future__ import annotations

import threading

import numpy as np
import pytest

from tarsdb.model_ops import blas_threads
from tarsdb.model_ops.panels import cut_panels, run_panels


@pytest.mark.parametrize("seed", range(5))
def test_panels_hold_every_text_once_within_the_limit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 300, size=200)
    panels = cut_panels(lengths, 2, limit=256)
    assert sorted(np.concatenate(panels).tolist()) == list(range(200))
    for panel in panels:
        assert lengths[panel].sum() <= 256 or len(panel) == 1
    assert lengths[panels[0]].max() == lengths.max()


def test_a_small_batch_is_shared_between_threads() -> None:
    assert [len(panel) for panel in cut_panels(np.full(8, 10), 2)] == [4, 4]
    assert len(cut_panels(np.full(8, 10), 1)) == 1
    assert len(cut_panels(np.array([500]), 2)) == 1
    assert cut_panels(np.array([], np.int64), 2) == []


def test_all_panels_run_and_are_counted() -> None:
    seen: list[int] = []
    reports: list[int] = []
    panels = [np.array([n]) for n in range(20)]
    run_panels(panels, lambda panel: seen.append(int(panel[0])) or 3, 2, reports.append)
    assert sorted(seen) == list(range(20))
    assert reports == sorted(reports)
    assert all(done % 3 == 0 for done in reports)


def test_an_error_of_a_helper_thread_is_raised_here() -> None:
    caller = threading.get_ident()
    failed = threading.Event()

    def work(panel: np.ndarray) -> int:
        if threading.get_ident() != caller:
            failed.set()
            raise ZeroDivisionError("in a helper")
        failed.wait(10)
        return 1

    with pytest.raises(ZeroDivisionError, match="helper"):
        run_panels([np.array([n]) for n in range(50)], work, 2, lambda done: None)


def test_blas_threads_are_restored() -> None:
    if not blas_threads.controllable():
        pytest.skip("this NumPy brings no OpenBLAS of its own")
    blas, suffix = blas_threads._library()  # type: ignore[misc]
    count = blas[f"scipy_openblas_get_num_threads{suffix}"]
    before = count()
    with blas_threads.single_threaded(), blas_threads.single_threaded():
        assert count() == 1
    assert count() == before
