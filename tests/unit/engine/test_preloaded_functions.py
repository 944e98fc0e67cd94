"""``OpenOptions(preload_functions=True)``: functions are loaded at opening, not at a call."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

import tarsdb
from tarsdb.engine.udf import functions
from tarsdb.errors import UdfBackendError

TWICE = """(module (func (export "{name}") (param i64) (result i64)
  (i64.mul (local.get 0) (i64.const {factor}))))"""
PROBE = """
import json, sys

import tarsdb
from tarsdb.metrics import METRICS

def loads():
    counts = METRICS.snapshot()
    return [int(counts.get("udf." + name, 0)) for name in ("artefact_hits", "compilations")]

path, preload = sys.argv[1], sys.argv[2] == "True"
options = tarsdb.OpenOptions(preload_functions=preload)
with tarsdb.connect(path, read_only=True, options=options) as db:
    opened = loads(), "wasmtime" in sys.modules
    found = db.execute("SELECT twice(21), thrice(14)").fetchall()
    print(json.dumps({"opened": opened, "called": loads(), "found": found}))
"""


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    found = tmp_path / "functions.tars"
    with tarsdb.connect(found) as db:
        for factor, name in ((2, "twice"), (3, "thrice")):
            db.execute(
                f"CREATE FUNCTION {name}(n BIGINT) RETURNS BIGINT LANGUAGE wasm AS "
                f"'{TWICE.format(name=name, factor=factor)}'"
            )
    return found


def probe(path: pathlib.Path, preload: bool, cache: pathlib.Path) -> dict[str, Any]:
    """Open the file in a new process, call its functions, return what was loaded when."""
    command = [sys.executable, "-c", PROBE, str(path), str(preload)]
    environment = {**os.environ, "TARSDB_CACHE_DIR": str(cache)}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_code_is_loaded_at_opening_where_that_is_asked(
    path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    first = probe(path, True, cache)
    assert first["opened"] == [[0, 2], True]  # the cache was empty: compiled
    kept = probe(path, True, cache)
    assert kept["opened"] == [[2, 0], True]
    assert kept["called"] == [2, 0]  # calls had nothing left to load
    later = probe(path, False, cache)
    assert later["opened"] == [[0, 0], False]
    assert later["called"] == [2, 0]
    assert first["found"] == kept["found"] == later["found"] == [[42, 42]]


def test_a_function_that_cannot_be_loaded_is_its_callers_error(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_one, asked = functions._compile, []

    def refuse(context: Any, function: Any) -> Any:
        asked.append(function.name)
        if function.name == "thrice":
            raise UdfBackendError("not here")
        return compile_one(context, function)

    monkeypatch.setattr(functions, "_compile", refuse)
    with tarsdb.connect(path, options=tarsdb.OpenOptions(preload_functions=True)) as db:
        assert asked == ["thrice", "twice"]
        assert db.execute("SELECT twice(4)").fetchall() == [(8,)]
        assert asked == ["thrice", "twice"]
        with pytest.raises(UdfBackendError, match="not here"):
            db.execute("SELECT thrice(4)")
