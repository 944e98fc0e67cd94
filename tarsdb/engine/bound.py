"""What a caller bound to a statement: that it is a sequence or a mapping, and not too long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tarsdb.errors import ProgrammingError


def positions(keys: Sequence[int | str]) -> int | None:
    """Return how many positional parameters a statement takes; None where it names some."""
    if any(isinstance(key, str) for key in keys):
        return None
    return max((int(key) + 1 for key in keys), default=0)


def check(parameters: Any, takes: int | None) -> None:
    """Raise ProgrammingError unless parameters can be bound to a statement.

    Too few are found where a missing one is read, which names it.
    """
    if isinstance(parameters, Mapping):
        return
    if isinstance(parameters, (str, bytes)) or not hasattr(parameters, "__getitem__"):
        raise ProgrammingError(
            f"parameters must be a sequence or a mapping, not {type(parameters).__name__}",
            hint="for one value write [value]",
        )
    if takes is not None and len(parameters) > takes:
        raise ProgrammingError(
            f"the statement takes {takes} parameters, {len(parameters)} were bound"
        )


def checked(many: Iterable[Any], takes: int | None) -> Iterable[Any]:
    """Return the parameter sets of executemany, each checked before it is used."""
    if isinstance(many, Sequence) and not isinstance(many, (str, bytes)):
        for parameters in many:
            check(parameters, takes)
        return many
    if isinstance(many, (str, bytes)) or not hasattr(many, "__iter__"):
        raise ProgrammingError(
            f"executemany takes parameter sets, not {type(many).__name__}",
            hint="bind a list of tuples",
        )
    return _one_by_one(many, takes)


def _one_by_one(many: Iterable[Any], takes: int | None) -> Iterator[Any]:
    for parameters in many:
        check(parameters, takes)
        yield parameters
