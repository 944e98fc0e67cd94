"""Settings every test shares: hypothesis profiles, and where optional outside data lies."""

from __future__ import annotations

import gc
import os
import pathlib
import signal

import hypothesis
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Loaded machines make per-example deadlines flaky; a failing example is printed to be repeated.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=2_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Tests press Ctrl-C; a run in the background of a shell is born deaf to it, and so its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Return the folder of optional outside data; the test skips where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    return folder


def pytest_collection_finish() -> None:
    """Let the garbage collector look only at what tests make: what is collected stays."""
    gc.collect()
    gc.freeze()
