"""Results of sandboxed functions kept in the file: of those made ``WITH (cache = true)``.

A row's result is named by digests of the module, of all that was declared of the function, and of
the row's arguments. It is kept where results of models are (``engine.inference_cache``): bounded,
written behind the statements, erased with a text. Looking a row up costs some ten microseconds, so
a function that was seen to compute a row in less than :data:`LEAST_S` is called instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tarsdb.columns import Column, concat, from_list
from tarsdb.engine.inference import inference_cache
from tarsdb.errors import BindError
from tarsdb.records import dataclass
from tarsdb.schema import FunctionDef
from tarsdb.storage import inference
from tarsdb.storage.inference import entry_name, text_digest
from tarsdb.types import Physical, SqlType

if TYPE_CHECKING:
    from tarsdb.engine.context import Context
    from tarsdb.udf_sandbox import Figures

LEAST_S = 20e-6
"""Seconds a row from which on keeping results pays, twice what looking one up takes."""
JUDGED_ROWS = 100
"""Rows from which on the time a function took is believed."""
PIECE_ROWS = 1000
"""Rows looked up before the function is judged again."""
_NULL = b"\xffnull"  # begins as no text does

Compute = Callable[[list[Column], int], Column]
Row = tuple[Any, ...]
Result = tuple[Any]
"""A result in brackets, so that NULL is one too."""


def check(function: FunctionDef) -> None:
    """Raise unless results of a function may be kept, where it asks for that.

    Raises
    ------
    BindError
        They may depend on more than the arguments, or are compared where they arise.
    """
    if not function.is_cached:
        return
    what = None
    if function.volatility.upper() != "IMMUTABLE":
        what = f"it is {function.volatility.upper()}"
    elif function.kind != "scalar" or function.role == "metric":
        what = f"it is of kind {function.role or function.kind}"
    elif function.options.get("allow"):
        what = f"it is granted {function.options['allow']}"
    elif not function.arguments:
        what = "it has no arguments"
    if what is not None:
        raise BindError(
            f"function {function.name}: cache = true, but {what}",
            hint="results of IMMUTABLE scalar functions of their arguments alone can be kept",
        )


def through(
    context: Context,
    function: FunctionDef,
    arguments: Sequence[Column],
    figures: Sequence[Figures],
    compute: Compute,
) -> Column:
    """Return a function's result for every row, computing only what is not known.

    Parameters
    ----------
    context : Context
    function : FunctionDef
    arguments : sequence of Column
        Of the declared types, at least one.
    figures : sequence of Figures
        Where known rows are counted; the first tells what the function takes.
    compute : callable
        Given arguments of some rows, and their number, returns their results.
    """
    rows, parts, start = len(arguments[0]), [], 0
    asked = context.engines.settings["inference_cache"]
    while start < rows:
        stop = min(start + PIECE_ROWS, rows) if asked and _pays(figures[0]) else rows
        part = [column.slice(start, stop) for column in arguments]
        if asked and _pays(figures[0]):
            parts.append(_looked_up(context, function, part, figures, compute))
        else:
            parts.append(compute(part, stop - start))
        start = stop
    return parts[0] if len(parts) == 1 else concat(function.returns, parts)


def _pays(figures: Figures) -> bool:
    return figures.rows < JUDGED_ROWS or figures.seconds >= LEAST_S * figures.rows


def _looked_up(
    context: Context,
    function: FunctionDef,
    arguments: Sequence[Column],
    figures: Sequence[Figures],
    compute: Compute,
) -> Column:
    called = 0

    def missing(items: list[Row]) -> Iterable[Result]:
        nonlocal called
        called = len(items)
        columns = zip(function.arguments, zip(*items, strict=True), strict=True)
        fewer = [from_list(sql_type, values) for (_, sql_type), values in columns]
        return [(value,) for value in compute(fewer, called).to_list()]

    rows = list(zip(*(column.to_list() for column in arguments), strict=True))
    answers = inference_cache.through(context, _Question(function), rows, missing)
    for each in figures:
        each.hit(len(rows) - called)
    return from_list(function.returns, [value for (value,) in answers])


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of every row: the function."""

    function: FunctionDef
    counters: ClassVar[str] = "udf.cache"

    def names(self, items: Sequence[Row]) -> list[bytes]:
        """Return the names the results of rows have in the file."""
        function = self.function
        way = inference.digest(
            json.dumps(
                [
                    function.language, function.export, function.strict, str(function.returns),
                    [str(sql_type) for _, sql_type in function.arguments], function.options,
                ],
                sort_keys=True,
            ).encode()
        )  # fmt: skip
        module = inference.function_digest(function)
        types = [sql_type for _, sql_type in function.arguments]
        return [
            entry_name([_digest(v, t) for v, t in zip(row, types, strict=True)], module, way)
            for row in items
        ]

    def encode(self, value: Result) -> bytes:
        """Return a result as it is stored: a byte that tells NULL, and the value's bytes."""
        (item,) = value
        return b"\0" if item is None else b"\1" + _bytes(item, self.function.returns)

    def decode(self, stored: bytes) -> Result | None:
        """Return a stored result, None where it is none of this kind."""
        if not stored or stored[0] > 1:
            return None
        if stored[0] == 0:
            return (None,)
        sql_type, data = self.function.returns, stored[1:]
        if sql_type.physical is Physical.UTF8:
            return (data.decode(),)
        if sql_type.is_variable:
            return (data,)
        width = sql_type.dtype.itemsize * (sql_type.width if sql_type.is_vector else 1)
        if len(data) != width:
            return None
        values = np.frombuffer(data, dtype=sql_type.dtype)
        return (Column(sql_type, values.reshape(1, -1) if sql_type.is_vector else values).get(0),)


def _bytes(item: Any, sql_type: SqlType) -> bytes:
    if isinstance(item, str):
        return item.encode("utf-8", "surrogatepass")
    return item if isinstance(item, bytes) else np.asarray(item, dtype=sql_type.dtype).tobytes()


def _digest(item: Any, sql_type: SqlType) -> bytes:
    """Return the digest of an argument; of a text the one by which it is erased."""
    if isinstance(item, str):
        return text_digest(item)
    return inference.digest(_NULL if item is None else b"\xff" + _bytes(item, sql_type))
