"""Compiling in a child process: confined, timed, let go, and the same code as compiled here."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tarsdb.errors import InterruptError, UdfValidationError
from tarsdb.metrics import METRICS
from tarsdb.udf_sandbox import stoppable, to_wasm
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
    assert is_gone(pid)
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


def test_a_compilation_that_is_to_stop_ends_at_once(compiler: compilation.Compiler) -> None:
    compiler.compile("wasmtime", CODE)
    assert compiler._child is not None
    pid, asked = compiler._child.pid, threading.Event()
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.1, asked.set).start()
    began = time.monotonic()
    with stoppable(asked.is_set), pytest.raises(InterruptError, match="compiled"):
        compiler.compile("wasmtime", CODE)
    assert 0.1 <= time.monotonic() - began < 2
    assert is_gone(pid)
    assert compiler.compile("wasmtime", CODE)  # nobody asks any more


def test_one_that_waits_for_its_turn_is_to_stop_too(compiler: compilation.Compiler) -> None:
    with compiler._lock, stoppable(lambda: True):  # another thread compiles
        began = time.monotonic()
        with pytest.raises(InterruptError):
            compiler.compile("wasmtime", CODE)
        assert time.monotonic() - began < 2
    assert compiler.compile("wasmtime", CODE)


def test_ctrl_c_lets_the_child_go(compiler: compilation.Compiler) -> None:
    def interrupted() -> bool:
        raise KeyboardInterrupt

    compiler.compile("wasmtime", CODE)
    assert compiler._child is not None
    pid = compiler._child.pid
    os.kill(pid, signal.SIGSTOP)
    with stoppable(interrupted), pytest.raises(KeyboardInterrupt):
        compiler.compile("wasmtime", CODE)
    assert is_gone(pid)
    assert compiler.compile("wasmtime", CODE)


def is_gone(pid: int) -> bool:
    """Wait for a process to end."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


SQL = """
import os, signal, sys, threading, time
import tarsdb
from tarsdb.udf_sandbox.modules import compilation
from tests.sandbox.test_worker import PLUS_ONE
ready = compilation.Compiler._ready
children = []
def stopped(self):
    child = ready(self)
    os.kill(child.pid, signal.SIGSTOP)  # as one that compiles for long
    children.append(child.pid)
    return child
compilation.Compiler._ready = stopped
sql, way = sys.argv[2:]
def end():
    while not children:
        time.sleep(0.01)
    time.sleep(0.1)
    times.append(time.monotonic())
    if way == "signal":
        os.kill(os.getpid(), signal.SIGINT)
    else:
        db.interrupt()
times = []
with tarsdb.connect(sys.argv[1]) as db:
    db.execute(f"CREATE FUNCTION f(n BIGINT) RETURNS BIGINT LANGUAGE wasm AS '{PLUS_ONE}'")
    db.execute("CREATE TABLE t (n BIGINT)")
    db.execute("INSERT INTO t VALUES (1), (2)")
    threading.Thread(target=end).start()
    try:
        print(db.execute(sql).fetchall())
    except (tarsdb.errors.InterruptError, KeyboardInterrupt) as error:
        print(type(error).__name__, time.monotonic() - times[0] < 5)
    compilation.Compiler._ready = ready
    print(db.execute(sql).fetchall())
"""


@pytest.mark.parametrize(
    ("sql", "way", "error"),
    [
        ("SELECT f(n) FROM t", "call", "InterruptError"),
        ("SELECT f(n) FROM t", "signal", "KeyboardInterrupt"),
        ("SELECT sum(f(n) + 0) FROM t GROUP BY n % 1", "call", "InterruptError"),
        ("SELECT sum(f(n) + 0) FROM t GROUP BY n % 1", "signal", "InterruptError"),  # in DuckDB
    ],
)
def test_a_statement_is_interrupted_while_it_compiles(
    tmp_path: pathlib.Path, sql: str, way: str, error: str
) -> None:
    root = str(pathlib.Path(__file__).resolve().parents[4])
    done = subprocess.run(
        [sys.executable, "-c", SQL, str(tmp_path / "a.tars"), sql, way],
        capture_output=True, text=True, timeout=120, check=False, cwd=root,
        env={"PYTHONPATH": root, "PATH": "", "TARSDB_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    answer = "[(2,), (3,)]" if "sum" not in sql else "[(5,)]"
    told = done.stdout.splitlines()[-2:]  # DuckDB may show its progress before
    assert told == [f"{error} True", answer], done.stderr
