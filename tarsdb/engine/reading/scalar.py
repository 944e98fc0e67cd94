"""Functions of texts over columns, and the choice of CASE among columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tarsdb.columns import Column, concat
from tarsdb.types import SqlType


def text_function(name: str, arguments: Sequence[Column], returns: SqlType) -> Column:
    """Return ``length`` (in code points) or ``||`` of TEXT columns of one length."""
    import pyarrow.compute as pc  # most processes need none of it

    from tarsdb.engine.arrow import from_arrow, to_arrow

    texts = [to_arrow(column) for column in arguments]
    if name == "length":
        found = pc.utf8_length(texts[0])
    else:
        found = pc.binary_join_element_wise(*texts, "", null_handling="emit_null")
    return from_arrow(found, returns, name)


def choose(conditions: Sequence[np.ndarray], values: Sequence[Column]) -> Column:
    """Return for every row the value of the first true condition, else the last one.

    Parameters
    ----------
    conditions : sequence of bool (rows,)
    values : sequence of Column
        One more than conditions, of one type and ``rows`` values each.
    """
    rows = len(values[-1])
    number = np.arange(len(conditions), dtype=np.int64)
    places = np.arange(rows) + rows * np.select(list(conditions), list(number), len(conditions))
    return concat(values[0].type, list(values)).take(places)
