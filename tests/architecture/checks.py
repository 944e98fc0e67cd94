"""The house rules as functions of source text, so that each can be shown to catch a bad example.

Every checker takes sources (module name -> text) and returns findings, one sentence each.
"""

from __future__ import annotations

import ast
import configparser
import functools
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6

OWNERS = {
    "lmdb": ("tarsdb.storage",),
    "xxhash": ("tarsdb.storage",),
    "wasmtime": ("tarsdb.udf_sandbox",),
    "hyperlight_sandbox_backend_wasm": ("tarsdb.udf_sandbox",),
    "numba": ("tarsdb.kernels",),
    "llvmlite": ("tarsdb.kernels",),
    "cupy": ("tarsdb.kernels",),
    "sqlglot": ("tarsdb.sql",),
    "duckdb": ("tarsdb.engine.by_duckdb.", "tarsdb.engine.writing.files"),
    "tokenizers": ("tarsdb.model_ops",),
    "safetensors": ("tarsdb.model_ops",),
    "jinja2": ("tarsdb.model_ops",),
    "torch": ("tarsdb.model_ops.verification",),
    "transformers": ("tarsdb.model_ops.verification",),
    "llguidance": ("tarsdb.model_ops",),
    "onnxruntime": ("tarsdb.model_ops",),
    "huggingface_hub": ("tarsdb.model_ops", "tarsdb.engine.inference.models"),
    "prompt_toolkit": ("tarsdb.cli",),
    "pygments": ("tarsdb.cli",),
    "pandas": ("tarsdb.engine", "tarsdb.database"),
    "polars": ("tarsdb.engine", "tarsdb.database"),
}
SHARED = {"numpy", "pyarrow"}
"""Dependencies that are the common language of the layers: arrays and record batches."""

Sources = Mapping[str, str]


def sources(package: str = "tarsdb") -> dict[str, str]:
    """Return module name -> text of every file of the package."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


@functools.cache
def parsed(text: str) -> tuple[ast.Module, list[ast.AST]]:
    """Return the tree of a module and all its nodes."""
    tree = ast.parse(text)
    return tree, list(ast.walk(tree))


def layers() -> list[set[str]]:
    """Return the layers of setup.cfg, highest first."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    text = config["importlinter:contract:layers"]["layers"]
    return [{part.strip() for part in line.split("|")} for line in text.split("\n") if line.strip()]


def imports(name: str, text: str, known: Sources) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import that can run, those inside functions too."""
    _, nodes = parsed(text)
    typing_only = {
        id(child)
        for node in nodes
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in nodes:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*name.split(".")[: -node.level or None], base]).rstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in known else base


def check_layers(known: Sources, order: list[set[str]]) -> list[str]:
    """Flag imports that go up or sideways, and modules that stand in no layer."""
    rank = {part: level for level, parts in enumerate(order) for part in parts}
    findings = []
    for name, text in known.items():
        if name.count(".") == 0:
            continue
        own = name.split(".")[1]
        if own not in rank:
            findings.append(f"{name}: {own!r} stands in no layer of setup.cfg")
            continue
        for line, module in imports(name, text, known):
            if module.split(".")[0] != "tarsdb":
                continue
            findings += _import_finding(f"{name}:{line}", own, module, rank)
    return findings


def _import_finding(where: str, own: str, module: str, rank: dict[str, int]) -> list[str]:
    if module == "tarsdb":
        return [f"{where}: imports from the package root"]
    other = module.split(".")[1]
    if other == own:
        return []
    if other not in rank:
        return [f"{where}: imports {module}, which stands in no layer"]
    if rank[other] == rank[own]:
        return [f"{where}: {own} and {other} may not import each other"]
    return [f"{where}: {own} imports {other} above it"] if rank[other] < rank[own] else []


def check_owners(known: Sources) -> list[str]:
    """Flag a third-party import outside the package that owns the dependency."""
    findings = []
    for name, text in known.items():
        for line, module in imports(name, text, known):
            top = module.split(".")[0]
            if top in SHARED or top in sys.stdlib_module_names or top == "tarsdb":
                continue
            allowed = OWNERS.get(top)
            if allowed is None:
                findings.append(
                    f"{name}:{line}: {top} has no owner in tests/architecture/checks.py"
                )
            elif not name.startswith(allowed):
                findings.append(f"{name}:{line}: {top} belongs to {' or '.join(allowed)}")
    return findings


def check_sizes(known: Sources) -> list[str]:
    """Flag files, functions and parameter lists over the limits."""
    findings = []
    for name, text in known.items():
        lines = text.count("\n")
        if lines > MAX_FILE_LINES:
            findings.append(f"{name}: {lines} lines, more than {MAX_FILE_LINES}")
        kernel = name.startswith("tarsdb.kernels")
        for node in parsed(text)[1]:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                findings += _function_findings(f"{name}:{node.lineno} {node.name}", node, kernel)
    return findings


def _function_findings(
    where: str, node: ast.FunctionDef | ast.AsyncFunctionDef, kernel: bool
) -> list[str]:
    findings = []
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
    if kernel:  # a factory of kernels is as long as its own statements
        length -= sum(_length(inner) for inner in node.body if is_kernel(inner))
    if length > MAX_FUNCTION_LINES and not (kernel and is_kernel(node)):
        findings.append(f"{where}: {length} lines, more than {MAX_FUNCTION_LINES}")
    given = node.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    count = len([n for n in names if n not in ("self", "cls") and not n.startswith("_")])
    if count > MAX_PARAMETERS and not kernel:
        findings.append(f"{where}: {count} parameters, more than {MAX_PARAMETERS}")
    return findings


def is_kernel(node: ast.AST) -> bool:
    """Return True for a function that a decorator of Numba's, or ours of its kind, compiles."""
    return isinstance(node, ast.FunctionDef) and any(
        re.search("jit|linked", ast.unparse(decorator)) for decorator in node.decorator_list
    )


def _length(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def check_kernel_cache(known: Sources) -> list[str]:
    """Flag compiled functions that use names of a file outside the kernels' folder.

    The disk cache is named by the bytes of that folder: an edit elsewhere would go unnoticed.
    """
    findings = []
    for name, text in known.items():
        _, nodes = parsed(text)
        foreign = {
            alias.asname or alias.name: node.module
            for node in nodes
            if isinstance(node, ast.ImportFrom) and is_foreign(node.module or "")
            for alias in node.names
        }
        for node in nodes:
            if not isinstance(node, ast.FunctionDef) or not is_kernel(node):
                continue
            used = {
                child.id
                for statement in node.body
                for child in ast.walk(statement)
                if isinstance(child, ast.Name)
            }
            findings += [
                f"{name}:{node.lineno}: kernel {node.name} uses {n} of {foreign[n]}"
                for n in sorted(used & foreign.keys())
            ]
    return findings


def is_foreign(module: str) -> bool:
    """Return True for a module of ours whose bytes do not name the kernels' cache."""
    return module.startswith("tarsdb.") and not module.startswith("tarsdb.kernels.cpu.")


def check_documented(known: Sources) -> list[str]:
    """Flag public modules, classes and functions without a docstring."""
    findings = []
    for name, text in known.items():
        tree, _ = parsed(text)
        if ast.get_docstring(tree) is None:
            findings.append(f"{name}: no docstring")
        findings += [
            f"{name}:{node.lineno}: {node.name} has no docstring"
            for node in tree.body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and not node.name.startswith("_")
            and ast.get_docstring(node) is None
        ]
    return findings


EMPTY_WORDS = {"manager", "helper", "helpers", "util", "utils", "handler", "processor"}


def check_vocabulary(known: Sources) -> list[str]:
    """Flag words that name nothing, in classes and modules, and formats that run code."""
    findings = []
    for name, text in known.items():
        words = set(name.rsplit(".", 1)[-1].lower().split("_"))
        findings += [f"{name}: {word} names nothing" for word in sorted(words & EMPTY_WORDS)]
        for node in parsed(text)[1]:
            if isinstance(node, ast.ClassDef):
                parts = {part.lower() for part in re.findall(r"[A-Z][a-z]+", node.name)}
                findings += [
                    f"{name}:{node.lineno}: class {node.name}: {word} names nothing"
                    for word in sorted(parts & EMPTY_WORDS)
                ]
        for line, module in imports(name, text, known):
            if module.split(".")[0] in ("pickle", "shelve", "marshal"):
                findings.append(f"{name}:{line}: {module} runs code when it reads")
    return findings


def check_dataclasses(known: Sources) -> list[str]:
    """Flag the standard library's ``dataclass``: it compiles text whenever a process starts."""
    free = ("tarsdb.records", "tarsdb.options", "tarsdb.kernels.cpu")  # options: users see them
    findings = []
    for name, text in known.items():
        if name.startswith(free):
            continue
        for node in parsed(text)[1]:
            from_library = isinstance(node, ast.ImportFrom) and node.module == "dataclasses"
            if from_library and any(each.name == "dataclass" for each in node.names):
                findings.append(f"{name}:{node.lineno}: dataclass comes from tarsdb.records")
    return findings


NETWORK = frozenset(
    "socket ssl http urllib ftplib smtplib poplib imaplib xmlrpc socketserver asyncio".split()
)
ON_FILES = frozenset(
    "open memmap fromfile tofile load save savez loadtxt read_bytes write_bytes read_text "
    "write_text unlink rename replace remove rmtree mkdir makedirs listdir scandir".split()
)
NO_FILES = ("tarsdb.sql.", "tarsdb.index.", "tarsdb.kernels.")


def check_reach(known: Sources) -> list[str]:
    """Flag networks, files where there is no I/O, arrays in SQL, and LMDB's modes that lose data.

    The worker of a sandbox talks through a pair of sockets.
    """
    findings = []
    for name, text in known.items():
        for line, module in imports(name, text, known):
            top = module.split(".")[0]
            if top in NETWORK and not name.startswith("tarsdb.udf_sandbox.worker"):
                findings.append(f"{name}:{line}: {top} reaches a network")
            if top in SHARED and name.startswith("tarsdb.sql."):
                findings.append(f"{name}:{line}: {top} is of arrays, which sql does not see")
        for node in parsed(text)[1]:
            if isinstance(node, ast.Call):
                findings += [f"{name}:{node.lineno}: {what}" for what in _call_findings(name, node)]
    return findings


def _call_findings(name: str, call: ast.Call) -> Iterator[str]:
    function = call.func
    owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    called = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
    if owner == "lmdb" and {"writemap", "sync"} & {each.arg for each in call.keywords}:
        yield "lmdb.open with writemap or sync"
    on_file = called == "open" if not owner else owner in ("os", "np", "numpy", "path", "shutil")
    is_cache = name == "tarsdb.kernels.cpu.disk_cache"  # of machine code, named by our own sources
    if name.startswith(NO_FILES) and not is_cache and on_file and called in ON_FILES:
        yield f"{called}() works on files"
