"""CREATE and DROP of named objects; tables have a module of their own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tarsdb.engine import references, tables
from tarsdb.engine.context import Context
from tarsdb.engine.model_import import import_model
from tarsdb.engine.result import Result
from tarsdb.engine.tables import DONE
from tarsdb.errors import (
    CatalogError,
    NotSupportedError,
    OperationalError,
    UdfValidationError,
)
from tarsdb.schema import FunctionDef, ModuleDef
from tarsdb.sql.plan import (
    AlterTable,
    CreateFunction,
    CreateIndex,
    CreateModel,
    CreateModule,
    CreateTable,
    Drop,
)
from tarsdb.types import SqlType, parse_type


def run_ddl(context: Context, plan: Any) -> Result:
    """Run one DDL plan."""
    return _ACTIONS[type(plan)](context, plan)  # type: ignore[no-any-return]


def _create_model(context: Context, plan: CreateModel) -> Result:
    if not _may_create(context, "model", plan):
        return DONE
    writes = context.require_writes()
    model = import_model(writes, plan.name, plan.source, plan.options)
    writes.put_object("model", model.name, model)
    context.refresh()
    return DONE


def _may_create(context: Context, kind: str, plan: Any) -> bool:
    existing = getattr(context.catalog, kind)(plan.name)
    if existing is None or plan.or_replace:
        return True
    if plan.if_not_exists:
        return False
    raise CatalogError(f"{kind} {plan.name!r} exists already")


def _create_module(context: Context, plan: CreateModule) -> Result:
    from tarsdb.udf_sandbox import inspect_module, to_wasm

    if not _may_create(context, "module", plan):
        return DONE
    try:
        code = Path(plan.source).expanduser().read_bytes()
    except OSError as error:
        raise OperationalError(f"module {plan.name}: cannot read {plan.source}: {error}") from error
    found = hashlib.sha256(code).hexdigest()
    wanted = str(plan.options.get("sha256", found)).lower()
    unknown = set(plan.options) - {"sha256"}
    if unknown:
        raise NotSupportedError(f"CREATE MODULE {plan.name}: option {sorted(unknown)[0]!r}")
    if wanted != found:
        raise UdfValidationError(
            f"module {plan.name}: sha256 of {plan.source} is {found}, the statement says {wanted}"
        )
    code = to_wasm(code)
    inspect_module(code)
    writes = context.require_writes()
    module = ModuleDef(writes.new_id(), plan.name, writes.put_blob(code), found, len(code))
    writes.put_object("module", module.name, module)
    context.refresh()
    return DONE


def _create_function(context: Context, plan: CreateFunction) -> Result:
    if not _may_create(context, "function", plan):
        return DONE
    existing = context.catalog.function(plan.name)
    if existing is not None:
        references.refuse_dependents(context, "function", existing.name, "replace")
    if plan.language.lower() != "wasm":
        raise NotSupportedError(
            f"function {plan.name}: LANGUAGE {plan.language} is not built yet",
            hint="LANGUAGE wasm, or Connection.create_function for trusted Python",
        )
    arguments = tuple((name, parse_type(text)) for name, text in plan.arguments)
    returns = parse_type(plan.returns)
    digest, export = _function_code(context, plan, [t for _, t in arguments], returns)
    writes = context.require_writes()
    function = FunctionDef(
        writes.new_id(), plan.name, arguments, returns, "wasm", plan.module, export, digest,
        plan.strict, plan.volatility, dict(plan.options),
    )  # fmt: skip
    writes.put_object("function", function.name, function)
    context.refresh()
    return DONE


def _function_code(
    context: Context, plan: CreateFunction, arguments: list[SqlType], returns: SqlType
) -> tuple[str, str]:
    """Check signature and limits; return the digest of the code and the export's name."""
    from tarsdb.udf_sandbox import check_signature, inspect_module, limits_from_options, to_wasm

    limits_from_options(dict(plan.options))
    export = plan.export or plan.name
    if plan.module is not None:
        module = context.catalog.module(plan.module)
        if module is None:
            raise CatalogError(f"module {plan.module!r} does not exist")
        code = context.read_blob(module.digest)
        check_signature(inspect_module(code), export, arguments, returns, plan.strict)
        return module.digest, export
    code = to_wasm(plan.code or "")
    check_signature(inspect_module(code), export, arguments, returns, plan.strict)
    return context.require_writes().put_blob(code), export


def _drop(context: Context, plan: Drop) -> Result:
    kind = plan.kind.lower()
    if kind == "index":
        return tables.drop_index(context, plan)
    existing = getattr(context.catalog, kind)(plan.name)
    if existing is None:
        if plan.if_exists:
            return DONE
        raise CatalogError(f"{kind} {plan.name!r} does not exist")
    if kind == "table":
        tables.drop_table(context, existing)
        return DONE
    references.refuse_dependents(context, kind, existing.name)
    context.require_writes().delete_object(kind, existing.name)
    context.refresh()
    return DONE


_ACTIONS: dict[type, Any] = {
    CreateTable: tables.create_table, AlterTable: tables.alter_table,
    CreateIndex: tables.create_index, CreateModel: _create_model, CreateModule: _create_module,
    CreateFunction: _create_function, Drop: _drop,
}  # fmt: skip
