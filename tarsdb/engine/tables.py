"""Tables and their scalar indexes: CREATE, ALTER, DROP, as new definitions in the write set."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from tarsdb.engine import references
from tarsdb.engine.context import Context
from tarsdb.engine.executor import run
from tarsdb.engine.result import Result
from tarsdb.engine.search import index_build
from tarsdb.engine.search.index_choice import AUTO
from tarsdb.engine.search.index_methods import METHODS
from tarsdb.engine.standard_tables import STANDARD_TABLES
from tarsdb.engine.stored_expressions import validate_expressions
from tarsdb.engine.writing import derive
from tarsdb.engine.writing.identity import check_identity, numbered
from tarsdb.engine.writing.mutate import arrow_batches
from tarsdb.errors import CatalogError, NotSupportedError
from tarsdb.schema import ColumnDef, IndexDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import (
    ColumnSpec,
    CreateIndex,
    CreateTable,
    Drop,
    Truncate,
)
from tarsdb.types import parse_type

DONE = Result()
MOST_COLUMNS = 32_767
_INTERNAL = re.compile(r"__(r\d+|v\d+|no|rowid|distance|batch|new|old)")


def create_table(context: Context, plan: CreateTable) -> Result:
    """Run CREATE TABLE, with the rows of AS query where there is one."""
    existing = context.catalog.table(plan.name)
    if existing is not None:
        if plan.if_not_exists:
            return DONE
        if not plan.or_replace:
            raise CatalogError(f"table {plan.name!r} exists already")
        drop_table(context, existing)
    refuse_view(context, plan.name)
    answer = None if plan.query is None else run(context, plan.query)
    specs = plan.columns if answer is None else _specs_of(answer, plan.columns)
    table = _define_table(context, plan, specs)
    publish(context, table)
    if answer is None:
        return DONE
    written = 0
    for columns, rows in arrow_batches(answer.arrow(), table.columns):
        derive.check(context, table, columns, rows)
        ordered = [columns[column.id] for column in table.columns]
        context.require_writes().insert_columns(table, context.view(table), ordered)
        written += rows
    return Result(changed=written)


def _specs_of(answer: Result, given: tuple[ColumnSpec, ...]) -> tuple[ColumnSpec, ...]:
    if given:
        raise NotSupportedError("CREATE TABLE ... AS takes its columns from the query alone")
    from tarsdb.engine.arrow import sql_type_of

    schema = answer.arrow().schema
    return tuple(
        ColumnSpec(name, str(answer.types[i] or sql_type_of(schema.field(i).type)))
        for i, name in enumerate(answer.names)
    )


def _define_table(context: Context, plan: CreateTable, specs: tuple[ColumnSpec, ...]) -> TableDef:
    writes = context.require_writes()
    refuse_reserved(plan.name)
    counted = Counter(spec.name.lower() for spec in specs)
    require_room(plan.name, len(specs))
    doubled = next((name for name, count in counted.items() if count > 1), None)
    if doubled is not None or not counted:
        raise CatalogError(
            f"table {plan.name}: column {doubled!r} is named twice"
            if doubled
            else f"table {plan.name} needs at least one column"
        )
    marked = tuple(spec.name for spec in specs if spec.primary_key)
    if len(marked) > 1 or (marked and plan.primary_key):
        raise CatalogError(
            f"table {plan.name} has more than one PRIMARY KEY",
            hint=f"for a key of several columns write PRIMARY KEY ({', '.join(marked)}) once",
        )
    key = plan.primary_key or marked
    columns = tuple(define_column(i + 1, numbered(spec, key)) for i, spec in enumerate(specs))
    table = TableDef(writes.new_id(), plan.name, columns, next_column_id=len(columns) + 1)
    key_ids = _column_ids(table, key, "PRIMARY KEY")
    table = replace(table, primary_key=key_ids, checks=named_checks(plan.name, specs, plan.checks))
    uniques = [(None, (spec.name,)) for spec in specs if spec.unique and not spec.primary_key]
    indexes = []
    if key:
        indexes.append(_index(context, table, (f"{plan.name}_pkey", key_ids, "primary key")))
    for name, of in (*uniques, *plan.uniques):
        ids = _column_ids(table, of, "UNIQUE")
        label = name or "_".join((plan.name, *of, "key"))
        indexes.append(_index(context, table, (label, ids, "unique")))
    table = replace(table, indexes=tuple(indexes))
    check_identity(table)
    validate_expressions(context, table)
    return table


def require_room(table: str, columns: int) -> None:
    """Raise CatalogError for more columns than a table can have."""
    if columns > MOST_COLUMNS:
        raise CatalogError(f"table {table}: {columns} columns, the most is {MOST_COLUMNS}")


def define_column(column_id: int, spec: ColumnSpec) -> ColumnDef:
    """Return the column that a specification asks for."""
    refuse_reserved_column(spec.name)
    return ColumnDef(
        column_id, spec.name, parse_type(spec.type), spec.not_null or bool(spec.identity),
        spec.default, spec.generated, identity=spec.identity,
    )  # fmt: skip


def refuse_view(context: Context, name: str) -> None:
    """Raise CatalogError where a view has that name."""
    if context.catalog.view(name) is not None:
        raise CatalogError(f"view {name!r} exists already")


def refuse_reserved(name: str) -> None:
    """Raise CatalogError for a name that no table or view can have."""
    if name.lower().startswith("tars_"):
        raise CatalogError(
            f"a table cannot be called {name}: names that begin with tars_ are the system's"
        )
    if name.lower() in STANDARD_TABLES:
        raise CatalogError(f"a table cannot be called {name}: the system's table is")
    if _INTERNAL.fullmatch(name.lower()):
        raise CatalogError(f"a table cannot be called {name}: queries use that name inside")


def refuse_reserved_column(name: str) -> None:
    """Raise CatalogError for a name that no column can have."""
    if name.lower() == ex.ROWID:
        raise CatalogError("a column cannot be called rowid: every table has that one already")
    if _INTERNAL.fullmatch(name.lower()):
        raise CatalogError(f"a column cannot be called {name}: queries use that name inside")


def named_checks(
    table: str, specs: tuple[ColumnSpec, ...], given: tuple[tuple[str | None, str], ...]
) -> tuple[tuple[str, str], ...]:
    """Return the CHECKs of columns and of a table, each with a name."""
    named = [(f"{table}_{spec.name}_check", text) for spec in specs for text in spec.checks]
    for name, text in given:
        named.append((name or f"{table}_check{len(named) + 1}", text))
    return tuple(named)


def _column_ids(
    table: TableDef, names: tuple[str, ...], clause: str, vectors: bool = False
) -> tuple[int, ...]:
    found = []
    for name in names:
        column = table.column(name)
        if column is None:
            raise CatalogError(f"{clause} of table {table.name}: there is no column {name!r}")
        if column.type.is_vector and not vectors:
            raise CatalogError(f"{clause} of table {table.name}: {name} is a {column.type}")
        if column.id in found:
            raise CatalogError(f"{clause} of table {table.name}: column {name} is named twice")
        found.append(column.id)
    return tuple(found)


def _index(context: Context, table: TableDef, what: tuple[str, tuple[int, ...], str]) -> IndexDef:
    name, column_ids, origin = what
    if _find_index(context, name) is not None:
        raise CatalogError(f"index {name!r} exists already")
    number = context.require_writes().new_id()
    return IndexDef(number, name, table.name, column_ids, unique=True, origin=origin)


def publish(context: Context, table: TableDef) -> None:
    """Put a table's definition in the write set and have the statement see it."""
    context.require_writes().put_object("table", table.name, table)
    context.refresh()


def create_index(context: Context, plan: CreateIndex) -> Result:
    """Run CREATE INDEX; its entries are written at commit."""
    if plan.method not in ("btree", AUTO, *METHODS):
        raise NotSupportedError(
            f"CREATE INDEX ... USING {plan.method} is not built yet",
            hint=f"USING {', '.join((*METHODS, AUTO))}; without one, searches are exact",
        )
    table = require_table(context, plan.table)
    ids = _column_ids(table, plan.columns, "CREATE INDEX", vectors=plan.method != "btree")
    name = plan.name or "_".join((table.name, *plan.columns, "idx"))
    if _find_index(context, name) is not None:
        if plan.if_not_exists:
            return DONE
        raise CatalogError(f"index {name!r} exists already")
    writes = context.require_writes()
    index = IndexDef(writes.new_id(), name, table.name, ids, plan.unique, plan.method)
    if plan.method != "btree":
        index = _vector_index(context, table, index, dict(plan.options))
    view = context.view(table)
    changed = replace(table, indexes=(*table.indexes, index))
    publish(context, changed)
    if plan.method == "btree":
        writes.rebuild_index(changed, index, view, context.engines.interrupt.check)
        return DONE
    return index_build.choices([(index, index_build.publish(context, changed, index))])


def _vector_index(
    context: Context, table: TableDef, index: IndexDef, options: dict[str, Any]
) -> IndexDef:
    """Check what an index of vectors is asked for; return it with its options."""
    if len(index.column_ids) != 1 or index.unique:
        raise NotSupportedError(
            f"index {index.name}: USING {index.method} indexes one column, and is not UNIQUE"
        )
    column = table.column_by_id(index.column_ids[0])
    if not column.type.is_vector:
        raise NotSupportedError(
            f"index {index.name}: USING {index.method} over {column.name} {column.type}, "
            "expected a vector column"
        )
    function = references.pinned_metric(context, options, column, index.name)
    if function is not None:
        options["metric"] = options.pop("navigate", "l2")  # what its parts are made for
        index = replace(index, function=function.name, digest=function.digest)
    checked = index_build.checked_options(index.method, options, column.type, index.name)
    return replace(index, options=checked)


def _find_index(context: Context, name: str) -> tuple[TableDef, IndexDef] | None:
    for table in context.catalog.tables():
        for index in table.indexes:
            if index.name.lower() == name.lower():
                return table, index
    return None


def drop_table(context: Context, table: TableDef) -> None:
    """Drop a table with its rows and indexes."""
    writes = context.require_writes()
    for index in table.indexes:
        writes.set_parts(index.id, None)
    writes.drop_table_data(table)
    writes.delete_object("table", table.name)
    context.refresh()


def truncate(context: Context, plan: Truncate) -> Result:
    """Remove all rows of a table at once: another table of the same definition takes its place."""
    table = require_table(context, plan.name)
    rows = context.view(table).count()
    drop_table(context, table)
    writes = context.require_writes()
    indexes = tuple(replace(index, id=writes.new_id()) for index in table.indexes)
    for index in indexes:
        if index.method != "btree":
            writes.set_parts(index.id, ())  # an index without a list of parts counts as dropped
    publish(context, replace(table, id=writes.new_id(), indexes=indexes))
    return Result(changed=rows)


def drop_index(context: Context, plan: Drop) -> Result:
    """Run DROP INDEX."""
    found = _find_index(context, plan.name)
    if found is None:
        if plan.if_exists:
            return DONE
        raise CatalogError(f"index {plan.name!r} does not exist")
    table, index = found
    if index.origin == "primary key":
        raise CatalogError(f"cannot drop index {index.name}: it is the primary key of {table.name}")
    kept = tuple(i for i in table.indexes if i.id != index.id)
    context.require_writes().set_parts(index.id, None)
    publish(context, replace(table, indexes=kept))
    return DONE


def require_table(context: Context, name: str) -> TableDef:
    """Return a table by its name, or raise CatalogError."""
    table = context.catalog.table(name)
    if table is None:
        raise CatalogError(
            f"table {name!r} does not exist",
            hint=f"tables: {', '.join(context.catalog.table_names()) or 'none yet'}",
        )
    return table
