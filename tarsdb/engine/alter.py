"""ALTER TABLE: a table's name, and its columns, as another definition in the write set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tarsdb.engine.context import Context
from tarsdb.engine.result import Result
from tarsdb.engine.stored_expressions import validate_expressions
from tarsdb.engine.tables import (
    DONE,
    define_column,
    named_checks,
    publish,
    refuse_reserved,
    refuse_reserved_column,
    refuse_view,
    require_room,
    require_table,
)
from tarsdb.engine.writing import derive, triggers
from tarsdb.engine.writing.identity import check_identity
from tarsdb.errors import BindError, CatalogError, IntegrityError, NotSupportedError
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql import bind_expression, rename_column, rename_table
from tarsdb.sql import expressions as ex
from tarsdb.sql.names import quoted
from tarsdb.sql.plan import AlterTable
from tarsdb.types import parse_type, to_storage


def alter_table(context: Context, plan: AlterTable) -> Result:
    """Run one ALTER TABLE action."""
    _ACTIONS[plan.action](context, require_table(context, plan.table), plan)
    return DONE


def _add_column(context: Context, table: TableDef, plan: AlterTable) -> None:
    spec = plan.spec
    assert spec is not None
    if table.column(spec.name) is not None:
        if plan.if_exists:
            return
        raise CatalogError(f"table {table.name} has a column {spec.name!r} already")
    if spec.identity:
        raise NotSupportedError(
            "ADD COLUMN cannot add an IDENTITY column", hint="every row has the column rowid"
        )
    if spec.primary_key or spec.unique:
        raise NotSupportedError(
            "ADD COLUMN cannot add a key", hint="add the column, then CREATE UNIQUE INDEX"
        )
    require_room(table.name, len(table.columns) + 1)
    column = define_column(_new_column_id(context), spec)
    column, backfill = _missing_value(context, table, column)
    changed = replace(
        table,
        columns=(*table.columns, column),
        next_column_id=column.id + 1,
        checks=(*table.checks, *named_checks(table.name, (spec,), ())),
    )
    if column.not_null and column.missing is None and not backfill and context.view(table).count():
        raise IntegrityError(
            f"ADD COLUMN {column.name} NOT NULL: table {table.name} has rows",
            hint="give the column a DEFAULT",
        )
    validate_expressions(context, changed)
    publish(context, changed)
    if backfill or spec.checks:
        text = (column.generated or column.default) if backfill else None
        _compute(context, changed, column, text)
    elif column.not_null and column.missing is None:
        context.require_writes().depend_on_rows(table, _CHANGED)  # it has none


def _new_column_id(context: Context) -> int:
    """Return a number that no column of any transaction had, one that was rolled back included.

    What caches know of a column they know by its number.
    """
    return _FIRST_ADDED + context.require_writes().new_id()


def _missing_value(context: Context, table: TableDef, column: ColumnDef) -> tuple[ColumnDef, bool]:
    """Return the column with what older rows hold, and whether each row must be computed."""
    if column.generated is not None:
        return column, True
    if column.default is None:
        return column, False
    expression = bind_expression(column.default, table, context.catalog)
    if not isinstance(expression, ex.Literal) or column.type.is_vector:
        return column, True
    stored = to_storage(expression.value, column.type, column.name)
    plain = stored.hex() if isinstance(stored, bytes) else stored
    return replace(column, missing=plain), False


def _compute(context: Context, table: TableDef, column: ColumnDef, text: str | None) -> None:
    """Give a new column its values in all rows, where it has an expression; check them."""
    view, writes = context.view(table), context.require_writes()
    ids = {column.id} | derive.inputs(context, table, {column.id})
    expression = None if text is None else derive.bound(context, table, text)
    if expression is not None:
        ids |= derive.sources(expression)
    for chunk in list(view.chunks([])):
        context.engines.interrupt.check()
        rows = len(chunk.rowids)
        columns = dict(zip(ids, view.rows(chunk.rowids, list(ids)), strict=True))
        if expression is not None:
            answer = derive.evaluate_bound(context, expression, table, columns, rows)
            columns[column.id] = derive.cast_column(answer, column, rows)
        derive.check(context, table, columns, rows, {column.id})
        if expression is not None:
            writes.update_columns(table, view, chunk.rowids, {column.id: columns[column.id]})
    writes.depend_on_rows(table, _CHANGED)


def _drop_column(context: Context, table: TableDef, plan: AlterTable) -> None:
    column = table.column(plan.column or "")
    if column is None:
        if plan.if_exists:
            return
        raise _no_column(table, plan)
    _refuse_users(context, table, column, "drop")
    if len(table.columns) == 1:
        raise CatalogError(f"{column.name} is the only column of table {table.name}")
    kept = tuple(c for c in table.columns if c.id != column.id)
    publish(context, replace(table, columns=kept))


def _refuse_users(context: Context, table: TableDef, column: ColumnDef, verb: str) -> None:
    index = next((i for i in table.indexes if column.id in i.column_ids), None)
    if index is not None and (verb == "drop" or column.type.is_vector):
        raise CatalogError(
            f"cannot {verb} {table.name}.{column.name}: index {index.name} uses it",
            hint=f"DROP INDEX {index.name} first",
        )
    _refuse_triggers(context, table, column, verb)
    texts = [(f"generated column {c.name}", c.generated) for c in table.columns if c.generated]
    texts += [(f"CHECK {name}", text) for name, text in table.checks]
    for label, text in texts:
        if column.id in derive.sources(bind_expression(text, table, context.catalog)):
            raise CatalogError(f"cannot {verb} {table.name}.{column.name}: {label} uses it")


def _refuse_triggers(context: Context, table: TableDef, column: ColumnDef, verb: str) -> None:
    if column.id in triggers.columns_of(context, table):
        raise CatalogError(f"cannot {verb} {table.name}.{column.name}: a trigger reads it")


def _rename_column(context: Context, table: TableDef, plan: AlterTable) -> None:
    column, new_name = _require_column(table, plan), plan.new_name or ""
    if table.column(new_name) not in (None, column):
        raise CatalogError(f"table {table.name} has a column {new_name!r} already")
    refuse_reserved_column(new_name)
    _refuse_triggers(context, table, column, "rename")
    renamed = _with_column(table, replace(column, name=new_name))

    def reading(label: str, text: str) -> str:
        """Return a stored expression with the new name where it reads the column."""
        read = derive.sources(bind_expression(text, table, context.catalog))
        if column.id not in read:
            return text
        try:
            changed = rename_column(text, column.name, new_name)
            if derive.sources(bind_expression(changed, renamed, context.catalog)) == read:
                return changed
        except BindError as error:
            raise CatalogError(
                f"cannot rename {table.name}.{column.name}: {label}: {error.message}"
            ) from error
        raise CatalogError(f"cannot rename {table.name}.{column.name}: {label} uses it")

    publish(context, _with_expressions(renamed, reading))


def _with_expressions(table: TableDef, change: Callable[[str, str], str]) -> TableDef:
    """Return a table with other texts of CHECKs and generated columns, of a label and the text."""
    columns = (
        c if c.generated is None
        else replace(c, generated=change(f"generated column {c.name}", c.generated))
        for c in table.columns
    )  # fmt: skip
    checks = ((name, change(f"CHECK {name}", text)) for name, text in table.checks)
    return replace(table, columns=tuple(columns), checks=tuple(checks))


def _rename(context: Context, table: TableDef, plan: AlterTable) -> None:
    new_name = plan.new_name or ""
    refuse_reserved(new_name)
    if context.catalog.table(new_name) not in (None, table):
        raise CatalogError(f"table {new_name!r} exists already")
    refuse_view(context, new_name)
    indexes = tuple(replace(index, table=new_name) for index in table.indexes)
    renamed = _with_expressions(
        replace(table, name=new_name, indexes=indexes),
        lambda _, text: rename_table(text, table.name, new_name),
    )
    validate_expressions(context, renamed)
    context.require_writes().delete_object("table", table.name)
    publish(context, renamed)


def _set_default(context: Context, table: TableDef, plan: AlterTable) -> None:
    """SET DEFAULT, DROP DEFAULT: for rows to come."""
    column = _require_column(table, plan)
    if plan.expression is not None and column.is_derived:
        raise CatalogError(f"{table.name}.{column.name} is computed, it has no DEFAULT")
    column = replace(column, default=plan.expression)
    changed = _with_column(table, column)
    validate_expressions(context, changed)
    _require_default(context, changed, column)
    publish(context, changed)


def _require_default(context: Context, table: TableDef, column: ColumnDef) -> None:
    """Raise DataError where a column's DEFAULT is no value of its type."""
    if column.default is not None:
        expression = bind_expression(column.default, table, context.catalog)
        derive.cast_column(derive.evaluate_bound(context, expression, table, {}, 1), column, 1)


def _set_not_null(context: Context, table: TableDef, plan: AlterTable) -> None:
    column = replace(_require_column(table, plan), not_null=True)
    changed = _with_column(table, column)
    for chunk in context.view(table).chunks([column.id]):
        context.engines.interrupt.check()
        validity = chunk.columns[0].validity
        if validity is not None and not validity.all():
            raise IntegrityError(
                f"SET NOT NULL: {table.name}.{column.name} is NULL in "
                f"{int((~validity).sum())} of {len(validity)} rows that were looked at",
                hint=f"UPDATE {quoted(table.name)} SET {quoted(column.name)} = ... "
                f"WHERE {quoted(column.name)} IS NULL",
            )
    publish(context, changed)
    context.require_writes().depend_on_rows(table, _CHANGED)


def _drop_not_null(context: Context, table: TableDef, plan: AlterTable) -> None:
    column = _require_column(table, plan)
    if column.id in table.primary_key or column.identity:
        what = "part of the PRIMARY KEY" if column.id in table.primary_key else "an IDENTITY column"
        raise CatalogError(f"{table.name}.{column.name} is {what}, it cannot be NULL")
    publish(context, _with_column(table, replace(column, not_null=False)))


def _set_type(context: Context, table: TableDef, plan: AlterTable) -> None:
    """Put a column of another type, and the values cast to it, in the place of a column."""
    old = _require_column(table, plan)
    assert plan.spec is not None
    _refuse_users(context, table, old, "change the type of")
    if old.generated is not None:
        raise CatalogError(
            f"cannot change the type of generated column {table.name}.{old.name}",
            hint="drop it and add it again",
        )
    new = replace(old, id=_new_column_id(context), type=parse_type(plan.spec.type), missing=None)
    changed = _exchanged(context, table, old, new)
    check_identity(changed)
    _require_default(context, changed, new)
    beside = replace(new, name=_BESIDE, not_null=False, default=None, identity="")
    both = replace(table, columns=(*table.columns, beside), next_column_id=new.id + 1)
    publish(context, both)
    name = quoted(old.name)
    of_vectors = old.type.is_vector and new.type.is_vector
    cast = name if of_vectors else f"CAST({name} AS {plan.spec.type})"
    _compute(context, both, replace(beside, name=old.name), plan.expression or cast)
    publish(context, changed)
    view, writes = context.view(changed), context.require_writes()
    for chunk in view.chunks([new.id]):
        derive.check(context, changed, {new.id: chunk.columns[0]}, len(chunk.rowids), {new.id})
    for index in changed.indexes:
        if new.id in index.column_ids:
            writes.rebuild_index(changed, index, view, context.engines.interrupt.check)


def _exchanged(context: Context, table: TableDef, old: ColumnDef, new: ColumnDef) -> TableDef:
    """Return a table with a new column in the place of an old one, in keys and indexes too."""

    def ids(found: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(new.id if each == old.id else each for each in found)

    writes = context.require_writes()
    indexes = tuple(
        replace(index, id=writes.new_id(), column_ids=ids(index.column_ids))
        if old.id in index.column_ids else index
        for index in table.indexes
    )  # fmt: skip
    if new.type.is_vector and indexes != table.indexes:
        raise CatalogError(f"an index over {table.name}.{old.name} cannot hold a {new.type}")
    return replace(
        table, columns=tuple(new if c.id == old.id else c for c in table.columns),
        primary_key=ids(table.primary_key), indexes=indexes,
        next_column_id=new.id + 1,
    )  # fmt: skip


def _with_column(table: TableDef, column: ColumnDef) -> TableDef:
    columns = tuple(column if c.id == column.id else c for c in table.columns)
    return replace(table, columns=columns)


def _require_column(table: TableDef, plan: AlterTable) -> ColumnDef:
    column = table.column(plan.column or "")
    if column is None:
        raise _no_column(table, plan)
    return column


def _no_column(table: TableDef, plan: AlterTable) -> CatalogError:
    return CatalogError(f"table {table.name} has no column {plan.column!r}")


_FIRST_ADDED = 1 << 20  # those of CREATE TABLE have numbers from 1 on
_CHANGED = "its definition was changed"
_BESIDE = "__new"  # no user's column can be called that
_ACTIONS = {
    "add_column": _add_column, "drop_column": _drop_column, "rename_column": _rename_column,
    "rename": _rename, "set_default": _set_default, "drop_default": _set_default,
    "set_not_null": _set_not_null, "drop_not_null": _drop_not_null, "set_type": _set_type,
}  # fmt: skip
