"""Functions in Python and JavaScript source, run by Hyperlight's guests of these languages."""

from __future__ import annotations

import math

import pytest

from tarsdb.columns import Column, from_list
from tarsdb.errors import UdfError, UdfLimitError
from tarsdb.options import SandboxLimits
from tarsdb.types import parse_type
from tarsdb.udf_sandbox import Source, SourceFunction

LIMITS = SandboxLimits(backend="hyperlight", max_memory_bytes=4 << 20, timeout_ms=30_000)


def run(language: str, text: str, arguments: str, returns: str, *items: list[object]) -> Column:
    """Call function ``f`` of a source with columns; NULLs are passed."""
    types = [parse_type(name) for name in arguments.split()]
    function = SourceFunction(
        Source(language, text), "f", types, parse_type(returns), strict=False, limits=LIMITS
    )
    columns = [from_list(kind, values) for kind, values in zip(types, items, strict=True)]
    return function.call(columns, len(items[0]))


def test_python_values_of_every_kind() -> None:
    """One sandbox of the language serves functions of other texts after it."""
    text = "import math\ndef f(a, b, c, d):\n  return [a, b, c, d]\n"
    found = run(
        "python", text, "BIGINT DOUBLE TEXT VECTOR(2)", "JSON",
        [2**62, None], [0.1, None], ["é\n'\"\\", None], [[1.0, 2.5], None],
    )  # fmt: skip
    assert found.to_list() == ['[4611686018427387904,0.1,"é\\n\'\\"\\\\",[1.0,2.5]]',
                               "[null,null,null,null]"]  # fmt: skip
    text = "def f(x):\n  return x / 3 if x else float('nan')\n"
    values = run("python", text, "DOUBLE", "DOUBLE", [1.0, 0.0]).to_list()
    assert values[0] == 1.0 / 3 and math.isnan(values[1])


def test_python_output_longer_than_a_reply_and_state() -> None:
    """200 KB come back in pieces; what a batch leaves is gone in the next."""
    text = (
        "seen = []\ndef f(x):\n  seen.append(x); print(x * 9)\n  return x * 40 + str(len(seen))\n"
    )
    items = [f"é{number:05d}" for number in range(800)]
    found = run("python", text, "TEXT", "TEXT", list(items))
    assert found.to_list() == [item * 40 + str(n + 1) for n, item in enumerate(items)]


def test_python_failures_name_the_row() -> None:
    """An exception's text comes from the guest and is data."""
    with pytest.raises(UdfError, match="row 1: ZeroDivisionError"):
        run("python", "def f(x):\n  return 1 // x\n", "INT", "INT", [1, 0])
    with pytest.raises(UdfError, match="is not a INT"):
        run("python", "def f(x):\n  return 'no'\n", "INT", "INT", [1])
    with pytest.raises(UdfError, match="NameError"):
        run("python", "def g(x):\n  return 1\n", "INT", "INT", [1])
    with pytest.raises(UdfError, match=r"MemoryError|memory"):
        run("python", "def f(x):\n  return len([0] * 10**8)\n", "INT", "INT", [1])


def test_python_has_no_files_and_no_processes() -> None:
    """The guest has no operating system to ask."""
    text = "def f(x):\n  return open('/etc/passwd').read()\n"
    with pytest.raises(UdfError, match="row 0"):
        run("python", text, "INT", "TEXT", [1])


def test_javascript_values_and_failures() -> None:
    """Numbers that JSON lacks arrive; what is undefined is NULL."""
    text = "const f = (x, s) => x === null ? 1 / 0 : x === 2 ? undefined : x * 2 + s.length"
    found = run("javascript", text, "INT TEXT", "DOUBLE", [4, None, 2], ["日本é", None, ""])
    assert found.to_list() == [11.0, math.inf, None]
    text = "function f(x) { if (x > 1) throw new Error('no'); return String.fromCharCode(233); }"
    with pytest.raises(UdfError, match="row 1: Error: no"):
        run("javascript", text, "INT", "TEXT", [1, 2])
    with pytest.raises(UdfError, match=r"row 0 is 9007199254740993"):
        run("javascript", "const f = (x) => x", "BIGINT", "BIGINT", [2**53 + 1])


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "def f(x):\n  while True: pass\n"),
        ("javascript", "const f = () => { for (;;); }"),
    ],
)
def test_hangs_end_at_the_deadline(language: str, text: str) -> None:
    """Loading the interpreter is not the function's time."""
    limits = SandboxLimits(backend="hyperlight", max_memory_bytes=4 << 20, timeout_ms=3_000)
    integer = parse_type("INT")
    function = SourceFunction(Source(language, text), "f", [integer], integer, limits=limits)
    with pytest.raises(UdfLimitError, match="timeout_ms = 3000"):
        function.call([from_list(integer, [1])], 1)
