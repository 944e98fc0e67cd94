"""Keeps machine code of kernels in the user's cache directory, so that only one process compiles.

The directory's name holds everything the code depends on: kernel sources, Numba, LLVM and the
processor. A cache that is absent, read-only, damaged or someone else's is not used; kernels then
compile per process. Knows no kernel by name.
"""

# Numba's cache classes are untyped.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
from numba.core import bytecode, caching

from tarsdb.kernels.cpu import linked
from tarsdb.user_cache import private_folder


def compiled(dispatcher: Any, signature: Any, variant: str = "") -> Callable[..., int]:
    """Compile a dispatcher for one signature, or load the code a process before us compiled.

    ``variant`` names what a factory was called with, for kernels that call other compiled functions
    of the factory: Numba would take these for new ones in every process.
    """
    folder = kernel_folder()
    if folder is not None:
        with contextlib.suppress(Exception):  # Numba's cache classes are not public; we compile
            dispatcher._cache = _KernelCache(dispatcher.py_func, folder, variant)
    _name_apart()
    try:
        dispatcher.compile(signature)
    except Exception:  # perhaps for what Numba changed
        if not linked.give_up():
            raise
        dispatcher._compiler._failed_cache.clear()
        dispatcher.compile(signature)
    dispatcher.disable_compile()
    kernel: Callable[..., int] = dispatcher
    return kernel


@functools.lru_cache(1024)  # asking takes longer than a call
def entry(kernel: Any) -> int:
    """Return the address of a kernel of :func:`compiled`, by Numba's calling convention."""
    (made,) = kernel.overloads.values()
    found: int = made.library.get_pointer_to_function(made.fndesc.llvm_func_name)
    return found


def _name_apart() -> None:
    """Let Numba number functions from a place no other process begins at.

    The number is part of a function's name, and code from the cache is linked by name: what one
    process compiled for one variant must not be taken for what another compiled for another.
    """
    with contextlib.suppress(AttributeError):
        start = int.from_bytes(os.urandom(6), "little")
        bytecode.FunctionIdentity._unique_ids = itertools.count(start)


def kernel_folder() -> pathlib.Path | None:
    """Return the folder of this build's machine code, or None where there is none to trust."""
    return private_folder("kernels", _fingerprint())


def _fingerprint() -> str:
    """Return a name for all that machine code depends on."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    parts = (numba.__version__, llvmlite.__version__, sys.version, llvm.get_host_cpu_name(),
             llvm.get_host_cpu_features().flatten())  # fmt: skip
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:24]


class _Locator(caching._CacheLocator):
    """Tells Numba our folder; the folder's name already stands for the source."""

    folder: pathlib.Path

    def __init__(self, py_func: Any) -> None:
        self._line = py_func.__code__.co_firstlineno

    def ensure_cache_path(self) -> None:
        pass

    def get_cache_path(self) -> str:
        return str(self.folder)

    def get_source_stamp(self) -> str:
        return self.folder.name

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator:
        return cls(py_func)


class _KernelCache(caching.FunctionCache):
    """Numba's function cache in a given folder; a failure to read or write is a miss."""

    def __init__(self, py_func: Any, folder: pathlib.Path, variant: str) -> None:
        self._variant = variant
        locator = type("_FolderLocator", (_Locator,), {"folder": folder})
        self._impl_class: Any = type(
            "_Impl", (caching.CompileResultCacheImpl,), {"_locator_classes": [locator]}
        )
        super().__init__(py_func)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        if not self._variant:
            return super()._index_key(sig, codegen)
        # the folder's name stands for all sources, so name and variant say which code it is
        return sig, codegen.magic_tuple(), (self._py_func.__qualname__, self._variant)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged file raises whatever its bytes spell
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(Exception):  # unwritable or full: the next process compiles
            super().save_overload(sig, data)
