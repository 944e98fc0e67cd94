"""The step of a decoder whose rows may have low-rank adapters, several in one step.

Rows of an adapter follow each other in runs; to each of the four products of a layer
``(rows @ down.T) @ up.T`` is added, in float32. Gate and up are made apart, so that something can
be added before the activation; all else is :mod:`decoder`'s, and so are the results of rows without
an adapter, to the last bit.
"""

# Numba's decorators tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

from tarsdb.kernels.cpu.decoder import (
    ADAPTED,
    ADAPTED_GATE_UP,
    ADAPTER_TABLE,
    GATE,
    GATE_UP,
    GATE_UP_BIAS,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    LOWERED,
    LOWERED_BYTES,
    NORMED,
    ROWS,
    RUN,
    RUN_TABLE,
    RUNS,
    SIGNATURES,
    UNFUSED,
    make_step,
)  # fmt: skip
from tarsdb.kernels.cpu.epilogue import LINEAR, RESIDUAL, finish
from tarsdb.kernels.cpu.gemm import make_gemm
from tarsdb.kernels.cpu.gemm_forms import form_of
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import read_long

__all__ = ["SIGNATURES", "make_kernels"]


def _make_adapt(variant: str) -> Any:
    product = make_gemm(variant, "f32")

    @linked(error_model="numpy")
    def adapt(  # type: ignore[no-untyped-def]
        part, parts, model, batch, number, matrix, a, depth, columns, width, out, stride, scratch
    ):
        """Add what adapters say to a part's columns of a product, ``width`` to a unit of them.

        Every thread makes the few sums of a row's rank for itself.
        """
        units = (columns + width - 1) // width
        first, stop = units * part // parts, units * (part + 1) // parts
        own = min(columns, width * stop) - width * first
        lowered = read_long(batch, LOWERED) + part * read_long(batch, LOWERED_BYTES)
        for run in range(read_long(batch, RUNS)):
            place = read_long(batch, RUN_TABLE) + 8 * RUN * run
            row, count, adapter = read_long(place, 0), read_long(place, 1), read_long(place, 2)
            line = (adapter * read_long(model, LAYERS) + number) * len(ADAPTED) + matrix
            entry = read_long(batch, ADAPTER_TABLE) + 24 * line
            down, up, rank = read_long(entry, 0), read_long(entry, 1), read_long(entry, 2)
            if rank > 0 and own > 0:
                product(a + 4 * depth * row, 4 * depth, count, down, depth, rank, LINEAR, 0,
                        lowered, lowered, 4 * rank, scratch)  # fmt: skip
                target = out + stride * row + 4 * width * first
                product(lowered, 4 * rank, count, up + 4 * width * rank * first, rank, own,
                        RESIDUAL, 0, target, target, stride, scratch)  # fmt: skip

    return adapt


def _make_adapted_gate(kind: str, variant: str, adapt: Any) -> Any:
    product, form = make_gemm(variant, kind), form_of(kind, variant)
    padding, per_line, line, tail = form.padding, form.per_line, form.line_bytes, form.tail_bytes

    @linked(error_model="numpy")
    def adapted_gate(part, parts, model, layer, batch, number, out, scratch):  # type: ignore[no-untyped-def]
        """Make gate and up apart, 16 columns of each in turn, so that adapters can add to them."""
        depth, inner, count = (
            read_long(model, HIDDEN), read_long(model, INTERMEDIATE), read_long(batch, ROWS)
        )  # fmt: skip
        normed, both = read_long(batch, NORMED), read_long(batch, UNFUSED)
        bias = read_long(layer, GATE_UP_BIAS)
        tiles = (inner + 15) // 16
        first, stop, stride = tiles * part // parts, tiles * (part + 1) // parts, 128 * tiles
        tile = (depth + padding - 1) // padding * padding // per_line * line + tail
        if first < stop:
            place = both + 128 * first
            product(normed, 4 * depth, count, read_long(layer, GATE_UP) + 2 * tile * first, depth,
                    32 * (stop - first), LINEAR, 0, place, place, stride, scratch)  # fmt: skip
        adapt(part, parts, model, batch, number, ADAPTED_GATE_UP, normed, depth, 32 * tiles, 32,
              both, stride, scratch)  # fmt: skip
        for t in range(first, stop):
            target = out + 64 * t
            finish(read_long(model, GATE), both + 128 * t, stride, count,
                   bias + 128 * t if bias else scratch, target, target, 4 * inner,
                   inner - 16 * t)  # fmt: skip

    return adapted_gate


def make_kernels(variant: str) -> dict[str, Any]:
    """Return the kernels of SIGNATURES, not yet compiled; ``variant`` is KIND/VARIANT."""
    kind, form = variant.split("/")
    adapt = _make_adapt(form)
    gate = _make_adapted_gate(kind, form, adapt)
    return {"step": make_step(variant, adapt, lambda linear: gate)}
