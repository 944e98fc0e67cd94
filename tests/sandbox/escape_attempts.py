"""Child process of test_worker.py: become a worker as ``main`` does, then try to break out of it.

``python -I -S escape_attempts.py WASMTIME PACKAGE [filter] [limits]`` prints one line per attempt:
its name, and ``done`` or the error. Without the words the same attempts go unhindered.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import pathlib
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.mmap(-1, 4096)
MODULE = b"\0asm\1\0\0\0"


def checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")


def executable_by_mprotect() -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(PAGE))
    checked(LIBC.mprotect(address, 4096, 5))


def fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def start_thread() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def run_program() -> None:
    os.execv("/bin/sh", ["sh", "-c", "echo execute: done"])


ATTEMPTS: dict[str, Callable[[], Any]] = {
    "read a file": lambda: pathlib.Path("/etc/passwd").read_text(),
    "write a file": lambda: os.close(os.open("/tmp/tarsdb-escape", os.O_CREAT | os.O_WRONLY)),
    "list a folder": lambda: os.listdir("/"),
    "internet socket": lambda: socket.socket(socket.AF_INET).close(),
    "unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
    "pipe": os.pipe,
    "executable mmap": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC).close(),
    "executable mprotect": executable_by_mprotect,
    "fork": fork,
    "thread": start_thread,
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "read a process": lambda: checked(LIBC.process_vm_readv(os.getpid(), None, 0, None, 0, 0)),
    "execute": run_program,
}  # the last one replaces the process where it is not refused


def main(wasmtime_folder: str, package: str, *words: str) -> None:
    spec = importlib.util.spec_from_file_location(
        "worker_main", package + "/udf_sandbox/worker/main.py"
    )
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    program._find_packages(wasmtime_folder, package)
    import wasmtime

    from tarsdb.udf_sandbox import settings
    from tarsdb.udf_sandbox.worker import confinement, memories, messages

    for word, name in (("filter", "filter_system_calls"), ("limits", "limit_resources")):
        if word not in words:
            setattr(confinement, name, lambda *_: "")
    shared = memories.Memories()
    config = settings.SETTINGS["worker"]()
    shared.install(config)
    engine = wasmtime.Engine(config)
    native = bytes(wasmtime.Module(engine, MODULE).serialize())
    descriptor = os.memfd_create("escape")
    os.ftruncate(descriptor, 65536)
    channel, _ = socket.socketpair()
    why = program.Guest(engine, shared, channel).load(
        messages.LoadBody(65536, 0, 60, "f", native, b""), descriptor
    )
    assert why == "", why
    for name, attempt in ATTEMPTS.items():
        try:
            if name == "execute":
                sys.stdout.flush()
            attempt()
        except Exception as error:
            print(f"{name}: {type(error).__name__}", flush=True)
        else:
            print(f"{name}: done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
