"""``tarsdb profile-model`` end to end."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import tarsdb
from tarsdb.cli import main
from tarsdb.kernels import encoder as kernels
from tests.unit.model_ops.conftest import model_dir as model_dir


@pytest.fixture
def file(tmp_path: pathlib.Path, model_dir: pathlib.Path) -> str:
    path = str(tmp_path / "t.tars")
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE MODEL m FROM '{model_dir}'")
    return path


def test_stages_add_up_and_the_file_stays(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    digest = hashlib.sha256(pathlib.Path(file).read_bytes()).digest()
    command = ["profile-model", file, "M", "--text", "the time", "--text", "a"]
    assert main([*command, "--repeat", "3", "--format", "json"]) == 0
    assert hashlib.sha256(pathlib.Path(file).read_bytes()).digest() == digest
    rows = json.loads(capsys.readouterr().out)
    stages = {row["stage"]: row for row in rows}
    assert list(stages) == [
        "first run", "tokenize", "queue", "forward", "pool", "statement", "all", "memory",
    ]  # fmt: skip
    found = re.fullmatch(
        r"([\d,]+) bytes of weights, ([\d,]+) to compute", stages["memory"]["note"]
    )
    assert found is not None
    weights, activations = (int(number.replace(",", "")) for number in found.groups())
    assert 10_000 < weights < 1 << 20
    assert (activations > 0) == (kernels.current("f32") is not None)
    assert stages["tokenize"]["note"] == "7 tokens"
    assert stages["all"]["share"] == 1
    assert stages["all"]["ms"] > stages["forward"]["ms"] > 0
    assert stages["all"]["us_per_token"] == pytest.approx(stages["all"]["ms"] * 1000 / 7, rel=0.01)
    assert 0 < stages["tokenize"]["share"] + stages["statement"]["share"] < 1


def test_samples_are_used_without_a_text(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile-model", file, "m", "--repeat", "1"]) == 0
    out = capsys.readouterr().out
    assert "tokens/s" in out
    assert "loads the model" in out


def test_operations_of_the_portable_path_are_shown_one_by_one(file: str) -> None:
    start = "import sys; from tarsdb.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "profile-model", file, "m", "--operations"]
    environment = {**os.environ, "TARSDB_ISA": "portable"}
    done = subprocess.run(
        [*command, "--format", "json"], env=environment, capture_output=True, text=True, check=True
    )
    rows = {row["operation"]: row for row in json.loads(done.stdout)}
    assert {"all", "others"} < set(rows)
    computing = [name for name in rows if name.startswith("transformer")]
    assert len(computing) >= 3  # products, attention, activation, ...: not one call for all
    shares = [row["share"] for name, row in rows.items() if name != "all"]
    assert sum(shares) == pytest.approx(1, abs=0.02)
    assert shares[:-1] == sorted(shares[:-1], reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.tars", "m"], "does not exist"),
        (["FILE", "n"], "model 'n' does not exist (hint: models: m)"),
        (["FILE", "m", "--repeat", "0"], "--repeat must be at least 1"),
        (["FILE", "m", "--max-tokens", "0"], "--max-tokens must be at least 1"),
        (["FILE", "m", "--layers", "--operations"], "give one"),
    ],
)
def test_wrong_arguments(
    file: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [file if each == "FILE" else each for each in arguments]
    assert main(["profile-model", *given]) == 1
    assert message.split(" (hint")[0] in capsys.readouterr().err


@pytest.mark.skipif(kernels.wait("f32") is None, reason="no compiled kernels here")
def test_layers_of_compiled_calls_are_shown(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile-model", file, "m", "--layers", "--repeat", "5", "--format", "json"]) == 0
    rows = {row["layer"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["0", "1", "embedding norm", "sum", "calls", "calls without marks"]
    operations = list(rows["0"])[1:-2]
    assert {"qkv", "attention", "expand"} < set(operations)
    for row in rows.values():
        if row["qkv"] is not None:
            assert sum(row[name] for name in operations) == pytest.approx(row["all"], abs=0.02)
    parts = rows["0"]["all"] + rows["1"]["all"] + rows["embedding norm"]["all"]
    assert parts == pytest.approx(rows["sum"]["all"], abs=0.01)
    assert 0 < rows["sum"]["all"] <= 1.02 * rows["calls"]["all"]
    assert rows["sum"]["share"] == 1


def test_layers_of_numpy_are_an_error_that_says_what_to_do(file: str) -> None:
    start = "import sys; from tarsdb.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "profile-model", file, "m", "--layers"]
    environment = {**os.environ, "TARSDB_ISA": "portable"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "model m is not computed by compiled calls here\nhint: --operations" in done.stderr
