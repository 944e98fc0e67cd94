"""Child process of test_mutated.py: mutate modules, run what is accepted, print the outcomes.

``python fuzz_modules.py SEED COUNT``; exits 0 unless something untyped escapes.
"""

from __future__ import annotations

import collections
import random
import sys

from tarsdb.columns import from_list
from tarsdb.errors import UdfError, UdfValidationError
from tarsdb.options import SandboxLimits
from tarsdb.types import BIGINT, INT, TEXT, SqlType
from tarsdb.udf_sandbox import ScalarFunction, to_wasm
from tests.sandbox.wasm_text import DEMO, IDENTITY

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
]


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


def main(seed: int, count: int) -> None:
    source = random.Random(seed)
    codes = [to_wasm(subject[0]) for subject in SUBJECTS]
    seen: collections.Counter[str] = collections.Counter()
    for _ in range(count):
        number = source.randrange(len(SUBJECTS))
        _, export, argument, returns, items = SUBJECTS[number]
        try:
            function = ScalarFunction(
                mutate(codes[number], source), export, [argument], returns, limits=LIMITS
            )
        except UdfValidationError:
            seen["refused"] += 1
            continue
        except UdfError:
            seen["limited"] += 1
            continue
        try:
            function.call([from_list(argument, items)], len(items)).to_list()
            seen["ran"] += 1
        except UdfError as error:
            seen[type(error).__name__] += 1
        function.close()
    print(dict(seen))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
