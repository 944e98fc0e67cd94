"""The tarsdb command end to end: output, errors and exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tarsdb.cli import main
from tarsdb.cli.commands import parse_parameters
from tarsdb.cli.main import INTERRUPTED
from tarsdb.errors import DataError

TARSDB = [sys.executable, "-c", "import sys; from tarsdb.cli import main; sys.exit(main())"]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = str(tmp_path / "notes.tars")
    create = "CREATE TABLE t (id BIGINT PRIMARY KEY, body TEXT NOT NULL);"
    insert = "INSERT INTO t VALUES (1, 'a'), (2, 'b,\"c')"
    assert main(["query", path, create + insert]) == 0
    return path


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str], file: str) -> pytest.CaptureFixture[str]:
    capsys.readouterr()
    return capsys


def test_query_prints_each_format(file: str, output: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT id, body FROM t ORDER BY id"
    assert main(["query", file, sql]) == 0
    assert output.readouterr().out.splitlines()[0] == "id │ body"
    assert main(["query", file, sql, "--format", "csv"]) == 0
    rows = list(csv.reader(io.StringIO(output.readouterr().out)))
    assert rows == [["id", "body"], ["1", "a"], ["2", 'b,"c']]
    assert main(["query", file, sql, "--format", "json"]) == 0
    assert json.loads(output.readouterr().out)[1] == {"id": 2, "body": 'b,"c'}


def test_parameters(file: str, output: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT body FROM t WHERE id = ?"
    assert main(["query", file, sql, "--param", "2", "--format", "csv"]) == 0
    assert output.readouterr().out == 'body\n"b,""c"\n'
    named = "SELECT id FROM t WHERE body = :b AND id < :i"
    assert main(["query", file, named, "--param", "b=a", "--param", "i=9", "--format", "csv"]) == 0
    assert output.readouterr().out == "id\n1\n"


def test_parameter_values_are_json_or_text() -> None:
    assert parse_parameters(["1", "1.5", "null", "[1, 2]", "x y", '"7"'], "") == [
        1, 1.5, None, [1, 2], "x y", "7",
    ]  # fmt: skip
    assert parse_parameters(["q=[1]", "n=a=b"], "SELECT :q, $n") == {"q": [1], "n": "a=b"}
    assert parse_parameters(["a=b"], "SELECT ?") == ["a=b"]
    with pytest.raises(DataError):
        parse_parameters(["q=1", "2"], "SELECT :q")


def test_errors_say_where_and_exit_with_1(file: str, output: pytest.CaptureFixture[str]) -> None:
    assert main(["query", file, "SELECT id\nFROM t WHERE ("]) == 1
    captured = output.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("SQLSyntaxError: ")
    assert "line 2" in captured.err
    assert "^" in captured.err
    assert main(["query", file, "SELECT nothing FROM t"]) == 1
    assert "nothing" in output.readouterr().err


def test_read_only_refuses_writes(file: str, output: pytest.CaptureFixture[str]) -> None:
    assert main(["query", "--read-only", file, "DELETE FROM t"]) == 1
    assert output.readouterr().err.startswith("ReadOnlyError: ")
    assert main(["query", file, "SELECT count(*) AS n FROM t", "--format", "csv"]) == 0
    assert output.readouterr().out == "n\n2\n"


def test_a_file_that_is_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text.tars"
    path.write_text("no database, " * 1000)
    assert main(["query", str(path), "SELECT 1"]) == 1
    assert "text.tars" in capsys.readouterr().err
    assert path.read_text() == "no database, " * 1000


def test_check(file: str, output: pytest.CaptureFixture[str]) -> None:
    assert main(["check", file]) == 0
    assert output.readouterr().out == "ok\n"
    assert main(["check", file + ".absent"]) == 1
    assert not os.path.exists(file + ".absent")


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_export_and_import(
    file: str, tmp_path: Path, output: pytest.CaptureFixture[str], suffix: str
) -> None:
    data = str(tmp_path / f"data.{suffix}")
    assert main(["export", file, "SELECT body, id FROM t ORDER BY id", data]) == 0
    assert "2 rows" in output.readouterr().err
    assert main(["import", file, "fresh", data]) == 0
    assert main(["query", file, "DELETE FROM t"]) == 0
    assert main(["import", file, "t", data]) == 0  # other column order: matched by name
    sql = "SELECT t.id, fresh.body FROM t JOIN fresh USING (id) ORDER BY id"
    output.readouterr()
    assert main(["query", file, sql, "--format", "json"]) == 0
    assert json.loads(output.readouterr().out) == [
        {"id": 1, "body": "a"}, {"id": 2, "body": 'b,"c'},
    ]  # fmt: skip


def test_import_of_unknown_columns(
    file: str, tmp_path: Path, output: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.csv"
    data.write_text("id,text\n7,seven\n")
    assert main(["import", file, "t", str(data)]) == 1
    assert "text" in output.readouterr().err
    assert main(["import", "--by-position", file, "t", str(data)]) == 0


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "tarsdb FILE" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["query"])
    assert stopped.value.code == 2


def run(arguments: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TARSDB, *arguments], input=text, capture_output=True, text=True, check=False, timeout=60
    )


def test_script_on_stdin(file: str) -> None:
    done = run([file], ".mode csv\nSELECT id\nFROM t; SELECT 'x;' AS s;\n.tables\n.schema t\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("id\n1\n2\n")
    assert "CREATE TABLE t (" in done.stdout


def test_script_stops_at_the_first_error(file: str) -> None:
    done = run([file], "SELECT nothing;\nDELETE FROM t;\n")
    assert done.returncode == 1
    assert run(["query", file, "SELECT count(*) AS n FROM t", "--format", "csv"]).stdout == "n\n2\n"


def test_closed_pipe_is_quiet(file: str) -> None:
    sql = "SELECT range AS n FROM range(200000)"
    command = subprocess.Popen(
        [*TARSDB, "query", file, sql, "--format", "csv"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert command.stdout is not None
    assert command.stderr is not None
    assert command.stdout.readline() == "n\n"
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait(30) != 0
    command.stderr.close()


def test_interrupt_stops_the_statement(file: str) -> None:
    sql = "SELECT count(*) FROM range(100000000000) a, range(1000) b WHERE a.range % 7 = b.range"
    for wait_s in (3, 10, 30):  # on a busy machine it has not begun after the first of them
        command = subprocess.Popen(
            [*TARSDB, "query", file, sql], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(wait_s)
        assert command.poll() is None
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=60)
        if command.returncode != INTERRUPTED:
            break
    assert command.returncode == 1
    assert err.startswith("InterruptError")


def test_warmup_compiles_what_the_models_of_a_file_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tarsdb.kernels import decoder, dispatch, encoder, graph, ivf
    from tests.golden.models.tiny_decoders import write_tiny_decoder

    write_tiny_decoder(tmp_path / "tiny", "llama")
    path, source = str(tmp_path / "models.tars"), tmp_path / "tiny"
    assert main(["query", path, f"CREATE MODEL m FROM '{source}' WITH (quantize = 'int4')"]) == 0
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(dispatch, "warmup", lambda progress: None)
    for module in (graph, ivf):
        monkeypatch.setattr(module, "wait", lambda: None)
    for module, name in ((encoder, "encoder"), (decoder, "decoder")):
        monkeypatch.setattr(module, "wait", lambda kind, name=name: asked.append((name, kind)))
    assert main(["warmup"]) == 0
    assert asked == [("decoder", "f32"), ("encoder", "f32")]
    asked.clear()
    assert main(["warmup", path]) == 0
    assert asked[:3] == [("decoder", "f32"), ("decoder", "int4"), ("encoder", "f32")]
    assert asked[3:] == [("decoder", "int4")]  # the model itself, to be packed
    told = capsys.readouterr().err
    assert "decoder int4" in told
    assert "packed weights of m: 0 bytes" in told  # too small to be worth it


@pytest.mark.parametrize(
    ("command", "is_made"), [("query", True), ("import", True), ("check", False), ("export", False)]
)
def test_help_says_whether_a_file_is_made(
    command: str, is_made: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = "created when absent" in " ".join(capsys.readouterr().out.split())
    assert said == is_made
    data = tmp_path / "in.csv"
    data.write_text("a\n1\n")
    file = str(tmp_path / "a.tars")
    more = {"query": ["SELECT 1"], "import": ["t", str(data)], "check": [], "export": ["t", "x"]}
    main([command, file, *more[command]])
    assert Path(file).exists() == is_made


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_commands_to_come_say_so(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([command, "a.tars", "b.tars"]) == 1
    assert "is not built yet" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
