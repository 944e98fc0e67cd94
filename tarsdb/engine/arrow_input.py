"""Arrow arrays from anywhere (DuckDB, pandas, Polars, Parquet) to columns of a given type.

Casts what a careful reader would expect, refuses the rest with an error that names the column.
Numbers, text and vectors go buffer to buffer; an unusual combination goes value by value through
``types.to_storage``, which defines the meaning.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tarsdb.columns import Column, from_list
from tarsdb.errors import DataError, DimensionMismatchError, Error, ValueRangeError
from tarsdb.types import TEXT, Kind, Physical, SqlType, arrow_type, bytes_of, to_storage

_STORED_INTERVAL = np.dtype([("months", "<i4"), ("days", "<i4"), ("micros", "<i8")])
_ARROW_INTERVAL = np.dtype([("months", "<i4"), ("days", "<i4"), ("nanos", "<i8")])
_DAY_MICROS = 86_400_000_000
_MICROS = {"s": 1_000_000, "ms": 1_000, "us": 1}


def from_arrow(array: pa.Array | pa.ChunkedArray, sql_type: SqlType, name: str) -> Column:
    """Return a column of ``sql_type`` with the array's values, cast where that is exact enough.

    Parameters
    ----------
    array : pyarrow.Array or pyarrow.ChunkedArray
        Its buffers are shared where the layouts agree and it holds no NULL.
    sql_type : SqlType
    name : str
        Column name, for error messages.

    Raises
    ------
    DataError
        The array's type or a value does not convert.
    DimensionMismatchError
        A vector has another dimension than the type.
    ValueRangeError
        Overflow, or NaN or infinity in a vector.
    """
    plain = _plain(array)
    if pa.types.is_null(plain.type):
        return from_list(sql_type, [None] * len(plain))
    try:
        return _FROM_ARROW[sql_type.kind](plain, sql_type, name)
    except Error:
        raise
    except pa.ArrowInvalid as error:
        raise _refused(array, sql_type, name, error) from error
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError, OverflowError) as error:
        shown = f"column {name} is {sql_type}, an Arrow {array.type} does not convert to it"
        raise DataError(shown) from error


def _refused(array: Any, sql_type: SqlType, name: str, error: Exception) -> DataError:
    text = str(error).split(". Detail:")[0]
    message = f"column {name} is {sql_type}, the Arrow {array.type} does not fit: {text}"
    outside = any(
        word in text for word in ("not in range", "bounds", "overflow", "fit in precision")
    )
    return ValueRangeError(message) if outside else DataError(message)


def _plain(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return one array without chunks, dictionary, run ends or extension wrapping."""
    if isinstance(array, pa.ChunkedArray):
        if array.num_chunks == 1:
            array = array.chunk(0)
        elif array.num_chunks == 0:
            array = pa.nulls(0, array.type)
        else:
            array = pa.concat_arrays(array.chunks)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    return array


def _validity(array: pa.Array) -> np.ndarray | None:
    if array.null_count == 0:
        return None
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False))


def _values(array: pa.Array, dtype: np.dtype[Any], validity: np.ndarray | None) -> np.ndarray:
    """Return the fixed-width values buffer as an array, zero where NULL; a view without NULLs."""
    buffer = array.buffers()[1]
    if buffer is None or len(array) == 0:
        return np.zeros(len(array), dtype=dtype)
    values = np.frombuffer(
        buffer, dtype=dtype, count=len(array), offset=array.offset * dtype.itemsize
    )
    if validity is not None:
        values = values.copy()
        values[~validity] = np.zeros(1, dtype)
    return values


def _each(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    """Convert value by value: the definition, and the way for unusual combinations."""
    return from_list(sql_type, [to_storage(item, sql_type, name) for item in array.to_pylist()])


def _fixed(array: pa.Array, sql_type: SqlType) -> Column:
    validity = _validity(array)
    return Column(sql_type, _values(array, sql_type.dtype, validity), None, validity)


def _boolean(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        array = pc.not_equal(array, pa.scalar(0, array.type))
    if not pa.types.is_boolean(array.type):
        return _each(array, sql_type, name)
    validity = _validity(array)
    filled = array if validity is None else array.fill_null(False)
    values = np.asarray(filled.to_numpy(zero_copy_only=False)).astype(np.uint8)
    return Column(sql_type, values, None, validity)


def _integer(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    target = arrow_type(sql_type)
    if array.type == target:
        return _fixed(array, sql_type)
    if _is_text(array.type) or not _is_number(array.type):
        return _each(array, sql_type, name)
    if pa.types.is_floating(array.type):
        array = pc.round(array.cast(pa.float64()), round_mode="half_to_even")
        if not pc.all(pc.is_finite(array)).as_py() and array.null_count < len(array):
            raise DataError(f"column {name}: NaN or infinity is not a {sql_type}")
    if pa.types.is_decimal(array.type):
        array = pc.round(array, round_mode="half_to_even")
    return _fixed(array.cast(target), sql_type)


def _float(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    if array.type == arrow_type(sql_type):
        return _fixed(array, sql_type)
    if _is_text(array.type) or not _is_number(array.type):
        return _each(array, sql_type, name)
    return _fixed(array.cast(arrow_type(sql_type), safe=False), sql_type)


def _decimal(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    scale = sql_type.scale or 0
    if pa.types.is_integer(array.type):
        array = array.cast(pa.decimal128(20, 0))
    if not pa.types.is_decimal(array.type):
        return _each(array, sql_type, name)
    if array.type.scale > scale:
        array = pc.round(array, ndigits=scale, round_mode="half_towards_infinity")
    if array.type != arrow_type(sql_type):
        array = array.cast(pa.decimal256(76, scale)).cast(arrow_type(sql_type))
    validity = _validity(array)
    if sql_type.physical is Physical.FIXED16:
        return Column(sql_type, _values(array, sql_type.dtype, validity), None, validity)
    wide = _values(array, np.dtype("<i8,<i8"), validity)
    return Column(sql_type, np.ascontiguousarray(wide["f0"]), None, validity)


def _text(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    if not (_is_text(array.type) or _is_binary(array.type)):
        return _each(array, sql_type, name)
    return _bytes(array.cast(pa.string()), sql_type)


def _blob(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    if not (_is_text(array.type) or _is_binary(array.type)):
        return _each(array, sql_type, name)
    if _is_text(array.type) and pc.any(pc.match_substring(array, "\\x")).as_py():
        array = pa.array([None if t is None else bytes_of(t) for t in array.to_pylist()])
    return _bytes(array.cast(pa.binary()), sql_type)


def _bytes(array: pa.Array, sql_type: SqlType) -> Column:
    """Share the buffers of a string or binary array; its text and offsets are checked."""
    array.validate(full=True)
    validity = _validity(array)
    if validity is not None:
        array = array.fill_null(b"" if pa.types.is_binary(array.type) else "")
    if len(array) == 0:
        return from_list(sql_type, [])
    _, offset_buffer, data = array.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32, len(array) + 1, array.offset * 4)
    low, high = int(offsets[0]), int(offsets[-1])
    if data is None or high == low:
        return Column(sql_type, np.empty(0, np.uint8), np.zeros(len(array) + 1, np.int32), validity)
    values = np.frombuffer(data, np.uint8, high - low, low)
    return Column(sql_type, values, offsets - low if low else offsets, validity)


def _date(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    if pa.types.is_timestamp(array.type):
        micros = _micros(array, name)
        return Column(sql_type, (micros // _DAY_MICROS).astype(np.int32), None, _validity(array))
    if not pa.types.is_date(array.type):
        return _each(array, sql_type, name)
    return _fixed(array.cast(pa.date32(), safe=False), sql_type)


def _time(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    if not pa.types.is_time(array.type):
        return _each(array, sql_type, name)
    return _fixed(array.cast(pa.time64("us"), safe=False), sql_type)


def _timestamp(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    if not (pa.types.is_timestamp(array.type) or pa.types.is_date(array.type)):
        return _each(array, sql_type, name)
    return Column(sql_type, _micros(array, name), None, _validity(array))


def _micros(array: pa.Array, name: str) -> np.ndarray:
    """Return int64 microseconds of a date, timestamp or duration array, rounded down."""
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("ms"))
    unit = array.type.unit
    counts = _values(array, np.dtype(np.int64), _validity(array))
    if unit == "ns":
        return counts // 1000
    factor = _MICROS[unit]
    limit = (2**63 - 1) // factor
    if len(counts) and factor > 1 and not -limit <= counts.min() <= counts.max() <= limit:
        raise ValueRangeError(f"column {name}: a time is outside what microseconds can hold")
    return counts * factor if factor > 1 else counts


def _interval(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    validity = _validity(array)
    result = np.zeros(len(array), dtype=_STORED_INTERVAL)
    if pa.types.is_duration(array.type):
        micros = _micros(array, name)
        result["days"], result["micros"] = micros // _DAY_MICROS, micros % _DAY_MICROS
    elif array.type == pa.month_day_nano_interval():
        source = _values(array, _ARROW_INTERVAL, validity)
        result["months"], result["days"] = source["months"], source["days"]
        result["micros"] = source["nanos"] // 1000
    else:
        return _each(array, sql_type, name)
    return Column(sql_type, result.view("V16"), None, validity)


def _uuid(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    if array.type != pa.binary(16):
        return _each(array, sql_type, name)
    return _fixed(array, sql_type)


def _json(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    if not _is_text(array.type):
        texts = [None if item is None else dump_json(item) for item in array.to_pylist()]
        return from_list(sql_type, texts)
    for text in array.to_pylist():
        if text is not None:
            try:
                json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"column {name}: {text[:60]!r} is not JSON ({error})") from error
    return _bytes(array.cast(pa.string()), sql_type)


def dump_json(item: Any) -> str:
    """Return JSON text of a nested Python value; what JSON has no form for becomes text."""
    return json.dumps(item, ensure_ascii=False, separators=(",", ":"), default=_json_form)


def _json_form(item: Any) -> Any:
    return item.hex() if isinstance(item, bytes) else str(item)


def _array(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    if not _is_list(array.type):
        return _each(array, sql_type, name)
    element = sql_type.element or TEXT
    flat, lengths = _flatten(array)
    items = from_arrow(flat, element, f"{name}[]").to_list()
    if element.physical in (Physical.BINARY, Physical.FIXED16):
        items = [None if item is None else item.hex() for item in items]
    texts: list[str | None] = []
    at = 0
    for length in lengths:
        if length is None:
            texts.append(None)
            continue
        texts.append(json.dumps(items[at : at + length], ensure_ascii=False, separators=(",", ":")))
        at += length
    return from_list(sql_type, texts)


def _flatten(array: pa.Array) -> tuple[pa.Array, list[int | None]]:
    """Return the items of all non-NULL lists in order, and each list's length."""
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        lengths = [size if valid else None for valid in array.is_valid().to_pylist()]
    else:
        lengths = pc.list_value_length(array).to_pylist()
    return array.flatten(), lengths


def _vector(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    if not _is_list(array.type):
        return _each(array, sql_type, name)
    validity = _validity(array)
    dim = sql_type.dim or 0
    if validity is None and pa.types.is_fixed_size_list(array.type) and array.type.list_size == dim:
        flat = array.flatten()
    else:
        flat, lengths = _flatten(array)
        if not (validity is None and set(lengths) <= {dim}):
            _check_dimensions(lengths, sql_type, name)
    if flat.null_count:
        row = _row_of(int(np.flatnonzero(np.asarray(flat.is_null()))[0]) // dim, validity)
        raise DataError(f"column {name}: the vector of row {row} has a NULL component")
    if not (_is_number(flat.type) or pa.types.is_boolean(flat.type)):
        raise DataError(f"column {name} is {sql_type}, the list holds {flat.type}")
    numbers = np.asarray(flat.cast(pa.float64()) if pa.types.is_decimal(flat.type) else flat)
    dense = _components(numbers.reshape(-1, dim), sql_type, name, validity)
    if validity is None:
        return Column(sql_type, dense)
    values = np.zeros((len(array), sql_type.width), dtype=sql_type.dtype)
    values[validity] = dense
    return Column(sql_type, values, None, validity)


def _check_dimensions(lengths: list[int | None], sql_type: SqlType, name: str) -> None:
    for row, length in enumerate(lengths):
        if length is not None and length != sql_type.dim:
            raise DimensionMismatchError(
                f"column {name} is {sql_type}, the value of row {row} has {length} dimensions"
            )


def _row_of(position: int, validity: np.ndarray | None) -> int:
    """Return the row number of the position-th vector that is not NULL."""
    return position if validity is None else int(np.flatnonzero(validity)[position])


def _components(
    numbers: np.ndarray, sql_type: SqlType, name: str, validity: np.ndarray | None
) -> np.ndarray:
    """Convert (n, dim) numbers to the type's components, refusing what does not fit."""
    if sql_type.kind is Kind.BIT:
        rounded = numbers != 0
        bad, what = (rounded != numbers).any(axis=1), "components other than 0 and 1"
    elif sql_type.kind is Kind.INT8VEC and numbers.dtype != np.int8:
        rounded = np.rint(numbers.astype(np.float64))
        bad = ~((rounded >= -128) & (rounded <= 127)).all(axis=1)
        what = "components outside -128..127"
    else:
        with np.errstate(over="ignore"):
            rounded = np.ascontiguousarray(numbers, dtype=sql_type.dtype)
        flat = rounded.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if rounded.dtype.itemsize >= 4 and np.isfinite(np.dot(flat, flat)):
                return rounded  # one pass; a sum that overflows says nothing
        bad = ~np.isfinite(rounded).all(axis=1)
        what = "NaN or infinity"
    if bad.any():
        row = _row_of(int(np.flatnonzero(bad)[0]), validity)
        raise ValueRangeError(
            f"column {name}: the {sql_type} of row {row} holds {what}",
            hint="store NULL for a missing vector",
        )
    if sql_type.kind is Kind.BIT:
        return np.packbits(rounded, axis=1)
    return np.ascontiguousarray(rounded, dtype=sql_type.dtype)


def _bit(array: pa.Array, sql_type: SqlType, name: str) -> Column:
    if not _is_text(array.type):
        return _vector(array, sql_type, name)
    dim = sql_type.dim or 0
    text = _bytes(array.cast(pa.string()), TEXT)
    assert text.offsets is not None
    lengths = np.diff(text.offsets)
    dense = lengths if text.validity is None else lengths[text.validity]
    if (dense != dim).any() or ((text.values != 48) & (text.values != 49)).any():
        return _each(array, sql_type, name)  # names the value that is wrong
    packed = np.packbits(text.values.reshape(-1, dim) - 48, axis=1)
    if text.validity is None:
        return Column(sql_type, packed)
    values = np.zeros((len(array), sql_type.width), dtype=np.uint8)
    values[text.validity] = packed
    return Column(sql_type, values, None, text.validity)


def _is_text(data_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(data_type)
        or pa.types.is_large_string(data_type)
        or pa.types.is_string_view(data_type)
    )


def _is_binary(data_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(data_type)
        or pa.types.is_large_binary(data_type)
        or pa.types.is_fixed_size_binary(data_type)
        or pa.types.is_binary_view(data_type)
    )


def _is_number(data_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(data_type)
        or pa.types.is_floating(data_type)
        or pa.types.is_decimal(data_type)
    )


def _is_list(data_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(data_type)
        or pa.types.is_large_list(data_type)
        or pa.types.is_fixed_size_list(data_type)
        or pa.types.is_list_view(data_type)
        or pa.types.is_large_list_view(data_type)
    )


_FROM_ARROW: dict[Kind, Callable[[pa.Array, SqlType, str], Column]] = {
    Kind.BOOLEAN: _boolean, Kind.SMALLINT: _integer, Kind.INT: _integer, Kind.BIGINT: _integer,
    Kind.REAL: _float, Kind.DOUBLE: _float, Kind.DECIMAL: _decimal, Kind.TEXT: _text,
    Kind.BLOB: _blob, Kind.DATE: _date, Kind.TIME: _time, Kind.TIMESTAMP: _timestamp,
    Kind.TIMESTAMPTZ: _timestamp, Kind.INTERVAL: _interval, Kind.UUID: _uuid, Kind.JSON: _json,
    Kind.ARRAY: _array, Kind.VECTOR: _vector, Kind.HALFVEC: _vector, Kind.INT8VEC: _vector,
    Kind.BIT: _bit,
}  # fmt: skip
