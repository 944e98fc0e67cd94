"""Functions of texts over columns, and the choice of CASE among columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tarsdb.columns import Column, concat
from tarsdb.types import SqlType

_ASCII_END, _LETTERS, _CASE_BIT = 0x80, 26, np.uint8(0x20)
_FIRST_LETTER = {"lower": np.uint8(ord("A")), "upper": np.uint8(ord("a"))}
"""Of those that the function changes."""


InCase = Callable[[str, Column], Column]


def text_function(
    name: str, arguments: Sequence[Column], returns: SqlType, in_case: InCase
) -> Column:
    """Return ``length`` (in code points), ``||``, ``lower`` or ``upper`` of TEXT columns.

    ``in_case`` changes the case of other letters than ASCII's.
    """
    first = arguments[0]
    if name in _FIRST_LETTER:
        return ascii_in_case(name, first) if is_ascii(first) else in_case(name, first)
    if name == "length" and first.offsets is not None and is_ascii(first):
        lengths = np.diff(first.offsets).astype(returns.dtype)
        return Column(returns, lengths, None, first.validity)
    import pyarrow.compute as pc  # most processes need none of it

    from tarsdb.engine.arrow import from_arrow, to_arrow

    texts = [to_arrow(column) for column in arguments]
    if name == "length":
        found = pc.utf8_length(texts[0])
    else:
        found = pc.binary_join_element_wise(*texts, "", null_handling="emit_null")
    return from_arrow(found, returns, name)


def ascii_in_case(name: str, texts: Column) -> Column:
    """Return ``lower`` or ``upper`` of texts that are ASCII."""
    is_changed = texts.values - _FIRST_LETTER[name] < _LETTERS
    values = texts.values ^ is_changed * _CASE_BIT
    return Column(texts.type, values, texts.offsets, texts.validity)


def is_ascii(texts: Column) -> bool:
    """Return True where no text has other characters than ASCII's."""
    return not len(texts.values) or int(texts.values.max()) < _ASCII_END


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
