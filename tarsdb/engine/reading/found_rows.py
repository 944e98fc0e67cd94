"""The answer of a plan whose rows are known by their ids.

A few rows come value by value, without arrays. What the outputs alone decide is worked out
once and kept with the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tarsdb.engine.context import Context
from tarsdb.engine.reading import project
from tarsdb.engine.result import Result
from tarsdb.schema import ColumnDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Scan
from tarsdb.storage import TableView
from tarsdb.types import presenter


class Shape:
    """Names and types of outputs, and where all are scalar columns, which.

    Attributes
    ----------
    columns : list of ColumnDef or None
        Each once; None where some output is something else.
    """

    def __init__(self, outputs: Sequence[ex.Output]) -> None:
        self.names, self.types = project.header(outputs)
        self.columns: list[ColumnDef] | None = None
        self._shows: list[tuple[int, Callable[[Any], Any] | None]] = []
        nodes = [output.expr for output in outputs]
        plain = [node.column for node in nodes if isinstance(node, ex.ColumnRef)]
        if len(plain) < len(nodes) or any(column.type.is_vector for column in plain):
            return
        self.columns = list({column.id: column for column in plain}.values())
        places = {column.id: place for place, column in enumerate(self.columns)}
        self._shows = [(places[column.id], presenter(column.type)) for column in plain]

    def result(self, values: list[list[Any]]) -> Result:
        """Return an answer of storage values, a list for each of `columns`."""
        stored = [values[place] for place, _ in self._shows]
        shown = [
            values[place] if show is None else list(map(show, values[place]))
            for place, show in self._shows
        ]
        return Result.short(self.names, self.types, list(zip(*shown, strict=True)), stored)


def result(context: Context, view: TableView, plan: Scan, rowids: np.ndarray) -> Result:
    """Return the outputs of live rows, given as int64 (n,), in their order."""
    shape: Shape | None = plan.memo.get("shape")
    if shape is None:
        shape = plan.memo["shape"] = Shape(plan.outputs)
    if shape.columns is not None:
        values = view.few_values(rowids.tolist(), shape.columns)
        if values is not None:
            return shape.result(values)
    columns = project.project(context, view, rowids, None, plan.outputs)
    return Result(shape.names, shape.types, columns=columns)
