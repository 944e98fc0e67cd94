"""A core module as the component that Hyperlight's WebAssembly guest runs.

The guest accepts one kind of program: a component exporting ``hyperlight:sandbox/executor``,
whose ``run`` takes a string and returns one. A module of our columnar ABI becomes such a
component, its code unchanged: beside it stands a generated adapter that decodes a request, copies
the batch into the module's memory, calls the export and sends the output back. A bare scalar
export first gets a generated loop that speaks the columnar ABI. Functions of several exports get
an adapter that writes what it is told into the module's memory and calls one of them.

Knows ``messages`` and the formats of WebAssembly; compiles and runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tarsdb.types import Physical, SqlType
from tarsdb.udf_sandbox.hyperlight.messages import (
    CALL,
    CALL_REPLY,
    CALL_REQUEST,
    INVOKE,
    INVOKE_REPLY,
    INVOKE_REQUEST,
    READ_REQUEST,
    STATE,
    WRITE,
)
from tarsdb.udf_sandbox.modules.module import scalar_type
from tarsdb.udf_sandbox.modules.sections import MAX_TABLE_ELEMENTS, FuncType

_RAW, _TEXT, _INPUT = 1_024, 24_576, 65_536  # places in the adapter's own memory
_CORE_MODULE_SECTION = 1  # of a component
_TABLE_SECTION, _MEMORY_SECTION = 4, 5  # of a core module
_PREAMBLE_BYTES = 8
_DESCRIPTOR = CALL_REPLY.fields["descriptor"][1]  # type: ignore[index]  # a structured dtype
_HEADER = CALL_REQUEST.itemsize

_LOADS = {
    Physical.BOOL: ("i32.load8_u", 0), Physical.INT16: ("i32.load16_s", 1),
    Physical.INT32: ("i32.load", 2), Physical.INT64: ("i64.load", 3),
    Physical.FLOAT32: ("f32.load", 2), Physical.FLOAT64: ("f64.load", 3),
}  # fmt: skip

# Eight groups of seven bits: within 56 bits, or one to a byte. Three steps part or join halves.
_STEPS = (
    (4, 0x0000_0000_0FFF_FFFF, 0x0FFF_FFFF_0000_0000),
    (2, 0x0000_3FFF_0000_3FFF, 0x3FFF_0000_3FFF_0000),
    (1, 0x007F_007F_007F_007F, 0x7F00_7F00_7F00_7F00),
)


def component(
    export: str, *, resettable: bool, scalar: tuple[Sequence[SqlType], SqlType] | None = None
) -> str:
    """Return the text of the component around an export.

    Its first core module is empty and stands for the user's, see :func:`splice`.

    Parameters
    ----------
    export : str
    resettable : bool
        It exports ``tars_reset``.
    scalar : (argument types, result type), optional
        Of a bare scalar export; absent for one of the columnar ABI.
    """
    loop, inner = "", "$user"
    if scalar is not None:
        loop = _loop(export, *scalar)
        loop += '\n  (core instance $loop (instantiate $loop (with "user" (instance $user))))'
        inner, export, resettable = "$loop", "f", True
    return _COMPONENT.format(loop, inner, _adapter(export, resettable))


def exports_component(exports: Mapping[str, FuncType]) -> str:
    """Return the text of the component around several exports, called one at a time.

    Parameters
    ----------
    exports : mapping
        Names and types: at most four i32, and one i32 or nothing. An INVOKE names them by their
        place here.
    """
    return _COMPONENT.format("", "$user", _dispatcher(exports))


_COMPONENT = """(component
  (core module $user)
  (core instance $user (instantiate $user))
  {0}
  {2}
  (core instance $adapter (instantiate $adapter (with "user" (instance {1}))))
  (type $result (record (field "stdout" string) (field "stderr" string) (field "exit-code" s32)))
  (alias core export $adapter "memory" (core memory $memory))
  (alias core export $adapter "realloc" (core func $realloc))
  (alias core export $adapter "run" (core func $core_run))
  (func $run (param "code" string) (result $result)
    (canon lift (core func $core_run) (memory $memory) (realloc $realloc)))
  (component $executor
    (type $result (record (field "stdout" string) (field "stderr" string) (field "exit-code" s32)))
    (import "result" (type $named (eq $result)))
    (import "run" (func $run (param "code" string) (result $named)))
    (export $exported "execution-result" (type $named))
    (export "run" (func $run) (func (param "code" string) (result $exported))))
  (instance $executor (instantiate $executor
    (with "result" (type $result)) (with "run" (func $run))))
  (export "hyperlight:sandbox/executor" (instance $executor)))
"""


def splice(binary: bytes, module: bytes) -> bytes:
    """Return a binary component with its first core module replaced."""
    at = _PREAMBLE_BYTES
    while at < len(binary):
        size, start = _leb(binary, at + 1)
        if binary[at] == _CORE_MODULE_SECTION:
            head = bytes([_CORE_MODULE_SECTION]) + _leb_bytes(len(module))
            return binary[:at] + head + module + binary[start + size :]
        at = start + size
    raise ValueError("component without a core module")


def capped(module: bytes, pages: int) -> bytes:
    """Return a module whose memory and tables cannot grow beyond their caps: growth gives -1.

    Parameters
    ----------
    module : bytes
        Validated, with memories and tables of 32-bit addresses that are not shared.
    pages : int
        Of 64 KiB; at least what the memory starts with.
    """
    out, at = bytearray(module[:_PREAMBLE_BYTES]), _PREAMBLE_BYTES
    while at < len(module):
        section = module[at]
        size, start = _leb(module, at + 1)
        at = start + size
        body = module[start:at]
        if section == _MEMORY_SECTION:
            body = _with_most(body, pages, 0)
        elif section == _TABLE_SECTION:
            body = _with_most(body, MAX_TABLE_ELEMENTS, 1)
        out += bytes([section]) + _leb_bytes(len(body)) + body
    return bytes(out)


def _with_most(section: bytes, most: int, type_bytes: int) -> bytes:
    """Return a section of memories, or of tables with their type before the limits, with maxima."""
    count, at = _leb(section, 0)
    parts = [_leb_bytes(count)]
    for _ in range(count):
        kind, has_most = section[at : at + type_bytes], section[at + type_bytes]
        least, at = _leb(section, at + type_bytes + 1)
        named = most
        if has_most:
            named, at = _leb(section, at)
        parts.append(kind + b"\x01" + _leb_bytes(least) + _leb_bytes(min(most, named)))
    return b"".join(parts)


def _leb(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] >= 0x80:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | data[at] << shift, at + 1


def _leb_bytes(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _quoted(name: str) -> str:
    return '"' + "".join(f"\\{byte:02x}" for byte in name.encode()) + '"'


def _loop(export: str, arguments: Sequence[SqlType], returns: SqlType) -> str:
    """Return a columnar module that calls a bare scalar export once a row."""
    params = " ".join(scalar_type(argument) or "" for argument in arguments)
    result = scalar_type(returns)
    values = "\n          ".join(
        f"({load} (i32.add (i32.load offset={8 + 32 * number} (local.get $d)) "
        f"(i32.shl (local.get $i) (i32.const {shift}))))"
        for number, (load, shift) in enumerate(_LOADS[argument.physical] for argument in arguments)
    )
    shift = 2 if result in ("i32", "f32") else 3
    return f"""(core module $loop
    (import "user" {_quoted(export)} (func $f (param {params}) (result {result})))
    (memory (export "memory") 1)
    (func (export "tars_reset"))
    (func (export "tars_alloc") (param $size i32) (result i32) (local $more i32)
      (local.set $more (i32.sub
        (i32.add (i32.shr_u (local.get $size) (i32.const 16)) (i32.const 2)) (memory.size)))
      (if (i32.gt_s (local.get $more) (i32.const 0)) (then
        (if (i32.eq (memory.grow (local.get $more)) (i32.const -1)) (then (return (i32.const 0))))))
      (i32.const 64))
    (func (export "f") (param $d i32) (param $n i32) (result i32) (local $i i32) (local $out i32)
      (local.set $out (i32.load offset={8 + 32 * len(arguments)} (local.get $d)))
      (block $done (loop $next
        (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
        ({result}.store (i32.add (local.get $out) (i32.shl (local.get $i) (i32.const {shift})))
          (call $f {values}))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $next)))
      (i32.const 0)))"""


def _parted() -> str:
    """56 bits in $x become eight characters."""
    return "\n        ".join(
        f"(local.set $x (i64.or (i64.and (local.get $x) (i64.const {low}))"
        f" (i64.and (i64.shl (local.get $x) (i64.const {shift})) (i64.const {high}))))"
        for shift, low, high in _STEPS
    )


def _joined() -> str:
    """Eight characters in $x become 56 bits."""
    return "\n        ".join(
        f"(local.set $x (i64.or (i64.and (local.get $x) (i64.const {low}))"
        f" (i64.shr_u (i64.and (local.get $x) (i64.const {high})) (i64.const {shift}))))"
        for shift, low, high in reversed(_STEPS)
    )


def _field(name: str, request: np.dtype[np.void] = CALL_REQUEST, number: int = 0) -> str:
    """Read a field of the request, or the one of a number in it."""
    assert request.fields is not None  # a structured dtype
    at = _INPUT + request.fields[name][1] + 4 * number
    return f"(i32.load $m offset={at} (i32.const 0))"


_TRANSPORT = f"""(memory $m (export "memory") 2)
    (func (export "realloc") (param i32 i32 i32) (param $size i32) (result i32) (local $more i32)
      (local.set $more (i32.sub
        (i32.add (i32.shr_u (local.get $size) (i32.const 16)) (i32.const 3)) (memory.size $m)))
      (if (i32.gt_s (local.get $more) (i32.const 0)) (then
        (if (i32.eq (memory.grow $m (local.get $more)) (i32.const -1)) (then (unreachable)))))
      (i32.const {_INPUT}))
    (func $unpack (param $length i32) (local $from i32) (local $to i32) (local $x i64)
      (block $done (loop $next
        (br_if $done (i32.ge_u (local.get $from) (local.get $length)))
        (local.set $x (i64.load $m offset={_INPUT} (local.get $from)))
        {_joined()}
        (i64.store $m offset={_INPUT} (local.get $to) (local.get $x))
        (local.set $from (i32.add (local.get $from) (i32.const 8)))
        (local.set $to (i32.add (local.get $to) (i32.const 7)))
        (br $next))))
    (func $reply (param $length i32) (result i32) (local $from i32) (local $to i32) (local $x i64)
      (block $done (loop $next
        (br_if $done (i32.ge_u (local.get $from) (local.get $length)))
        (local.set $x (i64.and (i64.load $m offset={_RAW} (local.get $from))
          (i64.const 0xFFFFFFFFFFFFFF)))
        {_parted()}
        (i64.store $m offset={_TEXT} (local.get $to) (local.get $x))
        (local.set $from (i32.add (local.get $from) (i32.const 7)))
        (local.set $to (i32.add (local.get $to) (i32.const 8)))
        (br $next)))
      (i32.store $m (i32.const 0) (i32.const {_TEXT}))
      (i32.store $m (i32.const 4) (local.get $to))
      (i32.const 0))
    (func $say (param $place i32) (param $value i32)
      (i32.store $m offset={_RAW} (local.get $place) (local.get $value)))"""

_BATCH = f"""(func $place (param $field i32) (param $base i32)
      (if (i32.load $u (local.get $field)) (then (i32.store $u (local.get $field)
        (i32.add (i32.load $u (local.get $field)) (local.get $base))))))
    (func $batch (param $base i32) (result i32) (local $d i32) (local $n i32)
      (memory.copy $u $m (local.get $base) (i32.const {_INPUT + _HEADER}) {_field("image")})
      (memory.fill $u (i32.add (local.get $base) {_field("image")}) (i32.const 0)
        (i32.sub {_field("size")} (i32.add {_field("image")} (i32.const 64))))
      (memory.fill $u (i32.add (local.get $base) {_field("validity")}) (i32.const 255)
        {_field("validity_bytes")})
      (local.set $d (local.get $base))
      (local.set $n {_field("columns")})
      (loop $next
        (call $place (i32.add (local.get $d) (i32.const 8)) (local.get $base))
        (call $place (i32.add (local.get $d) (i32.const 16)) (local.get $base))
        (call $place (i32.add (local.get $d) (i32.const 20)) (local.get $base))
        (local.set $d (i32.add (local.get $d) (i32.const 32)))
        (br_if $next (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
      (call $say (i32.const 0) (local.get $base))
      (call $say (i32.const 8) (call $f (local.get $base) {_field("rows")}))
      (call $say (i32.const 4) (memory.size $u))
      (memory.copy $m $u (i32.const {_RAW + _DESCRIPTOR})
        (i32.sub (local.get $d) (i32.const 32)) (i32.const 32))
      (memory.copy $m $u (i32.const {_RAW + CALL_REPLY.itemsize})
        (i32.add (local.get $base) {_field("image")}) {_field("wanted")})
      (call $reply (i32.add (i32.const {CALL_REPLY.itemsize}) {_field("wanted")})))"""


def _adapter(export: str, resettable: bool) -> str:
    """Return the adapter between the executor's ``run`` and a columnar export.

    It owns memory ``$m``, where messages lie; the module's is ``$u``. A request or a module that
    reaches outside either traps, which ends this guest and nothing else.
    """
    reset = '(import "user" "tars_reset" (func $reset))' if resettable else ""
    return f"""(core module $adapter
    (import "user" "memory" (memory $u 0))
    (import "user" "tars_alloc" (func $alloc (param i32) (result i32)))
    (import "user" {_quoted(export)} (func $f (param i32 i32) (result i32)))
    {reset}
    {_TRANSPORT}
    {_BATCH}
    (func $call (result i32) (local $region i32)
      {"(call $reset)" if resettable else ""}
      (local.set $region (call $alloc {_field("size")}))
      (call $say (i32.const 0) (local.get $region))
      (call $say (i32.const 4) (memory.size $u))
      (if (i32.eqz (local.get $region)) (then (return (call $reply (i32.const 8)))))
      (if (i64.gt_u
        (i64.add (i64.extend_i32_u (local.get $region)) (i64.extend_i32_u {_field("size")}))
        (i64.shl (i64.extend_i32_u (memory.size $u)) (i64.const 16)))
        (then (return (call $reply (i32.const 8)))))
      (call $batch (i32.and (i32.add (local.get $region) (i32.const 63)) (i32.const -64))))
    {_run(CALL, "$call")})"""


def _run(kind: int, function: str) -> str:
    """Return the adapter's entry: a function for one kind of requests, what all have in common."""
    address, size = (_field(name, READ_REQUEST) for name in ("address", "size"))
    return f"""(func (export "run") (param $text i32) (param $length i32) (result i32)
      (call $unpack (local.get $length))
      (if (i32.eq {_field("kind")} (i32.const {STATE})) (then
        (call $say (i32.const 0) (memory.size $u))
        (return (call $reply (i32.const 4)))))
      (if (i32.eq {_field("kind")} (i32.const {kind})) (then (return (call {function}))))
      (memory.copy $m $u (i32.const {_RAW}) {address} {size})
      (call $reply {size}))"""


_WRITES = f"""(func $write (local $left i32) (local $at i32) (local $size i32)
      (local.set $left {_field("writes", INVOKE_REQUEST)})
      (local.set $at (i32.const {_INPUT + INVOKE_REQUEST.itemsize}))
      (block $done (loop $next
        (br_if $done (i32.eqz (local.get $left)))
        (local.set $size (i32.load $m offset=4 (local.get $at)))
        (memory.copy $u $m (i32.load $m (local.get $at))
          (i32.add (local.get $at) (i32.const {WRITE.itemsize})) (local.get $size))
        (local.set $at (i32.add (i32.add (local.get $at) (i32.const {WRITE.itemsize}))
          (local.get $size)))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br $next))))"""


def _dispatcher(exports: Mapping[str, FuncType]) -> str:
    """Return the adapter that writes into the module's memory and calls one of its exports."""
    imports, choices = [], []
    for number, (name, kind) in enumerate(exports.items()):
        results = f"(result {' '.join(kind.results)})" if kind.results else ""
        params = f"(param {' '.join(kind.params)})" if kind.params else ""
        imports.append(f'(import "user" {_quoted(name)} (func $e{number} {params} {results}))')
        given = " ".join(
            _field("arguments", INVOKE_REQUEST, each) for each in range(len(kind.params))
        )
        call = f"(call $e{number} {given})"
        step = f"(call $say (i32.const 0) {call})" if kind.results else call
        chosen = f"(i32.eq {_field('export', INVOKE_REQUEST)} (i32.const {number}))"
        choices.append(f"(if {chosen} (then {step}))")
    lines = "\n      "
    return f"""(core module $adapter
    (import "user" "memory" (memory $u 0))
    {lines.join(imports)}
    {_TRANSPORT}
    {_WRITES}
    (func $invoke (result i32)
      (call $write)
      {lines.join(choices)}
      (call $say (i32.const 4) (memory.size $u))
      (call $reply (i32.const {INVOKE_REPLY.itemsize})))
    {_run(INVOKE, "$invoke")})"""
