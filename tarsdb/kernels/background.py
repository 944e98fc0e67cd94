"""Getting the kernels of an index ready in the background, for the level in use.

A search asks :meth:`Compiled.current`; until the kernels are compiled (or loaded from the disk
cache) it gets None and its caller searches exactly. Building waits for them. Knows no index.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tarsdb.kernels import dispatch
from tarsdb.metrics import METRICS

Kernels = TypeVar("Kernels")


class Compiled(Generic[Kernels]):
    """The kernels of one module of ``kernels/cpu``, compiled once for each level.

    Parameters
    ----------
    module : str
        It has ``SIGNATURES`` and ``make_kernels(variant)``, both by the names of kernels.
    make : callable
        Takes the variant and the compiled kernels by name.
    variants : callable, optional
        Returns the variant of a level, or variants, best first; none: no kernels at that level.
    check : callable, optional
        Tries the kernels of a variant. Those that fail make way for the next variant, and the
        counter ``kernels.disproved`` says so.
    """

    def __init__(
        self, module: str, make: Callable[..., Kernels],
        variants: Callable[[str], str | Sequence[str] | None] = lambda level: _variant(level),
        check: Callable[[Kernels], bool] | None = None,
    ) -> None:  # fmt: skip
        self._module, self._make, self._variants, self._check = module, make, variants, check
        self._known: dict[str, Kernels | None] = {}  # by level; None: cannot be compiled here
        self._lock = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget_threads)

    def current(self) -> Kernels | None:
        """Return the kernels of the level in use, or None while (or because) there are none."""
        level = dispatch.level()
        found = self._known.get(level)
        if found is None and level not in self._known:
            self._start(level)
        return found

    def wait(self, timeout_s: float | None = None) -> Kernels | None:
        """Compile if need be and return the kernels; None: there is no compiler, or too late."""
        level = dispatch.level()
        if level not in self._known:
            self._start(level).join(timeout_s)
        return self._known.get(level)

    def finish(self) -> None:
        """Return when what was begun is done."""
        for thread in tuple(self._threads.values()):
            thread.join()

    def _start(self, level: str) -> threading.Thread:
        with self._lock:
            thread = self._threads.get(level)
            if thread is None or (not thread.is_alive() and level not in self._known):
                # No daemon: a compiler running while the process is taken down crashes it.
                name = f"tarsdb-{self._module}-kernels"
                thread = threading.Thread(target=self._compile, args=(level,), name=name)
                self._threads[level] = thread
                thread.start()
            return thread

    def _compile(self, level: str) -> None:
        found = None
        try:
            names = self._variants(level) or ()
            for variant in (names,) if isinstance(names, str) else names:
                found = self._made(variant)
                if self._check is None or self._check(found):
                    break
                METRICS.add("kernels.disproved")
                found = None
        except Exception:  # no Numba, or a compiler bug: searches stay exact
            found = None
        self._known[level] = found

    def _made(self, variant: str) -> Kernels:
        from tarsdb.kernels.cpu import disk_cache

        module = importlib.import_module(f"tarsdb.kernels.cpu.{self._module}")
        made = module.make_kernels(variant)
        ready = {
            name: disk_cache.compiled(made[name], signature, f"{self._module} {variant}")
            for name, signature in module.SIGNATURES.items()
        }
        return self._make(variant, **ready)

    def _forget_threads(self) -> None:
        """After fork: what the parent was compiling is not to be had, LLVM's locks may be held."""
        self._lock = threading.Lock()
        for level in self._threads:
            self._known.setdefault(level, None)


def _variant(level: str) -> str:
    import llvmlite.binding as llvm

    if level == "portable":
        return "plain"
    has_vnni = bool(llvm.get_host_cpu_features().get("avx512vnni"))
    return "vnni" if level == "avx512" and has_vnni else "avx2"
