"""Outputs of a native plan: which rows pass, and what each result column holds for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tarsdb.columns import Column
from tarsdb.engine.context import Context
from tarsdb.engine.reading import evaluate
from tarsdb.sql import expressions as ex
from tarsdb.storage import TableView
from tarsdb.types import SqlType


def header(outputs: Sequence[ex.Output]) -> tuple[list[str], list[SqlType | None]]:
    """Return names and types of a plan's outputs."""
    return [o.name for o in outputs], [_type_of(o) for o in outputs]


def _type_of(output: ex.Output) -> SqlType | None:
    if output.type is None and isinstance(output.expr, ex.ColumnRef):
        return output.expr.column.type
    return output.type


def project(
    context: Context,
    view: TableView,
    rowids: np.ndarray,
    predicate: ex.Expr | None,
    outputs: Sequence[ex.Output],
) -> list[Column]:
    """Gather rows by id, drop those the predicate rejects, evaluate the outputs."""
    needed = evaluate.columns_of(predicate, *(o.expr for o in outputs))
    columns = dict(zip(needed, view.rows(rowids, list(needed)), strict=True))
    batch = evaluate.Batch(len(rowids), columns, context, rowids)
    kept = evaluate.narrowed(batch, predicate, *(output.expr for output in outputs))
    return [column.owned() for column in evaluate_outputs(outputs, kept)]


def evaluate_outputs(outputs: Sequence[ex.Output], batch: evaluate.Batch) -> list[Column]:
    """Return the output columns for a batch."""
    return [
        evaluate.materialise(evaluate.value(o.expr, batch), batch.rows, o.type) for o in outputs
    ]
