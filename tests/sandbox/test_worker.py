"""The worker backend: killed in time, confined, without the database's files, and replaced."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tarsdb
from tarsdb.columns import from_list
from tarsdb.errors import InterruptError, UdfBackendError, UdfError, UdfLimitError, UdfTrapError
from tarsdb.options import SandboxLimits
from tarsdb.types import BIGINT, TEXT
from tarsdb.udf_sandbox import Budget, ScalarFunction, to_wasm
from tarsdb.udf_sandbox.worker import backend, messages, pool, process
from tests.sandbox import escape_attempts
from tests.sandbox.wasm_text import IDENTITY, PRELUDE

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINUX = sys.platform.startswith("linux")
FILTERS = pathlib.Path("/proc/sys/kernel/seccomp/actions_avail").exists()
with_filter = pytest.mark.skipif(not FILTERS, reason="this kernel filters no system calls")
linux_only = pytest.mark.skipif(not LINUX, reason="asks /proc, or needs Linux")
LATE_S = 0.1
"""How much later than its deadline a worker may end."""
BUSY_S = 0.4
"""What a machine busy with other tests may add to a time."""

ONE_ROW = [from_list(BIGINT, [1])]
PLUS_ONE = """(module (func (export "f") (param i64) (result i64)
  (i64.add (local.get 0) (i64.const 1))))"""
LOOP = """(module (func (export "f") (param i64) (result i64)
  (if (i64.eqz (local.get 0)) (then (return (i64.const 7)))) (loop (br 0)) (local.get 0)))"""


def make(text: str, timeout_ms: int = 5000, **limits: Any) -> ScalarFunction:
    asked = SandboxLimits(fuel=2**60, timeout_ms=timeout_ms, backend="worker", **limits)
    types = [TEXT, TEXT] if "tars_abi_v1" in text else [BIGINT, BIGINT]
    return ScalarFunction(to_wasm(text), "f", types[:1], types[1], limits=asked)


def worker_of(function: ScalarFunction) -> int:
    """Return the process id of the worker that a function used last."""
    guests = function._idle[True]
    resting = function._compiled._resting  # type: ignore[attr-defined]
    found = [guest.instance._process for guest in guests] or resting  # type: ignore[attr-defined]
    return int(found[-1].pid)


def seconds(work: Callable[[], object], expected: type[BaseException]) -> float:
    began = time.monotonic()
    with pytest.raises(expected):
        work()
    return time.monotonic() - began


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pid: int) -> bool:
    end = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not is_running(pid)


def test_a_stopped_worker_is_killed_at_the_deadline_and_replaced() -> None:
    """It cannot answer, so only killing it can end the call."""
    function = make(PLUS_ONE, timeout_ms=200)
    assert function.call(ONE_ROW, 1).get(0) == 2
    pid = worker_of(function)
    os.kill(pid, signal.SIGSTOP)
    taken = seconds(lambda: function.call(ONE_ROW, 1), UdfLimitError)
    assert 0.2 <= taken <= 0.2 + LATE_S + BUSY_S
    assert wait_until_gone(pid)
    assert function.call(ONE_ROW, 1).get(0) == 2
    assert worker_of(function) != pid


def test_a_loop_ends_at_its_deadline_without_losing_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "KILL_GRACE_S", 10.0)  # it stops by itself, however busy all is
    function = make(LOOP, timeout_ms=200)
    assert function.call([from_list(BIGINT, [0])], 1).get(0) == 7
    pid = worker_of(function)
    taken = seconds(lambda: function.call(ONE_ROW, 1), UdfLimitError)
    assert 0.2 <= taken <= 0.2 + LATE_S + BUSY_S
    assert function.call([from_list(BIGINT, [0])], 1).get(0) == 7
    assert worker_of(function) == pid


def test_one_endless_instruction_is_killed() -> None:
    """A fill of the whole memory, again and again: wasmtime itself does not look at the clock."""
    text = """(module (memory 8000) (func (export "f") (param i64) (result i64)
      (if (i64.eqz (local.get 0)) (then (return (i64.const 7))))
      (loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 524288000)) (br 0))
      (local.get 0)))"""
    function = make(text, timeout_ms=50, max_memory_bytes=512 << 20)
    assert function.call([from_list(BIGINT, [0])], 1).get(0) == 7  # its process is started
    taken = seconds(lambda: function.call(ONE_ROW, 1), UdfLimitError)
    assert taken <= 0.05 + LATE_S + BUSY_S


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_in_a_call_is_a_typed_error(number: signal.Signals) -> None:
    function = make(LOOP)
    assert function.call([from_list(BIGINT, [0])], 1).get(0) == 7
    pid = worker_of(function)

    def end_it() -> None:
        with contextlib.suppress(ProcessLookupError):
            for _ in range(100):  # wasmtime lets the first fault pass that is none of a guest
                os.kill(pid, number)
                time.sleep(0.02)

    threading.Timer(0.1, end_it).start()
    with pytest.raises(UdfBackendError, match=f"function f: its worker process {pid} died"):
        function.call(ONE_ROW, 1)
    assert function.call([from_list(BIGINT, [0])], 1).get(0) == 7


def test_a_worker_that_died_at_rest_is_replaced_silently() -> None:
    function = make(PLUS_ONE)
    assert function.call(ONE_ROW, 1).get(0) == 2
    os.kill(worker_of(function), signal.SIGKILL)
    time.sleep(0.2)
    assert function.call(ONE_ROW, 1).get(0) == 2


def test_a_killed_workers_memory_is_free_at_once() -> None:
    """No cycle of an error and its frames keeps it until the garbage is collected."""
    function = make(LOOP, timeout_ms=50)
    function.call([from_list(BIGINT, [0])], 1)
    gone = weakref.ref(function._idle[True][0].instance._process)  # type: ignore[attr-defined]
    os.kill(worker_of(function), signal.SIGSTOP)
    gc.disable()
    try:
        with contextlib.suppress(UdfLimitError):
            function.call(ONE_ROW, 1)
        end = time.monotonic() + 10
        while gone() is not None and time.monotonic() < end:  # a thread waits for its end
            time.sleep(0.01)
        assert gone() is None
    finally:
        gc.enable()


def test_interrupt_kills_at_once() -> None:
    function, budget = make(LOOP), Budget()
    function.call([from_list(BIGINT, [0])], 1)
    threading.Timer(0.1, budget.interrupt).start()
    taken = seconds(lambda: function.call(ONE_ROW, 1, budget), InterruptError)
    assert taken <= 0.1 + LATE_S + BUSY_S


def test_a_trap_costs_an_instance_and_no_process() -> None:
    function = make('(module (func (export "f") (param i64) (result i64) unreachable))')
    pids = set()
    for _ in range(3):
        with pytest.raises(UdfTrapError, match="UNREACHABLE"):
            function.call(ONE_ROW, 1)
        pids.add(worker_of(function))
    assert len(pids) == 1


RESET = '(func (export "tars_reset") (global.set $top (i32.const 64)))'
CANARY = f"""(module {PRELUDE}
  (func (export "f") (param $d i32) (param $n i32) (result i32)
    (i32.store8 (i32.const 60000) (i32.add (i32.const 48) (i32.load8_u (i32.const 60001))))
    (i32.store8 (i32.const 60001) (i32.const 1))
    (i32.store offset=40 (local.get $d) (i32.const 60000))
    (i32.store offset=4 (i32.load offset=52 (local.get $d)) (i32.const 1))
    (i32.const 0)))"""


def test_memory_of_one_call_reaches_the_next_only_where_reset_says_so() -> None:
    """The canary is read back through tars_reset, and not without it, in the same process."""
    column = [from_list(TEXT, ["x"])]
    assert RESET in CANARY
    fresh, kept = make(CANARY.replace(RESET, "")), make(CANARY)
    assert [fresh.call(column, 1).get(0) for _ in range(3)] == ["0", "0", "0"]
    assert len(fresh._compiled._resting) == 1  # type: ignore[attr-defined]
    assert [kept.call(column, 1).get(0) for _ in range(3)] == ["0", "1", "1"]


def test_workers_at_rest_are_few() -> None:
    functions = [make(PLUS_ONE.replace("1)", f"{n})")) for n in range(pool.MAX_IDLE + 3)]
    pids = []
    for number, function in enumerate(functions):
        assert function.call(ONE_ROW, 1).get(0) == 1 + number
        pids.append(worker_of(function))
    assert all(wait_until_gone(pid) for pid in pids[:3])
    assert functions[0].call(ONE_ROW, 1).get(0) == 1
    for function in functions:
        function.close()
    assert all(wait_until_gone(pid) for pid in pids)


@with_filter
def test_a_worker_has_no_files_no_rights_and_no_environment(tmp_path: pathlib.Path) -> None:
    with tarsdb.connect(tmp_path / "x.tars") as db:
        db.execute("CREATE TABLE t (n BIGINT)")
        function = make(PLUS_ONE)
        function.call(ONE_ROW, 1)
        folder = pathlib.Path(f"/proc/{worker_of(function)}")
        targets = sorted(os.readlink(path) for path in (folder / "fd").iterdir())
        own = [os.readlink(path) for path in pathlib.Path("/proc/self/fd").iterdir()
               if path.exists()]  # fmt: skip
    assert [t for t in targets if not t.startswith("socket:")] == ["/dev/null"] * 3
    assert len(targets) == 4
    assert any("x.tars" in target for target in own), "the database had no file open: no test"
    status = (folder / "status").read_text()
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    limits = {line[:25].strip(): line[26:].split()[0]
              for line in (folder / "limits").read_text().splitlines()}  # fmt: skip
    for name in ("Max open files", "Max processes", "Max core file size", "Max file size"):
        assert limits[name] == "0", name
    assert int(limits["Max address space"]) < 10 << 30  # of which two are reserved for memories
    assert int(limits["Max data size"]) < 1 << 30
    assert int(limits["Max cpu time"]) < 1000
    assert b"HOME" not in (folder / "environ").read_bytes()


def test_a_filter_can_be_required(monkeypatch: pytest.MonkeyPatch) -> None:
    load = process.WorkerProcess.load

    def unfiltered(self: process.WorkerProcess, body: messages.LoadBody) -> None:
        load(self, body)
        self.unfiltered = "an old kernel"

    if FILTERS:
        assert make(PLUS_ONE, require_seccomp=True).call(ONE_ROW, 1).get(0) == 2
    monkeypatch.setattr(process.WorkerProcess, "load", unfiltered)
    with pytest.raises(UdfBackendError, match="cannot be filtered here: an old kernel"):
        make(PLUS_ONE, require_seccomp=True).call(ONE_ROW, 1)
    assert make(PLUS_ONE).call(ONE_ROW, 1).get(0) == 2


def attempts(*words: str) -> dict[str, str]:
    import wasmtime

    folder = str(pathlib.Path(wasmtime.__file__).parents[1])
    command = [sys.executable, "-I", "-S", escape_attempts.__file__, folder, str(ROOT / "tarsdb")]
    run = subprocess.run(
        [*command, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    return dict(line.split(": ") for line in run.stdout.splitlines())


@with_filter
def test_native_code_in_a_worker_cannot_break_out() -> None:
    """What it could do if it were out of the WebAssembly sandbox: nothing."""
    found = attempts("filter", "limits")
    assert found.keys() == escape_attempts.ATTEMPTS.keys()
    assert "done" not in found.values(), found


@with_filter
def test_the_filter_alone_refuses_every_attempt() -> None:
    found = attempts("filter")
    assert found.keys() == escape_attempts.ATTEMPTS.keys()
    assert set(found.values()) <= {"PermissionError", "RuntimeError"}, found


@linux_only
def test_the_attempts_succeed_without_filter_and_limits() -> None:
    """The control: the refusals above are the filter's."""
    found = attempts()
    assert found.keys() == escape_attempts.ATTEMPTS.keys()
    assert set(found.values()) == {"done"}, found


MEMORY = """
import sys
sys.path.insert(0, sys.argv[1])
from tarsdb.udf_sandbox.worker import confinement
if sys.argv[2] == "limited":
    confinement.limit_resources(60, 64 << 20)
try:
    print(len(bytearray(256 << 20)))
except MemoryError:
    print("refused")
"""


@linux_only
@pytest.mark.parametrize(("word", "answer"), [("limited", "refused"), ("free", str(256 << 20))])
def test_memory_beside_the_guests_is_bounded(word: str, answer: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", MEMORY, str(ROOT), word], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == answer


ORPHAN = """
import os, sys, time
from tests.sandbox.test_worker import LOOP, ONE_ROW, make, worker_of
import threading
function = make(LOOP, timeout_ms=60_000)
function.call([ONE_ROW[0].slice(0, 0)], 0)
from tarsdb.columns import from_list
from tarsdb.types import BIGINT
function.call([from_list(BIGINT, [0])], 1)
print(worker_of(function), flush=True)
threading.Thread(target=lambda: function.call(ONE_ROW, 1), daemon=True).start()
time.sleep(0.2)
os.kill(os.getpid(), 9)
"""


def child(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@linux_only
def test_workers_die_with_the_database() -> None:
    """Even one that is in an endless loop and so does not see that its socket was closed."""
    found = child(ORPHAN)
    assert found.returncode == -signal.SIGKILL, found.stderr
    assert wait_until_gone(int(found.stdout))


CTRL_C = """
import os, signal, threading, time
from tarsdb.columns import from_list
from tarsdb.types import BIGINT
from tests.sandbox.test_worker import LOOP, ONE_ROW, make, worker_of, wait_until_gone
function = make(LOOP, timeout_ms=60_000)
zero = [from_list(BIGINT, [0])]
function.call(zero, 1)
pid = worker_of(function)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
began = time.monotonic()
try:
    function.call(ONE_ROW, 1)
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - began < 5, wait_until_gone(pid))
print(function.call(zero, 1).get(0))
first = worker_of(function)
forked = os.fork()
if forked == 0:
    ok = function.call(zero, 1).get(0) == 7 and worker_of(function) != first
    os._exit(0 if ok else 1)
print("child", os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]))
print(function.call(zero, 1).get(0), worker_of(function) == first)
"""


def test_ctrl_c_and_fork() -> None:
    found = child(CTRL_C)
    lines = ["interrupted True True", "7", "child 0", "7 True"]
    assert found.stdout.splitlines() == lines, found.stderr
    assert found.stderr == ""


def test_from_sql_and_a_crash_rolls_the_statement_back(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.tars"
    with tarsdb.connect(path) as db:
        db.execute("CREATE TABLE t (n BIGINT)")
        db.execute("INSERT INTO t VALUES (0), (0)")
        body = LOOP.replace("'", "''")
        db.execute(
            "CREATE FUNCTION f(n BIGINT) RETURNS BIGINT LANGUAGE wasm AS "
            f"'{body}' WITH (backend = 'worker', timeout_ms = 100, fuel = 1000000000000)"
        )
        assert db.execute("SELECT f(n) FROM t").fetchall() == [(7,), (7,)]
        told = db.execute("SELECT backend, confinement FROM tars_functions").fetchone()
        assert told == ("worker", "seccomp") or not FILTERS
        db.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(UdfLimitError, match="timeout_ms"):
            db.execute("UPDATE t SET n = f(n) + 1")
        assert db.execute("SELECT n FROM t ORDER BY n").fetchall() == [(0,), (0,), (1,)]
    with tarsdb.connect(path) as db:
        assert db.execute("SELECT sum(f(n)) FROM t WHERE n = 0").fetchall() == [(14,)]


CONNECTION = """
import gc, pathlib, sys, time
import tarsdb
from tarsdb.udf_sandbox.modules import compilation
from tests.sandbox.test_worker import PLUS_ONE
def children():
    found = pathlib.Path("/proc/self/task").glob("*/children")
    return {int(pid) for path in found for pid in path.read_text().split()}
def wait_for(count):  # the spare one is started beside the call
    end = time.monotonic() + 20
    while len(children()) != count and time.monotonic() < end:
        time.sleep(0.02)
    print(len(children()))
with tarsdb.connect(sys.argv[1]) as db:
    db.execute("CREATE FUNCTION f(n BIGINT) RETURNS BIGINT LANGUAGE wasm AS "
               f"'{PLUS_ONE}' WITH (backend = 'worker')")
    print(db.execute("SELECT f(1)").fetchall())
    compilation._compiler.close()
    wait_for(2)
del db
gc.collect()
wait_for(0)
"""


@linux_only
def test_workers_end_with_the_connection(tmp_path: pathlib.Path) -> None:
    """The one that served, and the spare one."""
    found = child(CONNECTION, str(tmp_path / "x.tars"))
    assert found.stdout.splitlines() == ["[(2,)]", "2", "0"], found.stderr


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((99, 0, 0, 0, 0, 0, 0), "99 is not a valid Status"),
        ((0, 0, 5000, 0, 0, 0, 0), "5000 bytes of text"),
        ((0, 0, 0, 0, 0, 0, 1 << 40), "of payload"),
    ],
)  # fmt: skip
def test_replies_that_are_none_end_the_worker(numbers: tuple[int, ...], words: str) -> None:
    reply = messages._REPLY.pack(*numbers)
    function = make(IDENTITY)
    with (
        answering(function, lambda peer: peer.sendall(reply)),
        pytest.raises(UdfBackendError, match=words),
    ):
        function.call([from_list(TEXT, ["x"])], 1)
    assert function.call([from_list(TEXT, ["x"])], 1).get(0) == "x"


def dribble(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for _ in range(1000):
            peer.sendall(b"\0")
            time.sleep(0.02)


@pytest.mark.parametrize("answer", [lambda peer: peer.sendall(b"\0"), dribble],
                         ids=["half a reply", "byte after byte"])  # fmt: skip
def test_replies_that_do_not_end_are_not_waited_for(
    answer: Callable[[socket.socket], object],
) -> None:
    function = make(IDENTITY, timeout_ms=200)
    column = [from_list(TEXT, ["x"])]
    with answering(function, answer):
        taken = seconds(lambda: function.call(column, 1), UdfLimitError)
    assert 0.2 <= taken <= 0.2 + LATE_S + BUSY_S
    assert function.call(column, 1).get(0) == "x"


@contextlib.contextmanager
def answering(
    function: ScalarFunction, answer: Callable[[socket.socket], object]
) -> Iterator[None]:
    """Let a thread answer in the worker's place, once the function has one."""
    function.call([from_list(TEXT, ["x"])], 1)
    worker = function._idle[True][0].instance._process  # type: ignore[attr-defined]
    ours, theirs = socket.socketpair()
    before = worker._channel  # kept open: the process lives until it is killed
    worker._poll.unregister(before)
    worker._channel = ours
    worker._poll.register(ours, select.POLLIN)

    def peer() -> None:
        if theirs.recv(1):
            answer(theirs)

    thread = threading.Thread(target=peer)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        theirs.close()
        before.close()


def test_a_worker_cannot_claim_more_memory_than_is_shared_or_use_less_fuel() -> None:
    function = make(IDENTITY)
    column = [from_list(TEXT, ["x"])]
    function.call(column, 1)
    instance = function._idle[True][0].instance  # type: ignore[attr-defined]
    lie = messages.Reply(messages.Status.DONE, -4, 2**63, 2**40)
    instance._process.ask = lambda *_: lie
    with pytest.raises(UdfError, match="tars_alloc"):  # address 2**32 - 4 is outside
        function.call(column, 1)
    assert len(instance.memory()) == 64 << 20
    assert instance._fuel_left <= 2**61


def test_a_worker_that_claims_less_memory_than_it_had_is_not_believed() -> None:
    for text, column in ((IDENTITY, from_list(TEXT, ["x"])), (PLUS_ONE, ONE_ROW[0])):
        function = make(text)
        function.call([column], 1)
        instance = function._idle[True][0].instance  # type: ignore[attr-defined]
        before = len(instance.memory())
        ask = instance._process.ask
        instance._process.ask = lambda *args, ask=ask: dataclasses.replace(ask(*args), memory=1)
        function.call([column], 1)
        assert len(instance.memory()) >= before > 1


SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_an_interrupt_ends_the_start_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    function, budget = make(PLUS_ONE), Budget()
    pool.pool().close()  # no spare one
    with monkeypatch.context() as patch:
        patch.setattr(process, "_command", lambda _: SLEEPS)
        threading.Timer(0.2, budget.interrupt).start()
        taken = seconds(lambda: function.call(ONE_ROW, 1, budget), InterruptError)
    assert 0.2 <= taken <= 0.2 + LATE_S + 4 * BUSY_S
    assert function.call(ONE_ROW, 1).get(0) == 2


def test_a_process_that_is_never_ready_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PREPARE_SECONDS", 0.2)
    monkeypatch.setattr(process, "_command", lambda _: SLEEPS)
    made = process.WorkerProcess()
    with pytest.raises(UdfBackendError, match=rf"{made.pid} was not ready after 0 s"):
        made.wait_until_ready()
    assert not made.usable() and wait_until_gone(made.pid)
