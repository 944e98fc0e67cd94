"""The compiler of the Hyperlight backend is confined before it looks at a component.

Shown with the wasmtime of the database, whose library has the same C functions as the pinned one:
what is made is of no use to a guest, how it is made is the same.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
import wasmtime

from tarsdb.errors import UdfValidationError
from tarsdb.udf_sandbox.hyperlight import aot
from tarsdb.udf_sandbox.modules.module import to_wasm
from tarsdb.udf_sandbox.worker.confinement import LINUX

LIBRARY = next(pathlib.Path(wasmtime.__file__).parent.glob("*/_libwasmtime.*"), pathlib.Path())
COMPONENT = to_wasm("(component (core module (func (result i32) (i32.const 1))))")
ATTEMPTS = """
import os, socket, sys
from importlib.machinery import SourceFileLoader
from types import ModuleType
real = ModuleType("real")
SourceFileLoader("real", {path!r}).exec_module(real)
def limit_resources(*given):
    if {confined}: real.limit_resources(*given)
def filter_system_calls(**given):
    if {confined}: real.filter_system_calls(**given)
    attempts = dict(file=lambda: open("/etc/passwd").close(), fork=os.fork,
                    socket=lambda: socket.socket().close())
    for name, attempt in attempts.items():
        try:
            if attempt() == 0: os._exit(0)
            print(name, "done", file=sys.stderr)
        except OSError as error:
            print(name, "refused", file=sys.stderr)
    sys.stderr.flush()
"""
needs_linux = pytest.mark.skipif(
    not LINUX or not LIBRARY.is_file(), reason="confinement is tested on Linux"
)


def compiled(confinement: str, component: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", "-S", str(aot._CHILD), str(LIBRARY), confinement,
               str(aot.MEMORY_BYTES), str(aot.CPU_SECONDS)]  # fmt: skip
    return subprocess.run(command, input=component, capture_output=True, check=False, timeout=60)


@needs_linux
@pytest.mark.parametrize("confined", [True, False])
def test_the_compiler_can_open_connect_and_start_nothing(
    confined: bool, tmp_path: pathlib.Path
) -> None:
    """What is tried where it is confined fails; without confinement the same succeeds."""
    attempts = tmp_path / "attempts.py"
    attempts.write_text(ATTEMPTS.format(path=aot._CONFINEMENT, confined=confined))
    done = compiled(str(attempts), COMPONENT)
    assert done.returncode == 0 and done.stdout.startswith(b"\x7fELF")
    how = "refused" if confined else "done"
    assert done.stderr.decode().split() == ["file", how, "fork", how, "socket", how]


@needs_linux
def test_a_component_is_compiled_by_the_confined_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot, "compiler_library", lambda: LIBRARY)
    monkeypatch.setattr(aot, "for_guest", lambda made: made)
    assert aot.compile_component(COMPONENT, "f").startswith(b"\x7fELF")
    large = COMPONENT + b"\0\x83\x80\x40\1x" + bytes(1 << 20)  # more than a pipe holds
    assert aot.compile_component(large + b"\0", "f").startswith(b"\x7fELF")
    with pytest.raises(UdfValidationError, match="exit 1"):
        aot.compile_component(b"\0asm\x0d\0\x01\0\xff", "f")
    monkeypatch.setattr(aot, "MEMORY_BYTES", 64 << 10)
    with pytest.raises(UdfValidationError, match="limits 20 s and 0 MiB"):
        aot.compile_component(COMPONENT, "f")
