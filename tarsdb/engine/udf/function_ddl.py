"""CREATE MODULE and CREATE FUNCTION: code into the file, once it fits what was declared."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from tarsdb.engine import references
from tarsdb.engine.context import Context
from tarsdb.engine.references import may_create
from tarsdb.engine.result import Result
from tarsdb.engine.tables import DONE
from tarsdb.engine.udf import capabilities, function_cache
from tarsdb.errors import (
    BindError,
    CatalogError,
    NotSupportedError,
    OperationalError,
    UdfValidationError,
)
from tarsdb.schema import ROLES, FunctionDef, ModuleDef
from tarsdb.sql.plan import CreateFunction, CreateModule
from tarsdb.types import Kind, parse_type


def create_module(context: Context, plan: CreateModule) -> Result:
    """Run CREATE MODULE."""
    from tarsdb.udf_sandbox import CAPABILITIES, inspect_module, to_wasm

    if not may_create(context, "module", plan):
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
    inspect_module(code, allow=CAPABILITIES)
    writes = context.require_writes()
    module = ModuleDef(writes.new_id(), plan.name, writes.put_blob(code), found, len(code))
    writes.put_object("module", module.name, module)
    context.refresh()
    return DONE


def create_function(context: Context, plan: CreateFunction) -> Result:
    """Run CREATE FUNCTION of any kind."""
    if not may_create(context, "function", plan):
        return DONE
    existing = context.catalog.function(plan.name)
    if existing is not None:
        references.refuse_dependents(context, "function", existing.name, "replace")
    function = _defined(plan)
    capabilities.check(context, function, _granted(function))
    function_cache.check(function)
    writes, code = context.require_writes(), _code(context, plan)
    _check(function, code)
    function = replace(function, id=writes.new_id(), digest=writes.put_blob(code))
    writes.put_object("function", function.name, function)
    context.refresh()
    return DONE


def _defined(plan: CreateFunction) -> FunctionDef:
    """Return the function as it was declared, its code not yet known."""
    arguments = tuple((name, parse_type(text)) for name, text in plan.arguments)
    columns = tuple((name, parse_type(text)) for name, text in plan.columns)
    if plan.kind == "table" and not arguments:
        raise NotSupportedError(
            f"function {plan.name}: a table function without arguments is not supported",
            hint="give it one, such as the number of rows",
        )
    options = dict(plan.options)
    role = str(options.pop("role", "")).lower()
    lookup, embed = _looked_up(plan.name, options), str(options.pop("embed", ""))
    is_cached = options.pop("cache", False)
    if not isinstance(is_cached, bool):
        raise BindError(f"function {plan.name}: cache is {is_cached!r}, neither true nor false")
    if role and role not in ROLES:
        raise BindError(
            f"function {plan.name}: role {role!r} is not known", hint=f"roles: {', '.join(ROLES)}"
        )
    return FunctionDef(
        0, plan.name, arguments, columns[0][1] if columns else parse_type(plan.returns),
        plan.language.lower(), plan.module, plan.export or plan.name, "", plan.strict,
        plan.volatility, options, kind=plan.kind, columns=columns, role=role, lookup=lookup,
        embed=embed, is_cached=is_cached,
    )  # fmt: skip


def _granted(function: FunctionDef) -> tuple[str, ...]:
    if "allow" not in function.options:
        return ()
    from tarsdb.udf_sandbox import limits_from_options

    return limits_from_options(function.options).allow


def _looked_up(name: str, options: dict[str, Any]) -> tuple[str, ...]:
    """Take ``lookup = 'table(key, value)'`` out of the options."""
    text = options.pop("lookup", None)
    if text is None:
        return ()
    found = re.fullmatch(r"\s*(\w+)\s*\(\s*(\w+)\s*,\s*(\w+)\s*\)\s*", str(text))
    if found is None:
        raise BindError(
            f"function {name}: lookup = {text!r} is not understood", hint="'table(key, value)'"
        )
    return found.groups()


def _code(context: Context, plan: CreateFunction) -> bytes:
    from tarsdb.udf_sandbox import to_wasm

    if plan.language.lower() != "wasm":
        return _source(plan)
    if plan.module is None:
        return to_wasm(plan.code or "")
    module = context.catalog.module(plan.module)
    if module is None:
        raise CatalogError(f"module {plan.module!r} does not exist")
    return context.read_blob(module.digest)


def _source(plan: CreateFunction) -> bytes:
    if plan.code is None:
        raise BindError(
            f"function {plan.name}: FROM {plan.module} is a WebAssembly module, the language is "
            f"{plan.language}",
            hint="AS $$ the function's source $$",
        )
    return plan.code.encode()


def _check_source(function: FunctionDef, text: str, backend: str) -> None:
    """Raise unless a function in source text is one that its language's guest runs."""
    from tarsdb.udf_sandbox import Source, check_source

    what = f"function {function.name}: LANGUAGE {function.language}"
    if backend != "hyperlight":
        raise BindError(
            f"{what} runs on backend 'hyperlight' only, the function's is {backend!r}",
            hint="WITH (backend = 'hyperlight')",
        )
    if function.kind != "scalar" or function.role:
        raise NotSupportedError(
            f"{what} is for scalar functions, this is {function.role or function.kind}",
            hint="LANGUAGE wasm",
        )
    types = [sql_type for _, sql_type in function.arguments]
    code = Source(function.language, text)
    check_source(code, function.export, types, function.returns)


def _check(function: FunctionDef, code: bytes) -> None:
    """Raise unless the module's exports fit the signature, and the options mean something."""
    from tarsdb.udf_sandbox import (
        check_aggregate,
        check_columnar,
        check_signature,
        inspect_module,
        limits_from_options,
    )

    limits = limits_from_options(function.options)
    if function.language != "wasm":
        _check_source(function, code.decode(), limits.backend)
        return
    if function.role:
        _check_role(function)
    info = inspect_module(code, allow=limits.allow)
    types = [sql_type for _, sql_type in function.arguments]
    if function.kind == "aggregate":
        check_aggregate(info, function.export, types)
    elif function.kind == "table":
        check_columnar(info, function.export, types)
    else:
        check_signature(info, function.export, types, function.returns, function.strict)


def _check_role(function: FunctionDef) -> None:
    from tarsdb.udf_sandbox import check_metric

    role = function.role
    kind = "table" if role == "tokenizer" else "scalar"
    if function.kind != kind or not function.strict:
        raise BindError(
            f"function {function.name}: role {role!r} is for STRICT {kind} functions",
            hint=_TOKENIZER if kind == "table" else None,
        )
    if role == "tokenizer":
        _check_tokenizer(function)
    elif role == "metric":
        check_metric(function.name, [t for _, t in function.arguments], function.returns)
    elif function.returns.kind not in _RETURNS[role]:
        wanted = " or ".join(kind.value for kind in _RETURNS[role])
        raise UdfValidationError(
            f"function {function.name}: role {role!r} needs RETURNS {wanted}, "
            f"not {function.returns}"
        )


def _check_tokenizer(function: FunctionDef) -> None:
    takes = [sql_type.kind for _, sql_type in function.arguments]
    gives = [sql_type.kind for _, sql_type in function.columns]
    if takes != [Kind.TEXT] or gives not in ([Kind.INT] * 2, [Kind.INT, Kind.INT, Kind.TEXT]):
        raise UdfValidationError(
            f"function {function.name}: role 'tokenizer' needs another signature", hint=_TOKENIZER
        )
    if function.volatility.upper() != "IMMUTABLE":
        raise BindError(
            f"function {function.name}: role 'tokenizer' is for IMMUTABLE functions, this is "
            f"{function.volatility.upper()}"
        )


_TOKENIZER = "(body TEXT) RETURNS TABLE (first INT, behind INT), and a third column of TEXT at will"
_RETURNS = {"filter": (Kind.BOOLEAN,), "reranker": (Kind.REAL, Kind.DOUBLE)}
