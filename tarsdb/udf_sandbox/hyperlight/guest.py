"""What guests in sandboxes have in common: a guest is a name, its sandbox is the process's."""

from __future__ import annotations

from tarsdb.udf_sandbox.backends import Program
from tarsdb.udf_sandbox.hyperlight.processes import SandboxSpec
from tarsdb.udf_sandbox.limits import Call


class SandboxGuest:
    """A guest whose every batch gets a sandbox in its first state, or one like it.

    Parameters
    ----------
    program : Program
    spec : SandboxSpec
        What the process makes the sandbox of.
    """

    def __init__(self, program: Program, spec: SandboxSpec) -> None:
        self.program = program
        self.spec = spec

    def begin(self, call: Call) -> bool:
        """Return True: a guest is a sandbox's name and never gone."""
        return True

    def end(self, call: Call) -> int:
        """Return 0: fuel is not counted."""
        return 0

    def footprint(self) -> int:
        """Return 0: the sandbox is the process's."""
        return 0

    def close(self) -> None:
        """Do nothing: the sandbox is restored before its next use."""
