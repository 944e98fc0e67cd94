"""Collect the public docstrings of the running interpreter's standard library.

Python modules are read as source text, never imported, so that no module's import can act. Modules
written in C have no source; those that are public are imported and asked.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tarsdb.records import dataclass

_LEFT_OUT = frozenset({"test", "tests", "idlelib", "turtledemo", "lib2to3", "antigravity", "this"})
"""Not a programmer's library: test suites, an editor, two jokes."""

_SOURCE_OF = {"_pydatetime": "datetime", "_pydecimal": "decimal", "_pyio": "io"}
"""Private files that hold the source of a public module."""

_SHOWN_AS = {"posix": "os", "nt": "os"}
"""Compiled modules whose contents are documented under another name."""


@dataclass(frozen=True, slots=True)
class Docstring:
    """One documented public object."""

    module: str
    kind: str  # module, class, function or method
    name: str  # qualified, with the module
    doc: str


def collect() -> list[Docstring]:
    """Return the docstrings of every public module, each qualified name once, sorted by name."""
    found: dict[str, Docstring] = {}
    for name in sorted(sys.stdlib_module_names, key=lambda n: (n in _SOURCE_OF, n)):
        if name in _LEFT_OUT or (name.startswith("_") and name not in _SOURCE_OF):
            continue
        for entry in _of_module(name):
            found.setdefault(entry.name, entry)
    return [found[name] for name in sorted(found)]


def _of_module(name: str) -> Iterator[Docstring]:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return  # a module this build leaves out
    if spec is None:
        return
    if spec.submodule_search_locations:
        for folder in spec.submodule_search_locations:
            yield from _of_folder(name, Path(folder))
    elif spec.origin and spec.origin.endswith(".py"):
        yield from _of_source(_SOURCE_OF.get(name, name), Path(spec.origin))
    elif name != "__main__":
        yield from _of_compiled(name)


def _of_folder(name: str, folder: Path) -> Iterator[Docstring]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not any(part.startswith("_") or part in _LEFT_OUT for part in parts):
            yield from _of_source(".".join((name, *parts)), path)


def _of_source(module: str, path: Path) -> Iterator[Docstring]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own invalid escapes
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            return
    doc = ast.get_docstring(tree)
    if doc:
        yield Docstring(module, "module", module, doc)
    yield from _of_body(module, module, tree.body, in_class=False)


def _of_body(
    module: str, prefix: str, body: list[ast.stmt], *, in_class: bool
) -> Iterator[Docstring]:
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):
            yield from _of_body(module, prefix, node.body, in_class=in_class)
            continue
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        is_class = isinstance(node, ast.ClassDef)
        kind = "class" if is_class else "method" if in_class else "function"
        doc = ast.get_docstring(node)
        if doc:
            yield Docstring(module, kind, name, doc)
        if is_class:
            yield from _of_body(module, name, node.body, in_class=True)


def _of_compiled(name: str) -> Iterator[Docstring]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # modules on their way out of the library
        try:
            module = importlib.import_module(name)
        except ImportError:
            return
    name = _SHOWN_AS.get(name, name)
    if module.__doc__:
        yield Docstring(name, "module", name, inspect.cleandoc(module.__doc__))
    for item, value in sorted(vars(module).items()):
        if not item.startswith("_") and not isinstance(value, ModuleType):
            yield from _of_object(name, f"{name}.{item}", value)


def _of_object(module: str, name: str, value: Any) -> Iterator[Docstring]:
    is_class = inspect.isclass(value)
    if not is_class and not callable(value):
        return
    doc = getattr(value, "__doc__", None)
    if isinstance(doc, str) and doc.strip():
        yield Docstring(module, "class" if is_class else "function", name, inspect.cleandoc(doc))
    if not is_class:
        return
    for item, member in sorted(vars(value).items()):
        doc = getattr(member, "__doc__", None)
        if not item.startswith("_") and callable(member) and isinstance(doc, str) and doc.strip():
            yield Docstring(module, "method", f"{name}.{item}", inspect.cleandoc(doc))
