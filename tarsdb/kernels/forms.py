"""Kernels that differ by the kind of a model's weights, in the form best for this machine.

A kind says how weights are stored (``packing.KINDS``), a form which instructions multiply them;
``KIND/FORM`` names the kernels and how weights are packed for them. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from tarsdb.kernels import dispatch
from tarsdb.kernels.background import Compiled
from tarsdb.kernels.packing import KINDS

Kernels = TypeVar("Kernels")

_BEST = {
    "int8": (("amx", "amx-int8"), ("vnni", "avx512vnni")),
    "int4": (("vnni", "avx512vnni"),),
    "bf16": (("amx", "amx-bf16"), ("bf16", "avx512bf16")),
}
"""Forms above AVX-512's own, best first, and the feature of a processor that each needs."""


def forms_of(kind: str, level: str) -> list[str]:
    """Return KIND/FORM of a kind at a level of instructions, best first; none: NumPy does it."""
    import llvmlite.binding as llvm

    if level == "portable":
        return []
    if level != "avx512":
        return [f"{kind}/{level}"]
    has = llvm.get_host_cpu_features().get
    forms = [form for form, feature in _BEST.get(kind, ()) if has(feature)]
    if "amx" in forms and not dispatch.tiles_allowed():
        forms.remove("amx")
    return [f"{kind}/{form}" for form in (*forms, "avx512", "avx2")]


def form_of(kind: str) -> str | None:
    """Return KIND/FORM as the kernels of this machine take weights of a kind; None: NumPy."""
    return next(iter(forms_of(kind, dispatch.level())), None)


def multiplies_bfloat16() -> bool:
    """Return whether this machine, at the level in use, has instructions that multiply bfloat16."""
    return form_of("bf16") in [f"bf16/{form}" for form, _ in _BEST["bf16"]]


class CompiledKinds(Generic[Kernels]):
    """The kernels of one module of ``kernels/cpu`` for every kind of weights, compiled on demand.

    Parameters
    ----------
    module, make, check
        As of ``Compiled``.
    """

    def __init__(
        self, module: str, make: Callable[..., Kernels],
        check: Callable[[Kernels], bool] | None = None,
    ) -> None:  # fmt: skip
        def compiled(kind: str) -> Compiled[Kernels]:
            return Compiled(module, make, lambda level: forms_of(kind, level), check)

        self._kinds = {kind: compiled(kind) for kind in KINDS}

    def current(self, kind: str) -> Kernels | None:
        """Return the kernels of a kind if they are ready, and let them be compiled otherwise."""
        return self._kinds[kind].current()

    def wait(self, kind: str, timeout_s: float | None = None) -> Kernels | None:
        """Return the kernels of a kind, compiled if need be; None: no compiler, or too late."""
        return self._kinds[kind].wait(timeout_s)

    def finish(self) -> None:
        """Return when the kernels that were asked for are there."""
        for compiled in self._kinds.values():
            compiled.finish()
