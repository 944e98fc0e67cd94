"""SQL types and how each looks in storage, in NumPy, in Arrow and in Python: one table.

Knows no columns, tables or files. A *storage value* is the plain Python form a single value has
inside the engine: ``bool``, ``int``, ``float``, ``str``, ``bytes`` (16 bytes for FIXED16),
a one-dimensional NumPy array for vector types, or ``None``.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import functools
import json
import math
import re
import struct
import uuid
from dataclasses import field
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.errors import BindError, DataError, DimensionMismatchError, ValueRangeError
from tarsdb.records import dataclass

if TYPE_CHECKING:
    import pyarrow as pa


class Kind(enum.Enum):
    """The SQL types."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is slow Python

    BOOLEAN = "BOOLEAN"
    SMALLINT = "SMALLINT"
    INT = "INT"
    BIGINT = "BIGINT"
    REAL = "REAL"
    DOUBLE = "DOUBLE"
    DECIMAL = "DECIMAL"
    TEXT = "TEXT"
    BLOB = "BLOB"
    DATE = "DATE"
    TIME = "TIME"
    TIMESTAMP = "TIMESTAMP"
    TIMESTAMPTZ = "TIMESTAMP WITH TIME ZONE"
    INTERVAL = "INTERVAL"
    UUID = "UUID"
    JSON = "JSON"
    ARRAY = "ARRAY"
    VECTOR = "VECTOR"
    HALFVEC = "HALFVEC"
    INT8VEC = "INT8VEC"
    BIT = "BIT"


class Physical(enum.IntEnum):
    """Byte layout of a column; the number is stored in block headers and never reused."""

    BOOL = 1  # uint8 0/1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    FLOAT32 = 5
    FLOAT64 = 6
    FIXED16 = 7  # 16 raw bytes a row
    UTF8 = 8  # int32 offsets + bytes
    BINARY = 9  # int32 offsets + bytes
    VEC_F32 = 10  # (n, dim) float32
    VEC_F16 = 11  # (n, dim) float16
    VEC_I8 = 12  # (n, dim) int8
    VEC_BIT = 13  # (n, ceil(dim / 8)) uint8, first bit is the most significant


_DTYPES: dict[Physical, np.dtype[Any]] = {
    Physical.BOOL: np.dtype(np.uint8),
    Physical.INT16: np.dtype(np.int16),
    Physical.INT32: np.dtype(np.int32),
    Physical.INT64: np.dtype(np.int64),
    Physical.FLOAT32: np.dtype(np.float32),
    Physical.FLOAT64: np.dtype(np.float64),
    Physical.FIXED16: np.dtype("V16"),
    Physical.UTF8: np.dtype(np.uint8),
    Physical.BINARY: np.dtype(np.uint8),
    Physical.VEC_F32: np.dtype(np.float32),
    Physical.VEC_F16: np.dtype(np.float16),
    Physical.VEC_I8: np.dtype(np.int8),
    Physical.VEC_BIT: np.dtype(np.uint8),
}

_PHYSICAL: dict[Kind, Physical] = {
    Kind.BOOLEAN: Physical.BOOL,
    Kind.SMALLINT: Physical.INT16,
    Kind.INT: Physical.INT32,
    Kind.BIGINT: Physical.INT64,
    Kind.REAL: Physical.FLOAT32,
    Kind.DOUBLE: Physical.FLOAT64,
    Kind.TEXT: Physical.UTF8,
    Kind.BLOB: Physical.BINARY,
    Kind.DATE: Physical.INT32,
    Kind.TIME: Physical.INT64,
    Kind.TIMESTAMP: Physical.INT64,
    Kind.TIMESTAMPTZ: Physical.INT64,
    Kind.INTERVAL: Physical.FIXED16,
    Kind.UUID: Physical.FIXED16,
    Kind.JSON: Physical.UTF8,
    Kind.ARRAY: Physical.UTF8,  # JSON text of storage values
    Kind.VECTOR: Physical.VEC_F32,
    Kind.HALFVEC: Physical.VEC_F16,
    Kind.INT8VEC: Physical.VEC_I8,
    Kind.BIT: Physical.VEC_BIT,
}

_VECTOR_KINDS = frozenset({Kind.VECTOR, Kind.HALFVEC, Kind.INT8VEC, Kind.BIT})
_VARIABLE = frozenset({Physical.UTF8, Physical.BINARY})
MAX_DIM = 65_536
_TYPE_NAME = re.compile(r"([A-Z0-9 ]+?)(?:\s*\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?( WITH TIME ZONE)?")

_ALIASES: dict[str, Kind] = {
    "BOOL": Kind.BOOLEAN, "BOOLEAN": Kind.BOOLEAN, "LOGICAL": Kind.BOOLEAN,
    "SMALLINT": Kind.SMALLINT, "INT2": Kind.SMALLINT, "SHORT": Kind.SMALLINT,
    "INT": Kind.INT, "INTEGER": Kind.INT, "INT4": Kind.INT, "SIGNED": Kind.INT,
    "BIGINT": Kind.BIGINT, "INT8": Kind.BIGINT, "LONG": Kind.BIGINT,
    "REAL": Kind.REAL, "FLOAT": Kind.REAL, "FLOAT4": Kind.REAL,
    "DOUBLE": Kind.DOUBLE, "DOUBLE PRECISION": Kind.DOUBLE, "FLOAT8": Kind.DOUBLE,
    "DECIMAL": Kind.DECIMAL, "NUMERIC": Kind.DECIMAL,
    "TEXT": Kind.TEXT, "VARCHAR": Kind.TEXT, "CHAR": Kind.TEXT, "STRING": Kind.TEXT,
    "BPCHAR": Kind.TEXT,
    "BLOB": Kind.BLOB, "BYTEA": Kind.BLOB, "BINARY": Kind.BLOB, "VARBINARY": Kind.BLOB,
    "DATE": Kind.DATE, "TIME": Kind.TIME,
    "TIMESTAMP": Kind.TIMESTAMP, "DATETIME": Kind.TIMESTAMP,
    "TIMESTAMPTZ": Kind.TIMESTAMPTZ, "TIMESTAMP WITH TIME ZONE": Kind.TIMESTAMPTZ,
    "INTERVAL": Kind.INTERVAL, "UUID": Kind.UUID, "JSON": Kind.JSON,
    "VECTOR": Kind.VECTOR, "HALFVEC": Kind.HALFVEC, "INT8VEC": Kind.INT8VEC, "BIT": Kind.BIT,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SqlType:
    """One SQL type with its parameters.

    Parameters
    ----------
    kind : Kind
    precision, scale : int, optional
        Of DECIMAL only.
    dim : int, optional
        Number of components; of the vector types only.
    element : SqlType, optional
        Of ARRAY only; a scalar type.
    """

    kind: Kind
    precision: int | None = None
    scale: int | None = None
    dim: int | None = None
    element: SqlType | None = None
    physical: Physical = field(init=False, repr=False, compare=False)
    """Byte layout of this type's column."""
    dtype: np.dtype[Any] = field(init=False, repr=False, compare=False)
    """NumPy dtype of the values buffer."""
    is_vector: bool = field(init=False, repr=False, compare=False)
    """True for VECTOR, HALFVEC, INT8VEC and BIT."""
    is_variable: bool = field(init=False, repr=False, compare=False)
    """True when a row's length varies (offsets + bytes)."""
    width: int = field(init=False, repr=False, compare=False)
    """Elements of ``dtype`` a row holds: 1 for scalars, dim or ceil(dim/8) for vectors."""

    def __post_init__(self) -> None:
        physical = _physical_of(self)
        known = {
            "physical": physical,
            "dtype": _DTYPES[physical],
            "is_vector": self.kind in _VECTOR_KINDS,
            "is_variable": physical in _VARIABLE,
            "width": _width_of(self),
        }
        for name, value in known.items():  # worked out once: they are read in every hot loop
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        if self.kind is Kind.DECIMAL:
            return f"DECIMAL({self.precision},{self.scale})"
        if self.kind is Kind.ARRAY:
            return f"{self.element}[]"
        if self.dim is not None:
            return f"{self.kind.value}({self.dim})"
        return str(self.kind.value)


def _physical_of(sql_type: SqlType) -> Physical:
    if sql_type.kind is Kind.DECIMAL:
        return Physical.INT64 if (sql_type.precision or 18) <= 18 else Physical.FIXED16
    return _PHYSICAL[sql_type.kind]


def _width_of(sql_type: SqlType) -> int:
    if sql_type.kind not in _VECTOR_KINDS:
        return 1
    dim = sql_type.dim or 0
    return (dim + 7) // 8 if sql_type.kind is Kind.BIT else dim


def parse_type(text: str) -> SqlType:
    """Return the type named by SQL text such as ``'DECIMAL(10, 2)'`` or ``'INT[]'``.

    Raises
    ------
    BindError
        The name is unknown or its parameters are not valid.
    """
    name = re.sub(r"\s+", " ", text.strip().upper())
    if name.endswith("[]"):
        element = parse_type(name[:-2])
        if element.is_vector or element.kind in (Kind.ARRAY, Kind.JSON):
            raise BindError(f"type {text!r}: arrays hold scalar types, not {element}")
        return SqlType(Kind.ARRAY, element=element)
    match = _TYPE_NAME.fullmatch(name)
    if match is None:
        raise BindError(f"type {text!r} is not known")
    base = match[1] + (match[4] or "")
    kind = _ALIASES.get(base)
    if kind is None:
        raise BindError(f"type {text!r} is not known", hint=f"types: {', '.join(sorted(_ALIASES))}")
    return _with_parameters(kind, text, match[2], match[3])


def _with_parameters(kind: Kind, text: str, first: str | None, second: str | None) -> SqlType:
    if kind is Kind.DECIMAL:
        precision, scale = int(first or 18), int(second or (0 if first else 3))
        if not 1 <= precision <= 38 or scale > precision:
            raise BindError(f"type {text!r}: precision must be 1..38 and scale at most precision")
        return SqlType(kind, precision=precision, scale=scale)
    if kind in _VECTOR_KINDS:
        if first is None or not 1 <= int(first) <= MAX_DIM:
            raise BindError(
                f"type {text!r} needs a dimension between 1 and {MAX_DIM}",
                hint=f"write {kind.value}(384)",
            )
        return SqlType(kind, dim=int(first))
    return SqlType(kind)


BOOLEAN = SqlType(Kind.BOOLEAN)
INT = SqlType(Kind.INT)
BIGINT = SqlType(Kind.BIGINT)
DOUBLE = SqlType(Kind.DOUBLE)
REAL = SqlType(Kind.REAL)
TEXT = SqlType(Kind.TEXT)
BLOB = SqlType(Kind.BLOB)
JSON = SqlType(Kind.JSON)
TIMESTAMP = SqlType(Kind.TIMESTAMP)

_DATE_TEXT = re.compile(r"\s*(\d{4,5})-(\d{1,2})-(\d{1,2})(?!\d)")
_INTERVAL_TEXT = re.compile(
    r"(?:([+-]?\d+) years?)? ?(?:([+-]?\d+) mon(?:th)?s?)? ?(?:([+-]?\d+) days?)? ?"
    r"(?:([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?"
)
_SHORT_HOUR = re.compile(r"^\d(?=:)")
_EPOCH_DATE = dt.date(1970, 1, 1)
_EPOCH = dt.datetime(1970, 1, 1)
_EPOCH_UTC = _EPOCH.replace(tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_INT_RANGE = {
    Kind.SMALLINT: (-(2**15), 2**15 - 1),
    Kind.INT: (-(2**31), 2**31 - 1),
    Kind.BIGINT: (-(2**63), 2**63 - 1),
}


def to_storage(value: Any, sql_type: SqlType, name: str) -> Any:
    """Convert a Python value to the storage value of a type.

    Parameters
    ----------
    value : object
        What the caller bound: Python scalars, NumPy scalars and arrays, ``datetime`` values,
        ``Decimal``, ``UUID``, or text in SQL literal form.
    sql_type : SqlType
    name : str
        Column name, for error messages.

    Raises
    ------
    DataError, DimensionMismatchError, ValueRangeError
    """
    if value is None:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    try:
        return _CONVERT[sql_type.kind](value, sql_type, name)
    except _UNFIT as error:
        raise _mismatch(value, sql_type, name) from error


_UNFIT = (ValueError, TypeError, ArithmeticError, AttributeError, struct.error, RecursionError)


def _mismatch(value: Any, sql_type: SqlType, name: str) -> DataError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return DataError(f"column {name}: {shown} ({type(value).__name__}) is not a {sql_type}")


def _bool(value: Any, sql_type: SqlType, name: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return value != 0
    lowered = value.strip().lower()
    if lowered in ("true", "t", "1", "yes", "on"):
        return True
    if lowered in ("false", "f", "0", "no", "off"):
        return False
    raise ValueError(value)


def _int(value: Any, sql_type: SqlType, name: str) -> int:
    if isinstance(value, (float, decimal.Decimal)):
        if not math.isfinite(value):
            raise ValueError(value)
        result = round(value)  # half to even, as DuckDB casts
    else:
        result = int(value)
    low, high = _INT_RANGE[sql_type.kind]
    if not low <= result <= high:
        raise ValueRangeError(f"column {name}: {result} is outside {sql_type} ({low}..{high})")
    return result


def _float(value: Any, sql_type: SqlType, name: str) -> float:
    result = float(value)
    return float(np.float32(result)) if sql_type.kind is Kind.REAL else result


def _decimal(value: Any, sql_type: SqlType, name: str) -> int | bytes:
    precision, scale = sql_type.precision or 18, sql_type.scale or 0
    exact = decimal.Decimal(str(value)) if isinstance(value, float) else decimal.Decimal(value)
    if not exact.is_finite():
        raise ValueError(value)
    with decimal.localcontext(prec=76):
        scaled = int(exact.scaleb(scale).to_integral_value(decimal.ROUND_HALF_UP))
    if abs(scaled) >= 10**precision:
        raise ValueRangeError(f"column {name}: {value} is outside {sql_type}")
    return scaled if precision <= 18 else scaled.to_bytes(16, "little", signed=True)


def _text(value: Any, sql_type: SqlType, name: str) -> str:
    if isinstance(value, str):
        value.encode()  # a lone surrogate cannot be stored
        return value
    if isinstance(value, (int, float, decimal.Decimal, uuid.UUID, dt.date, dt.time)):
        return ("true" if value else "false") if isinstance(value, bool) else str(value)
    raise TypeError(value)


_ESCAPE = re.compile(rb"\\x([0-9A-Fa-f]{2})")


def bytes_of(text: str) -> bytes:
    r"""Return the bytes a text stands for as a BLOB: ``\x41`` is one byte, as DuckDB casts it."""
    return _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), text.encode())


def _blob(value: Any, sql_type: SqlType, name: str) -> bytes:
    return bytes_of(value) if isinstance(value, str) else bytes(memoryview(value))


def _read_timestamp(text: str) -> dt.datetime:
    match = _DATE_TEXT.match(text)
    if match is None:
        raise ValueError(text)
    year, month, day = (int(part) for part in match.groups())
    midnight = dt.datetime(year, month, day)
    rest = text[match.end() :].strip().removeprefix("T").strip()
    if not rest:
        return midnight
    time = dt.time.fromisoformat(_SHORT_HOUR.sub(r"0\g<0>", rest))
    return dt.datetime.combine(midnight, time)


def _date(value: Any, sql_type: SqlType, name: str) -> int:
    if isinstance(value, str):
        value = _read_timestamp(value)
    day = value.date() if isinstance(value, dt.datetime) else value
    return int((day - _EPOCH_DATE).days)


def _time(value: Any, sql_type: SqlType, name: str) -> int:
    if isinstance(value, str):
        value = dt.time.fromisoformat(value.strip())
    seconds = value.hour * 3600 + value.minute * 60 + value.second
    return int(seconds * 1_000_000 + value.microsecond)


def _timestamp(value: Any, sql_type: SqlType, name: str) -> int:
    if isinstance(value, str):
        value = _read_timestamp(value)
    if not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day)
    if value.tzinfo is not None:
        value = value.astimezone(dt.UTC).replace(tzinfo=None)
    return int((value - _EPOCH) // _MICROSECOND)


def _interval(value: Any, sql_type: SqlType, name: str) -> bytes:
    if isinstance(value, tuple):  # months, days, microseconds
        return struct.pack("<iiq", *value)
    if isinstance(value, str):
        return _read_interval(value)
    if not isinstance(value, dt.timedelta):
        raise TypeError(value)
    micros = value.seconds * 1_000_000 + value.microseconds
    return struct.pack("<iiq", 0, value.days, micros)


def _read_interval(text: str) -> bytes:
    """Read ``1 year 2 months 3 days -04:05:06.7``, as intervals are written to text."""
    match = _INTERVAL_TEXT.fullmatch(text.strip().lower())
    if match is None or not text.strip():
        raise ValueError(text)
    years, months, days, sign, hours, minutes, seconds, fraction = match.groups(default="0")
    micros = (int(hours) * 60 + int(minutes)) * 60 + int(seconds)
    micros = micros * 1_000_000 + int(fraction.ljust(6, "0"))
    return struct.pack(
        "<iiq", 12 * int(years) + int(months), int(days), -micros if sign == "-" else micros
    )


def _uuid(value: Any, sql_type: SqlType, name: str) -> bytes:
    if isinstance(value, bytes):
        return uuid.UUID(bytes=value).bytes
    return (value if isinstance(value, uuid.UUID) else uuid.UUID(str(value))).bytes


def _json(value: Any, sql_type: SqlType, name: str) -> str:
    if isinstance(value, str):
        json.loads(value)
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _array(value: Any, sql_type: SqlType, name: str) -> str:
    element = sql_type.element or TEXT
    items = json.loads(value) if isinstance(value, str) else list(value)
    stored = [to_storage(item, element, f"{name}[]") for item in items]
    plain = [item.hex() if isinstance(item, bytes) else item for item in stored]
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def _vector(value: Any, sql_type: SqlType, name: str) -> np.ndarray:
    array = _numbers(json.loads(value) if isinstance(value, str) else value)
    check_dimension(array.shape[-1] if array.ndim else 0, sql_type, name, ndim=array.ndim)
    if sql_type.kind is Kind.INT8VEC:
        wide = array.astype(np.float64)
        if wide.size and not (np.all(np.abs(wide) <= 128) and np.all(wide <= 127)):
            raise ValueRangeError(f"column {name}: INT8VEC components must be -128..127")
        return np.ascontiguousarray(np.rint(wide), dtype=np.int8)
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(array, dtype=sql_type.dtype)
    if not np.isfinite(result).all():
        raise ValueRangeError(
            f"column {name}: vector holds NaN or infinity", hint="store NULL for a missing vector"
        )
    return result


def _bit(value: Any, sql_type: SqlType, name: str) -> np.ndarray:
    if isinstance(value, str):
        if set(value) - {"0", "1"}:
            raise ValueError(value)
        bits = np.frombuffer(value.encode(), dtype=np.uint8) - 48
    else:
        numbers = _numbers(value)
        bits = numbers.astype(bool).astype(np.uint8)
        if not (bits == numbers).all():  # NaN and NULL are no bits either
            raise ValueError(value)
    check_dimension(bits.shape[-1] if bits.ndim else 0, sql_type, name, ndim=bits.ndim)
    return np.packbits(bits)


def _numbers(value: Any) -> np.ndarray:
    """Return an array of numbers; TypeError for what NumPy would only turn into some."""
    array = np.asarray(value)
    if array.dtype.kind in "cmMSUT" or array.dtype.names is not None:
        raise TypeError(value)
    if type(value) is not np.ndarray and isinstance(value, np.ndarray) and np.ma.is_masked(value):
        raise TypeError(value)
    return array


def check_dimension(dim: int, sql_type: SqlType, name: str, ndim: int = 1) -> None:
    """Raise DimensionMismatchError unless a value is one-dimensional with the type's dimension."""
    if ndim != 1 or dim != sql_type.dim:
        got = f"{dim} dimensions" if ndim == 1 else f"an array of {ndim} axes"
        raise DimensionMismatchError(f"column {name} is {sql_type}, the value has {got}")


_CONVERT: dict[Kind, Any] = {
    Kind.BOOLEAN: _bool, Kind.SMALLINT: _int, Kind.INT: _int, Kind.BIGINT: _int,
    Kind.REAL: _float, Kind.DOUBLE: _float, Kind.DECIMAL: _decimal, Kind.TEXT: _text,
    Kind.BLOB: _blob, Kind.DATE: _date, Kind.TIME: _time, Kind.TIMESTAMP: _timestamp,
    Kind.TIMESTAMPTZ: _timestamp, Kind.INTERVAL: _interval, Kind.UUID: _uuid, Kind.JSON: _json,
    Kind.ARRAY: _array, Kind.VECTOR: _vector, Kind.HALFVEC: _vector, Kind.INT8VEC: _vector,
    Kind.BIT: _bit,
}  # fmt: skip


def from_storage(value: Any, sql_type: SqlType) -> Any:
    """Return the Python value a user sees for a storage value (a copy, never a view)."""
    if value is None:
        return None
    convert = _PRESENT.get(sql_type.kind)
    return value if convert is None else convert(value, sql_type)


def presenter(sql_type: SqlType) -> Any:
    """Return a function of one storage value, or None where the storage value is shown as is."""
    convert = _PRESENT.get(sql_type.kind)
    return None if convert is None else functools.partial(_present_not_null, convert, sql_type)


def _present_not_null(convert: Any, sql_type: SqlType, value: Any) -> Any:
    return None if value is None else convert(value, sql_type)


def _show_decimal(value: Any, sql_type: SqlType) -> decimal.Decimal:
    number = int.from_bytes(value, "little", signed=True) if isinstance(value, bytes) else value
    with decimal.localcontext(prec=40):
        return decimal.Decimal(number).scaleb(-(sql_type.scale or 0))


def _show_interval(value: bytes, sql_type: SqlType) -> dt.timedelta:
    months, days, micros = struct.unpack("<iiq", value)
    return dt.timedelta(days=days + 30 * months, microseconds=micros)  # as DuckDB's Python client


def _show_array(value: str, sql_type: SqlType) -> list[Any]:
    element = sql_type.element or TEXT
    binary = element.physical in (Physical.BINARY, Physical.FIXED16)
    items = json.loads(value)
    return [
        from_storage(bytes.fromhex(item) if binary and item is not None else item, element)
        for item in items
    ]


def _show_bit(value: np.ndarray, sql_type: SqlType) -> str:
    return "".join(map(str, np.unpackbits(value, count=sql_type.dim).tolist()))


_PRESENT: dict[Kind, Any] = {
    Kind.BOOLEAN: lambda value, _: bool(value),
    Kind.DECIMAL: _show_decimal,
    Kind.DATE: lambda value, _: _EPOCH_DATE + dt.timedelta(days=value),
    Kind.TIME: lambda value, _: (_EPOCH + dt.timedelta(microseconds=value)).time(),
    Kind.TIMESTAMP: lambda value, _: _EPOCH + dt.timedelta(microseconds=value),
    Kind.TIMESTAMPTZ: lambda value, _: _EPOCH_UTC + dt.timedelta(microseconds=value),
    Kind.INTERVAL: _show_interval,
    Kind.UUID: lambda value, _: uuid.UUID(bytes=value),
    Kind.JSON: lambda value, _: json.loads(value),
    Kind.ARRAY: _show_array,
    Kind.VECTOR: lambda value, _: np.array(value, dtype=np.float32),
    Kind.HALFVEC: lambda value, _: np.array(value, dtype=np.float32),
    Kind.INT8VEC: lambda value, _: np.array(value, dtype=np.int8),
    Kind.BIT: _show_bit,
}


@functools.lru_cache(maxsize=256)
def arrow_type(sql_type: SqlType) -> pa.DataType:
    """Return the Arrow type results and scans use (imports pyarrow)."""
    import pyarrow as pa

    kind = sql_type.kind
    if kind is Kind.DECIMAL:
        return pa.decimal128(sql_type.precision, sql_type.scale)
    if kind is Kind.ARRAY:
        return pa.list_(arrow_type(sql_type.element or TEXT))
    if kind in (Kind.VECTOR, Kind.HALFVEC):
        return pa.list_(pa.float32(), sql_type.dim)
    if kind is Kind.INT8VEC:
        return pa.list_(pa.int8(), sql_type.dim)
    simple = {
        Kind.BOOLEAN: pa.bool_(), Kind.SMALLINT: pa.int16(), Kind.INT: pa.int32(),
        Kind.BIGINT: pa.int64(), Kind.REAL: pa.float32(), Kind.DOUBLE: pa.float64(),
        Kind.TEXT: pa.string(), Kind.BLOB: pa.binary(), Kind.DATE: pa.date32(),
        Kind.TIME: pa.time64("us"), Kind.TIMESTAMP: pa.timestamp("us"),
        Kind.TIMESTAMPTZ: pa.timestamp("us", tz="UTC"), Kind.INTERVAL: pa.month_day_nano_interval(),
        Kind.UUID: pa.uuid(), Kind.JSON: pa.json_(), Kind.BIT: pa.string(),
    }  # fmt: skip
    return simple[kind]
