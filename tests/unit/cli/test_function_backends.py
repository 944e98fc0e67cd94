"""Functions of every kind from the command line, on the backends that need no virtual machine."""

from __future__ import annotations

import pathlib

import pytest

from tests.sandbox.every_kind import check


@pytest.mark.parametrize("name", ["wasmtime", "worker"])
def test_every_kind(name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(tmp_path, f"backend = '{name}'", capsys)
