"""Nearest neighbours with a native SELECT list; conditions outside the core become a filter."""

from __future__ import annotations

from tarsdb.sql import expressions as ex
from tarsdb.sql.knn_shape import find, make_knn
from tarsdb.sql.plan import Knn
from tarsdb.sql.relational import filter_query
from tarsdb.sql.select import TableSelect


def match(select: TableSelect) -> Knn | None:
    """Return the plan when the SELECT list is native, or None."""
    shape = find(select)
    outputs = select.outputs(shape.distance) if shape is not None else None
    if shape is None or outputs is None or ex.calls(*(output.expr for output in outputs)):
        return None
    residue = filter_query(select, shape.residue) if shape.residue else None
    return make_knn(select, shape, outputs, residue)
