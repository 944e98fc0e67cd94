"""A Jinja sandbox that counts what a template does, so that a chat template cannot run for hours.

Jinja's own sandbox says what a template may touch, not how much it may do. Here each turn of a
loop, call, filter, test and operator spends from what a rendering may do: for what it reads and,
before it is made, for what it makes. Knows no messages and no models.
"""

from __future__ import annotations

import functools
import json
import math
import re
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, cast

import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes
from jinja2.runtime import LoopContext
from jinja2.utils import Cycler, Namespace

from tarsdb.errors import ModelError

WORK = 1 << 28  # what one rendering may spend: a character costs 1
STEP = 32  # what a step or an element costs
_BETWEEN_CHECKS = 1 << 15  # a thousand steps: about a millisecond
_NODE = 4  # what a part of a body costs each time the body is run
_WIDEST = 1 << 14  # bits of a number
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_DIGITS = re.compile(r"[0-9]+")
_WIDTH_BY_VALUE = re.compile(r"\*|\{[^}]*\{")

Check = Callable[[], None]


class Work:
    """What one rendering may still do, and whether it is still wanted.

    Parameters
    ----------
    check : callable
        Asked now and then; what it raises ends the rendering.
    """

    def __init__(self, check: Check) -> None:
        self.left: float = WORK
        self.stopped: BaseException | None = None  # why the rendering had to end, if it had to
        self._asked: float = WORK
        self._check = check

    def spend(self, cost: float) -> None:
        """Take the cost of what comes next; raise when there is not as much left."""
        self.left -= cost
        if self.left < 0:
            self.stopped = ModelError(
                "the chat template refuses the messages: it takes more than "
                f"{WORK // STEP} steps or {WORK} characters"
            )
            raise self.stopped
        if self._asked - self.left >= _BETWEEN_CHECKS:
            self._asked = self.left
            try:
                self._check()
            except BaseException as error:
                self.stopped = error
                raise

    def take(self, value: Any) -> Any:
        """Return what a step made, paid for."""
        if isinstance(value, bytes):
            raise TypeError(
                "a chat template has no bytes"
            )  # their methods and formats go uncounted
        self.spend(_flat(value))
        return value

    def elements(self, value: Any) -> Any:
        """Return what is iterated over next, paid by its elements and no iterator."""
        if isinstance(value, str):
            self.spend(STEP * len(value))
        elif isinstance(value, Iterator):
            return list(map(self._element, value))
        return value

    def _element(self, value: Any) -> Any:
        self.spend(STEP)
        return value

    def deep(self, value: Any) -> float:
        """Return the cost of walking through a value, a bit more than is left at most."""
        cost, waiting = 0.0, [value]
        while waiting and cost <= self.left:
            found = waiting.pop()
            cost += _flat(found)
            if cost > self.left:
                break
            if isinstance(found, dict):
                waiting += found.keys()
                waiting += found.values()
            elif isinstance(found, (list, tuple, set, frozenset, *_VIEWS)):
                waiting += cast(Iterable[Any], found)
            elif isinstance(found, (Namespace, Cycler, LoopContext)):
                waiting += object.__getattribute__(found, "__dict__").values()
        return cost

    def all(self, *values: Any) -> float:
        """Return the cost of walking through values."""
        return sum(map(self.deep, values))

    def times(self, *values: Any) -> float:
        """Return the product of what values cost, of a number its value."""
        return math.prod(1 + _or_value(value, self.deep) for value in values)

    def squared(self, *values: Any) -> float:
        """Return a cost for what nobody has looked at, so only little of it can be done."""
        return self.times(*values) ** 2

    def formatted(self, text: Any, *values: Any) -> float:
        """Return the cost of putting values into a format."""
        widths: list[float] = [float(digits) for digits in _DIGITS.findall(text)]
        if _WIDTH_BY_VALUE.search(text):
            widths += [abs(value) for value in _inside(values) if isinstance(value, int)]
        return (1 + len(text)) * (1 + max(widths, default=0) + self.all(*values))


def _flat(value: Any) -> float:
    """Return what it costs to copy a value, not what it holds."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, (list, tuple, dict, set, frozenset, range, *_VIEWS)):
        return STEP * (1 + len(cast(Sized, value)))
    return STEP


def _or_value(value: Any, cost: Callable[[Any], float]) -> float:
    return float(abs(value)) if isinstance(value, (int, float)) else cost(value)


def _inside(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


_Cost = Callable[..., float]


def _nothing(work: Work, *values: Any) -> float:
    return 0


def _first_flat(work: Work, value: Any = None, *values: Any) -> float:
    return _flat(value)


def _arguments(work: Work, value: Any = None, *values: Any) -> float:
    return work.all(*values)


def _sorting(work: Work, *values: Any) -> float:
    return STEP * work.all(*values)


def _replacing(work: Work, text: Any, old: Any = "", new: Any = "", *count: Any) -> float:
    return work.times(text, new) + work.deep(old)


def _summing(work: Work, value: Any, *rest: Any) -> float:
    of_numbers = all(isinstance(other, (int, float, str, type(None))) for other in rest)
    return work.deep(value) if of_numbers else work.squared(value, *rest)


def _splitting(work: Work, text: Any, separator: Any = None, *most: Any) -> float:
    return STEP * (text.count(separator) if separator else len(text)) + len(text)


def _splitting_from_right(work: Work, text: Any, separator: Any = None, *most: Any) -> float:
    return _splitting(work, text, separator) + work.times(text, separator or "")


def _each(cost: _Cost, names: str) -> dict[str, _Cost]:
    return dict.fromkeys(names.split(), cost)


_ITERATING = frozenset(
    "batch dictsort groupby join list map max min reject rejectattr reverse select selectattr slice"
    " sort sum unique".split()
)
# Whatever is not here costs `Work.squared`.
_FILTERS: dict[str, _Cost] = {
    **_each(_nothing, "attr count d default first items last length safe"),
    **_each(_first_flat, "list map reject rejectattr reverse select selectattr"),
    **_each(Work.all, "abs capitalize e escape float int lower max min string title tojson truncate"
                      " unique upper wordcount"),
    **_each(Work.times, "batch center indent join round slice trim"),
    **_each(_sorting, "dictsort groupby sort"),
    "format": Work.formatted, "replace": _replacing, "sum": _summing,
}  # fmt: skip
_TESTS = {
    **_each(_nothing, "boolean callable defined escaped false filter float integer iterable mapping"
                      " none number sameas sequence string test true undefined"),
    **_each(Work.all, "!= < <= == > >= divisibleby eq equalto even ge greaterthan gt in le lessthan"
                      " lower lt ne odd upper"),
}  # fmt: skip
_METHODS: dict[type, dict[str, _Cost]] = {
    str: {
        **_each(Work.all, "capitalize casefold count endswith find index isalnum isalpha isascii"
                          " isdecimal isdigit islower isnumeric isspace istitle isupper lower"
                          " partition removeprefix removesuffix startswith swapcase title upper"),
        **_each(Work.times, "center expandtabs join ljust lstrip rfind rindex rjust rpartition"
                            " rstrip strip zfill"),
        **_each(_splitting, "split splitlines"), "rsplit": _splitting_from_right,
        "format": Work.formatted, "format_map": Work.formatted, "replace": _replacing,
    },
    dict: {**_each(_arguments, "get items keys values"), "copy": _first_flat},
    list: {**_each(Work.all, "count index"), "copy": _first_flat},
    tuple: _each(Work.all, "count index"),
}  # fmt: skip


class CountingEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox as transformers sets it up, for templates that are rendered in `counting`."""

    intercepted_binops = frozenset(jinja2.sandbox.SandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        self._running = threading.local()
        self.filters["tojson"] = self._to_json
        tables: tuple[tuple[dict[str, Any], dict[str, _Cost]], ...] = (
            (self.filters, _FILTERS),
            (self.tests, _TESTS),
        )
        for table, costs in tables:
            for name, function in table.items():
                cost = costs.get(name, Work.squared)
                table[name] = self._counted(function, cost, name in _ITERATING)

    @contextmanager
    def counting(self, check: Check) -> Iterator[Work]:
        """Count what templates do on this thread."""
        self._running.work = Work(check)
        try:
            yield self._running.work
        finally:
            del self._running.work

    def step(self, cost: int) -> bool:
        """Spend the cost of a turn of a loop, or of another body; return True."""
        self._running.work.spend(STEP + cost)
        return True

    def read(self, value: Any) -> Any:
        """Return a value whose whole content is looked at next."""
        work = self._running.work
        work.spend(work.deep(value))
        return value

    def copied(self, value: Any) -> Any:
        """Return a value a slice of which is copied next."""
        return self._running.work.take(value)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what a template calls; names as in the base class, for arguments of any name."""
        if getattr(__obj, "__self__", None) is __self:  # what `_Counting` has put in
            return __obj(*args)
        work: Work = __self._running.work
        if getattr(__obj, "__name__", "") == "join":
            args = tuple(map(work.elements, args))
        work.spend(STEP + _price(__obj)(work, *args, *kwargs.values()))
        return work.take(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator, unless what it makes is too large."""
        work = self._running.work
        work.spend(STEP + _binary_cost(work, operator, left, right))
        return work.take(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an element; to look a tuple up takes reading it."""
        if isinstance(argument, tuple):
            self.read(argument)
        return super().getitem(obj, argument)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _count(tree)
        tree.set_environment(self)
        return tree

    def _counted(
        self, function: Callable[..., Any], cost: _Cost, iterating: bool
    ) -> Callable[..., Any]:
        skipped = int(hasattr(function, "jinja_pass_arg"))

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            work: Work = self._running.work
            passed, (value, *others) = args[:skipped], args[skipped:]
            if iterating:
                value = work.elements(value)
            work.spend(STEP + cost(work, value, *others, *kwargs.values()))
            return work.take(function(*passed, value, *others, **kwargs))

        return counted

    def _to_json(
        self, value: Any, ensure_ascii: bool = False, indent: Any = None,
        separators: Any = None, sort_keys: bool = False,
    ) -> str:  # fmt: skip
        """Write JSON, with the arguments that transformers gives this filter."""
        work: Work = self._running.work
        work.spend(STEP * STEP * _or_value(indent or 0, work.deep))
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return "".join(map(work.take, encoder.iterencode(value)))


def _price(function: Any) -> _Cost:
    """Return what tells the cost of calling something with its arguments."""
    if function is jinja2.utils.generate_lorem_ipsum:
        return Work.squared
    method = getattr(function, "__wrapped__", function)  # of a text's `format`, as Jinja guards it
    if not isinstance(method, (types.BuiltinMethodType, types.MethodType)):
        return _copying  # a macro, or what there is by name
    owner: Any = method.__self__
    if type(owner).__module__.startswith("jinja2"):  # a loop's
        return Work.all
    known = next((costs for kind, costs in _METHODS.items() if isinstance(owner, kind)), {})
    return functools.partial(_of_method, known.get(method.__name__, Work.squared), owner)


def _copying(work: Work, *values: Any) -> float:
    return sum(map(_flat, values))


def _of_method(cost: _Cost, owner: Any, work: Work, *values: Any) -> float:
    return cost(work, owner, *values)


def _binary_cost(work: Work, operator: str, left: Any, right: Any) -> float:
    if operator == "%" and isinstance(left, str):
        return work.formatted(left, right)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length(), right.bit_length()
        made = {"*": sum(bits), "**": bits[0] * right if right > 0 else 0}.get(operator, max(bits))
        if max(*bits, made) > _WIDEST:
            raise OverflowError(f"a number of more than {_WIDEST} bits")
        return 0
    if operator == "*":
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        return 0 if numbers else work.times(left, right)
    return _flat(left) + _flat(right)


def _count(node: Any) -> None:
    """Put steps into the bodies under a node, and readings around what is read or printed there."""
    for child in node.iter_child_nodes():
        _count(child)
    if isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)):
        _count_body(node)
    elif isinstance(node, (nodes.Output, nodes.Concat)):
        node.nodes = [_call("read", part) for part in node.nodes]
    elif isinstance(node, (nodes.Compare, nodes.Operand)):
        node.expr = _call("read", node.expr)
    elif isinstance(node, nodes.Pair):
        node.key = _call("read", node.key)
    elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        node.node = _call("copied", node.node)


def _count_body(node: Any) -> None:
    """Let a body begin with a step that pays for its parts, and so the condition of a loop."""
    parts = list(node.find_all(nodes.Node))
    text = sum(len(part.data) for part in parts if isinstance(part, nodes.TemplateData))
    cost = nodes.Const(_NODE * len(parts) + text)
    step = nodes.Call(nodes.EnvironmentAttribute("step"), [cost], [], None, None)
    node.body.insert(0, nodes.ExprStmt(step))
    if getattr(node, "test", None) is not None:
        node.test = nodes.And(step, node.test)


def _call(name: str, argument: nodes.Expr) -> nodes.Expr:
    if isinstance(argument, (nodes.Const, nodes.TemplateData)):
        return argument  # its body has paid for it
    return nodes.Call(nodes.EnvironmentAttribute(name), [argument], [], None, None)
