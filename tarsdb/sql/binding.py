"""What every part of the binder shares: the catalog, settings, errors that say where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from sqlglot import exp

from tarsdb.errors import BindError, CatalogError, NotSupportedError
from tarsdb.records import dataclass
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql.catalog import Catalog

SYSTEM_TABLES = (
    "tars_tables", "tars_indexes", "tars_columns", "tars_models", "tars_model_versions",
    "tars_functions", "tars_modules", "tars_metrics", "tars_commits", "tars_settings",
    "tars_recall_stats", "tars_triggers", "tars_views", "sqlite_master", "sqlite_schema",
    "information_schema.tables", "information_schema.columns",
)  # fmt: skip


@dataclass(slots=True)
class Binding:
    """One act of binding: where names come from, and what the statement takes."""

    catalog: Catalog
    parameters: Mapping[int | str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def require_table(self, node: Any) -> TableDef:
        """Return the table a sqlglot Table names, or raise with a suggestion."""
        name = table_name(node)
        table = self.catalog.table(name)
        if table is None:
            raise self.no_table(node)
        return table

    def no_table(self, node: Any) -> BindError:
        """Return the error for a table that does not exist."""
        name = table_name(node)
        view = self.catalog.view(name)
        if view is not None:
            return BindError(f"{view.name} is a view, its rows cannot be changed{where(node)}")
        if name.lower() in SYSTEM_TABLES:
            return BindError(f"{name} is a system table, its rows cannot be changed{where(node)}")
        near = suggestion(name, [*self.catalog.table_names(), *SYSTEM_TABLES])
        return BindError(f"table {name!r} does not exist{where(node)}", hint=near)

    def named_table(self, name: str) -> TableDef:
        """Return a table by its bare name, or raise CatalogError with a suggestion."""
        table = self.catalog.table(name)
        if table is None:
            near = suggestion(name, self.catalog.table_names())
            raise CatalogError(f"table {name!r} does not exist", hint=near)
        return table


def table_name(node: Any) -> str:
    """Return the bare name of a sqlglot Table in main, the whole one of a system table elsewhere.

    Other schemas are refused.
    """
    schema = node.args.get("db")
    name: str = node.name
    if schema is None or schema.name.lower() == "main":
        return name
    whole = f"{schema.name}.{name}".lower()
    if whole in SYSTEM_TABLES:
        return whole
    if schema.name.lower() in ("information_schema", "pg_catalog"):
        raise NotSupportedError(
            f"{whole} is not supported{where(node)}",
            hint=f"the system tables are {', '.join(SYSTEM_TABLES)}",
        )
    raise BindError(f"schema {schema.name!r} does not exist{where(node)}", hint="say main")


def distance_sides(node: Any) -> tuple[Any, Any]:
    """Return the operands of a distance, which a call by name may lack."""
    if len(node.expressions) != 2:
        raise BindError(f"a distance takes two vectors, not {len(node.expressions)}{where(node)}")
    left, right = node.expressions
    return left, right


def where(node: Any) -> str:
    """Return `` at line 1, column 8`` for a node with a position, else ''."""
    for part in (node, *node.find_all(exp.Identifier)):
        meta = part.meta if isinstance(part, exp.Expression) and part._meta else None
        if meta and "line" in meta:
            column = meta["col"] - (meta["end"] - meta["start"])
            return f" at line {meta['line']}, column {max(column, 1)}"
    return ""


def suggestion(name: str, candidates: Iterable[str]) -> str | None:
    """Return ``did you mean x?`` or None."""
    known = {candidate.lower(): candidate for candidate in candidates}
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f"did you mean {known[near[0]]}?" if near else None


def no_column(node: Any, name: str, tables: Iterable[TableDef]) -> BindError:
    """Return the error for a column that none of the tables has."""
    listed = list(tables)
    names = [column.name for table in listed for column in table.columns]
    place = f" in table {listed[0].name}" if len(listed) == 1 else ""
    return BindError(
        f"column {name!r} does not exist{place}{where(node)}", hint=suggestion(name, names)
    )


def require_column(table: TableDef, node: Any) -> ColumnDef:
    """Return the column an Identifier or Column names in a table."""
    column = table.column(node.name)
    if column is None:
        raise no_column(node, node.name, [table])
    return column
