"""Modules in WebAssembly text that several tests use."""

from __future__ import annotations

import pathlib

DEMO = pathlib.Path(__file__).resolve().parents[2] / "tarsdb" / "demo" / "functions"

# What every columnar module needs; `top` moves up and tars_reset brings it back.
PRELUDE = """
  (memory (export "memory") 1)
  (global (export "tars_abi_v1") i32 (i32.const 1))
  (global $top (mut i32) (i32.const 64))
  (func $alloc (export "tars_alloc") (param $n i32) (result i32) (local $p i32)
    (local.set $p (global.get $top))
    (global.set $top (i32.add (local.get $p) (local.get $n)))
    (block $ok (loop $grow
      (br_if $ok (i32.le_u (global.get $top) (i32.shl (memory.size) (i32.const 16))))
      (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then (return (i32.const 0))))
      (br $grow)))
    (local.get $p))
  (func (export "tars_reset") (global.set $top (i32.const 64)))
"""

# f(x) = x for any type: the output descriptor takes over the argument's buffers.
IDENTITY = f"""(module {PRELUDE}
  (func (export "f") (param $d i32) (param $n i32) (result i32)
    (memory.copy (i32.add (local.get $d) (i32.const 40)) (i32.add (local.get $d) (i32.const 8))
                 (i32.const 16))
    (i32.const 0)))"""

# f(x) is the whole memory, a BLOB, for row 0.
DUMP = f"""(module {PRELUDE}
  (func (export "f") (param $d i32) (param $n i32) (result i32) (local $i i32)
    (i32.store offset=40 (local.get $d) (i32.const 0))
    (loop $next
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (i32.store
        (i32.add (i32.load offset=52 (local.get $d)) (i32.shl (local.get $i) (i32.const 2)))
        (i32.shl (memory.size) (i32.const 16)))
      (br_if $next (i32.lt_u (local.get $i) (local.get $n))))
    (i32.const 0)))"""

# f(x) counts NULLs as 1 and values as 0 (an INT), so it must see the validity bitmap.
IS_NULL = f"""(module {PRELUDE}
  (func (export "f") (param $d i32) (param $n i32) (result i32) (local $i i32) (local $v i32)
    (local.set $v (i32.load offset=16 (local.get $d)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
      (i32.store
        (i32.add (i32.load offset=40 (local.get $d)) (i32.shl (local.get $i) (i32.const 2)))
        (if (result i32) (i32.eqz (local.get $v)) (then (i32.const 0)) (else
          (i32.eqz (i32.and (i32.const 1) (i32.shr_u
            (i32.load8_u (i32.add (local.get $v) (i32.shr_u (local.get $i) (i32.const 3))))
            (i32.and (local.get $i) (i32.const 7))))))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (i32.const 0)))"""


def columnar(body: str) -> str:
    """Return a columnar module whose export ``f(d, n)`` has this body."""
    return f"""(module {PRELUDE}
      (func (export "f") (param $d i32) (param $n i32) (result i32) {body}))"""
