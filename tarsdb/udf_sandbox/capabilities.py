"""Capabilities: the few functions of the host that a module may import, once they were granted.

Each is counted and limited for every statement. What a guest passes is checked here, as what it
returns is elsewhere; what stands behind ``lookup`` and ``embed`` is
the engine's. Knows no wasmtime.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tarsdb.errors import BindError, UdfError, UdfLimitError, UdfValidationError
from tarsdb.metrics import METRICS
from tarsdb.udf_sandbox.modules.sections import FuncType, Outline

if TYPE_CHECKING:
    from tarsdb.udf_sandbox.limits import Call

MODULE = "tars"
SIGNATURES = {
    "log": FuncType(("i32", "i32"), ()),
    "lookup": FuncType(("i32",) * 4, ("i32",)),
    "embed": FuncType(("i32",) * 4, ("i32",)),
}
"""Capabilities and the types they are imported with."""
MOST = {"log": 1000, "lookup": 100_000, "embed": 1000}
"""Calls of each that one function may make in one statement."""
LOG_BYTES = 1024
"""Bytes of a line that are kept."""
KEY_BYTES = 1024
TEXT_BYTES = 1 << 16
ABSENT = -1
LOGGER = logging.getLogger("tarsdb.udf")


def grants(value: str) -> tuple[str, ...]:
    """Return the capabilities that the text of ``WITH (allow = '...')`` names.

    Raises
    ------
    BindError
        One of them is not known.
    """
    names = tuple(dict.fromkeys(name.strip().lower() for name in str(value).split(",")))
    unknown = [name for name in names if name not in SIGNATURES]
    if unknown:
        raise BindError(
            f"function option allow: capability {unknown[0]!r} is not known",
            hint=f"capabilities: {', '.join(SIGNATURES)}",
        )
    return names


def check_imports(outline: Outline, allowed: Sequence[str]) -> None:
    """Raise UdfValidationError for an import that is no capability, not granted, or useless."""
    for name, found in zip(outline.imports, outline.import_types, strict=True):
        capability = name.removeprefix(f"{MODULE}.")
        if capability not in SIGNATURES or capability == name:
            shown = ", ".join(outline.imports[:5]) + (", ..." if len(outline.imports) > 5 else "")
            raise UdfValidationError(
                f"module imports {shown}; functions may import nothing",
                hint="build it freestanding, without WASI: see docs/udf-guide.md",
            )
        if found != SIGNATURES[capability]:
            raise UdfValidationError(
                f"module imports {name} as {found or 'no function'}, it is {SIGNATURES[capability]}"
            )
        if capability not in allowed:
            raise UdfValidationError(
                f"module imports {name}, which the function is not granted",
                hint=f"WITH (allow = '{capability}')",
            )
        if "memory" not in outline.exported_memories:
            raise UdfValidationError(f"module imports {name}, but exports no memory")


def serve(name: str, call: Call, memory: np.ndarray, *arguments: int) -> int | None:
    """Do what a guest asks for.

    Parameters
    ----------
    name : str
        A key of :data:`SIGNATURES`.
    call : Call
        The running one.
    memory : uint8 (n,)
        The guest's, writable.
    *arguments : int
        As the guest passed them.

    Raises
    ------
    UdfError
        An address is outside the memory, or a text is not UTF-8.
    UdfLimitError
        The function asked too often.
    """
    if call.budget.count(call.function, name) > MOST[name]:
        raise UdfLimitError(
            f"function {call.function}: called {MODULE}.{name} more than {MOST[name]} times in one "
            "statement",
            kind=name,
        )
    return _SERVED[name](call, memory, *arguments)


def _log(call: Call, memory: np.ndarray, at: int, size: int) -> None:
    raw = _region(call, "log", memory, at, size)[:LOG_BYTES].tobytes()
    text = raw.decode(errors="backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    METRICS.add("udf.log_lines")
    LOGGER.info("function %s: %s", call.function, shown)


def _lookup(call: Call, memory: np.ndarray, *arguments: int) -> int:
    """Write the value of a key where it fits; return its length, -1 where there is none."""
    key = _text(call, "lookup", memory, arguments, KEY_BYTES)
    METRICS.add("udf.lookups")
    return _given(call, "lookup", memory, arguments, call.budget.lookup, key)


def _embed(call: Call, memory: np.ndarray, *arguments: int) -> int:
    """Write the vector of a text where it fits; return its bytes."""
    text = _text(call, "embed", memory, arguments, TEXT_BYTES)
    METRICS.add("udf.embeds")
    return _given(call, "embed", memory, arguments, call.budget.embed, text)


def _text(call: Call, name: str, memory: np.ndarray, arguments: Sequence[int], most: int) -> str:
    """Return what the guest asks about: the first two arguments, address and length."""
    at, size = arguments[:2]
    if not 0 <= size <= most:
        raise UdfError(
            f"function {call.function}: {MODULE}.{name} of a text of {size} bytes, at most {most}"
        )
    try:
        return _region(call, name, memory, at, size).tobytes().decode()
    except UnicodeDecodeError as error:
        raise UdfError(
            f"function {call.function}: {MODULE}.{name} of a text that is not UTF-8"
        ) from error


def _given(
    call: Call, name: str, memory: np.ndarray, arguments: Sequence[int],
    ask: Callable[[str, str], bytes | None] | None, text: str,
) -> int:  # fmt: skip
    """Write what is known of a text to the room of the last two arguments, if it fits."""
    if ask is None:
        raise UdfError(f"function {call.function}: {MODULE}.{name} has nothing behind it here")
    found = ask(call.function, text)
    if found is None:
        return ABSENT
    room, size = arguments[2:]
    if len(found) <= size:
        target = _region(call, name, memory, room, len(found))
        target[:] = np.frombuffer(found, dtype=np.uint8)
    return len(found)


def _region(call: Call, name: str, memory: np.ndarray, at: int, size: int) -> np.ndarray:
    at, size = at & 0xFFFFFFFF, size & 0xFFFFFFFF
    if at + size > len(memory):
        raise UdfError(
            f"function {call.function}: {MODULE}.{name} of {at}..{at + size}, outside its memory "
            f"of {len(memory)} bytes"
        )
    return memory[at : at + size]


_SERVED: dict[str, Callable[..., int | None]] = {
    "log": _log, "lookup": _lookup, "embed": _embed,
}  # fmt: skip
