"""A small catalog for the SQL front end's tests."""

from __future__ import annotations

from typing import Any

from tarsdb.schema import ColumnDef, FunctionDef, IndexDef, ModelDef, TableDef
from tarsdb.types import parse_type


def column(number: int, name: str, type_name: str, **more: Any) -> ColumnDef:
    return ColumnDef(number, name, parse_type(type_name), **more)


DOCS = TableDef(
    1, "docs",
    (
        column(1, "id", "BIGINT", not_null=True), column(2, "body", "TEXT"),
        column(3, "lang", "TEXT"), column(4, "tenant", "INT"), column(5, "meta", "JSON"),
        column(6, "score", "DOUBLE", default="0.5"), column(7, "day", "DATE"),
        column(8, "emb", "VECTOR(3)", generated="embed('minilm', body)"),
        column(9, "v", "VECTOR(3)"), column(10, "fp", "BIT(8)"),
        column(11, "price", "DECIMAL(10,2)"),
        column(12, "ts", "TIMESTAMP", default="now()"), column(13, "flag", "BOOLEAN"),
        column(14, "code", "INT8VEC(3)"), column(15, "key", "UUID"),
    ),
    (1,), (),
    (
        IndexDef(1, "docs_pk", "docs", (1,), True, origin="primary key"),
        IndexDef(2, "docs_lt", "docs", (3, 4), True, origin="unique"),
        IndexDef(3, "docs_body", "docs", (2,)),
    ),
)  # fmt: skip
USERS = TableDef(
    2, "users",
    (column(1, "id", "BIGINT"), column(2, "name", "TEXT"), column(3, "tenant", "INT")),
)  # fmt: skip
QUERIES = TableDef(3, "queries", (column(1, "qid", "INT"), column(2, "q", "VECTOR(3)")))
MODEL = ModelDef(5, "minilm", "embed", 3, "v1", ())
LEV = FunctionDef(
    6, "lev", (("a", parse_type("TEXT")), ("b", parse_type("TEXT"))), parse_type("INT"), "wasm",
    None, "lev", "digest",
)  # fmt: skip


class FakeCatalog:
    """Satisfies tarsdb.sql.catalog.Catalog."""

    def __init__(self, *tables: TableDef) -> None:
        self._tables = {table.name.lower(): table for table in tables}

    def table(self, name: str) -> TableDef | None:
        return self._tables.get(name.lower())

    def table_names(self) -> list[str]:
        return sorted(self._tables)

    def model(self, name: str) -> ModelDef | None:
        return MODEL if name.lower() == "minilm" else None

    def function(self, name: str) -> FunctionDef | None:
        return LEV if name.lower() == "lev" else None

    def has_session_function(self, name: str) -> bool:
        return name.lower() == "shout"

    def view(self, name: str) -> None:
        """Know no view."""

    def has_views(self) -> bool:
        return False

    def has_variable(self, name: str) -> bool:
        return name == "frame"
