"""Whether Hyperlight runs on this machine, found out by running it once, in a child process.

A device that exists proves nothing: some hypervisors offer ``/dev/kvm`` and refuse what Hyperlight
needs of it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import time

from tarsdb.errors import DatabaseError, UdfBackendError
from tarsdb.options import SandboxLimits
from tarsdb.types import parse_type
from tarsdb.udf_sandbox.backends import Program
from tarsdb.udf_sandbox.hyperlight.processes import GuestFailure, SandboxProcess, SandboxSpec
from tarsdb.udf_sandbox.limits import Budget, Call

VERSION = "0.8.0"
SECONDS = 60.0
_PACKAGE = "hyperlight-sandbox-backend-wasm"
_DEVICE = pathlib.Path("/dev/kvm")
_WAT = '(module (func (export "probe") (param i32) (result i32) (local.get 0)))'


@functools.cache
def unavailable() -> str:
    """Return why Hyperlight cannot run here, or ``''``; tried once per process."""
    return _missing_package() or _missing_device() or _failed_run()


def _missing_package() -> str:
    try:
        found = importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return f"{_PACKAGE} is not installed (pip install 'tarsdb[hyperlight]')"
    return "" if found == VERSION else f"{_PACKAGE} is {found}, tarsdb is built for {VERSION}"


def _missing_device() -> str:
    if not _DEVICE.exists():
        return f"{_DEVICE} does not exist: the machine or its kernel offers no virtualisation"
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return f"this user may not read and write {_DEVICE} (add it to the group kvm)"
    return ""


def _failed_run() -> str:
    try:
        spec = _probe_spec()
    except DatabaseError as error:
        return str(error)
    limits = SandboxLimits(backend="hyperlight")
    call = Call("probe", limits, Budget(), 0, time.monotonic() + SECONDS)
    process = SandboxProcess()
    try:
        process.ready(spec, call)
    except (GuestFailure, UdfBackendError) as error:
        return f"{_DEVICE} is there, but a trial run failed: {str(error)[:300]}"
    except DatabaseError:
        return f"{_DEVICE} is there, but a trial run took longer than {SECONDS:.0f} s"
    finally:
        process.kill()
    return ""


def _probe_spec() -> SandboxSpec:
    """Return a small module's sandbox, or a language's where the compiler is not installed."""
    from tarsdb.udf_sandbox.hyperlight import modules, source
    from tarsdb.udf_sandbox.modules.module import to_wasm

    integer = parse_type("INT")
    limits = SandboxLimits(max_memory_bytes=1 << 20, backend="hyperlight")
    program = Program(to_wasm(_WAT), "", b"", "probe", (integer,), integer, limits, True, False)
    try:
        return modules.sandbox_spec(program)
    except UdfBackendError:
        for language in source.LANGUAGES:
            if importlib.util.find_spec(source.LANGUAGES[language].package):
                return source.sandbox_spec(language, b"", limits)
        raise
