"""What Hyperlight says of a failed run, as one of our errors.

The text comes from the guest's runtime and may hold anything a guest managed to write; it decides
only which error is raised and is shown shortened.
"""

from __future__ import annotations

from tarsdb.errors import DatabaseError, UdfTrapError
from tarsdb.options import SandboxLimits
from tarsdb.udf_sandbox.limits import Call, memory_error

_TRAPS = (
    ("integer divide by zero", "INTEGER_DIVISION_BY_ZERO"),
    ("integer overflow", "INTEGER_OVERFLOW"),
    ("invalid conversion to integer", "BAD_CONVERSION_TO_INTEGER"),
    ("out of bounds memory access", "MEMORY_OUT_OF_BOUNDS"),
    ("out of bounds table access", "TABLE_OUT_OF_BOUNDS"),
    ("uninitialized element", "INDIRECT_CALL_TO_NULL"),
    ("indirect call type mismatch", "BAD_SIGNATURE"),
    ("`unreachable` instruction", "UNREACHABLE"),
    ("call stack exhausted", "STACK_OVERFLOW"),
)
_NO_MEMORY = ("Out of physical memory", "exceeds memory limits", "memory allocation of")


def guest_error(error: Exception, call: Call, limits: SandboxLimits) -> DatabaseError:
    """Return the error for a run that failed inside the virtual machine."""
    text = str(error)
    for said in _NO_MEMORY:
        if said in text:
            return memory_error(call.function, limits, "its sandbox has no memory left")
    for said, code in _TRAPS:
        if said in text:
            return UdfTrapError(f"function {call.function}: trap {code}", code=code)
    return UdfTrapError(
        f"function {call.function}: its sandbox stopped: {text[:300]}", code="SANDBOX_STOPPED"
    )
