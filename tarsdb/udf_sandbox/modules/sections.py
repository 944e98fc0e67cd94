"""Walk over the sections of a WebAssembly binary, with caps on everything that costs compile time.

Reads declarations only (WebAssembly core specification, section 5.5); function bodies are
measured, not decoded. Knows nothing of SQL and nothing of wasmtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from tarsdb.errors import UdfValidationError
from tarsdb.records import dataclass
from tarsdb.udf_sandbox.modules import bodies

HEADER = b"\x00asm\x01\x00\x00\x00"
MAX_MODULE_BYTES = 8 << 20
MAX_CODE_BYTES = 1 << 20
MAX_BODY_BYTES = 64 << 10
MAX_FUNCTIONS = 5_000
MAX_LOCALS = 2_000  # of one function
MAX_TOTAL_LOCALS = 200_000
MAX_PARAMS = 64
MAX_RESULTS = 16
MAX_ITEMS = 10_000  # types, globals, exports, segments
MAX_TABLE_ELEMENTS = 100_000
MAX_NAME_BYTES = 1_024

_VALUE_TYPES = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128",
                0x70: "funcref", 0x6F: "externref"}  # fmt: skip
_KINDS = ("function", "table", "memory", "global")


@dataclass(frozen=True, slots=True)
class FuncType:
    """Type of a wasm function."""

    params: tuple[str, ...]
    results: tuple[str, ...]

    def __str__(self) -> str:
        return f"({', '.join(self.params)}) -> {', '.join(self.results) or 'nothing'}"


@dataclass
class Outline:
    """The declarations of one module."""

    types: list[FuncType] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    import_types: list[FuncType | None] = field(default_factory=list)  # None: no function
    functions: list[int] = field(default_factory=list)  # type index of each
    tables: list[int] = field(default_factory=list)  # minimum elements of each
    memories: list[int] = field(default_factory=list)  # minimum pages of each
    global_count: int = 0
    mutable_globals: int = 0
    exports: dict[str, tuple[str, int]] = field(default_factory=dict)
    has_start: bool = False
    bodies: int = 0

    def parameter_count(self, number: int) -> int:
        """Return how many parameters function ``number`` has; 0 when it is not declared."""
        index = self.functions[number] if number < len(self.functions) else len(self.types)
        return len(self.types[index].params) if index < len(self.types) else 0

    @property
    def exported_functions(self) -> dict[str, FuncType]:
        """Exported functions by name; exports of missing functions are left to the validator."""
        found = {}
        imported = sum(each is not None for each in self.import_types)
        for name, (kind, index) in self.exports.items():
            own = index - imported
            if kind == "function" and 0 <= own < len(self.functions):
                type_index = self.functions[own]
                if type_index < len(self.types):
                    found[name] = self.types[type_index]
        return found

    @property
    def exported_globals(self) -> set[str]:
        """Names of the exported globals."""
        return {name for name, (kind, _) in self.exports.items() if kind == "global"}

    @property
    def exported_memories(self) -> set[str]:
        """Names of the exported memories."""
        return {name for name, (kind, _) in self.exports.items() if kind == "memory"}


def malformed(what: str, at: int) -> UdfValidationError:
    """Return the error for bytes that do not parse."""
    return UdfValidationError(f"module is malformed at byte {at}: {what}")


def cap(what: str, number: int, limit: int) -> None:
    """Raise UdfValidationError when a number is over its cap."""
    if number > limit:
        raise UdfValidationError(f"module has {what} {number}, at most {limit} allowed")


class Reader:
    """A bounded cursor over bytes; every read checks the end."""

    __slots__ = ("data", "end", "position")

    def __init__(self, data: bytes, position: int = 0, end: int | None = None) -> None:
        self.data = data
        self.position = position
        self.end = len(data) if end is None else end

    def byte(self) -> int:
        """Return the next byte."""
        if self.position >= self.end:
            raise malformed("unexpected end", self.position)
        value = self.data[self.position]
        self.position += 1
        return value

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        start = self.position
        self.skip(count)
        return self.data[start : self.position]

    def skip(self, count: int) -> None:
        """Move past ``count`` bytes."""
        if count > self.end - self.position:
            left = self.end - self.position
            raise malformed(f"{count} bytes promised, {left} left", self.position)
        self.position += count

    def number(self, bits: int = 32) -> int:
        """Return an unsigned LEB128 number."""
        result = shift = 0
        while True:
            byte = self.byte()
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift >= bits:
                raise malformed("number too long", self.position)
        if result >> bits:
            raise malformed("number too large", self.position)
        return result

    def count(self, what: str, limit: int = MAX_ITEMS) -> int:
        """Return a count of items, capped."""
        number = self.number()
        cap(what, number, limit)
        return number

    def name(self) -> str:
        """Return a length-prefixed UTF-8 name."""
        at = self.position
        length = self.number()
        cap("a name of bytes", length, MAX_NAME_BYTES)
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise malformed("name is not UTF-8", at) from error

    def value_type(self) -> str:
        """Return the name of a value type."""
        at = self.position
        code = self.byte()
        if code not in _VALUE_TYPES:
            raise malformed(f"value type 0x{code:02x} is not supported", at)
        return _VALUE_TYPES[code]


def read_outline(code: bytes) -> Outline:
    """Return the declarations of a binary module.

    Raises
    ------
    UdfValidationError
        Malformed, or over one of the caps of this module.
    """
    cap("bytes", len(code), MAX_MODULE_BYTES)
    if code[:8] != HEADER:
        raise UdfValidationError(
            f"code of {len(code)} bytes is no WebAssembly module",
            hint="a core module of version 1 is needed, not a component",
        )
    outline = Outline()
    reader = Reader(code, 8)
    while reader.position < reader.end:
        section = reader.byte()
        size = reader.number()
        start = reader.position
        reader.skip(size)
        body = Reader(code, start, start + size)
        read = _SECTIONS.get(section)
        if read is not None:
            read(body, outline)
            if body.position != body.end:
                raise malformed(f"section {section} is longer than its content", body.position)
        elif section not in _OPAQUE:
            raise malformed(f"section {section} is not supported", start)
    if outline.bodies != len(outline.functions):
        raise malformed(
            f"{len(outline.functions)} functions declared, {outline.bodies} bodies", len(code)
        )
    return outline


def _types(reader: Reader, outline: Outline) -> None:
    for _ in range(reader.count("types")):
        at = reader.position
        if reader.byte() != 0x60:
            raise malformed("only plain function types are supported", at)
        params = [reader.value_type() for _ in range(reader.count("parameters", MAX_PARAMS))]
        results = [reader.value_type() for _ in range(reader.count("results", MAX_RESULTS))]
        outline.types.append(FuncType(tuple(params), tuple(results)))


def _imports(reader: Reader, outline: Outline) -> None:
    for _ in range(reader.count("imports")):
        outline.imports.append(f"{reader.name()}.{reader.name()}")
        outline.import_types.append(_import_type(reader, outline))


def _import_type(reader: Reader, outline: Outline) -> FuncType | None:
    at = reader.position
    kind = reader.byte()
    if kind == 0:
        index = reader.number()
        if index >= len(outline.types):
            raise malformed(f"import of type {index}, there are {len(outline.types)}", at)
        return outline.types[index]
    if kind == 1:
        reader.value_type()
        _minimum(reader)
    elif kind == 2:
        _minimum(reader)
    elif kind == 3:
        reader.value_type()
        reader.byte()
    else:
        raise malformed(f"import kind {kind} is not supported", at)
    return None


def _minimum(reader: Reader) -> int:
    at = reader.position
    flags = reader.byte()
    if flags > 1:
        raise malformed("shared, 64-bit or custom-page memories and tables are not supported", at)
    minimum = reader.number()
    if flags & 1:
        reader.number()
    return minimum


def _functions(reader: Reader, outline: Outline) -> None:
    count = reader.count("functions", MAX_FUNCTIONS)
    outline.functions.extend(reader.number() for _ in range(count))


def _tables(reader: Reader, outline: Outline) -> None:
    for _ in range(reader.count("tables", 16)):
        reader.value_type()
        minimum = _minimum(reader)
        cap("a table of elements", minimum, MAX_TABLE_ELEMENTS)
        outline.tables.append(minimum)


def _memories(reader: Reader, outline: Outline) -> None:
    for _ in range(reader.count("memories", 1)):
        minimum = _minimum(reader)
        cap("a memory of pages", minimum, 65_536)
        outline.memories.append(minimum)


def _globals(reader: Reader, outline: Outline) -> None:
    outline.global_count = reader.count("globals")
    for _ in range(outline.global_count):
        reader.value_type()
        outline.mutable_globals += reader.byte()
        _constant(reader)


def _constant(reader: Reader) -> None:
    """Move past a constant expression."""
    while True:
        at = reader.position
        opcode = reader.byte()
        if opcode == 0x0B:
            return
        if opcode in (0x41, 0x42):
            while reader.byte() >= 0x80:
                pass
        elif opcode in (0x23, 0xD2):
            reader.number()
        elif opcode in (0x43, 0x44):
            reader.skip(4 if opcode == 0x43 else 8)
        elif opcode == 0xD0:
            reader.byte()
        elif opcode == 0xFD and reader.number() == 12:
            reader.skip(16)
        else:
            raise malformed(f"opcode 0x{opcode:02x} in a constant expression", at)


def _exports(reader: Reader, outline: Outline) -> None:
    for _ in range(reader.count("exports")):
        name = reader.name()
        at = reader.position
        kind = reader.byte()
        if kind >= len(_KINDS):
            raise malformed(f"export kind {kind} is not supported", at)
        if name in outline.exports:
            raise malformed(f"export {name!r} is there twice", at)
        outline.exports[name] = (_KINDS[kind], reader.number())


def _start(reader: Reader, outline: Outline) -> None:
    reader.number()
    outline.has_start = True


def _code(reader: Reader, outline: Outline) -> None:
    cap("code bytes", reader.end - reader.position, MAX_CODE_BYTES)
    outline.bodies = reader.count("function bodies", MAX_FUNCTIONS)
    total = loops = 0
    for number in range(outline.bodies):
        size = reader.number()
        cap("a function of bytes", size, MAX_BODY_BYTES)
        start = reader.position
        reader.skip(size)
        body = Reader(reader.data, start, start + size)
        count = _locals(body) + outline.parameter_count(number)
        total += count
        cap("locals", total, MAX_TOTAL_LOCALS)
        loops += bodies.count_loops(body.data, body.position, body.end, count)
        cap("loops", loops, bodies.MAX_TOTAL_LOOPS)


def _locals(reader: Reader) -> int:
    count = 0
    for _ in range(reader.count("groups of locals")):
        count += reader.number()
        reader.value_type()
        cap("a function of locals", count, MAX_LOCALS)
    return count


_SECTIONS: dict[int, Callable[[Reader, Outline], None]] = {
    1: _types, 2: _imports, 3: _functions, 4: _tables, 5: _memories, 6: _globals, 7: _exports,
    8: _start, 10: _code,
}  # fmt: skip
_OPAQUE = (0, 9, 11, 12)  # custom, element segments, data segments, data count
