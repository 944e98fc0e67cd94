"""Mutated modules in child processes: nothing they do ends the process or escapes untyped."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def child(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def outcomes(
    seed: int, count: int, control: str = "", timeout: float = 300, backend: str = "wasmtime"
) -> dict[str, int]:
    """Run mutated modules in a child; raise AssertionError when it dies, hangs or reports harm."""
    arguments = ["-m", "tests.sandbox.fuzz_modules", str(seed), str(count), control, backend]
    try:
        result = child(*arguments, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"seed {seed} hung") from error
    assert result.returncode == 0, (
        f"seed {seed} died ({result.returncode}): {result.stderr[-2000:]}"
    )
    seen: dict[str, int] = ast.literal_eval(result.stdout)
    harm = {kind: seen[kind] for kind in ("leaked", "late", "torn") if seen.get(kind)}
    assert not harm, f"seed {seed}: {harm}"
    return seen


@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_modules(seed: int) -> None:
    seen = outcomes(seed, 1000)
    assert sum(seen.values()) - seen["statements"] == 1000
    # The mutations reach every stage: the validator, the guest, its traps, statements.
    assert seen["refused"] > 50 and seen["ran"] > 20 and seen["UdfTrapError"] > 5
    assert seen["statements"] > 10


def test_mutated_modules_in_workers() -> None:
    """Every module that is accepted runs in a process of its own, so these are fewer."""
    seen = outcomes(4, 60, backend="worker")
    assert seen["refused"] > 5 and seen["ran"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30, 32))
def test_many_mutated_modules_in_workers(seed: int) -> None:
    outcomes(seed, 1000, timeout=590, backend="worker")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_many_mutated_modules(seed: int) -> None:
    outcomes(seed, 3000)


@pytest.mark.parametrize(
    ("control", "words"),
    [("dead", "died"), ("hung", "hung"), ("leaked", "leaked"), ("late", "late"), ("torn", "torn")],
)
def test_harm_control(control: str, words: str) -> None:
    """What the tests above look for is noticed when it happens."""
    with pytest.raises(AssertionError, match=words):
        outcomes(3, 120, control, timeout=8 if control == "hung" else 300)


STACK = """
import threading
from tarsdb.columns import from_list
from tarsdb.errors import UdfTrapError
from tarsdb.types import BIGINT
from tarsdb.udf_sandbox import ScalarFunction, to_wasm
from tarsdb.udf_sandbox.in_process import stacks
{patch}
code = to_wasm('(module (func $f (export "f") (param i64) (result i64) '
               '(i64.add (i64.const 1) (call $f (local.get 0)))))')
function = ScalarFunction(code, "f", [BIGINT], BIGINT)
def work():
    try:
        function.call([from_list(BIGINT, [1])], 1)
    except UdfTrapError as error:
        print(error.code)
threading.stack_size(256 << 10)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_deep_recursion_on_a_small_stack() -> None:
    result = child("-c", STACK.format(patch=""))
    assert (result.returncode, result.stdout.strip()) == (0, "STACK_OVERFLOW")


def test_deep_recursion_on_a_small_stack_control() -> None:
    """Without our own threads the same program dies: the test above can fail."""
    patch = "stacks.has_enough_stack = lambda: True"
    assert child("-c", STACK.format(patch=patch)).returncode < 0


INTERRUPTED = """
import os, signal, threading, time
from tarsdb.columns import from_list
from tarsdb.options import SandboxLimits
from tarsdb.types import BIGINT
from tarsdb.udf_sandbox import ScalarFunction, to_wasm
code = to_wasm('(module (func (export "f") (param i64) (result i64) (loop (br 0)) (local.get 0)))')
limits = SandboxLimits(2**60, 0, timeout_ms=60000)
function = ScalarFunction(code, "f", [BIGINT], BIGINT, limits=limits)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    function.call([from_list(BIGINT, [1])], 1)
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - start < 5)
pid = os.fork()
if pid == 0:
    again = ScalarFunction(code, "f", [BIGINT], BIGINT, limits=SandboxLimits(1000, 0))
    try:
        again.call([from_list(BIGINT, [1])], 1)
    except Exception as error:
        os._exit(0 if "out of fuel" in str(error) else 3)
print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_ctrl_c_and_fork() -> None:
    result = child("-c", INTERRUPTED, timeout=60)
    assert result.stdout.splitlines() == ["interrupted True", "child 0"], result.stderr
    assert result.stderr == ""
