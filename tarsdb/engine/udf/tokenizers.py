"""``tokenize`` and ``chunk`` by a table function of role 'tokenizer'.

The function says which bytes of a text are its tokens; that they can be is checked here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.columns import Column, from_list
from tarsdb.engine.udf.functions import cast
from tarsdb.errors import CatalogError, UdfError
from tarsdb.metrics import METRICS
from tarsdb.sql import expressions as ex
from tarsdb.types import TEXT, to_storage

if TYPE_CHECKING:
    from tarsdb.engine.context import Context


def call(context: Context, node: ex.Call, texts: Column, rows: int) -> Column:
    """Return each text's tokens, or its pieces of so many tokens; NULL for NULL.

    Parameters
    ----------
    node : Call
        Of kind 'tokenizer': ``tokenize``, or ``chunk`` with its options.
    texts : Column
        TEXT, of ``rows`` rows.

    Raises
    ------
    UdfError
        What the function gives cannot be the tokens of a text.
    """
    function = context.catalog.function(node.target)
    if function is None or node.returns is None:
        raise CatalogError(f"function {node.target!r} does not exist")
    options = {name: context.constant(value) for name, value in node.options}
    METRICS.add(f"{node.name}_texts", rows)
    texts = cast(texts, TEXT, function.name)
    columns, bounds = context.engines.functions.call_table(context, function, [texts], rows)
    _check(function.name, texts, columns, bounds)
    places = np.stack([columns[0].values, columns[1].values], axis=1)
    terms = columns[2].to_list() if len(columns) > 2 and node.name == "tokenize" else None
    values: list[list[str] | None] = []
    for text, start, stop in zip(texts.to_list(), bounds[:-1], bounds[1:], strict=True):
        if text is None:
            values.append(None)
        elif terms is not None:
            values.append(terms[start:stop])
        else:
            values.append(_slices(text, places[start:stop].tolist(), options))
    kept = [to_storage(value, node.returns, node.name) for value in values]
    return from_list(node.returns, kept)


def _slices(text: str, spans: list[Any], options: dict[str, Any]) -> list[str]:
    """Return the tokens in a text, or where options say how many, pieces of them."""
    from tarsdb.model_ops import chunk_spans

    code = text.encode()
    pieces = chunk_spans(spans, **options) if options else spans
    return [code[start:stop].decode() for start, stop in pieces]


def _check(name: str, texts: Column, columns: list[Column], bounds: np.ndarray) -> None:
    """Raise unless tokens are bytes of their texts, one behind the other, of whole characters."""
    assert texts.offsets is not None
    for column in columns:
        if column.validity is not None and not column.validity.all():
            token = int(np.argmin(column.validity))
            raise UdfError(f"function {name}: {_which(bounds, token)} has a NULL")
    first, behind = (column.values.astype(np.int64) for column in columns[:2])
    counts = np.diff(bounds)
    rows = np.repeat(np.arange(len(texts)), counts)
    begins, ends = (texts.offsets[rows + side].astype(np.int64) for side in (0, 1))
    before = np.concatenate(([0], behind[:-1])) if len(behind) else behind
    before[bounds[:-1][counts > 0]] = 0  # nothing comes before a text's first token
    good = (before <= first) & (first < behind) & (behind <= ends - begins)
    code = np.append(texts.values, np.uint8(0))  # behind the last text a character begins, too
    for places in (first, behind):
        good &= (code[begins + np.where(good, places, 0)] & 0xC0) != 0x80
    if not good.all():
        token = int(np.argmin(good))
        raise UdfError(
            f"function {name}: {_which(bounds, token)} is bytes {first[token]} to {behind[token]} "
            f"of a text of {ends[token] - begins[token]}",
            "a token begins behind the one before, is not empty, and is whole characters",
        )


def _which(bounds: np.ndarray, token: int) -> str:
    """Name a token by its row and its place among the row's."""
    row = int(np.searchsorted(bounds, token, side="right")) - 1
    return f"token {token - int(bounds[row])} of row {row}"
