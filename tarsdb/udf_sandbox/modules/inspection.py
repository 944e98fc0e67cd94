"""What a module is, in words: exports and what they could serve, sections, memory, a verdict.

For people who write functions. Looks at modules that are refused too, as far as they can be read;
compiles nothing and runs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import field

from tarsdb.errors import UdfValidationError
from tarsdb.records import dataclass
from tarsdb.udf_sandbox.capabilities import SIGNATURES
from tarsdb.udf_sandbox.functions.aggregates import PARTS
from tarsdb.udf_sandbox.limits import WASM_PAGE
from tarsdb.udf_sandbox.modules import sections
from tarsdb.udf_sandbox.modules.module import COLUMNAR_TYPE, ModuleInfo, inspect_module

_SECTIONS = (
    "custom", "type", "import", "function", "table", "memory", "global", "export", "start",
    "element", "code", "data", "data count",
)  # fmt: skip
_SQL_OF = {
    "i32": ("INT", "BOOLEAN, SMALLINT, DATE"),
    "i64": ("BIGINT", "TIME, TIMESTAMP, DECIMAL up to 18 digits"),
    "f32": ("REAL", ""), "f64": ("DOUBLE", ""),
}  # fmt: skip
_OWN = ("tars_alloc", "tars_reset")


@dataclass(frozen=True)
class ExportedFunction:
    """An exported function, its wasm type, and the SQL signatures it could serve."""

    name: str
    type: str
    serves: str


@dataclass
class Inspection:
    """A module as its author sees it.

    Attributes
    ----------
    size : int
        Bytes.
    sha256 : str
    abi : str
        What its exports follow: plain numbers, or the columnar ABI.
    sections : list of (str, int)
        Name and bytes of each, in their order.
    imports : list of str, optional
        None where they cannot be read.
    functions : list of ExportedFunction
        Without what the ABI itself asks for.
    memory_bytes : int, optional
        What its memory starts with: the least ``max_memory``. None where that cannot be read.
    largest_function : int
        Bytes of the longest body.
    refused : str
        Why ``CREATE FUNCTION`` would refuse it, or ``''``.
    """

    size: int
    sha256: str
    abi: str = ""
    sections: list[tuple[str, int]] = field(default_factory=list)
    imports: list[str] | None = None
    functions: list[ExportedFunction] = field(default_factory=list)
    memory_bytes: int | None = None
    largest_function: int = 0
    refused: str = ""


def describe(code: bytes) -> Inspection:
    """Return what a binary module is; a refused one as far as it can be read."""
    found = Inspection(len(code), hashlib.sha256(code).hexdigest())
    try:
        found.sections = [(name, size) for name, size, _ in _sections(code)]
        found.largest_function = _largest(code)
        outline = sections.read_outline(code)
        found.imports, found.memory_bytes = outline.imports, sum(outline.memories) * WASM_PAGE
        info = inspect_module(code, allow=tuple(SIGNATURES))
    except UdfValidationError as error:
        found.refused = str(error)
        return found
    if info.columnar:
        found.abi = "columnar, version 1" + (", with tars_reset" if info.resettable else "")
    else:
        found.abi = "plain numbers"
    found.functions = [
        ExportedFunction(name, str(info.functions[name]), _serves(info, name))
        for name in sorted(info.functions)
        if not (info.columnar and name in _OWN)
    ]
    return found


def _sections(code: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and position of each section."""
    if code[: len(sections.HEADER)] != sections.HEADER:
        sections.read_outline(code)  # which says what is wrong
    reader = sections.Reader(code, len(sections.HEADER))
    while reader.position < reader.end:
        number, size = reader.byte(), reader.number()
        start = reader.position
        reader.skip(size)
        name = _SECTIONS[number] if number < len(_SECTIONS) else f"unknown {number}"
        if number == 0:
            name = f"custom {sections.Reader(code, start, start + size).name()!r}"
        yield name, size, start


def _largest(code: bytes) -> int:
    """Return the bytes of the longest function."""
    longest = 0
    for name, size, start in _sections(code):
        if name == "code":
            reader = sections.Reader(code, start, start + size)
            for _ in range(reader.number()):
                length = reader.number()
                reader.skip(length)
                longest = max(longest, length)
    return longest


def _serves(info: ModuleInfo, name: str) -> str:
    part = next((part for part in PARTS if name.endswith(f"_{part}")), None)
    if part is not None and info.columnar:
        stem = name.removesuffix(f"_{part}")
        if all(info.functions.get(f"{stem}_{other}") == wanted for other, wanted in PARTS.items()):
            return f"a part of the aggregate function {stem}, of any signature"
    found = info.functions[name]
    if info.columnar and found == COLUMNAR_TYPE:
        return f"{name}(any types) RETURNS any type, or TABLE (...)"
    kinds = (*found.params, *found.results)
    if len(found.results) != 1 or not set(kinds) <= _SQL_OF.keys():
        return "nothing: it needs one result, and numbers only"
    params = ", ".join(
        f"a{number} {_SQL_OF[kind][0]}" for number, kind in enumerate(found.params, 1)
    )
    others = [
        f"for {_SQL_OF[k][0]} also {_SQL_OF[k][1]}" for k in sorted({*kinds}) if _SQL_OF[k][1]
    ]
    signature = f"{name}({params}) RETURNS {_SQL_OF[found.results[0]][0]}"
    return f"{signature} ({'; '.join(others)})" if others else signature
