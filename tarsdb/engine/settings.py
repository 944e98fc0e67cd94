"""Settings of one connection: names, defaults, and what values they take.

``SET name = value``, ``RESET name`` and ``SHOW name`` come here. Knows nothing of who reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tarsdb.errors import DataError, NotSupportedError, ProgrammingError
from tarsdb.kernels.gpu import device
from tarsdb.records import dataclass

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its default, how a value is read, and one sentence for ``SHOW ALL``."""

    default: Any
    read: Callable[[str, Any], Any]
    about: str


def _choice(*allowed: str) -> Callable[[str, Any], str]:
    def read(name: str, value: Any) -> str:
        text = str(value).lower()
        if text not in allowed:
            raise DataError(f"setting {name}: {value!r} is none of {', '.join(allowed)}")
        return text

    return read


def _device(name: str, value: Any) -> str:
    text = _choice(*device.CHOICES)(name, value)
    device.choose(text)  # says now that there is none, not when a search wants it
    return text


def _isa(name: str, value: Any) -> str:
    text = _choice("auto", "amx", "avx512", "avx2", "portable")(name, value)
    if text != "auto":
        raise NotSupportedError(
            f"setting {name}: {text!r} cannot be had now, a process chooses its kernels once",
            hint=f"start it with TARSDB_ISA={text}",
        )
    return text


def _switch(name: str, value: Any) -> bool:
    text = str(value).lower()
    if text in ("true", "on", "1", "yes"):
        return True
    if text in ("false", "off", "0", "no"):
        return False
    raise DataError(f"setting {name}: {value!r} is neither on nor off")


def _integer(low: int, high: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"setting {name}: {value!r} is not a whole number") from error
        if isinstance(value, float) and value != number:
            raise DataError(f"setting {name}: {value!r} is not a whole number")
        if not low <= number <= high:
            raise DataError(f"setting {name}: {number} is outside {low}..{high}")
        return number

    return read


def _integer_or_auto(low: int, high: int) -> Callable[[str, Any], int | str]:
    read = _integer(low, high)
    return lambda name, value: "auto" if str(value).lower() == "auto" else read(name, value)


def _fraction(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"setting {name}: {value!r} is not a number") from error
    if not 0 < number <= 1:
        raise DataError(f"setting {name}: {number} is not above 0 and at most 1")
    return number


_LONGEST_MS = 1e12  # some thirty years: what threads can wait


def _duration_ms(name: str, value: Any) -> int:
    text = str(value).strip().lower()
    for suffix, factor in (("ms", 1), ("min", 60_000), ("s", 1000), ("", 1)):
        if text.endswith(suffix):
            try:
                number = float(text.removesuffix(suffix))
            except ValueError:
                break
            if 0 <= number * factor <= _LONGEST_MS:
                return int(number * factor)
    raise DataError(f"setting {name}: {value!r} is not a duration", hint="write 500ms, 2s or 0")


def _size(name: str, value: Any) -> str:
    size_bytes(f"setting {name}", value)
    return str(value).strip().upper().replace(" ", "")


def _size_or_auto(name: str, value: Any) -> str:
    return "auto" if str(value).lower() == "auto" else _size(name, value)


def size_bytes(what: str, value: Any) -> int:
    """Return the bytes of a size such as ``'512MB'``; DataError, naming ``what``, if it is none."""
    text = str(value).strip().upper().replace(" ", "")
    digits = text.rstrip("KMGIB")
    known = digits.replace(".", "", 1).isdigit() and text[len(digits) :] in _UNITS
    if not known or not float(digits) > 0:
        raise DataError(f"{what}: {value!r} is not a size", hint="write '512MB' or '2GB'")
    return int(float(digits) * _UNITS[text[len(digits) :]])


SETTINGS: dict[str, Setting] = {
    "durability": Setting("full", _choice("full", "group", "relaxed"), "what a commit survives"),
    "default_null_order": Setting(
        "nulls_last", _choice("nulls_last", "nulls_first"), "where ORDER BY puts NULL"
    ),
    "threads": Setting(1, _integer(1, 256), "threads of one vector search, of building an index"),
    "memory_limit": Setting("2GB", _size, "memory of the relational engine"),
    "kv_cache_memory": Setting("512MB", _size, "memory of one model's keys and values of texts"),
    "statement_timeout": Setting(0, _duration_ms, "milliseconds until a statement ends, 0: never"),
    "lock_timeout": Setting(5000, _duration_ms, "milliseconds a commit waits for the writer"),
    "file_access": Setting(False, _switch, "whether SELECT may read files"),
    "target_recall": Setting(0.95, _fraction, "recall an approximate index is tuned for"),
    "ef_search": Setting(0, _integer(0, 100_000), "graph search list, 0: by target_recall"),
    "probes": Setting(0, _integer(0, 1_000_000), "inverted lists looked at, 0: by target_recall"),
    "default_quantize": Setting(
        "auto", _choice("auto", "none", "bf16", "int8", "int4"),
        "quantize of new models, auto: bf16 where the processor multiplies it, else none",
    ),
    "model_memory": Setting(
        "auto", _size_or_auto, "memory of loaded models, auto: half of the machine's"
    ),
    "model_threads": Setting(
        "auto", _integer_or_auto(1, 256), "cores that models compute with, auto: all of them"
    ),
    "inference_cache": Setting(
        True, _switch, "whether results of models are kept in the file and taken from it"
    ),
    "packed_weights": Setting(
        True, _switch, "whether packed weights of large models are mapped from the file, kept there"
    ),
    "result_cache": Setting(False, _switch, "whether answers of repeated searches are kept"),
    "device": Setting("cpu", _device, "what computes models, large exact searches and lists"),
    "isa": Setting("auto", _isa, "instruction set of the kernels, by TARSDB_ISA"),
}  # fmt: skip


class Settings(Mapping[str, Any]):
    """The values of one connection; ``version`` grows with every change (plan cache key)."""

    def __init__(self, **initial: Any) -> None:
        self._values = {name: setting.default for name, setting in SETTINGS.items()}
        self.version = 0
        self.statement_timeout_ms = 0
        for name, value in initial.items():
            self.set(name, value)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def shown(self, name: str) -> str:
        """Return a value as SET takes it."""
        value = self._values[name]
        return ("on" if value else "off") if isinstance(value, bool) else str(value)

    def set(self, name: str, value: Any) -> None:
        """Set one; ``None`` restores the default.

        Raises
        ------
        ProgrammingError
            No such setting.
        DataError
            The value does not fit it.
        """
        setting = find(name)
        key = name.lower()
        self._values[key] = setting.default if value is None else setting.read(key, value)
        self.statement_timeout_ms = self._values["statement_timeout"]  # every statement asks
        self.version += 1


def find(name: str) -> Setting:
    """Return the setting of that name (any case), or raise ProgrammingError."""
    setting = SETTINGS.get(name.lower())
    if setting is None:
        raise ProgrammingError(
            f"setting {name!r} is not known", hint=f"settings: {', '.join(sorted(SETTINGS))}"
        )
    return setting
