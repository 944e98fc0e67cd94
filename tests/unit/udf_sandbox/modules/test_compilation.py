"""Compiling in a child process: confined, timed, let go, and the same code as compiled here."""

from __future__ import annotations

import os
import pathlib
import signal
import time
from collections.abc import Iterator

import pytest

from tarsdb.errors import UdfValidationError
from tarsdb.metrics import METRICS
from tarsdb.udf_sandbox import to_wasm
from tarsdb.udf_sandbox.modules import compilation
from tarsdb.udf_sandbox.modules.artefacts import ArtefactCache
from tests.sandbox.wasm_text import DEMO, IDENTITY

CODE = to_wasm(IDENTITY)


@pytest.fixture
def compiler() -> Iterator[compilation.Compiler]:
    made = compilation.Compiler()
    yield made
    made.close()


@pytest.mark.parametrize("name", ["wasmtime", "any-nan", "worker"])
def test_the_child_makes_what_this_process_would(compiler: compilation.Compiler, name: str) -> None:
    for code in (CODE, to_wasm((DEMO / "textkit.wat").read_text())):
        assert compiler.compile(name, code) == compilation._compiled_here(name, code)


@pytest.mark.skipif(
    not pathlib.Path("/proc/sys/kernel/seccomp").exists(), reason="this kernel filters no calls"
)
def test_the_child_is_confined(compiler: compilation.Compiler) -> None:
    compiler.compile("wasmtime", CODE)
    assert compiler._child is not None
    folder = pathlib.Path(f"/proc/{compiler._child.pid}")
    assert "Seccomp:\t2" in (folder / "status").read_text()
    limits = {line[:25].strip(): line[26:].split()[0]
              for line in (folder / "limits").read_text().splitlines()}  # fmt: skip
    assert int(limits["Max address space"]) < 2 << 30
    assert int(limits["Max cpu time"]) == 600
    for name in ("Max open files", "Max processes", "Max file size"):
        assert limits[name] == "0", name


def test_a_module_that_does_not_compile(compiler: compilation.Compiler) -> None:
    with pytest.raises(UdfValidationError, match="does not compile"):
        compiler.compile("wasmtime", b"\0asm\1\0\0\0\xff")
    assert compiler.compile("wasmtime", CODE)  # by the same child


@pytest.mark.parametrize("size", [0, 4 << 20], ids=["asked", "not even reading"])
def test_a_compiler_that_hangs_is_killed(
    compiler: compilation.Compiler, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    compiler.compile("wasmtime", CODE)
    assert compiler._child is not None
    pid = compiler._child.pid
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(compilation, "SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(UdfValidationError, match="takes longer than 0"):
        compiler.compile("wasmtime", CODE + bytes(size))
    assert time.monotonic() - began < 2
    end = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < end:
            os.kill(pid, 0)
            time.sleep(0.01)
    monkeypatch.undo()
    assert compiler.compile("wasmtime", CODE)


def test_a_compiler_that_dies_is_an_error_of_the_module(compiler: compilation.Compiler) -> None:
    compiler.compile("wasmtime", CODE)
    child = compiler._child
    assert child is not None
    send = child._send

    def send_and_die(data: bytes, end: float, descriptor: int | None = None) -> None:
        os.kill(child.pid, signal.SIGSTOP)
        send(data, end, descriptor)
        os.kill(child.pid, signal.SIGKILL)

    child._send = send_and_die  # type: ignore[method-assign]
    with pytest.raises(UdfValidationError, match="ended its compiler"):
        compiler.compile("wasmtime", CODE)
    assert compiler.compile("wasmtime", CODE)


def test_the_child_is_let_go(
    compiler: compilation.Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "LINGER_S", 0.1)
    compiler.compile("wasmtime", CODE)
    end = time.monotonic() + 10
    while compiler._child is not None and time.monotonic() < end:
        time.sleep(0.02)
    assert compiler._child is None


def test_where_no_child_can_be_this_process_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = compilation._compiled_here("wasmtime", CODE)
    monkeypatch.setattr(compilation, "unavailable", lambda: "no interpreter")
    monkeypatch.setattr(compilation, "artefacts", lambda: ArtefactCache(None))
    before = METRICS.snapshot().get("udf.compiled_here", 0)
    assert compilation.native_code("wasmtime", CODE) == expected
    assert METRICS.snapshot()["udf.compiled_here"] == before + 1
