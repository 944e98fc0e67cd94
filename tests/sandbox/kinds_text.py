"""Aggregate and table functions in WebAssembly text, for tests."""

from __future__ import annotations

from tests.sandbox.wasm_text import PRELUDE


def loop(body: str) -> str:
    """Return code that runs ``body`` for $i from 0 to $n - 1."""
    return f"""
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
      {body}
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))"""


def at(base: str, shift: int) -> str:
    """Return the address of element $i of elements of 2**shift bytes."""
    return f"(i32.add {base} (i32.shl (local.get $i) (i32.const {shift})))"


_BYTE = "(i32.add (local.get $v) (i32.shr_u (local.get $i) (i32.const 3)))"
_NULL = f"""(i32.store8 {_BYTE}
  (i32.and (i32.load8_u {_BYTE}) (i32.xor (i32.const -1)
    (i32.shl (i32.const 1) (i32.and (local.get $i) (i32.const 7))))))"""


def aggregate(
    name: str, value: str, final: str, *, size: int = 16, extra: str = "", merge: str = ""
) -> str:
    """Return a module of one aggregate whose state is an f64 sum and an i64 count.

    ``value`` is an f64 that row $i of the descriptors at $d adds; ``final`` an f64 of the state at
    $p; ``merge`` takes state $i at $o into that at $s. No rows give NULL. ``size`` is what it says
    a state takes; states then lie further apart.
    """
    state = f"(i32.add (local.get $s) (i32.mul {{}} (i32.const {size})))"
    merging = f"""(func (export "{name}_merge") (param $s i32) (param $o i32) (param $n i32)
      (result i32) (local $i i32) {loop(merge)} (i32.const 0))"""
    extra += merging if merge else ""
    group = f"(i32.load {at('(local.get $g)', 2)})"
    return f"""(module {PRELUDE} {extra}
  (func (export "{name}_state_size") (result i32) (i32.const {size}))
  (func (export "{name}_init") (param $s i32) (param $n i32) (result i32)
    (memory.fill (local.get $s) (i32.const 0) (i32.mul (local.get $n) (i32.const {size})))
    (i32.const 0))
  (func (export "{name}_step") (param $s i32) (param $g i32) (param $d i32) (param $n i32)
    (result i32) (local $i i32) (local $p i32)
    {
        loop(f'''(local.set $p {state.format(group)})
      (f64.store (local.get $p) (f64.add (f64.load (local.get $p)) {value}))
      (i64.store offset=8 (local.get $p)
        (i64.add (i64.load offset=8 (local.get $p)) (i64.const 1)))''')
    }
    (i32.const 0))
  (func (export "{name}_final") (param $s i32) (param $n i32) (param $d i32) (result i32)
    (local $i i32) (local $p i32) (local $v i32)
    (local.set $v (i32.load offset=16 (local.get $d)))
    {
        loop(f'''(local.set $p {state.format("(local.get $i)")})
      (if (i64.eqz (i64.load offset=8 (local.get $p))) (then {_NULL})
        (else (f64.store {at("(i32.load offset=8 (local.get $d))", 3)} {final})))''')
    }
    (i32.const 0)))"""


SUM = "(f64.load (local.get $p))"
COUNT = "(f64.convert_i64_s (i64.load offset=8 (local.get $p)))"

_OWN, _OTHER = at("(local.get $s)", 4), at("(local.get $o)", 4)
ADD = f"""(f64.store {_OWN} (f64.add (f64.load {_OWN}) (f64.load {_OTHER})))
  (i64.store offset=8 {_OWN} (i64.add (i64.load offset=8 {_OWN}) (i64.load offset=8 {_OTHER})))"""

# mid(x DOUBLE) RETURNS DOUBLE: the mean.
MID = aggregate(
    "mid",
    f"(f64.load {at('(i32.load offset=8 (local.get $d))', 3)})",
    f"(f64.div {SUM} {COUNT})",
    merge=ADD,
)

# weight(t TEXT, w DOUBLE) RETURNS DOUBLE: the sum of the bytes of t times w.
WEIGHT = aggregate(
    "weight",
    f"""(f64.mul (f64.load {at("(i32.load offset=40 (local.get $d))", 3)})
      (f64.convert_i32_s (i32.sub
        (i32.load offset=4 {at("(i32.load offset=20 (local.get $d))", 2)})
        (i32.load {at("(i32.load offset=20 (local.get $d))", 2)}))))""",
    SUM,
)

# letters(t TEXT) RETURNS TABLE (letter TEXT, at INT): a row for each byte. The letters are the
# argument's own bytes; offsets and places are the same ascending numbers.
LETTERS = f"""(module {PRELUDE}
  (func (export "letters") (param $d i32) (param $n i32) (result i32)
    (local $i i32) (local $o i32) (local $c i32) (local $all i32) (local $row i32) (local $end i32)
    (local $p i32)
    (local.set $o (i32.load offset=20 (local.get $d)))
    (local.set $c (i32.load offset=40 (local.get $d)))
    {
    loop(f'''(i32.store {at("(local.get $c)", 2)} (i32.sub
      (i32.load offset=4 {at("(local.get $o)", 2)}) (i32.load {at("(local.get $o)", 2)})))''')
}
    (local.set $all (i32.load {at("(local.get $o)", 2)}))
    (i32.store offset=72 (local.get $d) (i32.load offset=8 (local.get $d)))
    (local.set $p (call $alloc (i32.shl (i32.add (local.get $all) (i32.const 1)) (i32.const 2))))
    (i32.store offset=84 (local.get $d) (local.get $p))
    (i32.store offset=104 (local.get $d)
      (call $alloc (i32.shl (i32.add (local.get $all) (i32.const 1)) (i32.const 2))))
    (local.set $i (i32.const 0))
    (local.set $n (i32.add (local.get $all) (i32.const 1)))
    {loop(f'''(i32.store {at("(local.get $p)", 2)} (local.get $i))''')}
    (local.set $i (i32.const 0))
    (local.set $n (local.get $all))
    {
    loop(f'''(block $found (loop $search
      (br_if $found (i32.lt_u (local.get $i) (i32.load offset=4 (local.get $o))))
      (local.set $o (i32.add (local.get $o) (i32.const 4))) (br $search)))
      (i32.store {at("(i32.load offset=104 (local.get $d))", 2)}
        (i32.sub (local.get $i) (i32.load (local.get $o))))''')
}
    (i32.const 0)))"""


def metric(name: str, dim: int, element: str, *, result: str = "f64", extra: str = "") -> str:
    """Return a module of one metric (a VECTOR(dim), b VECTOR(dim)).

    ``element`` is an f32 made of the f32 locals $x and $y, the elements of a and b, and $t, what
    came out before. An argument whose flag says that it is constant has one vector.
    """
    row = "(i32.add (i32.load offset={data} (local.get $d)) (i32.mul (i32.const {size}) {row}))"
    number = "(if (result i32) (i32.and (i32.load offset={flags} (local.get $d)) (i32.const 2)) " \
        "(then (i32.const 0)) (else (local.get $i)))"  # fmt: skip
    a = row.format(data=8, size=4 * dim, row=number.format(flags=4))
    b = row.format(data=40, size=4 * dim, row=number.format(flags=36))
    widen = "(f64.promote_f32 (local.get $t))" if result == "f64" else "(local.get $t)"
    shift = 3 if result == "f64" else 2
    return f"""(module {PRELUDE} {extra}
  (func (export "{name}") (param $d i32) (param $n i32) (result i32)
    (local $i i32) (local $a i32) (local $b i32) (local $end i32)
    (local $x f32) (local $y f32) (local $t f32)
    {
        loop(f'''(local.set $a {a}) (local.set $b {b})
      (local.set $end (i32.add (local.get $a) (i32.const {4 * dim})))
      (local.set $t (f32.const 0))
      (loop $each
        (local.set $x (f32.load (local.get $a))) (local.set $y (f32.load (local.get $b)))
        (local.set $t {element})
        (local.set $a (i32.add (local.get $a) (i32.const 4)))
        (local.set $b (i32.add (local.get $b) (i32.const 4)))
        (br_if $each (i32.lt_u (local.get $a) (local.get $end))))
      ({result}.store {at("(i32.load offset=72 (local.get $d))", shift)} {widen})''')
    }
    (i32.const 0)))"""


CHEBYSHEV = "(f32.max (local.get $t) (f32.abs (f32.sub (local.get $x) (local.get $y))))"
# how far b lies above a: not the same as how far a lies above b
ABOVE = """(f32.add (local.get $t) (f32.max (f32.const 0)
  (f32.sub (local.get $y) (local.get $x))))"""
