"""COPY's files: what is written comes back, and bad files are typed errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tarsdb import errors
from tarsdb.columns import Column, from_list
from tarsdb.engine.arrow import from_arrow, to_arrow
from tarsdb.engine.writing import files
from tarsdb.types import parse_type, to_storage

VALUES: dict[str, list[Any]] = {
    "BIGINT": [1, None, -(2**63)],
    "DOUBLE": [0.1, None, 1e300],
    "BOOLEAN": [True, False, None],
    "DECIMAL(20,2)": ["1.25", None, "-3"],
    "TEXT": ["007", "", None],
    "DATE": ["2020-02-29", None, "1960-01-01"],
    "TIMESTAMP": ["2020-01-01 00:00:00.000001", None, "1900-01-01"],
    "UUID": ["00000000-0000-0000-0000-000000000001", None, "ffffffff-0000-0000-0000-000000000001"],
    "JSON": ['{"a":[1,"x"]}', None, "[]"],
    "INT[]": [[1, None], None, []],
    "VECTOR(2)": [[1, 2.5], None, [3, 4]],
    "BIT(3)": ["101", None, "000"],
    "TIME": ["01:02:03.000004", None, "00:00:00"],
    "TIMESTAMPTZ": ["2020-01-01 00:00:00+00:00", None, "2021-01-01 00:00:00+02:00"],
}


def columns() -> dict[str, Column]:
    made = {}
    for name, values in VALUES.items():
        sql_type = parse_type(name)
        made[name] = from_list(sql_type, [to_storage(v, sql_type, "c") for v in values])
    return made


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "json", "csv.gz", "jsonl"])
def test_every_type_round_trips(tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"it's.{suffix}")
    wanted = columns()
    table = pa.table({f"c{i}": to_arrow(column) for i, column in enumerate(wanted.values())})
    assert files.write(table, path) == 3
    parts = list(files.read(path))
    back = pa.concat_tables(parts)
    assert back.num_columns == len(wanted)
    for i, column in enumerate(wanted.values()):
        got = from_arrow(back.column(i), column.type, f"c{i}").to_list()
        shown = [v.tolist() if hasattr(v, "tolist") else v for v in got]
        expected = [v.tolist() if hasattr(v, "tolist") else v for v in column.to_list()]
        assert shown == expected, column.type


def test_long_files_come_in_order_and_in_parts(tmp_path: Path) -> None:
    path = str(tmp_path / "x.parquet")
    files.write(pa.table({"a": range(200_000)}), path)
    parts = list(files.read(path))
    assert len(parts) > 1
    assert pa.concat_tables(parts).column(0).to_pylist() == list(range(200_000))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_no_rows(tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"x.{suffix}")
    files.write(pa.table({"a": pa.array([], pa.int64()), "b": pa.array([], pa.string())}), path)
    back = pa.concat_tables(files.read(path))
    assert (back.num_rows, back.column_names) == (0, ["a", "b"])


def test_options(tmp_path: Path) -> None:
    path = str(tmp_path / "x.txt")
    options = {"FORMAT": "csv", "header": False, "delim": "|", "null": "NA"}
    files.write(pa.table({"a": [1, None], "b": ["x|y", "z"]}), path, options)
    assert Path(path).read_text() == '1|"x|y"\nNA|z\n'
    (part,) = files.read(path, options)
    assert part.column(0).to_pylist() == ["1", None]
    assert part.column(1).to_pylist() == ["x|y", "z"]


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    table = pa.table({"a": [1]})
    with pytest.raises(errors.NotSupportedError, match="xlsx"):
        files.write(table, str(tmp_path / "x.xlsx"))
    with pytest.raises(errors.ProgrammingError, match="colour"):
        files.write(table, str(tmp_path / "x.csv"), {"colour": "red"})
    with pytest.raises(errors.OperationalError, match="missing"):
        files.write(table, str(tmp_path / "missing" / "x.csv"))
    with pytest.raises(errors.OperationalError, match=r"none\.parquet"):
        list(files.read(str(tmp_path / "none.parquet")))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 not really")
    with pytest.raises(errors.DatabaseError):
        list(files.read(str(broken)))
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("a,b\n1,2\n3,4,5\n")
    with pytest.raises(errors.DataError):
        list(files.read(str(ragged)))
