"""Inspecting modules: what they declare, what is refused, signatures."""

from __future__ import annotations

import hashlib
import time

import pytest

from tarsdb.errors import UdfValidationError
from tarsdb.types import BIGINT, BOOLEAN, DOUBLE, INT, REAL, TEXT, parse_type
from tarsdb.udf_sandbox import ModuleInfo, check_signature, inspect_module, to_wasm
from tests.sandbox.wasm_text import DEMO, IDENTITY

ADD = '(module (func (export "add") (param i64 f32) (result f64) f64.const 0))'


def info(text: str) -> ModuleInfo:
    return inspect_module(to_wasm(text))


def test_outline() -> None:
    code = to_wasm(IDENTITY)
    found = inspect_module(code, hashlib.sha256(code).hexdigest().upper())
    assert found.columnar and found.resettable and not found.stateless
    assert found.memory_pages == 1 and found.size == len(code)
    assert str(found.functions["f"]) == "(i32, i32) -> i32"
    assert info(ADD).stateless and not info(ADD).columnar


def test_binary_passes_through_and_text_errors_have_a_place() -> None:
    code = to_wasm(ADD)
    assert to_wasm(code) == code
    with pytest.raises(UdfValidationError, match=r"1:15"):
        to_wasm("(module (func oops))")
    with pytest.raises(UdfValidationError, match="neither"):
        to_wasm(b"\x7fELF....")
    with pytest.raises(UdfValidationError, match="larger"):
        to_wasm("(" * (5 << 20))


def test_wrong_digest_names_both() -> None:
    code = to_wasm(ADD)
    digest = hashlib.sha256(code).hexdigest()
    with pytest.raises(UdfValidationError) as caught:
        inspect_module(code, "0" * 64)
    assert digest in str(caught.value) and "0" * 64 in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('(module (import "wasi" "exit" (func)))', "imports wasi.exit"),
        ('(module (import "a" "m" (memory 1)) (import "b" "g" (global i32)))', "a.m, b.g"),
        ("(module (memory 1 2 shared))", "shared"),
        ("(module (memory i64 1))", "64-bit"),
        ("(module (memory 1) (memory 1))", "memories 2"),
        ("(module (table 200000 funcref))", "200000, at most"),
        ("(module (tag))", "section 13"),
        ("(module (type (struct)))", "plain function types"),
        ("(component)", "no WebAssembly module"),
        ("(module (func (result i32) (return_call 0)))", "tail calls"),
        ("(module (func (param v128 v128) (result v128) (i32x4.relaxed_trunc_f32x4_s "
         "(local.get 0))))", "relaxed"),
        ("(module (type (func (param " + "i32 " * 65 + "))))", "parameters 65"),
        ("(module (func (local " + "i32 " * 2001 + ")))", "locals 2001"),
        ("(module " + "(func) " * 5001 + ")", "functions 5001"),
        ("(module (func " + "nop " * 65_536 + "))", "a function of bytes"),
        ("(module (func " + "(loop " * 33 + ")" * 33 + "))", "loops nested 33"),
        ("(module (func " + "(loop) " * 1001 + "))", "loops 1001"),
        ("(module (func (local " + "i32 " * 200 + ")" + "(loop) " * 600 + "))", "loops times"),
    ],
)  # fmt: skip
def test_refused(text: str, words: str) -> None:
    with pytest.raises(UdfValidationError, match=words):
        info(text)


def test_a_module_has_at_most_8_mib() -> None:
    """Of anything: here a custom section, whose length takes four bytes. Just below is accepted."""
    code = to_wasm(ADD)

    def padded(size: int) -> bytes:
        left = size - len(code) - 5
        digits = [left >> 7 * place & 0x7F | 0x80 * (place < 3) for place in range(4)]
        return code + bytes([0, *digits, 0]) + bytes(left - 1)

    assert len(padded(8 << 20)) == 8 << 20
    inspect_module(padded(8 << 20))
    with pytest.raises(UdfValidationError, match="bytes 8388609, at most 8388608"):
        inspect_module(padded((8 << 20) + 1))


def test_just_below_the_caps_compiles_quickly() -> None:
    from tarsdb.udf_sandbox.in_process.wasmtime_backend import runtime

    code = to_wasm("(module " + ("(func (local i32) " + "(loop) " * 900 + ")") * 5 + ")")
    inspect_module(code)
    start = time.process_time()
    runtime().module("test", code)
    assert time.process_time() - start < 5


def test_code_that_does_not_validate() -> None:
    code = bytearray(to_wasm('(module (func (export "f") (result i32) (i32.const 1)))'))
    code[code.index(b"\x41\x01")] = 0x42  # i64.const where an i32 is promised
    with pytest.raises(UdfValidationError, match="does not validate"):
        inspect_module(bytes(code))


@pytest.mark.parametrize("code", [b"", b"\0asm", b"\0asm\1\0\0\0\1\xff\xff\xff\xff\xff", b"x" * 99])
def test_garbage(code: bytes) -> None:
    with pytest.raises(UdfValidationError):
        inspect_module(code)


def test_every_truncation_is_an_error_or_a_shorter_module() -> None:
    code = to_wasm((DEMO / "textkit.wat").read_text())
    accepted = 0
    for end in range(len(code)):
        try:
            inspect_module(code[:end])
            accepted += 1
        except UdfValidationError:
            pass
    assert accepted <= 10  # only at section boundaries that leave a whole module


def test_signatures() -> None:
    assert check_signature(info(ADD), "add", [BIGINT, REAL], DOUBLE) == "scalar"
    assert check_signature(info(IDENTITY), "f", [TEXT], TEXT) == "columnar"
    bare = '(module (func (export "f") (param i32 i32) (result i32) i32.const 1))'
    assert check_signature(info(bare), "f", [parse_type("DATE"), INT], BOOLEAN) == "scalar"


@pytest.mark.parametrize(
    ("export", "arguments", "returns", "words"),
    [
        ("sub", [BIGINT], DOUBLE, "exports no function 'sub'.*add"),
        ("add", [BIGINT], DOUBLE, r"\(i64\) -> f64"),
        ("add", [BIGINT, REAL], BIGINT, r"has type \(i64, f32\) -> f64.*needs.* -> i64"),
        ("add", [TEXT, REAL], DOUBLE, "columnar ABI"),
        ("add", [BIGINT, REAL], parse_type("VECTOR(3)"), "columnar ABI"),
        ("add", [BIGINT] * 33, DOUBLE, "33 arguments"),
    ],
)
def test_wrong_signatures(export: str, arguments: list, returns: object, words: str) -> None:
    with pytest.raises(UdfValidationError, match=words):
        check_signature(info(ADD), export, arguments, returns)  # type: ignore[arg-type]
