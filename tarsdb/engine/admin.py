"""Statements about the database rather than its rows: SHOW, DESCRIBE, PRAGMA, EXPLAIN, upkeep."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from tarsdb import storage
from tarsdb.engine import executor, system_tables, views
from tarsdb.engine.context import Context
from tarsdb.engine.definitions import generated
from tarsdb.engine.inference import inference_cache, inference_figures, model_device, packed_weights
from tarsdb.engine.reading import access, ordered
from tarsdb.engine.result import Result
from tarsdb.engine.search import index_build, vector_search
from tarsdb.engine.settings import size_bytes
from tarsdb.engine.udf import function_figures
from tarsdb.errors import (
    CatalogError,
    DataError,
    NotSupportedError,
    ProgrammingError,
    ReadOnlyError,
)
from tarsdb.metrics import METRICS
from tarsdb.schema import ModelDef, TableDef
from tarsdb.sql import explain as explain_plan
from tarsdb.sql.plan import (
    Aggregate,
    Describe,
    Explain,
    Knn,
    Maintain,
    OneRow,
    PointLookup,
    Pragma,
    Relational,
    Scan,
    Show,
)
from tarsdb.types import BIGINT, TEXT

_SHOWN = {
    "tables": "tars_tables", "views": "tars_views", "indexes": "tars_indexes",
    "models": "tars_models", "functions": "tars_functions", "modules": "tars_modules",
    "all": "tars_settings", "settings": "tars_settings", "commits": "tars_commits",
    "metrics": "tars_metrics", "triggers": "tars_triggers",
}  # fmt: skip


def show(context: Context, plan: Show) -> Result:
    """SHOW TABLES and its like, or the value of one setting."""
    what = plan.what.lower()
    if what in _SHOWN:
        names, columns = system_tables.read(context, _SHOWN[what])
        if names[-1] == "sql":  # statements of many lines are for SELECT
            names, columns = names[:-1], columns[:-1]
        return Result(names, [column.type for column in columns], columns=columns)
    settings = context.engines.settings
    if what not in settings:
        raise ProgrammingError(
            f"SHOW {plan.what}: no such setting", hint=f"SHOW {', '.join(sorted(_SHOWN))}"
        )
    return Result([what], [TEXT], rows=[(settings.shown(what),)])


def describe(context: Context, plan: Describe) -> Result:
    """DESCRIBE a table, a view or a model."""
    if plan.kind == "model":
        model = context.catalog.model(plan.name)
        if model is None:
            raise CatalogError(f"model {plan.name!r} does not exist")
        return _text_table(("property", "value"), _model_rows(context, model))
    if plan.kind in ("function", "module"):
        raise NotSupportedError(
            f"DESCRIBE {plan.kind.upper()} is not supported",
            hint=f"SELECT * FROM tars_{plan.kind}s WHERE name = '{plan.name}'",
        )
    header = ("column", "type", "null", "key", "default", "generated")
    view = context.catalog.view(plan.name)
    if view is not None:
        found = views.columns_of(context, view)
        return _text_table(header, [(*column, "YES", None, None, None) for column in found])
    table = context.catalog.table(plan.name)
    if table is None:
        raise CatalogError(f"table {plan.name!r} does not exist", hint="SHOW TABLES lists them")
    return _text_table(header, _column_rows(table))


def _column_rows(table: TableDef) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for column in table.columns:
        is_key = column.id in table.primary_key
        unique = any(i.unique and i.column_ids == (column.id,) for i in table.indexes)
        key = "PRI" if is_key else "UNI" if unique else None
        nullable = "NO" if column.not_null or is_key else "YES"
        rows.append(
            (column.name, str(column.type), nullable, key, column.default, generated(column))
        )
    return rows


def _model_rows(context: Context, model: ModelDef) -> list[tuple[Any, ...]]:
    mode, stored, loaded, packed = system_tables.model_sizes(context, model)
    rows: list[tuple[Any, ...]] = [
        ("name", model.name), ("task", model.task), ("dim", str(model.dim)),
        ("numeric mode", mode), ("bytes stored", str(stored)), ("bytes loaded", str(loaded)),
        ("bytes packed", str(packed)), ("default version", model.default_version),
    ]  # fmt: skip
    for version in model.versions:
        text = f"{len(version.tensors)} tensors, {len(version.files)} files; {version.lineage}"
        rows.append((f"version {version.name}", text))
    rows += [(f"option {key}", str(value)) for key, value in sorted(model.options.items())]
    return rows


def _text_table(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Result:
    return Result(names, [TEXT] * len(names), rows=rows)


def explain(context: Context, plan: Explain) -> Result:
    """EXPLAIN: the plan and the access path; ANALYZE runs it and adds time and rows."""
    lines = [*explain_plan(plan.target), *access_notes(context, plan.target)]
    lines += model_device.notes(context, plan.target)
    if plan.analyze:
        if not isinstance(plan.target, (PointLookup, Scan, OneRow, Aggregate, Knn, Relational)):
            raise NotSupportedError("EXPLAIN ANALYZE runs queries only, it would change data")
        start = time.perf_counter()
        before = context.engines.done.snapshot()
        with METRICS.recorded() as done:
            result = executor.run(context, plan.target)
        took = (time.perf_counter() - start) * 1000
        lines.append(f"actual: {len(result)} rows in {took:.3f} ms")
        if done.get("index.exact_instead"):
            lines.append("search: exact instead: by the index it took longer or found too few rows")
        if done.get("udf_filter_inside"):
            lines.append("search: the filter was asked about the nodes the graph's search came to")
        after = context.engines.done.snapshot()
        lines += inference_figures.lines({n: v - before.get(n, 0) for n, v in after.items()})
        if context.budget is not None:
            lines += function_figures.lines(context.budget.figures)
    return _text_table(("plan",), [(line,) for line in lines])


def _relation_notes(context: Context, plan: Relational) -> list[str]:
    notes: list[str] = []
    for relation in plan.relations:
        if relation.knn is not None:
            knn = relation.knn
            if relation.window is not None:  # it begins with as many as the answer is to have
                knn = replace(knn, limit=relation.window[0], memo={})
            notes += [f"{relation.name}: {n}" for n in access_notes(context, knn)]
        elif relation.table is not None:
            rows = context.view(relation.table).count()
            notes.append(f"{relation.name}: scan {relation.table.name}, {rows} rows")
    return notes


def access_notes(context: Context, plan: Any) -> list[str]:
    """Return lines that say how rows are found at run time."""
    if isinstance(plan, Relational):
        return _relation_notes(context, plan)
    if not isinstance(plan, (Knn, Scan, Aggregate)):
        return []
    view = context.view(plan.table)
    try:
        run = (
            ordered.index_of(context, view, plan) if isinstance(plan, Scan) and plan.order else None
        )
        if run is not None:
            return [f"access: index {run.index.name} (order)"]
        chosen = access.choose(plan.table, plan.predicate, view, context)
    except ProgrammingError:  # EXPLAIN without bound parameters cannot choose yet
        return [f"access: chosen when parameters are bound, {view.count()} rows"]
    if chosen is not None:
        how = "range" if chosen.probe.is_range else "lookup"
        found = f"access: index {chosen.probe.index.name} ({how}), {len(chosen.rowids)} rows"
    else:
        found = f"access: scan, {view.count()} rows"
    if isinstance(plan, Knn):
        how = vector_search.explained(context, plan)
        return [f"search: {how}, {'filter first, ' if plan.predicate else ''}{found}"]
    return [found]


def pragma(context: Context, plan: Pragma) -> Result:
    """PRAGMA: checks, durability, sizes, and the results of models that the file keeps."""
    name = plan.name.lower()
    env = context.snapshot.env
    if name in ("integrity_check", "quick_check"):
        findings = storage.check(env, name == "integrity_check", context.engines.interrupt.check)
        return _text_table((name,), [(line,) for line in findings or ["ok"]])
    if name == "table_info":
        return _table_info(context, str(plan.value or ""))
    if name == "durability":
        if plan.value is not None:
            context.engines.settings.set("durability", plan.value)
        return _text_table((name,), [(context.engines.settings["durability"],)])
    if name == "database_size":
        return _text_table((name,), [(str(env.size_bytes()),)])
    if name == "inference_cache_size":
        return _inference_cache_size(context, plan.value)
    if name == "forget_inference":
        if not isinstance(plan.value, str):
            raise DataError(f"PRAGMA forget_inference takes a text in quotes, not {plan.value!r}")
        gone = inference_cache.forget(_writable(context), plan.value)
        return Result([name], [BIGINT], rows=[(gone,)])
    if name == "pack_models":
        _writable(context)
        return Result(["model", "bytes"], [TEXT, BIGINT], rows=packed_weights.pack_models(context))
    raise NotSupportedError(
        f"PRAGMA {plan.name} is not known",
        hint="PRAGMA integrity_check, quick_check, table_info, durability, database_size, "
        "inference_cache_size, forget_inference, pack_models",
    )


def _table_info(context: Context, name: str) -> Result:
    """Return the columns of a table as SQLite's pragma does."""
    table = context.catalog.table(name)
    if table is None:
        raise CatalogError(f"table {name!r} does not exist", hint="SHOW TABLES lists them")
    key = {column: place for place, column in enumerate(table.primary_key, 1)}
    rows = [
        (place, column.name, str(column.type), int(column.not_null or column.id in key),
         column.default, key.get(column.id, 0))
        for place, column in enumerate(table.columns)
    ]  # fmt: skip
    names = ("cid", "name", "type", "notnull", "dflt_value", "pk")
    return Result(names, [BIGINT, TEXT, TEXT, BIGINT, TEXT, BIGINT], rows=rows)


def _inference_cache_size(context: Context, limit: Any) -> Result:
    if limit is not None:
        nbytes = size_bytes("PRAGMA inference_cache_size", limit)
        inference_cache.set_limit(_writable(context), nbytes)
    with context.engines.env.read() as txn:
        row = inference_cache.figures(txn)
    return Result(["limit_bytes", "bytes", "results"], [BIGINT] * 3, rows=[row])


def _writable(context: Context) -> storage.Environment:
    if not context.engines.may_write:
        raise ReadOnlyError(f"{context.engines.env.path} is open read-only")
    return context.engines.env


def maintain(context: Context, plan: Maintain) -> Result:
    """VACUUM, OPTIMIZE, REINDEX, CHECKPOINT."""
    env = context.snapshot.env
    table = None
    if plan.name is not None and plan.action != "reindex":
        table = context.catalog.table(plan.name)
        if table is None:
            raise CatalogError(f"table {plan.name!r} does not exist")
    if plan.action in ("vacuum", "optimize"):
        context.snapshot.close()  # it would keep every page the rewriting frees
    if plan.action == "vacuum":
        storage.vacuum(env, table, context.engines.interrupt.check)
    elif plan.action == "optimize":
        storage.merge(env, table, force=True, check_stop=context.engines.interrupt.check)
        return _refresh_indexes(context, table)
    elif plan.action == "checkpoint":
        env.sync()
    else:
        return _reindex(context, plan)
    return Result()


def _refresh_indexes(context: Context, table: TableDef | None) -> Result:
    """Build vector indexes anew where rows were added or removed since."""
    env = context.snapshot.env
    build, built = index_build.Build.of(context), []
    for each in storage.tables_of(env):
        if table is not None and each.id != table.id:
            continue
        for index in each.indexes:
            if index.method != "btree":
                index_build.refresh(env, each, index, build, whole=True)
                built.append(index)
    with storage.Snapshot(env) as snapshot:
        return index_build.choices(
            (index, storage.known_parts(snapshot.txn, index.id)) for index in built
        )


def _reindex(context: Context, plan: Maintain) -> Result:
    writes = context.require_writes()
    rebuilt, built = 0, []
    for table in context.catalog.tables():
        for index in table.indexes:
            named = (plan.name or "").lower()
            if plan.name is None or named in (index.name.lower(), table.name.lower()):
                if index.method == "btree":
                    check = context.engines.interrupt.check
                    writes.rebuild_index(table, index, context.view(table), check)
                else:
                    built.append((index, index_build.publish(context, table, index)))
                rebuilt += 1
    if plan.name is not None and not rebuilt:
        raise CatalogError(f"REINDEX {plan.name}: no such table or index")
    return index_build.choices(built)
