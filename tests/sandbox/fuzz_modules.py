"""Child process of test_mutated.py: mutate modules, run what is accepted, print the outcomes.

``python -m tests.sandbox.fuzz_modules SEED COUNT [CONTROL [BACKEND]]`` exits 0 unless something
untyped escapes. Counted too, and meant to stay zero: ``leaked`` (a result holds another call's
data), ``late`` (beyond the deadline each of three times) and ``torn`` (a transaction half done). A
control makes one of these happen, or ends or hangs the process, for the tests of the harness.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import random
import sys
import tempfile
import time

import tarsdb
from tarsdb.columns import Column, from_list
from tarsdb.errors import UdfError, UdfValidationError
from tarsdb.options import SandboxLimits
from tarsdb.types import BIGINT, BLOB, INT, TEXT, SqlType
from tarsdb.udf_sandbox import ScalarFunction, to_wasm
from tests.sandbox.wasm_text import DEMO, DUMP, IDENTITY

LIMITS = SandboxLimits(fuel=200_000, fuel_per_row=1000, max_memory_bytes=4 << 20, timeout_ms=500)
FIB = """(module (func $f (export "f") (param i64) (result i64)
  (if (result i64) (i64.lt_s (local.get 0) (i64.const 2)) (then (local.get 0)) (else
    (i64.add (call $f (i64.sub (local.get 0) (i64.const 1)))
             (call $f (i64.sub (local.get 0) (i64.const 2))))))))"""
TEXTKIT = (DEMO / "textkit.wat").read_text()
SUBJECTS: list[tuple[str, str, SqlType, SqlType, list[object]]] = [
    (FIB, "f", BIGINT, BIGINT, [5, None, 10]),
    (IDENTITY, "f", TEXT, TEXT, ["ab", None, "é"]),
    (TEXTKIT, "shout", TEXT, TEXT, ["hello", "", "é"]),
    (TEXTKIT, "vowels", TEXT, INT, ["hello", "", "é"]),
    (DUMP, "f", TEXT, BLOB, ["ab", "", "é"]),
]
CANARY = b"\xc2\xa7canary of another call\xc2\xa7"
STATEMENT_EVERY = 20  # accepted modules, of which one runs as a statement too
SLACK_S = max(0.1 * LIMITS.timeout_ms / 1000, 0.1)


# Opcodes of one type: exchanging them keeps a module valid, so that its guest gets to run.
CLASSES = (
    range(0x6A, 0x79), range(0x7C, 0x8B), range(0x46, 0x50), range(0x51, 0x5B),
    (0x28, 0x2C, 0x2D, 0x2E, 0x2F), (0x36, 0x3A, 0x3B), (0x0C, 0x0D),
)  # fmt: skip


def exchange(data: bytearray, source: random.Random) -> None:
    """Replace an opcode by another of its class, a local by another, or a constant."""
    start = min(40, len(data) // 2)
    for _ in range(20):
        at = source.randrange(start, len(data) - 1)
        if data[at] == 0x41 and data[at + 1] < 0x80:
            data[at + 1] = source.randrange(0x80)
            return
        if data[at] in (0x20, 0x28, 0x36) and data[at + 1] < 8:
            data[at + 1 + (data[at] != 0x20)] = source.randrange(8)
            return
        for group in CLASSES:
            if data[at] in group:
                data[at] = source.choice(group)
                return


def mutate(code: bytes, source: random.Random) -> bytes:
    data = bytearray(code)
    if source.random() < 0.7:
        for _ in range(source.randrange(1, 6)):
            exchange(data, source)
        return bytes(data)
    for _ in range(source.choice((1, 1, 1, 2, 4, 16))):
        at = source.randrange(8, len(data))
        action = source.randrange(5)
        if action <= 1:
            data[at] = source.randrange(256)
        elif action == 2:
            data[at] ^= 1 << source.randrange(8)
        elif action == 3:
            data[at : at + source.randrange(1, 9)] = source.randbytes(source.randrange(9))
        else:
            other = source.randrange(8, len(data))
            data[at : at + 8] = data[other : other + 8]
    return bytes(data)


class Harness:
    """Runs mutated modules and counts what becomes of them."""

    def __init__(self, folder: pathlib.Path, control: str, backend: str) -> None:
        self.limits = dataclasses.replace(LIMITS, backend=backend)
        self.control = control
        self.accepted = 0
        self.seconds, self.slow = 0.0, False
        self.seen: collections.Counter[str] = collections.Counter()
        self.victim = ScalarFunction(to_wasm(IDENTITY), "f", [BLOB], BLOB, limits=self.limits)
        self.file = folder / "mutated.wasm"
        self.db = tarsdb.connect(folder / "mutated.tars", file_access=True)
        self.db.execute("CREATE TABLE source (n BIGINT, t TEXT)")
        self.db.execute("INSERT INTO source VALUES (5, 'ab'), (6, ''), (7, 'x')")
        self.db.execute("CREATE TABLE log (step INT)")

    def run(self, code: bytes, number: int) -> None:
        """Run a module as its subject is meant to be run."""
        _, export, argument, returns, items = SUBJECTS[number]
        try:
            function = ScalarFunction(code, export, [argument], returns, limits=self.limits)
        except UdfValidationError:
            self.seen["refused"] += 1
            return
        except UdfError:
            self.seen["limited"] += 1
            return
        if self.control == "leaked" and argument == TEXT:
            items = [*items, CANARY.decode()]
        seconds = min(self._call(function, items, attempt) for attempt in range(3))
        if self.control == "late":
            seconds += LIMITS.timeout_ms / 1000 + SLACK_S
        self.seen["late"] += seconds > LIMITS.timeout_ms / 1000 + SLACK_S
        function.close()
        self.accepted += 1
        if self.accepted % STATEMENT_EVERY == 0:
            self._statement(code, number)

    def _call(self, function: ScalarFunction, items: list[object], attempt: int) -> float:
        """Call it behind a call with the canary; repeat only what was late."""
        if attempt and not self.slow:
            return self.seconds
        self.victim.call([from_list(BLOB, [CANARY * 9])], 1)
        start = time.monotonic()
        result: Column | None = None
        try:
            result = function.call([from_list(function.arguments[0], items)], len(items))
            result.to_list()
            found = "ran"
        except UdfError as error:
            found = type(error).__name__
        self.seconds = time.monotonic() - start
        self.slow = self.seconds > LIMITS.timeout_ms / 1000 + SLACK_S
        if not attempt:
            self.seen[found] += 1
        if result is not None and CANARY in result.values.tobytes():
            self.seen["leaked"] += 1
        return self.seconds

    def _statement(self, code: bytes, number: int) -> None:
        """Insert what the function gives, within a transaction that goes on behind it."""
        _, export, argument, returns, _ = SUBJECTS[number]
        self.file.write_bytes(code)
        db, column = self.db, "n" if argument == BIGINT else "t"
        db.execute("BEGIN")
        db.execute("DELETE FROM log")
        db.execute(f"CREATE OR REPLACE MODULE m FROM '{self.file}'")
        db.execute(
            f"CREATE OR REPLACE FUNCTION f(x {argument}) RETURNS {returns} LANGUAGE wasm "
            f"FROM m::{export} WITH (fuel = 200000, fuel_per_row = 1000, timeout_ms = 500, "
            f"backend = '{self.limits.backend}')"
        )
        db.execute("INSERT INTO log VALUES (1)")
        rows = 3
        try:
            db.execute(f"INSERT INTO log SELECT 2 FROM (SELECT f({column}) AS y FROM source) AS s "
                       "WHERE y IS NULL OR y = y")  # fmt: skip
        except UdfError:
            rows = 0
        if self.control == "torn":
            db.execute("INSERT INTO log VALUES (2)")
        db.execute("INSERT INTO log VALUES (3)")
        db.execute("COMMIT")
        steps = [step for (step,) in db.execute("SELECT step FROM log ORDER BY step").fetchall()]
        self.seen["statements"] += 1
        self.seen["torn"] += steps != [1, *[2] * rows, 3]


def main(seed: int, count: int, control: str = "", backend: str = "wasmtime") -> None:
    source = random.Random(seed)
    codes = [to_wasm(subject[0]) for subject in SUBJECTS]
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(pathlib.Path(folder), control, backend)
        for done in range(count):
            if done == 3 and control == "dead":
                os.abort()
            if done == 3 and control == "hung":
                time.sleep(3600)
            number = source.randrange(len(SUBJECTS))
            harness.run(mutate(codes[number], source), number)
        harness.db.close()
    print(dict(harness.seen))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
