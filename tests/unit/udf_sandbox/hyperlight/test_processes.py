"""Hyperlight's processes with a stand-in for its package: deadlines, deaths, snapshots, places.

The stand-in has the package's interface and runs what it is told, so these tests need no KVM.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import time

import pytest

from tarsdb.errors import InterruptError, UdfBackendError, UdfLimitError
from tarsdb.options import SandboxLimits
from tarsdb.udf_sandbox.hyperlight import aot, probe, processes
from tarsdb.udf_sandbox.hyperlight.processes import (
    GuestFailure,
    ProcessPool,
    SandboxProcess,
    SandboxSpec,
)
from tarsdb.udf_sandbox.limits import Budget, Call

STAND_IN = '''
import os, types

class WasmSandbox:
    """State is one number; texts are commands."""

    def __init__(self, *, module_path, heap_size, stack_size):
        self.artefact, self.state = open(module_path, "rb").read(), 0

    def run(self, text):
        if text == "hang":
            while True: pass
        if text == "die":
            os._exit(3)
        if text == "fail":
            raise RuntimeError("guest aborted")
        if text == "long":
            text = "x" * (1 << 21)
        self.state += 1
        said = self.artefact.decode() if text == "artefact" else f"{text} {self.state}"
        return types.SimpleNamespace(stdout=said, stderr="", exit_code=0)

    def snapshot(self): return self.state
    def restore(self, snapshot): self.state = snapshot
'''


@pytest.fixture(autouse=True)
def _stand_in(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hyperlight_sandbox_backend_wasm.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))


def call(seconds: float = 30.0) -> Call:
    return Call("f", SandboxLimits(timeout_ms=700), Budget(), 0, time.monotonic() + seconds)


def spec(key: str, *, restored: bool = True, definition: str | None = None) -> SandboxSpec:
    return SandboxSpec(key, f"code of {key}".encode(), "", 1, 1, "first", definition, restored)


def test_a_sandbox_gets_its_artefact_and_starts_anew_for_each_batch() -> None:
    process = SandboxProcess()
    try:
        for _ in range(2):
            number = process.ready(spec("a"), call())
            assert process.run(number, "artefact", call()) == "code of a"
            assert process.run(number, "x", call()) == "x 3"  # the first run was at loading
        kept = process.ready(spec("b", restored=False), call())
        assert process.run(kept, "x", call()) == "x 2"
        process.spare(kept)
        assert process.run(process.ready(spec("b", restored=False), call()), "x", call()) == "x 3"
    finally:
        process.kill()


def test_a_definition_runs_once_before_the_snapshot() -> None:
    process = SandboxProcess()
    try:
        defined = spec("a", definition="define")
        for _ in range(2):
            assert process.run(process.ready(defined, call()), "x", call()) == "x 3"
    finally:
        process.kill()


def test_a_definition_that_fails_leaves_nothing_behind() -> None:
    process = SandboxProcess()
    try:
        bad = spec("a", definition="fail")
        for _ in range(2):
            with pytest.raises(GuestFailure, match="guest aborted"):
                process.ready(bad, call())
            assert not process.holds("a")
        assert process.run(process.ready(spec("a"), call()), "x", call()) == "x 2"
    finally:
        process.kill()


def test_a_process_that_died_idle_is_replaced() -> None:
    pool = ProcessPool()
    try:
        with pool.lease("a", call()) as process:
            process.ready(spec("a"), call())
        os.kill(process.pid, signal.SIGKILL)
        process._process.wait()
        with pool.lease("a", call()) as fresh:
            assert fresh.pid != process.pid
            assert fresh.run(fresh.ready(spec("a"), call()), "x", call()) == "x 2"
    finally:
        pool.close()


def test_a_reply_of_any_size_is_not_believed() -> None:
    process = SandboxProcess()
    number = process.ready(spec("a"), call())
    with pytest.raises(UdfBackendError, match="died"):
        process.run(number, "long", call())


def test_a_failed_guest_is_restored_or_loaded_again() -> None:
    process = SandboxProcess()
    try:
        for restored in (True, False):
            kind = spec(f"f{restored}", restored=restored)
            with pytest.raises(GuestFailure, match="guest aborted"):
                process.run(process.ready(kind, call()), "fail", call())
            assert process.run(process.ready(kind, call()), "x", call()) == "x 2"
    finally:
        process.kill()


def test_a_hang_ends_at_the_deadline_with_its_process() -> None:
    process = SandboxProcess()
    number = process.ready(spec("a"), call())
    late = call(0.7)
    began = time.monotonic()
    with pytest.raises(UdfLimitError, match="timeout_ms = 700"):
        process.run(number, "hang", late)
    assert time.monotonic() - began < 0.7 + 0.3
    assert not process.alive


def test_a_hang_ends_by_itself_when_nobody_kills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the parent be gone: the alarm ends the process soon after the deadline."""
    monkeypatch.setattr(processes, "GRACE_S", 0.1)
    process = SandboxProcess()
    number = process.ready(spec("a"), call())
    monkeypatch.setattr(Call, "must_stop", lambda self: False)
    with pytest.raises(UdfBackendError, match=f"process {process.pid} died"):
        process.run(number, "hang", call(0.5))


def test_an_interrupt_ends_a_hang() -> None:
    process = SandboxProcess()
    number, stopped = process.ready(spec("a"), call()), call()
    stopped.interrupt()
    with pytest.raises(InterruptError):
        process.run(number, "hang", stopped)
    assert not process.alive


def test_a_death_is_a_typed_error_and_the_pool_refills() -> None:
    pool = ProcessPool()
    try:
        with pytest.raises(UdfBackendError, match="exit 3"), pool.lease("a", call()) as process:
            process.run(process.ready(spec("a"), call()), "die", call())
        with pool.lease("a", call()) as process:
            assert process.run(process.ready(spec("a"), call()), "x", call()) == "x 2"
            first = process
        with pool.lease("a", call()) as process:
            assert process is first and process.holds("a")
    finally:
        pool.close()


def test_a_full_pool_waits_no_longer_than_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MAX_PROCESSES", 1)
    pool = ProcessPool()
    try:
        with pool.lease("a", call()), pytest.raises(UdfLimitError), pool.lease("b", call(0.1)):
            pass
        with pool.lease("b", call(1.0)):
            pass
    finally:
        pool.close()


def test_a_process_keeps_so_many_sandboxes_and_drops_the_oldest() -> None:
    process = SandboxProcess()
    try:
        for number in range(processes.MAX_SANDBOXES + 1):
            process.ready(spec(str(number)), call())
        assert not process.holds("0") and process.holds("1")
        assert process.run(process.ready(spec("0"), call()), "x", call()) == "x 2"
    finally:
        process.kill()


def test_loading_is_not_the_functions_time() -> None:
    process, counted = SandboxProcess(), call(0.0)
    try:
        with pytest.raises(UdfLimitError):  # user code has no time left
            process.ready(spec("a", definition="define"), counted)
        assert counted.waited > 0.0
    finally:
        process.kill()


def test_why_hyperlight_is_not_available(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_PACKAGE", "no-such-package")
    assert "no-such-package is not installed" in probe.unavailable.__wrapped__()
    monkeypatch.setattr(probe, "_PACKAGE", "numpy")
    assert "tarsdb is built for 0.8.0" in probe.unavailable.__wrapped__()
    monkeypatch.setattr(probe, "_missing_package", lambda: "")
    monkeypatch.setattr(probe, "_DEVICE", tmp_path / "kvm")
    assert "does not exist" in probe.unavailable.__wrapped__()


def test_the_compiler_must_be_the_pinned_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(aot.COMPILER_VARIABLE, str(tmp_path))
    with pytest.raises(UdfBackendError, match=r"36\.0\.0, which is not in") as caught:
        aot.compiler_library()
    assert f"--target {tmp_path} wasmtime==36.0.0" in (caught.value.hint or "")
    library = tmp_path / "wasmtime" / "linux-x86_64" / "_libwasmtime.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"another")
    with pytest.raises(UdfBackendError, match="has sha256"):
        aot.compiler_library()


def test_an_artefact_of_another_engine_is_refused() -> None:
    """The smallest ELF file with an engine record: one section, its name, its bytes."""
    names = b"\0.wasmtime.engine\0.shstrtab\0"
    record = b"\0\x0636.0.1"
    table = 64 + len(record) + len(names)
    head = bytearray(64)
    head[0x28:0x30] = table.to_bytes(8, "little")
    head[0x3A:0x40] = b"\x40\0\x02\0\x01\0"
    sections = b""
    for name, at, size in ((1, 64, len(record)), (18, 64 + len(record), len(names))):
        entry = bytearray(64)
        entry[0:4] = name.to_bytes(4, "little")
        entry[24:32], entry[32:40] = at.to_bytes(8, "little"), size.to_bytes(8, "little")
        sections += entry
    with pytest.raises(UdfBackendError, match="engine record has sha256"):
        aot.for_guest(bytes(head) + record + names + sections)
    assert b"36.0.14" in aot.guest_record()


def test_workers_search_where_this_process_does(tmp_path: pathlib.Path) -> None:
    """The stand-in is on this process's path only."""
    assert str(tmp_path) in sys.path
