"""Kernels compiled behind searches: none yet, ready, or never."""

from __future__ import annotations

import os

import pytest

from tarsdb.kernels import background, dispatch, graph, ivf


def test_both_are_ready_after_waiting() -> None:
    for module in (graph, ivf):
        found = module.wait()
        assert found is not None
        assert module.current() is found


def test_a_module_that_cannot_be_compiled_is_none_for_good() -> None:
    compiled = background.Compiled("absent", dict)
    assert compiled.current() is None
    assert compiled.wait() is None
    assert compiled._known == {dispatch.level(): None}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_parent_was_compiling_is_not_waited_for() -> None:
    compiled = background.Compiled("ivf", ivf.IvfKernels)
    compiled._threads[dispatch.level()] = background.threading.Thread()  # as if it had begun
    child = os.fork()
    if child == 0:
        os._exit(0 if compiled.current() is None and compiled.wait() is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
