"""tarsdb.records.dataclass against the standard library's, on the same class bodies."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
import threading
from dataclasses import field
from typing import Any, ClassVar

import pytest

from tarsdb import records

WAYS = [
    {"frozen": frozen, "eq": eq, "slots": slots}
    for frozen in (False, True)
    for eq in (False, True)
    for slots in (False, True)
]


def pair(way: dict[str, bool], body: Any, bases: tuple[Any, Any] = (object, object)) -> list[Any]:
    """Return the same class made by the standard library and by ours."""
    made = []
    for maker, base in zip((dataclasses.dataclass, records.dataclass), bases, strict=True):
        members = {k: v for k, v in vars(body).items() if k not in ("__dict__", "__weakref__")}
        made.append(maker(**way)(type("Body", (base,), members)))
    return made


class Plain:
    """All kinds of fields."""

    KNOWN: ClassVar[int] = 7
    first: int
    second: Any = 2
    items: list[int] = field(default_factory=list, compare=False)
    hidden: int = field(default=0, repr=False)
    length: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", len(self.items))


class One:
    """One field."""

    value: Any


class Nothing:
    """No field."""


class Own:
    """Methods of its own."""

    value: int

    def __init__(self, value: int = 3) -> None:
        object.__setattr__(self, "value", value + 1)

    def __repr__(self) -> str:
        return f"own {self.value}"

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 5


def told(act: Any) -> Any:
    """Return what a call does: its value, or the class and text of its error."""
    try:
        return act()
    except (TypeError, AttributeError) as error:
        return type(error), str(error).replace("Body.__init__()", "__init__()")


def behaviour(kind: Any, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
    """Return what instances made with these arguments do."""
    out: list[Any] = [[f.name for f in dataclasses.fields(kind)], kind.__match_args__]
    made = []
    for arguments, named in calls:
        value = told(lambda a=arguments, n=named: kind(*a, **n))
        out.append(value if isinstance(value, tuple) else repr(value))
        if not isinstance(value, tuple):
            made.append(value)
    for each in made:
        out += [each == other for other in made] + [each != 3]
        hashed = told(lambda each=each: hash(each))
        out.append(hashed if kind.__eq__ is not object.__eq__ else "by identity")
        out.append(repr(copy.copy(each)))
        each = copy.copy(each)
        if "__slots__" not in vars(kind):  # Python 3.11's own answer here is a wrong TypeError
            out.append(told(lambda each=each: setattr(each, "nothing", 1)))
        for name in kind.__match_args__:
            out.append(told(lambda each=each, name=name: setattr(each, name, 9)))
            out.append(told(lambda each=each, name=name: delattr(each, name)))
    return out


CALLS: dict[Any, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    Plain: [
        ((1,), {}), ((1,), {"items": [1, 2]}), ((1, 3), {}), ((2,), {"hidden": 4}), ((), {}),
        ((1,), {"unknown": 1}), ((1, 2, [], 3, 4), {}), ((), {"first": 1}),
    ],
    One: [((1,), {}), ((float("nan"),), {}), (("a",), {}), ((), {}), ((1, 2), {})],
    Nothing: [((), {}), ((), {}), ((1,), {})],
    Own: [((), {}), ((5,), {})],
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("body", list(CALLS), ids=lambda body: body.__name__)
def test_does_what_the_standard_library_does(way: dict[str, bool], body: Any) -> None:
    calls = CALLS[body]
    library, ours = (behaviour(kind, calls) for kind in pair(way, body))
    assert ours == library
    assert len(ours) > len(calls)


def test_the_comparison_sees_a_difference() -> None:
    library, ours = pair({"eq": True}, One)[0], pair({"eq": False}, One)[1]
    assert behaviour(library, CALLS[One]) != behaviour(ours, CALLS[One])


@pytest.mark.parametrize("frozen", [False, True])
def test_inherits_fields_and_replaces(frozen: bool) -> None:
    class More:
        third: int = 3

    bases = pair({"frozen": frozen}, One)
    library, ours = pair({"frozen": frozen}, More, (bases[0], bases[1]))
    assert repr(ours(1)) == repr(library(1)) == "Body(value=1, third=3)"
    assert dataclasses.replace(ours(1), third=5) == ours(1, 5)
    assert dataclasses.asdict(ours(2)) == {"value": 2, "third": 3}


def test_a_recursive_value_is_shown() -> None:
    made = pair({}, One)[1](None)
    made.value = [made]
    assert repr(made) == "Body(value=[...])"


def test_threads_may_make_the_first_instance_together() -> None:
    for _ in range(50):
        kind = pair({"frozen": True}, Plain)[1]
        gate, made = threading.Barrier(4), []

        def make(kind: Any = kind, gate: Any = gate, made: Any = made) -> None:
            gate.wait()
            made.append(kind(1, items=[1]))

        threads = [threading.Thread(target=make) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert made == [kind(1, items=[1])] * 4


def test_nothing_is_compiled_before_the_first_instance() -> None:
    script = (
        "import dataclasses, tarsdb.records as records\n"
        "made = []\n"
        "old = dataclasses._create_fn\n"
        "dataclasses._create_fn = lambda name, *a, **k: made.append(name) or old(name, *a, **k)\n"
        "class A:\n    'd'\n    x: int\n"
        "A = records.dataclass(frozen=True)(A)\n"
        "before = len(made)\n"
        "A(1)\n"
        "print(before, '__init__' in made)"
    )
    if not hasattr(dataclasses, "_create_fn"):
        pytest.skip("this Python compiles a class's methods in another way")
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["0", "True"]
