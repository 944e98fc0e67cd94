"""``tarsdb udf``: what inspect says of modules, and the projects new writes."""

from __future__ import annotations

import json
import pathlib

import pytest

from tarsdb.cli import main, udf
from tests.conftest import ROOT
from tests.sandbox.wasm_text import DEMO

EXAMPLES = ROOT / "examples" / "functions"
Output = pytest.CaptureFixture[str]


def inspected(path: pathlib.Path, output: Output) -> tuple[int, dict[str, str], dict[str, str]]:
    """Return the exit code, the properties, and what each export could serve."""
    code = main(["udf", "inspect", str(path), "--format", "json"])
    parts = output.readouterr().out.replace("]\n[", "]\0[").split("\0")
    properties = {row["property"]: row["value"] for row in json.loads(parts[0])}
    exports = json.loads(parts[1]) if len(parts) > 1 else []
    return code, properties, {row["export"]: row["could serve"] for row in exports}


def test_a_columnar_module(capsys: Output) -> None:
    code, found, exports = inspected(EXAMPLES / "text_distance.wasm", capsys)
    assert code == 0 and found["verdict"] == "accepted"
    assert found["abi"] == "columnar, version 1, with tars_reset" and found["imports"] == "none"
    size = (EXAMPLES / "text_distance.wasm").stat().st_size
    assert found["size"] == f"{size:,} bytes" and len(found["sha256"]) == 64
    assert found["memory at start"].startswith("131,072 bytes") and "code " in found["sections"]
    assert exports == {"text_distance": "text_distance(any types) RETURNS any type, or TABLE (...)"}


def test_plain_numbers_and_text(capsys: Output, tmp_path: pathlib.Path) -> None:
    _, found, exports = inspected(EXAMPLES / "geo_filter.wasm", capsys)
    assert found["abi"] == "plain numbers"
    assert exports["within_km"].startswith("within_km(a1 DOUBLE, a2 DOUBLE, a3 DOUBLE, ")
    assert "RETURNS INT (for INT also BOOLEAN, SMALLINT, DATE)" in exports["within_km"]
    text = tmp_path / "m.wat"
    text.write_text('(module (func (export "two") (result i64 i64) i64.const 1 i64.const 2))')
    assert inspected(text, capsys)[2] == {"two": "nothing: it needs one result, and numbers only"}
    assert inspected(DEMO / "score.wat", capsys)[2]["score"].startswith(
        "score(a1 REAL, a2 BIGINT) RETURNS DOUBLE"
    )


def test_an_aggregate(capsys: Output) -> None:
    exports = inspected(EXAMPLES / "geometric_mean.wasm", capsys)[2]
    assert set(exports.values()) == {
        "a part of the aggregate function geometric_mean, of any signature"
    }
    assert len(exports) == 4


def test_refused_modules_are_shown_as_far_as_they_go(
    capsys: Output, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "m.wat"
    path.write_text('(module (import "wasi_snapshot_preview1" "fd_write" (func)) (memory 5))')
    code, found, exports = inspected(path, capsys)
    assert code == 1 and exports == {}
    assert found["imports"] == "wasi_snapshot_preview1.fd_write"
    assert found["memory at start"] == "327,680 bytes: the least max_memory"
    assert found["verdict"].startswith("refused: module imports wasi")
    path.write_bytes(b"\0asm\1\0\0\0\x01\xff")
    code, found, _ = inspected(path, capsys)
    assert code == 1 and "malformed" in found["verdict"]
    assert found["imports"] == found["memory at start"] == "-"


def test_errors(capsys: Output, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["udf", "inspect", str(tmp_path / "none.wasm")]) == 1
    assert "cannot read" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["udf", "new", "Bad-Name", "--lang", "c"]) == 1
    assert "'Bad-Name' is no name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(["udf", "new", "f", "--lang", "c"]) == 0
    assert main(["udf", "new", "f", "--lang", "c"]) == 1
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize("language", udf.LANGUAGES)
def test_projects(language: str, tmp_path: pathlib.Path) -> None:
    source, prelude, _ = udf.LANGUAGES[language]
    folder = tmp_path / "made"
    assert main(["udf", "new", "my_words", "--lang", language, "--folder", str(folder)]) == 0
    files = {path.name: path.read_text("utf-8") for path in folder.iterdir()}
    assert set(files) == {
        f"my_words.{source}", f"tars_udf.{prelude}", "build.sh", "my_words.sql"
    }  # fmt: skip
    assert not any("NAME" in text for text in files.values())
    assert f"my_words.{source}" in files["build.sh"] and "my_words.wasm" in files["build.sh"]
    assert "FROM my_words::my_words" in files["my_words.sql"]
