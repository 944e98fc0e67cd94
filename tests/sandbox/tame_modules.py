"""What each kind of hostile module does, done within bounds: the negative controls of the corpus.

A kind is a group of ``hostile_modules`` by what it tries; its tame modules have the same shape and
are answered. So what the hostile ones come to is not the fate of every such module.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.sandbox.hostile_modules import (
    ALLOC,
    HEADER,
    OUTPUT,
    VERSION,
    Hostile,
    _binary,
    _bytes,
    _parts,
    _scalar,
    _text,
    _value,
    leb,
    section,
)  # fmt: skip

_COUNT = """(func $g (result i64) (local $i i32) (loop $l
  {} (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const {}))))
  (i64.const 7))"""
_DEEP = """(func $g (param i64) (result i64) (if (result i64) (i64.eqz (local.get 0))
  (then (i64.const 5)) (else (call $g (i64.sub (local.get 0) (i64.const 1))))))"""
_FILL = "(memory.fill (i32.const 0) (i32.const 1) (i32.const 65536))"
_INT = b"\x01\x60\x01\x7e\x01\x7e"  # the one type (i64) -> i64
_SAME = b"\x20\x00"  # the argument

TAME: Mapping[str, list[Hostile]] = {
    "loops": [
        _scalar("a loop that ends", "(return (call $g))", "harmless 7",
                _COUNT.format("", 100_000)),
        _scalar("memory.fill some times", "(return (call $g))", "harmless 7",
                "(memory 1)" + _COUNT.format(_FILL, 5)),
        _scalar("table.fill some times", "(return (call $g))", "harmless 7",
                "(table 90 funcref)" + _COUNT.format(
                    "(table.fill (i32.const 0) (ref.null func) (i32.const 90))", 20)),
        _scalar("a loop that ends in the start function", "", "harmless 1",
                _COUNT.format("", 1000) + "(func $s (drop (call $g))) (start $s)"),
        _parts("a loop that ends in the reset", "harmless", reset="(drop (call $g))",
               more=_COUNT.format("", 1000)),
    ],
    "memory": [
        _scalar("memory that starts with half of what it may", "", "harmless 1", "(memory 128)"),
        _scalar("memory that grows by a page", """(return (i64.extend_i32_s
                (memory.grow (i32.const 1))))""", "harmless 1", "(memory 1)"),
        _scalar("memory.fill up to the end", """(memory.fill (i32.const 65530) (i32.const 1)
                (i32.const 6))""", "harmless 1", "(memory 1)"),
        _scalar("memory.copy up to the end", """(memory.copy (i32.const 0) (i32.const 65520)
                (i32.const 16))""", "harmless 1", "(memory 1)"),
        _scalar("load of the last bytes", "(return (i64.load (i32.const 65528)))", "harmless 0",
                "(memory 1)"),
        _scalar("data segment up to the end", "(return (i64.load8_u (i32.const 65535)))",
                "harmless 98", '(memory 1) (data (i32.const 65534) "ab")'),
        _scalar("memory.init of a segment", """(memory.init 0 (i32.const 0) (i32.const 0)
                (i32.const 1)) (return (i64.load8_u (i32.const 0)))""", "harmless 97",
                '(memory 1) (data "a")'),
        _scalar("table that grows by ten", """(return (i64.extend_i32_s
                (table.grow (ref.null func) (i32.const 10))))""", "harmless 1",
                "(table 1 funcref)"),
        _scalar("sixteen tables", "", "harmless 1", "(table 1 funcref)" * 16),
    ],
    "traps": [
        _scalar("recursion of a thousand", "(return (call $g (i64.const 1000)))", "harmless 5",
                _DEEP),
        _scalar("division by one", "(return (i64.div_s (i64.const 8) (local.get 0)))",
                "harmless 8"),
        _scalar("conversion of a number", "(return (i64.trunc_f64_s (f64.const 3.7)))",
                "harmless 3"),
        _scalar("call through a table", """(return (call_indirect (type $t) (i64.const 1000)
                (i32.const 0)))""", "harmless 5", _DEEP + """(type $t (func (param i64)
                (result i64))) (table funcref (elem $g))"""),
        _scalar("start function that sets a global", "(return (global.get $k))", "harmless 9",
                "(global $k (mut i64) (i64.const 0)) (func $s (global.set $k (i64.const 9))) "
                "(start $s)"),
    ],
    "allocators": [_text("an allocator that gives room", "", "harmless ")],
    "outputs": [
        _bytes("offsets that ascend", "hi", "harmless hi"),
        _text("status 0", "(return (i32.const 0))", "harmless "),
        _text("no validity", "(i32.store offset=48 (local.get $d) (i32.const 0))", "harmless "),
        _text("a number", f"(i32.store offset=40 (local.get $d) {OUTPUT})", "harmless", "BIGINT"),
    ],
    "texts": [
        _bytes("a character of two bytes", "\\c3\\a9", "harmless é"),
        _bytes("the last character of Unicode", "\\f4\\8f\\bf\\bf", "harmless \U0010ffff"),
        _bytes("JSON", "[1,2]", "harmless [1, 2]", "JSON", every=True),
        _bytes("a JSON text nested ten deep", "[" * 10 + "]" * 10,
               "harmless " + "[" * 10 + "]" * 10, "JSON", every=True),
        _bytes("an array", "[\\22a\\22]", "harmless ['a']", "TEXT[]", every=True),
    ],
    "values": [
        _value("a date", "i32", "0", "DATE", "harmless 1970-01-01"),
        _value("the largest SMALLINT", "i32", "32767", "SMALLINT", "harmless 32767"),
        _value("midnight", "i64", "0", "TIME", "harmless 00:00:00"),
        _value("a timestamp", "i64", "0", "TIMESTAMP", "harmless 1970-01-01 00:00:00"),
        _value("a decimal of three digits", "i64", "999", "DECIMAL(3,1)", "harmless 99.9"),
        _value("a BOOLEAN of 1", "i32", "1", "BOOLEAN", "harmless True"),
        _value("a number", "f64", "1.5", "DOUBLE", "harmless 1.5"),
        _text("a number in a vector", "(f32.store (i32.load offset=40 (local.get $d)) "
              "(f32.const 2))", "harmless", "VECTOR(2)"),
        _text("a number in a HALFVEC", "(i32.store16 (i32.load offset=40 (local.get $d)) "
              "(i32.const 0x3c00))", "harmless", "HALFVEC(2)"),
    ],
    "imports": [_scalar("no imports", "", "harmless 1")],
    "lying": [
        Hostile("the whole ABI", f"""(module (memory (export "memory") 1) {VERSION} {ALLOC}
                (func (export "f") (param i32 i32) (result i32) (i32.const 0)))""", "harmless",
                "TEXT", "TEXT"),
    ],
    "features": [
        _scalar("SIMD", "(return (i64x2.extract_lane 0 (v128.const i64x2 41 2)))", "harmless 41"),
        _scalar("several values of a block", """(return (i64.add (block (result i64 i64)
                (i64.const 4) (i64.const 5))))""", "harmless 9"),
        _scalar("sign extension", "(return (i64.extend8_s (i64.const 255)))", "harmless -1"),
    ],
    "no modules": [
        Hostile("a module", _binary(_SAME), "harmless 1"),
        Hostile("a section with a name of its own", _binary(
                _SAME, after=section(0, b"\x05name!")), "harmless 1"),
    ],
    "bombs": [
        Hostile("5,000 functions", HEADER + section(1, b"\x02\x60\x01\x7e\x01\x7e\x60\x00\x00")
                + section(3, leb(5_000) + b"\x00" + b"\x01" * 4_999)
                + section(7, b"\x01\x01f\x00\x00")
                + section(10, leb(5_000) + b"\x04\x00\x20\x00\x0b" + b"\x02\x00\x0b" * 4_999),
                "harmless 1"),
        Hostile("a function of 65 KB", _binary(b"\x01" * 65_000 + _SAME), "harmless 1"),
        Hostile("1,999 locals", _binary(_SAME, b"\x01" + leb(1_999) + b"\x7e"), "harmless 1"),
        Hostile("32 nested loops", _binary(b"\x03\x40" * 32 + b"\x0b" * 32 + _SAME), "harmless 1"),
        Hostile("1,000 loops", _binary(b"\x03\x40\x0b" * 1_000 + _SAME), "harmless 1"),
        Hostile("a module of 7 MB", _binary(_SAME) + section(0, b"\x01x" + bytes(7 << 20)),
                "harmless 1"),
    ],
    "names": [
        Hostile("an export name of 1 KB", HEADER + section(1, _INT) + section(3, b"\x01\x00")
                + section(7, b"\x02\x01f\x00\x00" + leb(1_000) + b"n" * 1_000 + b"\x00\x00")
                + section(10, b"\x01\x04\x00\x20\x00\x0b"), "harmless 1"),
        Hostile("a function name", _binary(_SAME, after=section(
                0, b"\x04name\x01\x04\x01\x00\x01g")), "harmless 1"),
    ],
}  # fmt: skip
