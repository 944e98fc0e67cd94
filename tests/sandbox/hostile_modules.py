"""Hostile modules, written by hand: what each tries, and what must come of it.

Every entry is a module of one export ``f``: bare scalar ``f(BIGINT) RETURNS BIGINT``, columnar
``f(TEXT) RETURNS TEXT``, or of the types its entry names. ``test_hostile_corpus`` runs them all.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.sandbox.wasm_text import PRELUDE, columnar

LOOP = "(loop $l (br $l))"
HEADER = b"\x00asm\x01\x00\x00\x00"


@dataclass(frozen=True)
class Hostile:
    """One module.

    Attributes
    ----------
    name : str
        What it tries.
    code : str or bytes
    outcome : str
        ``refused`` (never runs), ``trap CODE``, ``limit KIND``, ``error WORDS`` (of the message),
        or ``harmless VALUE``: it runs and that is row 0 (``harmless`` alone: whatever it says).
    argument, returns : str
        SQL types.
    options : str
        More than the tests' limits, as in WITH.
    """

    name: str
    code: str | bytes
    outcome: str
    argument: str = "BIGINT"
    returns: str = "BIGINT"
    options: str = ""


def scalar(body: str, extra: str = "") -> str:
    """Return a module whose ``f(i64) -> i64`` runs ``body`` and returns its argument."""
    return f'(module {extra} (func $f (export "f") (param i64) (result i64) {body} (local.get 0)))'


def _scalar(name: str, body: str, outcome: str, extra: str = "", options: str = "") -> Hostile:
    return Hostile(name, scalar(body, extra), outcome, options=options)


def _text(name: str, body: str, outcome: str, returns: str = "TEXT") -> Hostile:
    """Return a columnar module; $d are the descriptors, the output's 32 bytes behind the first."""
    return Hostile(name, columnar(body + "(i32.const 0)"), outcome, "TEXT", returns)


def _parts(
    name: str, outcome: str, *, alloc: str = "(i32.const 1024)", f: str = "(i32.const 0)",
    reset: str = "", more: str = "", memory: str = "1",
) -> Hostile:  # fmt: skip
    """Return a columnar module from its own allocator, reset and function."""
    text = f"""(module (memory (export "memory") {memory})
      (global (export "tars_abi_v1") i32 (i32.const 1)) {more}
      (func (export "tars_alloc") (param i32) (result i32) {alloc})
      {f'(func (export "tars_reset") {reset})' if reset else ""}
      (func (export "f") (param $d i32) (param $n i32) (result i32) {f}))"""
    return Hostile(name, text, outcome, "TEXT", "TEXT")


def leb(number: int) -> bytes:
    """Return an unsigned LEB128 number."""
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def section(number: int, content: bytes) -> bytes:
    """Return a section of a binary module."""
    return bytes([number]) + leb(len(content)) + content


def _binary(
    body: bytes, locals_: bytes = b"\x00", before: bytes = b"", after: bytes = b""
) -> bytes:
    """Return a module with one function f(i64) -> i64 of these bytes."""
    whole = locals_ + body + b"\x0b"
    return (
        HEADER + section(1, b"\x01\x60\x01\x7e\x01\x7e") + section(3, b"\x01\x00") + before
        + section(7, b"\x01\x01f\x00\x00") + section(10, b"\x01" + leb(len(whole)) + whole) + after
    )  # fmt: skip


GROW = """(block $out (loop $g
  (br_if $out (i32.eq (memory.grow (i32.const 1)) (i32.const -1))) (br $g)))"""
OUTPUT = "(i32.load offset=52 (local.get $d))"  # the address of the output's offsets
SLOW_FILL = """(loop $l (memory.fill (i32.const 0) (i32.const 1) (i32.const 8388608)) (br $l))"""
SHORT = "fuel = 1000000000, timeout_ms = 200"

LOOPS = [
    _scalar("endless loop", LOOP, "limit fuel"),
    _scalar("endless loop with endless fuel", LOOP, "limit time",
            options="fuel = 4000000000000, timeout_ms = 200"),
    _scalar("endless loop of a table", "(loop $l (br_table $l $l $l (i32.const 1)))", "limit fuel"),
    _scalar("loop in the second row", f"(if (i64.eq (local.get 0) (i64.const 2)) (then {LOOP}))",
            "limit fuel"),
    _scalar("loop in the start function", "", "limit fuel", f"(func $s {LOOP}) (start $s)"),
    _parts("loop in the allocator", "limit fuel", alloc=f"{LOOP} (i32.const 0)"),
    _parts("loop in the reset", "limit fuel", reset=LOOP),
    _text("loop in a columnar function", LOOP, "limit fuel"),
    Hostile("memory.fill without end", scalar(SLOW_FILL, "(memory 128)"), "limit", options=SHORT),
    Hostile("memory.copy without end", scalar("""(loop $l (memory.copy (i32.const 0) (i32.const 8)
        (i32.const 8000000)) (br $l))""", "(memory 128)"), "limit", options=SHORT),
    Hostile("table.fill without end", scalar("""(loop $l (table.fill (i32.const 0)
        (ref.null func) (i32.const 90000)) (br $l))""", "(table 90000 funcref)"), "limit",
        options=SHORT),
    _scalar("calls without end", "(loop $l (drop (call $g (local.get 0))) (br $l))", "limit fuel",
            "(func $g (param i64) (result i64) (local.get 0))"),
]  # fmt: skip

MEMORY = [
    _scalar("memory that starts too large", "", "limit memory", "(memory 2000)"),
    _scalar("memory that grows for ever", f"{GROW} (return (i64.const 1))", "harmless 1",
            "(memory 1)"),
    _scalar("memory that grows and is written all over",
            f"""{GROW} (memory.fill (i32.const 0) (i32.const 65)
            (i32.shl (memory.size) (i32.const 16)))""", "limit fuel", "(memory 1)"),
    _scalar("memory.grow of everything", """(return (i64.extend_i32_s
            (memory.grow (i32.const 65535))))""", "harmless -1", "(memory 1)"),
    _scalar("memory.fill past the end", """(memory.fill (i32.const 65530) (i32.const 1)
            (i32.const 100))""", "trap MEMORY_OUT_OF_BOUNDS", "(memory 1)"),
    _scalar("memory.copy from past the end", """(memory.copy (i32.const 0) (i32.const -8)
            (i32.const 16))""", "trap MEMORY_OUT_OF_BOUNDS", "(memory 1)"),
    _scalar("load far out of bounds", "(drop (i64.load offset=0xffffffff (i32.const -1)))",
            "trap MEMORY_OUT_OF_BOUNDS", "(memory 1)"),
    _scalar("store below the memory", "(i64.store (i32.const -8) (i64.const 1))",
            "trap MEMORY_OUT_OF_BOUNDS", "(memory 1)"),
    _scalar("data segment past the end", "", "trap MEMORY_OUT_OF_BOUNDS",
            '(memory 1) (data (i32.const 65535) "ab")'),
    _scalar("memory.init of a dropped segment", """(data.drop 0) (memory.init 0 (i32.const 0)
            (i32.const 0) (i32.const 1))""", "trap MEMORY_OUT_OF_BOUNDS", '(memory 1) (data "a")'),
    _scalar("table that starts too large", "", "refused", "(table 4000000000 funcref)"),
    _scalar("table that grows for ever", """(return (i64.extend_i32_s
            (table.grow (ref.null func) (i32.const 900000))))""", "harmless -1",
            "(table 1 funcref)"),
    _scalar("seventeen tables", "", "refused", "(table 1 funcref)" * 17),
]  # fmt: skip

TRAPS = [
    _scalar("unreachable", "unreachable", "trap UNREACHABLE"),
    _scalar("division by zero", "(drop (i64.div_s (local.get 0) (i64.const 0)))",
            "trap INTEGER_DIVISION_BY_ZERO"),
    _scalar("overflow", "(drop (i64.div_s (i64.const 0x8000000000000000) (i64.const -1)))",
            "trap INTEGER_OVERFLOW"),
    _scalar("conversion of NaN", "(drop (i64.trunc_f64_s (f64.const nan)))",
            "trap BAD_CONVERSION_TO_INTEGER"),
    _scalar("recursion", "(drop (call $f (i64.const 1)))", "trap STACK_OVERFLOW"),
    _scalar("mutual recursion", "(drop (call $g (local.get 0)))", "trap STACK_OVERFLOW",
            "(func $g (param i64) (result i64) (call $f (local.get 0)))"),
    _scalar("recursion with large frames", "(drop (call $g (local.get 0)))", "trap STACK_OVERFLOW",
            f"(func $g (param i64) (result i64) (local {'i64 ' * 400}) (local.set 200 "
            "(call $g (local.get 0))) (i64.add (local.get 200) (local.get 399)))"),
    _scalar("recursion through a table", "(drop (call_indirect (type $t) (local.get 0) "
            "(i32.const 0)))", "trap STACK_OVERFLOW",
            "(type $t (func (param i64) (result i64))) (table funcref (elem $f))"),
    _scalar("call of nothing", "(call_indirect (i32.const 0))", "trap INDIRECT_CALL_TO_NULL",
            "(table 1 funcref)"),
    _scalar("call outside the table", "(call_indirect (i32.const 99))", "trap TABLE_OUT_OF_BOUNDS",
            "(table 1 funcref)"),
    _scalar("call of another type", "(call_indirect (i32.const 0))", "trap BAD_SIGNATURE",
            "(table funcref (elem $f))"),
    _scalar("trap in the start function", "", "trap UNREACHABLE",
            "(func $s unreachable) (start $s)"),
    _scalar("recursion in the start function", "", "trap STACK_OVERFLOW",
            "(func $s (call $s)) (start $s)"),
    _parts("trap in the allocator", "trap UNREACHABLE", alloc="unreachable"),
    _parts("trap in the reset", "trap UNREACHABLE", reset="unreachable"),
    _text("trap in a columnar function", "unreachable", "trap UNREACHABLE"),
]  # fmt: skip

ALLOCATORS = [
    _parts(f"allocator that answers {answer}", "limit memory", alloc=f"(i32.const {answer})")
    for answer in ("0", "-1", "0x7fffffff", "0xffffff00", "65500")
] + [
    _parts("allocator that grows nothing", "limit memory", alloc="(i32.const 65536)"),
    _parts("unaligned allocator", "harmless", alloc="(i32.const 1031)"),
    _parts("allocator over the static data", "harmless", alloc="(i32.const 16)",
           more='(data (i32.const 0) "secret things")'),
    _parts("allocator that takes all memory first", "harmless", alloc=f"{GROW} (i32.const 64)"),
]  # fmt: skip

OUTPUTS = [
    _text("offsets that decrease", f"(i32.store {OUTPUT} (i32.const 9))", "error decrease"),
    _text("negative offsets", f"(i32.store {OUTPUT} (i32.const -8))", "error decrease"),
    _text("offsets past the memory", f"(i32.store offset=8 {OUTPUT} (i32.const 0x7fffffff))",
          "error output bytes"),
    _text("offsets outside the memory", "(i32.store offset=52 (local.get $d) (i32.const -4))",
          "error output offsets"),
    _text("validity outside the memory", "(i32.store offset=48 (local.get $d) (i32.const -1))",
          "error output validity"),
    _text("values outside the memory", "(i32.store offset=40 (local.get $d) (i32.const -16))",
          "error values", "BIGINT"),
    _text("offsets that wrap around", f"""(i32.store offset=40 (local.get $d) (i32.const -1))
          (i32.store offset=4 {OUTPUT} (i32.const 1)) (i32.store offset=8 {OUTPUT}
          (i32.const 0x7fffffff))""", "error outside its memory"),
    _text("a status", "(return (i32.const 7))", "error status 7"),
    _text("a negative status", "(return (i32.const -1))", "error status -1"),
    _text("descriptor of another type and width", """(i64.store offset=32 (local.get $d)
          (i64.const -1)) (i64.store offset=56 (local.get $d) (i64.const -1))""", "harmless "),
    _text("descriptors wiped", "(memory.fill (local.get $d) (i32.const 0) (i32.const 64))",
          "harmless"),
    _text("arguments wiped", "(memory.fill (i32.load offset=8 (local.get $d)) (i32.const 0) "
          "(i32.const 4))", "harmless "),
    _text("output over the descriptors", f"""(i32.store offset=40 (local.get $d) (local.get $d))
          (i32.store offset=4 {OUTPUT} (i32.const 64)) (i32.store offset=8 {OUTPUT}
          (i32.const 64))""", "harmless", "BLOB"),
    _text("output over the offsets themselves", f"""(i32.store offset=40 (local.get $d) {OUTPUT})
          (i32.store offset=4 {OUTPUT} (i32.const 12)) (i32.store offset=8 {OUTPUT}
          (i32.const 12))""", "harmless"),
    _text("pointers into memory grown during the call", f"""(i32.store offset=40 (local.get $d)
          (i32.shl (memory.grow (i32.const 2)) (i32.const 16)))
          (i32.store offset=4 {OUTPUT} (i32.const 70000)) (i32.store offset=8 {OUTPUT}
          (i32.const 70000))""", "harmless"),
    _text("pointers past memory grown during the call", f"""(i32.store offset=40 (local.get $d)
          (i32.shl (memory.grow (i32.const 1)) (i32.const 16)))
          (i32.store offset=4 {OUTPUT} (i32.const 70000)) (i32.store offset=8 {OUTPUT}
          (i32.const 70000))""", "error outside its memory"),
    _parts("a pointer kept from the call before", "harmless", reset="", more="""
           (global $old (mut i32) (i32.const 60000))""", f=f"""
           (i32.store offset=40 (local.get $d) (global.get $old))
           (i32.store offset=4 {OUTPUT} (i32.const 9)) (i32.store offset=8 {OUTPUT} (i32.const 9))
           (global.set $old (i32.load offset=8 (local.get $d))) (i32.const 0)"""),
]  # fmt: skip


def _bytes(
    name: str, literal: str, outcome: str, returns: str = "TEXT", *, every: bool = False
) -> Hostile:
    """Return a module whose row 0 is these bytes; the others are empty, or row 1 is the same."""
    end = "(i32.mul (local.get $i) (i32.const {}))" if every else "(i32.const {})"
    length = len(literal) - 2 * literal.count("\\")  # an escape is a backslash and two digits
    text = f"""(module {PRELUDE} (data (i32.const 65000) "{literal * (1 + every)}")
      (func (export "f") (param $d i32) (param $n i32) (result i32) (local $i i32)
        (i32.store offset=40 (local.get $d) (i32.const 65000))
        (loop $l
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (i32.store (i32.add {OUTPUT} (i32.shl (local.get $i) (i32.const 2)))
            {end.format(length)})
          (br_if $l (i32.lt_u (local.get $i) (local.get $n))))
        (i32.const 0)))"""
    return Hostile(name, text, outcome, "TEXT", returns)


TEXTS = [
    _bytes("a byte that is no UTF-8", "\\ff", "error row 0 is not UTF-8"),
    _bytes("an overlong character", "\\c0\\af", "error row 0 is not UTF-8"),
    _bytes("a surrogate", "\\ed\\a0\\80", "error row 0 is not UTF-8"),
    _bytes("a character cut short", "a\\e2\\82", "error row 0 is not UTF-8"),
    _bytes("a character past Unicode", "\\f4\\90\\80\\80", "error row 0 is not UTF-8"),
    _bytes("no JSON", "{a:1}", "error no JSON", "JSON"),
    _bytes("NaN as JSON", "[NaN]", "error no JSON", "JSON"),
    _bytes("half a JSON text", "[1,", "error no JSON", "JSON"),
    _bytes("a JSON text nested too deep", "[" * 500, "error no JSON", "JSON"),
    _bytes("an array that is an object", "{}", "error no TEXT[]", "TEXT[]"),
]  # fmt: skip


def _value(name: str, wasm: str, value: str, returns: str, outcome: str) -> Hostile:
    text = f'(module (func (export "f") (param i64) (result {wasm}) ({wasm}.const {value})))'
    return Hostile(name, text, outcome, returns=returns)


VALUES = [
    _value("a date in year 29000", "i32", "9999999", "DATE", "error no DATE"),
    _value("a number too large for SMALLINT", "i32", "40000", "SMALLINT", "error no SMALLINT"),
    _value("a time before midnight", "i64", "-1", "TIME", "error no TIME"),
    _value("a timestamp past all years", "i64", "0x4000000000000000", "TIMESTAMP",
           "error no TIMESTAMP"),
    _value("a decimal of too many digits", "i64", "1000", "DECIMAL(3,1)", "error no DECIMAL"),
    _value("a BOOLEAN of 2", "i32", "2", "BOOLEAN", "harmless True"),
    _value("a signalling NaN", "f64", "nan:0x4000000000000", "DOUBLE", "harmless nan"),
    _text("NaN in a vector", "(f32.store (i32.load offset=40 (local.get $d)) (f32.const nan))",
          "error a vector with NaN", "VECTOR(2)"),
    _text("infinity in a vector", "(f32.store (i32.load offset=40 (local.get $d)) (f32.const inf))",
          "error a vector with NaN", "VECTOR(2)"),
    _text("infinity in a HALFVEC", "(i32.store16 (i32.load offset=40 (local.get $d)) "
          "(i32.const 0x7c00))", "error a vector with NaN", "HALFVEC(2)"),
]  # fmt: skip

IMPORTS = [
    Hostile(f"import of {words}", f"(module (import {text}) {scalar('')[8:]}", "refused")
    for words, text in (
        ("an abort", '"env" "abort" (func)'),
        ("WASI", '"wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32))'),
        ("a memory", '"env" "memory" (memory 1)'),
        ("a table", '"env" "table" (table 1 funcref)'),
        ("a global", '"env" "base" (global i32)'),
        ("a host function", '"tars" "read_file" (func (param i32) (result i32))'),
        ("the driver's function", '"user" "f" (func (param i64) (result i64))'),
    )
] + [
    Hostile("ten thousand imports", HEADER + section(1, b"\x01\x60\x00\x00")
            + section(2, leb(10_000) + b"\x01a\x01b\x00\x00" * 10_000), "refused"),
]  # fmt: skip


def _liar(name: str, exports: str) -> Hostile:
    """Return a module that says it has the ABI and has only these exports of it."""
    text = f"""(module {exports}
      (func (export "f") (param i32 i32) (result i32) (i32.const 0)))"""
    return Hostile(name, text, "refused", "TEXT", "TEXT")


VERSION = '(global (export "tars_abi_v1") i32 (i32.const 1))'
ALLOC = '(func (export "tars_alloc") (param i32) (result i32) (i32.const 8))'

LYING = [
    _liar("an ABI without a memory", VERSION + ALLOC),
    _liar("an ABI whose memory is a global",
          VERSION + ALLOC + '(global (export "memory") i32 (i32.const 1))'),
    _liar("an allocator of another type", '(memory (export "memory") 1)' + VERSION
          + '(func (export "tars_alloc") (param i64) (result i64) (i64.const 8))'),
    _liar("a version that is a function", '(memory (export "memory") 1)' + ALLOC
          + '(func (export "tars_abi_v1") (result i32) (i32.const 1))'),
    Hostile("an export that is a memory", '(module (memory (export "f") 1))', "refused"),
    Hostile("a function of other types", '(module (func (export "f") (param f64) (result i64) '
            "(i64.const 1)))", "refused"),
    Hostile("a function of two results", '(module (func (export "f") (param i64) (result i64 i64) '
            "(i64.const 1) (i64.const 2)))", "refused"),
    _parts("a reset that takes an argument", "harmless",
           more='(func (export "tars_reset") (param i32))'),
    Hostile("an export of a function that is not there", HEADER
            + section(1, b"\x01\x60\x01\x7e\x01\x7e") + section(7, b"\x01\x01f\x00\x09"),
            "refused"),
    Hostile("a start function that takes an argument", scalar("", "(func $s (param i64))").replace(
            "(module", "(module (start $s)", 1), "refused"),
]  # fmt: skip

FEATURES = [
    Hostile(f"{words}, which is off", f"(module {text})", "refused")
    for words, text in (
        ("64-bit memory", '(memory i64 1) (func (export "f") (param i64) (result i64) '
                          "i64.const 1)"),
        ("shared memory", '(memory 1 2 shared) (func (export "f") (param i64) (result i64) '
                          "i64.const 1)"),
        ("two memories", '(memory 1) (memory 1) (func (export "f") (param i64) (result i64) '
                         "i64.const 1)"),
        ("atomics", '(memory 1) (func (export "f") (param i64) (result i64) '
                    "(i64.atomic.rmw.add (i32.const 0) (local.get 0)))"),
        ("tail calls", '(func $f (export "f") (param i64) (result i64) '
                       "(return_call $f (local.get 0)))"),
        ("exceptions", '(tag $e) (func (export "f") (param i64) (result i64) (throw $e))'),
        ("relaxed SIMD", '(func (export "f") (param i64) (result i64) (i64x2.extract_lane 0 '
                         "(i8x16.relaxed_swizzle (v128.const i64x2 1 2) (v128.const i64x2 1 2))))"),
        ("garbage collection", '(type $s (struct (field i64))) (func (export "f") (param i64) '
                               "(result i64) (struct.get $s 0 (struct.new $s (local.get 0))))"),
    )
]  # fmt: skip

NOT_MODULES = [
    Hostile("a component", b"\x00asm\x0d\x00\x01\x00", "refused"),
    Hostile("another version", b"\x00asm\x02\x00\x00\x00", "refused"),
    Hostile("an empty module", HEADER, "refused"),
    Hostile("a truncated module", _binary(b"\x20\x00")[:-3], "refused"),
    Hostile("a section longer than the file", HEADER + b"\x01\xff\xff\x03\x01", "refused"),
    Hostile("a number without an end", HEADER + b"\x01" + b"\x80" * 20, "refused"),
    Hostile("an unknown section", HEADER + section(99, b""), "refused"),
    Hostile("sections in the wrong order", HEADER + section(3, b"\x01\x00")
            + section(1, b"\x01\x60\x01\x7e\x01\x7e"), "refused"),
    Hostile("a body with the wrong type", _binary(b"\x42\x01\x42\x01"), "refused"),
    Hostile("an unknown instruction", _binary(b"\x27\x20\x00"), "refused"),
    Hostile("a branch out of the function", _binary(b"\x0c\x63\x20\x00"), "refused"),
    Hostile("junk behind the end", _binary(b"\x20\x00") + b"\x00\x05name!", "refused"),
]  # fmt: skip

BOMBS = [
    Hostile("5,001 functions", HEADER + section(1, b"\x01\x60\x00\x00")
            + section(3, leb(5_001) + bytes(5_001))
            + section(10, leb(5_001) + b"\x02\x00\x0b" * 5_001), "refused"),
    Hostile("a function of 70 KB", _binary(b"\x01" * 70_000 + b"\x20\x00"), "refused"),
    Hostile("50,000 locals", _binary(b"\x20\x00", b"\x01" + leb(50_000) + b"\x7e"), "refused"),
    Hostile("four billion locals", _binary(b"\x20\x00", b"\x01\xff\xff\xff\xff\x0f\x7e"),
            "refused"),
    Hostile("33 nested loops", _binary(b"\x03\x40" * 33 + b"\x0b" * 33 + b"\x20\x00"), "refused"),
    Hostile("1,001 loops", _binary(b"\x03\x40\x0b" * 1_001 + b"\x20\x00"), "refused"),
    Hostile("loops times locals", _binary(b"\x03\x40\x0b" * 900 + b"\x20\x00",
            b"\x01" + leb(1_900) + b"\x7e"), "refused"),
    Hostile("branches times locals", _binary(b"\x02\x40\x0b" * 900 + b"\x20\x00",
            b"\x01" + leb(1_900) + b"\x7e"), "refused"),
    Hostile("20,000 nested blocks", _binary(b"\x02\x40" * 20_000 + b"\x0b" * 20_000 + b"\x20\x00"),
            "harmless"),
    Hostile("a table of 60,000 branches", _binary(b"\x02\x40\x41\x00\x0e" + leb(60_000)
            + bytes(60_001) + b"\x0b\x20\x00"), "harmless"),
    Hostile("10,001 types", HEADER + section(1, leb(10_001) + b"\x60\x00\x00" * 10_001), "refused"),
    Hostile("65 parameters", HEADER + section(1, b"\x01\x60\x41" + b"\x7e" * 65 + b"\x00"),
            "refused"),
    Hostile("a module of 9 MB", _binary(b"\x20\x00") + section(0, b"\x01x" + bytes(9 << 20)),
            "refused"),
    Hostile("a count that promises more than there is", HEADER + section(1, b"\xff\xff\x03"),
            "refused"),
]  # fmt: skip

NAMES = [
    Hostile("an export name of 2 KB", HEADER + section(1, b"\x01\x60\x01\x7e\x01\x7e")
            + section(7, b"\x01" + leb(2_000) + b"n" * 2_000 + b"\x00\x00"), "refused"),
    Hostile("an export name of 4 GB", HEADER + section(7, b"\x01\xff\xff\xff\xff\x0fn"), "refused"),
    Hostile("an export name that is no UTF-8", HEADER + section(7, b"\x01\x02\xff\xfe\x00\x00"),
            "refused"),
    Hostile("one export name twice", HEADER + section(1, b"\x01\x60\x01\x7e\x01\x7e")
            + section(3, b"\x01\x00") + section(7, b"\x02\x01f\x00\x00\x01f\x00\x00")
            + section(10, b"\x01\x04\x00\x20\x00\x0b"), "refused"),
    Hostile("a name section of nonsense", _binary(b"\x00", after=section(0, b"\x04name\x01\xff")),
            "trap UNREACHABLE"),
    Hostile("a function name of 100 KB", _binary(b"\x00", after=section(
            0, b"\x04name\x01" + leb(100_005) + b"\x01\x00" + leb(100_000) + b"n" * 100_000)),
            "trap UNREACHABLE"),
    Hostile("a function name with a line break", _binary(b"\x00", after=section(
            0, b"\x04name\x01\x05\x01\x00\x02\n\x1b")), "trap UNREACHABLE"),
]  # fmt: skip

GROUPS = {
    "loops": LOOPS, "memory": MEMORY, "traps": TRAPS, "allocators": ALLOCATORS,
    "outputs": OUTPUTS, "texts": TEXTS, "values": VALUES, "imports": IMPORTS, "lying": LYING,
    "features": FEATURES, "no modules": NOT_MODULES, "bombs": BOMBS, "names": NAMES,
}  # fmt: skip
CORPUS = [hostile for group in GROUPS.values() for hostile in group]
