"""Raises KeyboardInterrupt where the interpreter could: a way to try every moment of an action.

CPython looks for signals when a function starts, after a call of a C function and when a loop jumps
back. `interrupted_at` traces opcodes and raises at the n-th such moment inside the storage package.
"""

from __future__ import annotations

import dis
import functools
import pathlib
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import tarsdb.storage

FOLDER = str(pathlib.Path(tarsdb.storage.__file__).parent)


@functools.cache
def _names(code: CodeType) -> dict[int, str]:
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


def _is_in_destructor(frame: FrameType | None) -> bool:
    """Return True where the interpreter swallows what is raised."""
    while frame is not None and frame.f_code.co_filename.startswith(FOLDER):
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


class _Interrupter:
    def __init__(self, moment: int) -> None:
        self.left = moment
        self.where: list[str] = []
        self.pending: set[int] = set()  # frames that could look for a signal now

    def start(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_back is not None:
            self.pending.discard(id(frame.f_back))  # what it called was no C function
        if not frame.f_code.co_filename.startswith(FOLDER) or _is_in_destructor(frame):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.step

    def step(self, frame: FrameType, event: str, _: Any) -> Any:
        if event != "opcode":
            return self.step
        if id(frame) in self.pending:
            self.pending.discard(id(frame))
            if self.left == 0:
                self.where.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
                raise KeyboardInterrupt
            self.left -= 1
        name = _names(frame.f_code).get(frame.f_lasti, "")
        if name.startswith("CALL") or name in ("RESUME", "JUMP_BACKWARD"):
            self.pending.add(id(frame))
        return self.step


def interrupted_at(action: Callable[[], object], moment: int, where: list[str]) -> None:
    """Run `action` in this thread; raise at one moment and append to `where` which it was."""
    interrupter = _Interrupter(moment)
    before = sys.gettrace()
    sys.settrace(interrupter.start)
    try:
        action()
    finally:
        sys.settrace(before)
        where += interrupter.where
