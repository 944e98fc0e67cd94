"""The package keeps the house rules, and every checker of them can fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.architecture import checks

LAZY = {
    "numba", "llvmlite", "pyarrow", "duckdb", "sqlglot", "wasmtime", "tokenizers", "safetensors",
    "pandas", "polars", "prompt_toolkit", "huggingface_hub", "cupy", "jinja2",
    "llguidance",
}  # fmt: skip
ON_IMPORT = """
import sys
import tarsdb
loaded = sorted(set(sys.argv[1:]) & set(sys.modules))
sys.exit(f"import tarsdb loaded {loaded}" if loaded else 0)
"""


@pytest.fixture(scope="module")
def package() -> Iterator[dict[str, str]]:
    found = checks.sources()
    assert len(found) > 20, "the package was not found"
    yield found
    checks.parsed.cache_clear()


def _layers(known: checks.Sources) -> list[str]:
    return checks.check_layers(known, checks.layers())


CHECKERS: list[Callable[[checks.Sources], list[str]]] = [
    _layers,
    checks.check_owners,
    checks.check_sizes,
    checks.check_kernel_cache,
    checks.check_documented,
    checks.check_vocabulary,
    checks.check_dataclasses,
    checks.check_reach,
]


@pytest.mark.parametrize("checker", CHECKERS, ids=lambda checker: checker.__name__)
def test_package_keeps_the_rule(
    package: dict[str, str], checker: Callable[[checks.Sources], list[str]]
) -> None:
    findings = checker(package)
    assert not findings, "\n".join(findings)


LONG = "def f():\n" + "    x = 1\n" * 61
BAD: list[tuple[Callable[[checks.Sources], list[str]], str, str, str]] = [
    (_layers, "tarsdb.index.flat", "from tarsdb.storage import x", "may not import each other"),
    (_layers, "tarsdb.index.flat", "def f():\n    import tarsdb.sql.plan", "may not import"),
    (_layers, "tarsdb.kernels.reference", "from tarsdb.engine import x", "above it"),
    (_layers, "tarsdb.types", "from tarsdb.columns import Column", "above it"),
    (_layers, "tarsdb.sql.parser", "from ..storage import keys", "may not import each other"),
    (_layers, "tarsdb.engine.session", "from tarsdb import connect", "package root"),
    (_layers, "tarsdb.utils", "x = 1", "no layer"),
    (checks.check_owners, "tarsdb.index.flat", "import lmdb", "belongs to tarsdb.storage"),
    (checks.check_owners, "tarsdb.engine.executor", "def f():\n    import duckdb", "belongs to"),
    (checks.check_owners, "tarsdb.engine.executor", "import requests", "has no owner"),
    (checks.check_sizes, "tarsdb.sql.parser", LONG, "61 lines"),
    (checks.check_sizes, "tarsdb.sql.parser", "x = 1\n" * 601, "601 lines"),
    (checks.check_sizes, "tarsdb.sql.parser", "def f(a, b, c, d, e, *, g, h): ...", "7 parameters"),
    (
        checks.check_kernel_cache,
        "tarsdb.kernels.cpu.topk",
        "from tarsdb.kernels.heap import push\n@njit(cache=True)\ndef f(a):\n    push(a)\n",
        "kernel f uses push",
    ),
    (
        checks.check_kernel_cache,
        "tarsdb.kernels.cpu.topk",
        "from tarsdb.kernels.heap import push\n@linked\ndef f(a):\n    push(a)\n",
        "kernel f uses push",
    ),
    (checks.check_documented, "tarsdb.sql.parser", '"""Doc."""\ndef parse(): ...', "no docstring"),
    (checks.check_documented, "tarsdb.sql.parser", "x = 1", "no docstring"),
    (checks.check_vocabulary, "tarsdb.storage.file_utils", "", "names nothing"),
    (checks.check_vocabulary, "tarsdb.storage.x", "class LockManager: ...", "names nothing"),
    (checks.check_vocabulary, "tarsdb.storage.x", "import pickle", "runs code"),
    (checks.check_reach, "tarsdb.engine.session", "import socket", "reaches a network"),
    (checks.check_reach, "tarsdb.cli.main", "from urllib import request", "reaches a network"),
    (checks.check_reach, "tarsdb.sql.plan", "import numpy as np", "sql does not see"),
    (checks.check_reach, "tarsdb.index.flat", "f = open('x')", "works on files"),
    (checks.check_reach, "tarsdb.kernels.dispatch", "np.load('x')", "works on files"),
    (checks.check_reach, "tarsdb.storage.opening", "lmdb.open(p, sync=False)", "writemap or sync"),
    (checks.check_reach, "tarsdb.storage.x", "lmdb.open(p, writemap=True)", "writemap or sync"),
    (checks.check_dataclasses, "tarsdb.sql.plan", "from dataclasses import dataclass", "records"),
]


@pytest.mark.parametrize(("checker", "name", "text", "finding"), BAD)
def test_checker_flags_a_bad_example(
    checker: Callable[[checks.Sources], list[str]], name: str, text: str, finding: str
) -> None:
    known = {"tarsdb.storage": "", "tarsdb.storage.keys": "", name: text}
    findings = [f for f in checker(known) if f.startswith(name)]
    assert any(finding in found for found in findings), findings


def test_good_imports_pass() -> None:
    good = {
        "tarsdb.engine.session": "from tarsdb.storage import Snapshot\nimport tarsdb.sql.plan",
        "tarsdb.storage": "import lmdb\nfrom tarsdb.types import Kind",
        "tarsdb.sql.plan": "from tarsdb.errors import Error\nimport re",
    }
    assert _layers(good) == []
    assert checks.check_owners(good) == []


def test_import_loads_nothing_heavy() -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", ON_IMPORT, *LAZY], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr


def test_the_import_check_can_fail() -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", "import wasmtime\n" + ON_IMPORT, *LAZY],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "wasmtime" in outcome.stderr


def test_every_layer_of_the_contract_is_a_rank() -> None:
    order = checks.layers()
    assert order[-1] == {"errors", "records", "loading", "pep249"}
    assert {"sql", "storage", "index", "model_ops", "udf_sandbox"} in order
