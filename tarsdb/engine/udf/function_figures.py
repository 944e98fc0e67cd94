"""What sandboxed functions did: columns of ``tars_functions``, lines of EXPLAIN ANALYZE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tarsdb.types import BIGINT, DOUBLE, TEXT, SqlType

if TYPE_CHECKING:
    from tarsdb.udf_sandbox import Figures

COLUMNS: tuple[tuple[str, SqlType], ...] = (
    ("calls", BIGINT), ("rows", BIGINT), ("transitions", BIGINT), ("bytes_in", BIGINT),
    ("bytes_out", BIGINT), ("fuel", BIGINT), ("seconds", DOUBLE), ("memory_high", BIGINT),
    ("reused", BIGINT), ("cache_hits", BIGINT), ("traps", TEXT), ("stopped", TEXT),
    ("confinement", TEXT),
)  # fmt: skip


def row(figures: Figures | None) -> tuple[Any, ...]:
    """Return the values of :data:`COLUMNS`; of a function not called yet, zeros."""
    if figures is None:
        return (0,) * 6 + (0.0, 0, 0, 0, None, None, None)
    counts = (figures.calls, figures.rows, figures.transitions, figures.bytes_in,
              figures.bytes_out, figures.fuel, figures.seconds, figures.memory_high,
              figures.reused, figures.cache_hits)  # fmt: skip
    known = (_text(figures.traps), _text(figures.stopped), figures.confinement or None)
    return (*counts, *known)


def _text(counts: Mapping[str, int]) -> str | None:
    return json.dumps(counts, sort_keys=True) if counts else None


def lines(statement: Mapping[str, Figures]) -> list[str]:
    """Return a line for each function a statement called."""
    return [
        f"function {name}: {f.calls} calls of {f.rows} rows, {f.transitions} transitions, "
        f"{f.bytes_in} bytes copied in, {f.bytes_out} out, fuel {f.fuel}, "
        f"{f.seconds * 1000:.3f} ms" + (f", {f.cache_hits} rows known" if f.cache_hits else "")
        for name, f in sorted(statement.items())
    ]
