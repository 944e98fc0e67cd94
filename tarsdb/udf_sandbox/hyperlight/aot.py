"""Components compiled ahead of time for the wasmtime inside Hyperlight's guest.

The guest (hyperlight-sandbox 0.8.0) runs wasmtime 36.0.14 on a machine without an operating
system, and accepts native code compiled for exactly that engine. The compiler used is wasmtime
36.0.0, the only 36 among Python packages, in a child process. It cannot name the guest's target,
so it compiles for x86-64 Linux without processor features, which is the same code, and the
artefact's record of the engine is replaced by the one the guest expects. The records differ in the
version, the target's name, canonical NaNs (on: code that keeps them runs anywhere), the garbage
collector (unused), what lies behind a memory (nothing: addresses are compared) and switches of
WebAssembly proposals (fewer). Both records are pinned by hash; any other is refused. Wrong code
would run inside the virtual machine only.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import time
from importlib import resources

from tarsdb.errors import InterruptError, UdfBackendError, UdfValidationError
from tarsdb.udf_sandbox.stopping import stop_asked
from tarsdb.udf_sandbox.worker import confinement

COMPILER_VERSION = "36.0.0"
LIBRARY_SHA256 = "203ac7c7fcb61ea3030283fc297d66f302e83878c86533db5905e71a582793b4"
COMPILED_RECORD_SHA256 = "f421bdf66104a9c5e8c3eb5be45f1d7db0cef2aa8d5c9234926e33b2bba42679"
GUEST_RECORD_SHA256 = "d2f5cb2d32a4588dd4b1989dba4f11058885ff05a55cb3c849044a64e638a5c1"
COMPILER_VARIABLE = "TARSDB_HYPERLIGHT_COMPILER"
MEMORY_BYTES = 2 << 30
CPU_SECONDS = 20
TICK_S = 0.05

_CHILD = pathlib.Path(__file__).with_name("compiler_child.py")
_CONFINEMENT = str(pathlib.Path(confinement.__file__))
_LIBRARY = pathlib.Path("wasmtime", "linux-x86_64", "_libwasmtime.so")
_RECORD_SECTION = b".wasmtime.engine"
_checked: set[tuple[str, int, int]] = set()


def compiler_folder() -> pathlib.Path:
    """Return where the compiler is expected: ``$TARSDB_HYPERLIGHT_COMPILER``, or in the prefix."""
    named = os.environ.get(COMPILER_VARIABLE)
    if named:
        return pathlib.Path(named)
    return pathlib.Path(sys.prefix, "share", "tarsdb", f"wasmtime-{COMPILER_VERSION}")


def compiler_library() -> pathlib.Path:
    """Return the compiler's library, after comparing its digest with the pinned one.

    Raises
    ------
    UdfBackendError
        It is not installed, or another build.
    """
    folder = compiler_folder()
    path = folder / _LIBRARY
    hint = f"python -m pip install --target {folder} wasmtime=={COMPILER_VERSION}"
    try:
        found = path.stat()
    except OSError as error:
        raise UdfBackendError(
            f"sandbox backend 'hyperlight' compiles modules by wasmtime {COMPILER_VERSION}, which "
            f"is not in {folder}", hint=hint,
        ) from error  # fmt: skip
    key = (str(path), found.st_mtime_ns, found.st_size)
    if key not in _checked:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != LIBRARY_SHA256:
            raise UdfBackendError(
                f"{path} has sha256 {digest}, wasmtime {COMPILER_VERSION} for x86-64 Linux has "
                f"{LIBRARY_SHA256}", hint=hint,
            )  # fmt: skip
        _checked.add(key)
    return path


@functools.cache
def fingerprint() -> str:
    """Return a name for what an artefact depends on beside its component."""
    made = hashlib.sha256(f"{LIBRARY_SHA256} {GUEST_RECORD_SHA256}".encode())
    for source in (pathlib.Path(__file__), _CHILD):
        made.update(source.read_bytes())
    return made.hexdigest()[:32]


def compile_component(component: bytes, name: str) -> bytes:
    """Return the artefact the guest runs.

    Parameters
    ----------
    component : bytes
        A binary component around an untrusted module.
    name : str
        The function, for messages.

    Raises
    ------
    UdfValidationError
        It does not compile, or not within the child's memory and time.
    UdfBackendError
        The compiler is missing or not the pinned one.
    InterruptError
        The statement was asked to stop; the child is killed.
    """
    command = [sys.executable, "-I", "-S", str(_CHILD), str(compiler_library()), _CONFINEMENT,
               str(MEMORY_BYTES), str(CPU_SECONDS)]  # fmt: skip
    exit_code, made, errors = _run(command, component, name)
    if exit_code:
        said = errors.decode(errors="replace").strip()[-500:]
        raise UdfValidationError(
            f"function {name}: compiling it ahead of time failed (exit {exit_code}, limits "
            f"{CPU_SECONDS} s and {MEMORY_BYTES >> 20} MiB): {said}"
        )
    return for_guest(made)


def _run(command: list[str], component: bytes, name: str) -> tuple[int, bytes, bytes]:
    """Return exit status, output and messages of the compiler, killed when it is not to go on.

    It reads a file: of more than a pipe holds, ``communicate`` sends nothing after its first tick.
    """
    pipe, end = subprocess.PIPE, time.monotonic() + 10 * CPU_SECONDS
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(tempfile.TemporaryFile())
        given.write(component)
        given.seek(0)
        child = stack.enter_context(
            subprocess.Popen(command, stdin=given, stdout=pipe, stderr=pipe, env={})
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    made, errors = child.communicate(timeout=TICK_S)
                    return child.returncode, made, errors
                if stop_asked():
                    raise InterruptError(f"function {name} was being compiled when interrupted")
                if time.monotonic() >= end:
                    raise UdfValidationError(
                        f"function {name}: compiling took over {10 * CPU_SECONDS} s"
                    )
        finally:
            child.kill()


def for_guest(artefact: bytes) -> bytes:
    """Return the artefact with the guest's engine record in place of its own."""
    header, start, size = _record(artefact)
    digest = hashlib.sha256(artefact[start : start + size]).hexdigest()
    if digest != COMPILED_RECORD_SHA256:
        raise UdfBackendError(
            f"the compiler's engine record has sha256 {digest}, expected {COMPILED_RECORD_SHA256}",
            hint=f"reinstall wasmtime {COMPILER_VERSION} into {compiler_folder()}",
        )
    record = guest_record()
    patched = bytearray(artefact.ljust(-(-len(artefact) // 8) * 8, b"\0"))
    struct.pack_into("<QQ", patched, header + 24, len(patched), len(record))  # place and size
    return bytes(patched) + record


def guest_record() -> bytes:
    """Return the engine record of the guest's wasmtime, which this package carries."""
    record = resources.files(__package__).joinpath("guest_engine.bin").read_bytes()
    digest = hashlib.sha256(record).hexdigest()
    if digest != GUEST_RECORD_SHA256:
        raise UdfBackendError(
            f"guest_engine.bin has sha256 {digest}, expected {GUEST_RECORD_SHA256}",
            hint="reinstall tarsdb",
        )
    return record


def _record(elf: bytes) -> tuple[int, int, int]:
    """Return (section header, start, size) of the engine record in a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    (text,) = struct.unpack_from("<Q", elf, table + names * entry + 24)
    for header in range(table, table + count * entry, entry):
        (name,) = struct.unpack_from("<I", elf, header)
        end = elf.index(b"\0", text + name)
        if elf[text + name : end] == _RECORD_SECTION:
            return header, *struct.unpack_from("<QQ", elf, header + 24)
    raise ValueError("artefact without an engine record")
