"""Functions that kernels call: typed and lowered, but compiled only as parts of kernels.

Numba optimises each function that it compiles, and makes machine code and wrappers of it, although
its callers link its LLVM code and optimise that once more. Of our hundreds of functions only the
kernels are ever called by address or from Python, so the work for the others is left out: a quarter
of all that compiling costs.

This builds on Numba's insides. Where they have changed, :func:`give_up` leads back to what
``njit`` does, and the kernels are the same.
"""

# Numba's classes are untyped.
# mypy: disallow-untyped-calls=False, disallow-subclassing-any=False

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from numba import njit

try:
    from numba.core import compiler, typed_passes
    from numba.core.codegen import JITCodeLibrary
    from numba.core.compiler_machinery import LoweringPass, register_pass
    from numba.core.registry import CPUDispatcher
except ImportError:  # moved; see give_up
    _is_given_up = True
else:
    _is_given_up = False

_functions: weakref.WeakSet[Any] = weakref.WeakSet()


def linked(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Mark a function that compiled functions call; called from Python it compiles on its own.

    Parameters
    ----------
    function : callable
    **options
        Those of ``njit``, beside ``nogil``.
    """
    if function is None:
        return functools.partial(linked, **options)
    if _is_given_up:
        return njit(nogil=True, **options)(function)
    made = _Linked(function, targetoptions={"nopython": True, "nogil": True, **options},
                  pipeline_class=_Compiler)  # fmt: skip
    _functions.add(made)
    return made


def give_up() -> bool:
    """Let Numba compile each function on its own from now on; False if it does already."""
    global _is_given_up
    if _is_given_up:
        return False
    _is_given_up = True
    for made in tuple(_functions):
        made.overloads.clear()
        made._compiler = type(made._compiler)(
            made.py_func, made.targetdescr, made.targetoptions, made.locals, compiler.Compiler
        )
    return True


if not _is_given_up:

    class _Library(JITCodeLibrary):
        """LLVM code as it was lowered, for callers to link; never given to the machine."""

        def finalize(self) -> None:
            for library in dict.fromkeys(self._linking_libraries):
                self._final_module.link_in(library._get_module_for_linking(), preserve=True)
            self._finalized = True

    @register_pass(mutates_CFG=False, analysis_only=False)
    class _Offer(LoweringPass):
        """Lets callers find a lowered function, as Numba does where there is machine code."""

        _name = "tarsdb_offer"

        def __init__(self) -> None:
            LoweringPass.__init__(self)

        def run_pass(self, state: Any) -> bool:
            name = object()
            lowered = state["cr"]
            state.targetctx.insert_user_function(name, lowered.fndesc, [state.library])
            state["cr"] = lowered._replace(cfunc=name)
            return True

    class _Compiler(compiler.CompilerBase):
        def define_pipelines(self) -> list[Any]:
            state = self.state
            state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
            flags = state.flags
            flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
            passes = compiler.DefaultPassBuilder.define_nopython_pipeline(state)
            passes.add_pass_after(_Offer, typed_passes.NativeLowering)
            passes.finalize()
            return [passes]

    class _Linked(CPUDispatcher):
        def add_overload(self, found: Any) -> None:
            self.overloads[tuple(found.signature.args)] = found

        def __call__(self, *args: Any) -> Any:
            return self._alone(*args)

        @functools.cached_property
        def _alone(self) -> Any:
            return CPUDispatcher(self.py_func, targetoptions=self.targetoptions)
