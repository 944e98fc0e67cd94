"""Functions DuckDB calls back: models, sandboxed and session functions, vector distances.

Each is registered once per signature and finds the running statement at every call. One thread at
a time runs a function or a scan of a statement, because they share its read transaction.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import duckdb
import duckdb.func
import numpy as np
import pyarrow as pa

from tarsdb.columns import Column
from tarsdb.engine.arrow import from_arrow, to_arrow
from tarsdb.engine.by_duckdb.vector_arithmetic import LISTS, OPERATIONS, vectors_of
from tarsdb.engine.udf.window_frames import frame, place
from tarsdb.errors import BindError, DimensionMismatchError
from tarsdb.schema import FunctionDef
from tarsdb.sql.frames import FRAMED, PLACED
from tarsdb.sql.function_calls import BITS_TYPE, duckdb_type
from tarsdb.sql.plan import RelationalCall
from tarsdb.types import REAL, TEXT, Kind, SqlType, from_storage

if TYPE_CHECKING:
    from tarsdb.engine.by_duckdb.relational import Running

DISTANCES = {
    "l2": "<->", "ip": "<#>", "cosine": "<=>", "l1": "<+>", "hamming": "<~>", "jaccard": "<%>",
}  # fmt: skip


class FunctionRegistry:
    """The functions one DuckDB connection knows.

    Parameters
    ----------
    connection : duckdb.DuckDBPyConnection
    running : callable
        Returns the statement that runs now.
    """

    def __init__(self, connection: Any, running: Callable[[], Running]) -> None:
        self._connection = connection
        self._running = running
        self._signatures: dict[str, tuple[Any, ...]] = {}

    def require(self, running: Running) -> None:
        """Register what a plan calls and is not registered yet, or was with another signature."""
        plan = running.plan
        for model_call in plan.calls:
            arguments = (duckdb_type(model_call.takes),) * model_call.arity
            returns = duckdb_type(model_call.call.returns or TEXT)
            self._add(model_call.name, arguments, returns, self._model(model_call), False)
        for function in plan.functions:
            key, volatile = function.name.lower(), function.volatility.upper() == "VOLATILE"
            self._add(f"__udf_{key}", *_signature(function), self._catalog(key), volatile)
        for function in plan.windows:
            key, returns = function.name.lower(), duckdb_type(function.returns)
            given = tuple(duckdb_type(sql_type) for _, sql_type in function.arguments)
            for name, answer, takes, gives in (
                (PLACED, place, ("BIGINT", "BOOLEAN", *given), "BIGINT"),
                (FRAMED, frame, ("BIGINT", "BIGINT"), returns),
            ):
                call = self._window(answer)
                self._add(f"{name}{key}", ("INTEGER", *takes), gives, call, name == PLACED)
        for name in plan.session_functions:
            types, result = running.inputs.session_signature(name)
            arguments = tuple(duckdb_type(sql_type) for sql_type in types)
            call = self._session(name.lower(), tuple(types))
            self._add(f"__udf_{name.lower()}", arguments, duckdb_type(result), call, not types)
        for operation, _ in plan.distances:
            bits = operation in ("hamming", "jaccard")
            argument = BITS_TYPE if bits else LISTS  # of any dimension; the call compares them
            call = self._distance(operation, _bits if bits else _vectors)
            self._add(f"__distance_{operation}", (argument, argument), "FLOAT", call, False)

        for operation in plan.vectors:
            found = OPERATIONS[operation]
            self._add(
                f"__vector_{operation}", found.arguments, found.returns,
                lambda _, *arrays, call=found.call: call(*arrays), False,
            )  # fmt: skip

    def _add(
        self, name: str, arguments: tuple[str, ...], returns: str, call: Any, volatile: bool
    ) -> None:
        signature = (arguments, returns, volatile)
        if self._signatures.get(name) == signature:
            return
        if name in self._signatures:
            self._connection.remove_function(name)
            del self._signatures[name]
        parse = self._connection.sqltype
        # A vectorised function of no arguments is not told the number of rows: call it per row.
        kind = duckdb.func.ARROW if arguments else duckdb.func.NATIVE
        self._connection.create_function(
            name, self._guarded(call, len(arguments)), [parse(text) for text in arguments],
            parse(returns), type=kind, null_handling=duckdb.func.SPECIAL, side_effects=volatile,
        )  # fmt: skip
        self._signatures[name] = signature

    def _guarded(self, call: Callable[..., Any], arity: int) -> Callable[..., Any]:
        def run(*arrays: Any) -> Any:
            running = self._running()
            with running.alone():
                answer = call(running, *arrays)
                if not isinstance(answer, Column):
                    return answer
                return to_arrow(answer) if arity else _single(answer)

        # DuckDB counts the parameters of what it registers
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined] # functions have it
            [inspect.Parameter(f"a{i}", inspect.Parameter.POSITIONAL_ONLY) for i in range(arity)]
        )
        return run

    def _model(self, model_call: RelationalCall) -> Callable[..., Column]:
        name, takes = model_call.name, model_call.takes

        def call(running: Running, *arrays: Any) -> Column:
            wanted = running.calls[name]
            columns = [from_arrow(array, takes, wanted.name) for array in arrays]
            return running.inputs.call_model(wanted, columns, len(columns[0]))

        return call

    def _catalog(self, name: str) -> Callable[..., Any]:
        def call(running: Running, *arrays: Any) -> Any:
            function = running.functions[name]
            return _CALLS[function.kind](running, function, arrays)

        return call

    def _window(self, answer: Callable[..., Any]) -> Callable[..., Any]:
        def call(running: Running, *arrays: Any) -> Any:
            return answer(running, running.plan.windows[arrays[0][0].as_py()], arrays)

        return call

    def _session(self, name: str, types: tuple[SqlType, ...]) -> Callable[..., Column]:
        def call(running: Running, *arrays: Any) -> Column:
            columns = [
                from_arrow(array, sql_type, f"{name}({i + 1})")
                for i, (array, sql_type) in enumerate(zip(arrays, types, strict=True))
            ]
            rows = len(columns[0]) if columns else 1
            return running.inputs.call_session_function(name, columns, rows)

        return call

    def _distance(self, operation: str, read: Callable[..., Any]) -> Callable[..., Column]:
        operator = DISTANCES.get(operation)
        if operator is None:
            raise BindError(f"distance {operation!r} is not known")

        def call(running: Running, left: Any, right: Any) -> Column:
            valid = np.asarray(left.is_valid()) & np.asarray(right.is_valid())
            result = np.zeros(len(valid), dtype=np.float32)
            if valid.any():
                mask = pa.array(valid)
                a, sql_type = read(left.filter(mask))
                b, other = read(right.filter(mask))
                if sql_type != other:
                    raise DimensionMismatchError(
                        f"{operator}: the left vector has {sql_type.dim} dimensions, the right"
                        f" one {other.dim}"
                    )
                from tarsdb.index.flat import distances

                result[valid] = distances(operator, a, b, sql_type)
            return Column(REAL, result, None, None if valid.all() else valid)

        return call


def _signature(function: FunctionDef) -> tuple[tuple[str, ...], str]:
    """Return the types DuckDB hands a function, and what it gets back."""
    types = tuple(duckdb_type(sql_type) for _, sql_type in function.arguments)
    if function.kind == "aggregate":
        types = (f"{types[0] if len(types) == 1 else _struct(function.arguments)}[]",)
    if function.kind == "table":
        return types, f"{_struct(function.columns)}[]"
    return types, duckdb_type(function.returns)


def _struct(fields: tuple[tuple[str, SqlType], ...]) -> str:
    quoted = [name.replace('"', '""') for name, _ in fields]
    parts = [f'"{n}" {duckdb_type(t)}' for n, (_, t) in zip(quoted, fields, strict=True)]
    return f"STRUCT({', '.join(parts)})"


def _scalar(running: Running, function: FunctionDef, arrays: Sequence[Any]) -> Column:
    columns = _columns(function, arrays)
    return running.inputs.call_function(function, columns, len(columns[0]) if columns else 1)


def _aggregate(running: Running, function: FunctionDef, arrays: Sequence[Any]) -> Column:
    import pyarrow.compute as pc

    (lists,) = arrays
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    flat = pa.concat_arrays([chunk.flatten() for chunk in lists.chunks])
    columns = _columns(function, [flat] if len(function.arguments) == 1 else flat.flatten())
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    return running.inputs.call_aggregate(function, columns, offsets)


def _table(running: Running, function: FunctionDef, arrays: Sequence[Any]) -> pa.Array:
    columns = _columns(function, arrays)
    found, offsets = running.inputs.call_table_function(function, columns, len(columns[0]))
    names = [column for column, _ in function.columns]
    rows = pa.StructArray.from_arrays([to_arrow(column) for column in found], names)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), rows)


_CALLS = {"scalar": _scalar, "aggregate": _aggregate, "table": _table}


def _columns(function: FunctionDef, arrays: Sequence[Any]) -> list[Column]:
    return [
        from_arrow(array, sql_type, f"{function.name}({argument})")
        for array, (argument, sql_type) in zip(arrays, function.arguments, strict=True)
    ]


def _single(column: Column) -> Any:
    return from_storage(column.get(0), column.type)


def _vectors(array: Any) -> tuple[np.ndarray, SqlType]:
    values = vectors_of(array, "one side of a distance")
    return values, SqlType(Kind.VECTOR, dim=values.shape[1])


def _bits(array: Any) -> tuple[np.ndarray, SqlType]:
    sql_type = SqlType(Kind.BIT, dim=len(array[0].as_py()))
    return from_arrow(array, sql_type, "bits").values, sql_type
