"""Fusion: a bare scalar function and the loop over its rows as one module, without calls.

A call from one module to another costs several times what a short function does. So a function
without state is copied into the driver's loop: parameters become locals, ``return`` a branch. Its
module has no memory, and was validated without one: no instruction in it can touch the driver's.
What this module makes is the same function as :mod:`tarsdb.udf_sandbox.modules.driver` would
call. Knows the binary format only, no SQL text and no wasmtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tarsdb.records import dataclass
from tarsdb.types import Physical, SqlType
from tarsdb.udf_sandbox.modules import bodies, driver
from tarsdb.udf_sandbox.modules.module import scalar_type
from tarsdb.udf_sandbox.modules.sections import HEADER, Reader

MAX_BODY_BYTES = 512  # of a function worth copying
MAX_LOCALS = 16  # which each row sets to zero
MAX_MODULE_BYTES = 64 << 10
UNROLLED = 4  # rows a turn: fuel and time are asked for once a turn
VECTORS = 8  # the same of vectors
SUMS = 4  # of their results, by turns: one addition need not wait for the one before

_TYPE, _FUNCTION, _MEMORY, _GLOBAL, _EXPORT, _ELEMENT, _CODE = 1, 3, 5, 6, 7, 9, 10
_KNOWN = {0, _TYPE, _FUNCTION, _GLOBAL, _EXPORT, _ELEMENT, _CODE}
_VALUE_TYPES = {"i32": 0x7F, "i64": 0x7E, "f32": 0x7D, "f64": 0x7C}
_ZEROS = {
    0x7F: b"\x41\x00", 0x7E: b"\x42\x00", 0x7D: b"\x43" + bytes(4), 0x7C: b"\x44" + bytes(8),
}  # fmt: skip
_LOADS = {
    Physical.BOOL: 0x2D, Physical.INT16: 0x2E, Physical.INT32: 0x28, Physical.INT64: 0x29,
    Physical.FLOAT32: 0x2A, Physical.FLOAT64: 0x2B,
}  # fmt: skip
_STORES = {"i32": 0x36, "i64": 0x37, "f32": 0x38, "f64": 0x39}
_NANS = {"f32": b"\x00\x00\xc0\x7f", "f64": b"\x00\x00\x00\x00\x00\x00\xf8\x7f"}
_CONSTANTS = {"f32": 0x43, "f64": 0x44}
_EQUAL = {"f32": 0x5B, "f64": 0x61}  # which only NaN is not to itself
_PLUS = {"f32": 0x92, "f64": 0xA0}  # which NaN makes NaN
_BLOCK, _LOOP, _IF, _END, _BR, _BR_IF, _RETURN = 0x02, 0x03, 0x04, 0x0B, 0x0C, 0x0D, 0x0F
_GET, _SET, _TEE, _CONST, _SHL, _ADD, _GE, _AND = 0x20, 0x21, 0x22, 0x41, 0x74, 0x6A, 0x4F, 0x71
_EQZ = 0x45
# copysign and reinterpret: with vectors and memory, all that can tell one NaN from another
_SHOW_NAN = frozenset({0x98, 0xA6, 0xBC, 0xBD, 0xFD})

# Scalar instructions and the vector ones that do the same in every lane (after the prefix 0xFD).
_LANES = {
    "f32": {0x8B: 224, 0x8C: 225, 0x8D: 103, 0x8E: 104, 0x8F: 105, 0x90: 106, 0x91: 227, 0x92: 228,
            0x93: 229, 0x94: 230, 0x95: 231, 0x96: 232, 0x97: 233, 0x5B: 65},
    "f64": {0x99: 236, 0x9A: 237, 0x9B: 116, 0x9C: 117, 0x9D: 122, 0x9E: 148, 0x9F: 239, 0xA0: 240,
            0xA1: 241, 0xA2: 242, 0xA3: 243, 0xA4: 244, 0xA5: 245, 0x61: 71},
}  # fmt: skip
_VECTOR, _V128, _BITSELECT, _ALL_TRUE = 0xFD, 0x7B, 82, 99  # of bytes: that is, of lanes too
_VECTOR_LOAD, _VECTOR_STORE, _VECTOR_CONST = 0, 11, 12


@dataclass(frozen=True)
class Fused:
    """A fused module.

    Attributes
    ----------
    code : bytes
        Exports ``memory`` and ``run`` as a driver does.
    sees_nan : bool
        The function could tell one NaN from another. If not, only its result need be canonical,
        which the loop sees to.
    """

    code: bytes
    sees_nan: bool


@dataclass(frozen=True)
class _Body:
    """A function to copy: its declared locals by type, and its instructions with the last end."""

    groups: bytes
    group_count: int
    locals: list[int]
    start: int
    stop: int


def fuse(code: bytes, export: str, arguments: Sequence[SqlType], returns: SqlType) -> Fused | None:
    """Return the fused module, or None where calls are as good or the module is unusual.

    ``code`` was inspected, matches the signature and has no state: no memory, table, mutable
    global or start function.
    """
    if len(code) > MAX_MODULE_BYTES:
        return None
    sections = dict(_sections(code))
    if not sections.keys() <= _KNOWN:
        return None
    types = _vector(sections[_TYPE])
    functions = _vector(sections[_FUNCTION])
    found = list(_bodies(sections[_CODE]))
    number = _exported(sections[_EXPORT], export)
    body = found[number]
    if body.stop - body.start > MAX_BODY_BYTES or len(body.locals) > MAX_LOCALS:
        return None
    if not set(body.locals) <= _ZEROS.keys():
        return None
    sees_nan = any(
        opcode in _SHOW_NAN
        for each in found
        for _, opcode, _ in bodies.instructions(code, each.start, each.stop)
    )
    loop = _Loop(code, body, arguments, returns, not sees_nan).function()
    pages = driver.memory_pages(len(arguments) + 1)
    parts = {
        **{key: bytes(code[r.position : r.end]) for key, r in sections.items() if key},
        _TYPE: _appended(types, b"\x60\x00\x00"),
        _FUNCTION: _appended(functions, leb(types[0])),
        _MEMORY: b"\x01\x01" + leb(pages) + leb(pages),
        _EXPORT: b"\x02\x06memory\x02\x00\x03run\x00" + leb(functions[0]),
        _CODE: _appended(_vector(sections[_CODE]), leb(len(loop)) + loop),
    }
    fused = HEADER + b"".join(_section(key, parts[key]) for key in sorted(parts))
    return Fused(fused + _section(0, _name(functions[0], export)), sees_nan)


def leb(number: int) -> bytes:
    """Return an unsigned LEB128 number."""
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _signed(number: int) -> bytes:
    """Return a signed LEB128 number."""
    found = bytearray()
    while not -64 <= number < 64:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number & 0x7F)
    return bytes(found)


def _sections(code: bytes) -> Iterator[tuple[int, Reader]]:
    reader = Reader(code, len(HEADER))
    while reader.position < reader.end:
        section, size = reader.byte(), reader.number()
        yield section, Reader(code, reader.position, reader.position + size)
        reader.skip(size)


def _section(number: int, content: bytes) -> bytes:
    return bytes([number]) + leb(len(content)) + content


def _vector(reader: Reader) -> tuple[int, bytes]:
    """Return a vector's count and the bytes of its items; the reader stays where it is."""
    rest = Reader(reader.data, reader.position, reader.end)
    return rest.number(), bytes(rest.data[rest.position : rest.end])


def _appended(vector: tuple[int, bytes], item: bytes) -> bytes:
    return leb(vector[0] + 1) + vector[1] + item


def _name(number: int, export: str) -> bytes:
    """Return the name section that lets a trap in the loop name the function."""
    text = export.encode()
    names = b"\x01" + leb(number) + leb(len(text)) + text
    return b"\x04name\x01" + leb(len(names)) + names


def _exported(reader: Reader, export: str) -> int:
    rest = Reader(reader.data, reader.position, reader.end)
    for _ in range(rest.number()):
        name, kind, number = rest.name(), rest.byte(), rest.number()
        if name == export and kind == 0:
            return number
    raise KeyError(export)


def _bodies(reader: Reader) -> Iterator[_Body]:
    rest = Reader(reader.data, reader.position, reader.end)
    for _ in range(rest.number()):
        stop = rest.number() + rest.position
        count, first = rest.number(), rest.position
        declared: list[int] = []
        for _ in range(count):
            repeated = rest.number()
            declared += [rest.byte()] * repeated
        groups = bytes(rest.data[first : rest.position])
        yield _Body(groups, count, declared, rest.position, stop)
        rest.skip(stop - rest.position)


class _Loop:
    """Writes the function ``run``: by vectors where that can be, then by fours, then by ones."""

    def __init__(
        self, code: bytes, body: _Body, arguments: Sequence[SqlType], returns: SqlType,
        canonical: bool,
    ) -> None:  # fmt: skip
        self.arguments = arguments
        self.result = scalar_type(returns) or "i32"
        self.canonical = canonical and self.result in _NANS
        self.body = body
        self.params = [_VALUE_TYPES[scalar_type(a) or "i32"] for a in arguments]
        self.local_count = len(arguments) + len(body.locals)
        self.row_number, self.rows, self.value = range(self.local_count, self.local_count + 3)
        self.copied = _without_returns(code, body)
        self.vectors = self._vectors(code)

    def function(self) -> bytes:
        """Return the code of the function, its locals first."""
        groups = b"".join(bytes([1, kind]) for kind in self.params) + self.body.groups
        groups += bytes([2, _VALUE_TYPES["i32"], 1, _VALUE_TYPES[self.result]])
        groups += leb(self.local_count + 1 + SUMS) + bytes([_V128])
        count = leb(len(self.params) + self.body.group_count + 3)
        rows = bytes([_CONST, 0, 0x28, 2, 0, _SET]) + leb(self.rows)  # i32.load of address 0
        turns = self._turns(self._row, 1, UNROLLED) + self._turns(self._row, 1, 1)
        if self.vectors is not None:
            turns = self._by_vectors() + turns
        return count + groups + rows + turns + bytes([_END])

    def _shift(self) -> int:
        return driver.result_shift(self.result)

    def _turns(self, write: Callable[[int], bytes], width: int, unrolled: int) -> bytes:
        """Return a loop over as many rows as whole turns hold; ``write`` writes ``width`` rows."""
        number, turn = leb(self.row_number), width * unrolled
        stop = bytes([_GET]) + leb(self.rows) + bytes([_CONST]) + _signed(-turn) + bytes([_AND])
        test = bytes([_GET]) + number + stop + bytes([_GE, _BR_IF, 1])
        step = bytes([_GET]) + number + bytes([_CONST]) + _signed(turn) + bytes([_ADD, _SET])
        rows = b"".join(write(ahead) for ahead in range(0, turn, width))
        head, tail = bytes([_BLOCK, 0x40, _LOOP, 0x40]), bytes([_BR, 0, _END, _END])
        return head + test + rows + step + number + tail

    def _row(self, ahead: int) -> bytes:
        """Return the code for the row ``ahead`` of the current one."""
        found = [self._address(self._shift())]
        for number, argument in enumerate(self.arguments):
            size = driver.SHIFTS[argument.physical]
            load = bytes([_LOADS[argument.physical], 0]) + leb(_place(number, ahead, size))
            found.append(self._address(size) + load + bytes([_SET]) + leb(number))
        for number, kind in enumerate(self.body.locals, len(self.arguments)):
            found.append(_ZEROS[kind] + bytes([_SET]) + leb(number))
        found.append(bytes([_BLOCK, _VALUE_TYPES[self.result]]) + self.copied)
        if self.canonical:
            nan = bytes([_CONSTANTS[self.result]]) + _NANS[self.result]
            found.append(_canonical(self.value, nan, bytes([_EQUAL[self.result]]), b"\x1b"))
        place = _place(len(self.arguments), ahead, self._shift())
        return b"".join(found) + bytes([_STORES[self.result], 0]) + leb(place)

    def _by_vectors(self) -> bytes:
        """Return the loop by vectors, and the one that makes NaN canonical where there is any.

        Their sum tells: NaN in one result makes it NaN, as infinities of both signs do for nothing.
        """
        width = 16 >> self._shift()
        turns = self._turns(self._vector, width, VECTORS)
        if not self.canonical:
            return turns
        total = bytes([_GET]) + self._sum(0)
        for number in range(1, SUMS):
            total += bytes([_GET]) + self._sum(number) + self._lane(_PLUS)
        equal = bytes([_TEE]) + self._sum(0) + bytes([_GET]) + self._sum(0) + self._lane(_EQUAL)
        nan = _lanes(_ALL_TRUE) + bytes([_EQZ, _IF, 0x40])
        again = bytes([_CONST, 0, _SET]) + leb(self.row_number)
        again += self._turns(self._without_nan, width, VECTORS)
        return turns + total + equal + nan + again + bytes([_END])

    def _without_nan(self, ahead: int) -> bytes:
        """Return the code that makes NaN canonical in a vector of results."""
        address, place = self._address(self._shift()), self._place_of_result(ahead)
        nan = _lanes(_VECTOR_CONST) + _NANS[self.result] * (16 >> self._shift())
        value = self.value + 1 + self.local_count
        chosen = _canonical(value, nan, self._lane(_EQUAL), _lanes(_BITSELECT))
        loaded = address + address + _lanes(_VECTOR_LOAD) + place
        return loaded + chosen + _lanes(_VECTOR_STORE) + place

    def _sum(self, number: int) -> bytes:
        """Return the number of the local that holds one of the sums."""
        return leb(self.value + 2 + self.local_count + number)

    def _lane(self, opcodes: dict[str, int]) -> bytes:
        """Return the instruction that does in every lane what one does to a result."""
        return _lanes(_LANES[self.result][opcodes[self.result]])

    def _place_of_result(self, ahead: int) -> bytes:
        return b"\x00" + leb(_place(len(self.arguments), ahead, self._shift()))

    def _vector(self, ahead: int) -> bytes:
        """Return the code for the vector of rows that starts ``ahead`` of the current one."""
        assert self.vectors is not None
        shift, base = self._shift(), self.value + 1
        found = [self._address(shift)]
        for number in range(len(self.arguments)):
            load = _lanes(_VECTOR_LOAD) + b"\x00" + leb(_place(number, ahead, shift))
            found.append(self._address(shift) + load + bytes([_SET]) + leb(base + number))
        for number in range(len(self.arguments), self.local_count):
            found.append(_lanes(_VECTOR_CONST) + bytes(16) + bytes([_SET]) + leb(base + number))
        found.append(self.vectors)
        store = _lanes(_VECTOR_STORE) + self._place_of_result(ahead)
        if self.canonical:
            value, total = leb(base + self.local_count), self._sum((ahead << shift) // 16 % SUMS)
            store = bytes([_TEE]) + value + store + bytes([_GET]) + value + bytes([_GET]) + total
            store += self._lane(_PLUS) + bytes([_SET]) + total
        return b"".join(found) + store

    def _vectors(self, code: bytes) -> bytes | None:
        """Return the copied instructions on vectors, or None where some have no such form."""
        kinds = {*self.params, *self.body.locals}
        if not self.params or kinds != {_VALUE_TYPES[self.result]} or self.result not in _NANS:
            return None
        known, base, found = _LANES[self.result], self.value + 1, bytearray()
        for at, opcode, after in bodies.instructions(code, self.body.start, self.body.stop - 1):
            if opcode in (_GET, _SET, _TEE):
                found += bytes([opcode]) + leb(base + Reader(code, at + 1).number())
            elif opcode == _CONSTANTS[self.result]:
                found += _lanes(_VECTOR_CONST) + code[at + 1 : after] * (16 >> self._shift())
            elif opcode in known and opcode != _EQUAL[self.result]:
                found += _lanes(known[opcode])
            else:
                return None
        return bytes(found)

    def _address(self, shift: int) -> bytes:
        get = bytes([_GET]) + leb(self.row_number)
        return get + bytes([_CONST, shift, _SHL]) if shift else get


def _place(number: int, ahead: int, shift: int) -> int:
    return driver.slot(number) + (ahead << shift)


def _lanes(opcode: int) -> bytes:
    return bytes([_VECTOR]) + leb(opcode)


def _canonical(local: int, nan: bytes, equal: bytes, choose: bytes) -> bytes:
    """Return the code that replaces NaN on the stack by the one given."""
    get = bytes([_GET]) + leb(local)
    return bytes([_TEE]) + leb(local) + nan + get + get + equal + choose


def _without_returns(code: bytes, body: _Body) -> bytes:
    """Return the instructions with every return as a branch out of the block they will stand in."""
    found = bytearray()
    depth = 0
    for at, opcode, after in bodies.instructions(code, body.start, body.stop):
        if opcode in (_BLOCK, _LOOP, _IF):
            depth += 1
        elif opcode == _END:
            depth -= 1
        if opcode == _RETURN:
            found += bytes([_BR]) + leb(depth)
        else:
            found += code[at:after]
    return bytes(found)
