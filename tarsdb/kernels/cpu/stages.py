"""Kernels with marks between their stages, made of the source of those that models use.

A comment there says where a stage ends (``# stage: NAME``), or one outside layers (``# stage
outside layers: NAME``), and where a layer begins (``# layer``). Models' kernels stay as they are.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import call
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import put_long, read_long

# Memory for marks, int64: the clock at the last mark, the place of the layer's first stage, then
# what the clock counted in each stage: those outside layers, and those of one layer after another.
CLOCK, LAYER, COUNTS = range(3)
_COMMENT = re.compile(r"# (layer|stage(?: outside layers)?)(?:: (.*))?$", re.MULTILINE)


@intrinsic
def _clock(typingctx):  # type: ignore[no-untyped-def]
    """Read the processor's counter."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return call(b, "llvm.readcyclecounter", ir.IntType(64))

    return types.int64(), codegen


@linked
def mark(part, marks, stage):  # type: ignore[no-untyped-def]
    """Count for a stage what passed since the last mark; the first thread does it."""
    if part == 0:
        now = _clock()
        spent = now - read_long(marks, CLOCK)
        put_long(marks, stage, read_long(marks, stage) + spent)
        put_long(marks, CLOCK, now)


@linked
def begin_layer(part, marks, first, step):  # type: ignore[no-untyped-def]
    """Let stages of layers be those of the next one, or of the first."""
    if part == 0:
        layer = read_long(marks, LAYER)
        put_long(marks, LAYER, layer + step if layer else first)


def stages_of(module: ModuleType) -> tuple[list[str], list[str]]:
    """Return the names of a module's stages: those outside layers, those of a layer."""
    found = _COMMENT.findall(inspect.getsource(module))
    outside = dict.fromkeys(name for kind, name in found if kind.endswith("layers"))
    return list(outside), list(dict.fromkeys(name for kind, name in found if kind == "stage"))


def with_marks(module: ModuleType, part: str, marks: str) -> dict[str, Any]:
    """Return the names of a module whose kernels mark their stages.

    ``part`` is what tells the thread, ``marks`` the address of the marks, in its source.
    """
    outside, stages = stages_of(module)
    first = COUNTS + len(outside)

    def marked(found: re.Match[str]) -> str:
        kind, name = found.groups()
        if kind == "layer":
            return f"begin_layer({part}, {marks}, {first}, {len(stages)})"
        if kind == "stage":
            return f"mark({part}, {marks}, read_long({marks}, {LAYER}) + {stages.index(name)})"
        return f"mark({part}, {marks}, {COUNTS + outside.index(name)})"

    source = _COMMENT.sub(marked, inspect.getsource(module))
    names = {"__name__": f"{module.__name__}_with_marks", "mark": mark, "begin_layer": begin_layer}
    exec(compile(source, f"{module.__file__} with marks", "exec"), names)
    return names
