"""CREATE and DROP of named objects; tables have a module of their own."""

from __future__ import annotations

from typing import Any

from tarsdb.engine import references, tables
from tarsdb.engine.alter import alter_table
from tarsdb.engine.context import Context
from tarsdb.engine.inference.loaded_models import ADAPTER_OF
from tarsdb.engine.inference.model_import import import_adapter, import_model
from tarsdb.engine.references import may_create
from tarsdb.engine.result import Result
from tarsdb.engine.tables import DONE
from tarsdb.engine.udf.function_ddl import create_function, create_module
from tarsdb.engine.views import create_view
from tarsdb.engine.writing.triggers import create_trigger, drop_trigger
from tarsdb.errors import CatalogError
from tarsdb.sql.plan import (
    AlterTable,
    CreateFunction,
    CreateIndex,
    CreateModel,
    CreateModule,
    CreateTable,
    CreateTrigger,
    CreateView,
    Drop,
    Truncate,
)


def run_ddl(context: Context, plan: Any) -> Result:
    """Run one DDL plan."""
    return _ACTIONS[type(plan)](context, plan)  # type: ignore[no-any-return]


def _create_model(context: Context, plan: CreateModel) -> Result:
    if not may_create(context, "model", plan):
        return DONE
    make = import_adapter if ADAPTER_OF in plan.options else import_model
    model = make(context, plan.name, plan.source, plan.options)
    existing = context.catalog.model(plan.name)
    if existing is not None and not model.computes_as(existing):
        references.refuse_dependents(context, "model", existing.name, "replace")
    context.require_writes().put_object("model", model.name, model)
    context.refresh()
    return DONE


def _drop(context: Context, plan: Drop) -> Result:
    kind = plan.kind.lower()
    if kind == "index":
        return tables.drop_index(context, plan)
    if kind == "trigger":
        return drop_trigger(context, plan)
    existing = getattr(context.catalog, kind)(plan.name)
    if existing is None:
        if plan.if_exists:
            return DONE
        other = next((k for k in ("table", "view") if getattr(context.catalog, k)(plan.name)), None)
        hint = f"{plan.name} is a {other}: DROP {other.upper()}" if other else None
        raise CatalogError(f"{kind} {plan.name!r} does not exist", hint=hint)
    if kind == "table":
        tables.drop_table(context, existing)
        return DONE
    if kind != "view":
        references.refuse_dependents(context, kind, existing.name)
    context.require_writes().delete_object(kind, existing.name)
    context.refresh()
    return DONE


_ACTIONS: dict[type, Any] = {
    CreateTable: tables.create_table, AlterTable: alter_table,
    CreateIndex: tables.create_index, CreateModel: _create_model, CreateModule: create_module,
    CreateFunction: create_function, CreateTrigger: create_trigger,
    CreateView: create_view, Drop: _drop, Truncate: tables.truncate,
}  # fmt: skip
