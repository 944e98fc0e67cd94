"""``dataclass`` as in the standard library, made without compiling text: cheap to import.

``dataclasses.dataclass`` writes up to six methods of every class as text and compiles them when
the module is imported, a millisecond a class; most classes of a process never get an instance.
Here ``__eq__``, ``__repr__`` and their like are closures, and ``__init__`` is the library's own,
compiled when the first instance is made. What the classes do is the same.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls=None, *, frozen=False, eq=True, slots=False, weakref_slot=False):
        """Return the class with the methods of a dataclass; see ``dataclasses.dataclass``."""

        def decorate(cls):
            made = dataclasses.dataclass(
                init=False, repr=False, eq=False, slots=slots, weakref_slot=weakref_slot
            )(cls)
            _add_init(made, frozen)
            _add_repr(made)
            if eq:
                _add_comparison(made, frozen)
            if frozen:
                _forbid_assignment(made)
                if slots:
                    _add_state(made)
            return made

        return decorate if cls is None else decorate(cls)


def _add(cls: type[Any], name: str, method: Callable[..., Any]) -> None:
    """Set a method the class does not define itself."""
    if name not in cls.__dict__:
        method.__name__, method.__qualname__ = name, f"{cls.__qualname__}.{name}"
        setattr(cls, name, method)


def _add_init(cls: type[Any], frozen: bool) -> None:
    def first_init(self: Any, *arguments: Any, **named: Any) -> None:
        init = _compiled_init(cls, frozen)
        cls.__init__ = init  # two threads may both come here and set equal ones
        init(self, *arguments, **named)

    _add(cls, "__init__", first_init)


def _compiled_init(cls: type[Any], frozen: bool) -> Callable[..., None]:
    """Return the ``__init__`` the standard library writes for the fields of a class."""
    copies = [
        (
            each.name, each.type,
            dataclasses.field(
                default=each.default, default_factory=each.default_factory, init=each.init
            ),
        )
        for each in dataclasses.fields(cls)
    ]  # fmt: skip
    members: dict[str, Any] = {"__doc__": "A twin."}  # without one its signature would be written
    if hasattr(cls, "__post_init__"):
        members["__post_init__"] = None  # the class's own is what is called
    twin = dataclasses.make_dataclass(
        cls.__name__, copies, namespace=members, repr=False, eq=False, frozen=frozen
    )
    init: Callable[..., None] = vars(twin)["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return init


def _add_repr(cls: type[Any]) -> None:
    names = [each.name for each in dataclasses.fields(cls) if each.repr]

    def represent(self: Any) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{self.__class__.__qualname__}({values})"

    _add(cls, "__repr__", recursive_repr()(represent))


def _add_comparison(cls: type[Any], frozen: bool) -> None:
    """Add ``__eq__``, and ``__hash__``: of the fields where frozen, else None."""
    own_hash = cls.__dict__.get("__hash__")  # None also beside an __eq__ of the class's own
    fields = dataclasses.fields(cls)
    compared = _values([each.name for each in fields if each.compare])

    def equal(self: Any, other: object) -> Any:
        if other.__class__ is self.__class__:
            return compared(self) == compared(other)
        return NotImplemented

    _add(cls, "__eq__", equal)
    if own_hash is not None:
        return
    hashed = _values([e.name for e in fields if (e.compare if e.hash is None else e.hash)])

    def hash_of(self: Any) -> int:
        return hash(hashed(self))

    cls.__hash__ = hash_of if frozen else None  # type: ignore[assignment]


def _values(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function from an object to the tuple of its attributes of these names."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda each: tuple(getattr(each, name) for name in names)


def _forbid_assignment(cls: type[Any]) -> None:
    names = frozenset(each.name for each in dataclasses.fields(cls))

    def refuse_set(self: Any, name: str, value: Any) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def refuse_delete(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    _add(cls, "__setattr__", refuse_set)
    _add(cls, "__delattr__", refuse_delete)


def _add_state(cls: type[Any]) -> None:
    """Let ``copy`` make instances that have slots and forbid assignment."""
    names = [each.name for each in dataclasses.fields(cls)]

    def state_of(self: Any) -> list[Any]:
        return [getattr(self, name) for name in names]

    def restore(self: Any, state: list[Any]) -> None:
        for name, value in zip(names, state, strict=True):
            object.__setattr__(self, name, value)

    _add(cls, "__getstate__", state_of)
    _add(cls, "__setstate__", restore)
