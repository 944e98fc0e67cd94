"""Take away what a process does not need: resource limits, and a filter of system calls on Linux.

The filter lists what is allowed, since what is not known to be needed cannot be argued for: reading
and writing what is open already, memory that is not executable, locks, clocks and the end. There
is no way to open, connect, start, signal or trace anything. Every other call fails with EPERM,
which untrusted code notices and can do nothing with. Knows no WebAssembly.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys

LINUX: bool = sys.platform.startswith("linux")

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIGKILL = 9
_SECCOMP_SET_MODE_FILTER, _FILTER_FLAG_TSYNC = 1, 1
_ALLOW, _KILL_PROCESS, _EPERM = 0x7FFF0000, 0x80000000, 0x00050001
_PROT_EXEC = 4
_LOAD_WORD, _JUMP_EQUAL, _JUMP_SET, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _THIRD_ARGUMENT_AT = 0, 4, 32
_X32_BIT = 0x40000000

# name: (x86-64, AArch64)
_CALLS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "munmap": (11, 215),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sched_yield": (24, 124), "mremap": (25, 216),
    "madvise": (28, 233), "nanosleep": (35, 101), "getpid": (39, 172), "sendto": (44, 206),
    "recvfrom": (45, 207), "exit": (60, 93), "gettimeofday": (96, 169),
    "sigaltstack": (131, 132), "gettid": (186, 178), "futex": (202, 98),
    "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_nanosleep": (230, 115),
    "exit_group": (231, 94), "set_robust_list": (273, 99), "getrandom": (318, 278),
    "rseq": (334, 293),
}  # fmt: skip
_WITHOUT_EXECUTION = {"mmap": (9, 222), "mprotect": (10, 226)}
_MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
"""Column of the tables above, audit architecture, number of ``seccomp``."""


def die_with(parent: int) -> None:
    """Let the kernel end this process when the thread that started it ends.

    Ends it at once when that happened already. Does nothing but on Linux.
    """
    if LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def limit_resources(cpu_seconds: int, more_memory: int) -> None:
    """Bound address space and processor time; no new files, processes, core dumps.

    Parameters
    ----------
    cpu_seconds : int
        Of the whole process.
    more_memory : int
        Bytes of memory of its own, and of address space, beyond what it has now. Enforced on Linux
        only.
    """
    limits = [
        (resource.RLIMIT_CPU, cpu_seconds), (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 0), (resource.RLIMIT_NPROC, 0),
    ]  # fmt: skip
    if LINUX:
        space, data = _sizes()
        limits += [
            (resource.RLIMIT_AS, space + more_memory), (resource.RLIMIT_DATA, data + more_memory)
        ]  # fmt: skip
    for which, most in limits:
        _, hard = resource.getrlimit(which)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(which, (most, most))


def _sizes() -> tuple[int, int]:
    """Return the bytes of address space, and those of data and stack."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = file.read().split()
    page = os.sysconf("SC_PAGE_SIZE")
    return int(pages[0]) * page, int(pages[5]) * page


def filter_system_calls(*, executable_memory: bool = False) -> str:
    """Install the filter for all threads; return why there is none, or ``''``.

    Parameters
    ----------
    executable_memory : bool
        Let memory be made executable: for a compiler, which ends in that.
    """
    if not LINUX:
        return f"no filter of system calls on {sys.platform}"
    machine = platform.machine()
    if machine not in _MACHINES:
        return f"no filter of system calls for {machine}"
    column, architecture, seccomp = _MACHINES[machine]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return f"PR_SET_NO_NEW_PRIVS: {os.strerror(ctypes.get_errno())}"
    program = filter_program(column, architecture, executable_memory=executable_memory)
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    libc.syscall.restype = ctypes.c_long
    installed = libc.syscall(
        ctypes.c_long(seccomp), ctypes.c_long(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_long(_FILTER_FLAG_TSYNC), ctypes.c_char_p(header),
    )  # fmt: skip
    return "" if installed == 0 else f"seccomp: {os.strerror(ctypes.get_errno())}"


def filter_program(column: int, architecture: int, *, executable_memory: bool) -> bytes:
    """Return the filter as BPF: 8 bytes an instruction.

    Allows the calls of the tables, ``mmap`` and ``mprotect`` only without ``PROT_EXEC``; another
    architecture's calls end the process.
    """
    calls = [numbers[column] for numbers in _CALLS.values()]
    guarded = [numbers[column] for numbers in _WITHOUT_EXECUTION.values()]
    if executable_memory:
        calls, guarded = calls + guarded, []
    body: list[tuple[int, int, int, int]] = [
        (_LOAD_WORD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD_WORD, 0, 0, _NUMBER_AT),
        (_JUMP_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _EPERM),
    ]
    for number in calls:
        body += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number in guarded:
        body += [
            (_JUMP_EQUAL, 0, 4, number),
            (_LOAD_WORD, 0, 0, _THIRD_ARGUMENT_AT),
            (_JUMP_SET, 1, 0, _PROT_EXEC),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _EPERM),
        ]
    body.append((_RETURN, 0, 0, _EPERM))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in body)
