"""The filter of system calls, run by an interpreter of its program: what it allows and what not."""

from __future__ import annotations

import struct

import pytest

from tarsdb.udf_sandbox.worker import confinement

ALLOW, EPERM, KILL = 0x7FFF0000, 0x00050001, 0x80000000
MACHINES = list(confinement._MACHINES)


def verdict(program: bytes, number: int, architecture: int, third: int = 0) -> int:
    """Return what the kernel would: runs classic BPF over ``struct seccomp_data``."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, 0, 0, third, 0, 0, 0)
    at = accumulator = 0
    while True:
        code, when_true, when_false, value = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
            continue
        holds = {0x15: accumulator == value, 0x35: accumulator >= value,
                 0x45: bool(accumulator & value)}[code]  # fmt: skip
        at += when_true if holds else when_false


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("executable", [False, True])
def test_exactly_the_listed_calls_are_allowed(machine: str, executable: bool) -> None:
    column, architecture, _ = confinement._MACHINES[machine]
    program = confinement.filter_program(column, architecture, executable_memory=executable)
    assert len(program) // 8 < 4096
    listed = {numbers[column] for numbers in confinement._CALLS.values()}
    guarded = {numbers[column] for numbers in confinement._WITHOUT_EXECUTION.values()}
    assert len(listed) == len(confinement._CALLS)
    for number in range(1024):
        wanted = ALLOW if number in listed | guarded else EPERM
        assert verdict(program, number, architecture) == wanted, number
        assert verdict(program, number, architecture, third=3) == wanted
        if number in guarded:
            wanted = ALLOW if executable else EPERM
        for protection in (4, 5, 7):
            assert verdict(program, number, architecture, protection) == wanted, number


@pytest.mark.parametrize("machine", MACHINES)
def test_other_architectures_and_the_x32_numbers(machine: str) -> None:
    column, architecture, _ = confinement._MACHINES[machine]
    program = confinement.filter_program(column, architecture, executable_memory=True)
    assert verdict(program, 0, 0x40000003) == KILL  # i386
    for number in range(1024):
        assert verdict(program, 0x40000000 | number, architecture) == EPERM


def test_what_matters_is_not_listed() -> None:
    refused = {"open", "openat", "socket", "connect", "execve", "fork", "clone", "clone3", "kill",
               "ptrace", "memfd_create", "io_uring_setup", "pkey_mprotect", "shmat", "personality",
               "prctl", "seccomp", "sendmsg", "recvmsg", "fcntl", "ioctl"}  # fmt: skip
    assert not refused & (confinement._CALLS | confinement._WITHOUT_EXECUTION).keys()
