"""The text handed to DuckDB means what the statement meant: SQLite's test files, both ways."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_fixture import FakeCatalog

from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql import bind, parse
from tarsdb.sql import plan as pl
from tarsdb.types import parse_type

DATA = Path(__file__).parents[3].resolve() / ".." / "shared" / "data" / "sqllogictest"
FILES = [
    "select1.test", "select3.test", "random/aggregates_slt_good_0.test",
    "random/expr_slt_good_0.test", "random/groupby_slt_good_0.test",
    "random/select_slt_good_0.test",
]  # fmt: skip


def records(path: Path) -> Iterator[tuple[str, str]]:
    for block in path.read_text().split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(("#", "skipif"))]
        if lines and lines[0].startswith(("statement ok", "query")):
            yield lines[0].split()[0], "\n".join(lines[1:]).split("\n----")[0].strip()


def create(text: str, tables: dict[str, TableDef]) -> None:
    plan = parse(text).plan
    assert isinstance(plan, pl.CreateTable)
    columns = (ColumnDef(i, c.name, parse_type(c.type)) for i, c in enumerate(plan.columns, 1))
    tables[plan.name] = TableDef(len(tables) + 1, plan.name, tuple(columns))


def make_views(plan: pl.Relational, connection: object) -> None:
    for relation in plan.relations:
        assert relation.table is not None
        names = [f'"{column.name}"' for column in relation.columns]
        names += ["rowid"] if relation.with_rowid else []
        source = f"SELECT {', '.join(names)} FROM {relation.table.name}"
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {relation.name} AS {source}")  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FILES)
def test_same_rows_as_the_statement_itself(name: str) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = DATA / name
    if not path.exists():
        pytest.skip("SQLite's test files are not beside this checkout")
    tables: dict[str, TableDef] = {}
    compared = 0
    with duckdb.connect() as connection:
        connection.execute("SET integer_division = true")
        for kind, text in records(path):
            if text.upper().startswith("CREATE TABLE"):
                create(text, tables)
            if kind == "statement":
                connection.execute(text)
                continue
            plan = bind(parse(text), FakeCatalog(*tables.values()))
            if not isinstance(plan, pl.Relational):
                continue
            make_views(plan, connection)
            try:
                expected = connection.execute(text).fetchall()
            except duckdb.Error:  # a NULL or type rule DuckDB has and SQLite has not
                continue
            assert sorted(map(repr, connection.execute(plan.sql).fetchall())) == sorted(
                map(repr, expected)
            ), text
            compared += 1
            if compared >= 60:
                break
    assert compared >= 60
