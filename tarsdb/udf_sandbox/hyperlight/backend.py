"""The Hyperlight backend: functions in micro virtual machines, one more wall around the guest.

A WebAssembly module is wrapped into a component, compiled ahead of time in a child process and
run by the WebAssembly guest of hyperlight-sandbox; a function in Python or JavaScript by its
guest of that language. Either way the sandbox lives in a spawned process that is killed at the
deadline. Fuel is not counted here: time, memory and the virtual machine are the limits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tarsdb.udf_sandbox.backends import CompiledProgram, Program
from tarsdb.udf_sandbox.limits import Call

T = TypeVar("T")


class HyperlightBackend:
    """Runs guests in virtual machines of spawned processes: two walls and a kill switch."""

    name = "hyperlight"

    def unavailable(self) -> str:
        """Return why Hyperlight cannot run here; the first call tries it, in a child process."""
        from tarsdb.udf_sandbox.hyperlight.probe import unavailable

        return unavailable()

    def compile(self, program: Program) -> CompiledProgram:
        """Prepare a program; its sandbox is made when it is first called."""
        if program.language == "wasm":
            from tarsdb.udf_sandbox.hyperlight.modules import ModuleProgram

            return ModuleProgram(program)
        from tarsdb.udf_sandbox.hyperlight.source import SourceProgram

        return SourceProgram(program)

    def run(self, batch: Callable[[bool], T], call: Call) -> T:
        """Run on this thread, which only waits; a guest can be stopped at any moment."""
        return batch(True)
