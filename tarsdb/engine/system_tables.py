"""System tables: what a database holds and how it does, as relations."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

from tarsdb.columns import Column, from_list
from tarsdb.engine import definitions
from tarsdb.engine.context import Context
from tarsdb.engine.inference import inference_figures, model_device
from tarsdb.engine.inference.loaded_models import (
    adapted_model,
    key_of,
    loaded_models,
    numeric_mode,
)
from tarsdb.engine.standard_tables import STANDARD_TABLES
from tarsdb.engine.udf import function_figures
from tarsdb.errors import CatalogError
from tarsdb.metrics import METRICS
from tarsdb.schema import IndexDef, ModelDef, stored_bytes
from tarsdb.storage import commit_log, known_parts, packed
from tarsdb.types import BIGINT, BOOLEAN, DOUBLE, TEXT, TIMESTAMP, SqlType, to_storage

Rows = list[tuple[Any, ...]]


def _tables(context: Context) -> Rows:
    return [
        (
            t.name,
            context.view(t).count(),
            len(t.columns),
            len(t.indexes),
            t.version,
            definitions.create_table(t),
        )
        for t in context.catalog.tables()
    ]


def _columns(context: Context) -> Rows:
    return [
        (t.name, c.name, i + 1, str(c.type), not c.not_null and c.id not in t.primary_key,
         c.default, definitions.generated(c), c.id in t.primary_key)
        for t in context.catalog.tables()
        for i, c in enumerate(t.columns)
    ]  # fmt: skip


def _indexes(context: Context) -> Rows:
    return [
        (i.name, t.name, ", ".join(t.column_by_id(c).name for c in i.column_ids), i.method,
         i.unique, i.origin, *_choice(context, i), definitions.create_index(t, i),
         _asked(context, i))
        for t in context.catalog.tables()
        for i in t.indexes
    ]  # fmt: skip


def _choice(context: Context, index: IndexDef) -> tuple[str | None, str | None]:
    """Return what an index is made by, and why, where that was chosen."""
    stored = known_parts(context.snapshot.txn, index.id)
    return (stored[-1].method, stored[-1].reason) if stored and stored[-1].method else (None, None)


def _asked(context: Context, index: IndexDef) -> str | None:
    """Return what this process searched an index of vectors for, in words."""
    from tarsdb.engine.search.asked import observed

    found = observed(context.snapshot.env, index.id).summary()
    return str(found) if found.searches else None


def _recall_stats(context: Context) -> Rows:
    """Search every vector index for rows of its table; see ``engine.recall``."""
    from tarsdb.engine.search import recall, vector_index
    from tarsdb.engine.search.calibration import FEWEST as SAMPLE

    rows: Rows = []
    for table in context.catalog.tables():
        for index in table.indexes:
            if index.method == "btree":
                continue
            column = table.column_by_id(index.column_ids[0])
            op = vector_index.operator(index)
            head = index.name, table.name, column.name, index.method, index.options["metric"]
            sample = recall.draw(context, table, column, op, (SAMPLE, recall.K))
            if sample is None:
                rows.append((*head, 0, recall.K, *[None] * 4, None, None, recall.TOO_FEW))
                continue
            placed = vector_index.place(context, index, sample.flat)
            found = recall.measure(context, index, sample)
            rows.append(
                (
                    *head,
                    len(sample.queries),
                    recall.K,
                    found.effort,
                    found.recall,
                    None if found.us is None else float(found.us.mean()),
                    float(sample.exact_us.mean()),
                    None if placed is None else len(placed.fresh),
                    None if placed is None else len(placed.parts),
                    found.reason,
                )
            )
    return rows  # fmt: skip


def _models(context: Context) -> Rows:
    return [
        (m.name, m.task, m.dim, m.default_version, len(m.versions), *model_sizes(context, m))
        for m in context.catalog.models()
    ]


def model_sizes(context: Context, model: ModelDef) -> tuple[str, int, int, int]:
    """Return a model's numeric mode, its bytes in the file, in memory here, and packed in the file.

    All versions count; tensors that several share count once in the file.
    """
    tensors: dict[str, int] = {}
    for version in model.versions:
        for dtype, shape, digest in version.tensors.values():
            tensors[digest] = stored_bytes(dtype, shape)
    loaded = loaded_models(context.engines.env)
    in_memory = {version.weights_digest for version in model.versions}
    starts = [(w,) if adapted_model(model) else key_of(model, w) for w in in_memory]
    device = model_device.choose(context.engines.settings, [model], may_refuse=False)
    mode = numeric_mode(model.options, device)
    txn = context.snapshot.txn
    return (
        mode,
        sum(tensors.values()),
        sum(loaded.nbytes(*start) for start in starts),
        sum(packed.size_bytes(txn, weights) for weights in in_memory),
    )


def _model_versions(context: Context) -> Rows:
    return [
        (m.name, v.name, v.name == m.default_version, len(v.tensors), len(v.files), v.lineage)
        for m in context.catalog.models()
        for v in m.versions
    ]


def _functions(context: Context) -> Rows:
    stored = [
        (f.name, ", ".join(f"{n} {t}" for n, t in f.arguments), f.result, f.language,
         f.volatility, f.strict, f.module, f.export, str(f.options.get("backend", "wasmtime")),
         *function_figures.row(context.engines.functions.figures(f)))
        for f in context.catalog.functions()
    ]  # fmt: skip
    session = [
        (f.name, ", ".join(map(str, f.arguments)), str(f.returns), "python (this connection)",
         "VOLATILE", f.strict, None, None, None, *[None] * len(function_figures.COLUMNS))
        for f in context.engines.functions.session.values()
    ]  # fmt: skip
    return stored + session


def _triggers(context: Context) -> Rows:
    return [
        (
            trigger.name,
            t.name,
            f"{trigger.timing} INSERT",
            trigger.function,
            definitions.create_trigger(t, trigger),
        )
        for t in context.catalog.tables()
        for trigger in t.triggers
    ]


def _modules(context: Context) -> Rows:
    return [(m.name, m.size, m.sha256) for m in context.catalog.modules()]


def _metrics(context: Context) -> Rows:
    values = METRICS.snapshot()
    return sorted([*values.items(), *inference_figures.rates(values)])


def _settings(context: Context) -> Rows:
    from tarsdb.engine.settings import SETTINGS

    values = context.engines.settings
    return [(name, values.shown(name), s.about) for name, s in sorted(SETTINGS.items())]


def _commits(context: Context) -> Rows:
    epoch = dt.datetime(1970, 1, 1)
    return [
        (e.number, epoch + dt.timedelta(microseconds=e.timestamp_us), json.dumps(e.changes))
        for e in commit_log(context.snapshot.txn)
    ]


def _views(context: Context) -> Rows:
    return [(view.name, definitions.create_view(view)) for view in context.catalog.views()]


_Reader = Callable[[Context], Rows]
SYSTEM_TABLES: dict[str, tuple[tuple[tuple[str, SqlType], ...], _Reader]] = {
    "tars_tables": (
        (("name", TEXT), ("rows", BIGINT), ("columns", BIGINT), ("indexes", BIGINT),
         ("version", BIGINT), ("sql", TEXT)), _tables),
    "tars_columns": (
        (("table_name", TEXT), ("name", TEXT), ("position", BIGINT), ("type", TEXT),
         ("nullable", BOOLEAN), ("default", TEXT), ("generated", TEXT),
         ("primary_key", BOOLEAN)), _columns),
    "tars_indexes": (
        (("name", TEXT), ("table_name", TEXT), ("columns", TEXT), ("method", TEXT),
         ("unique", BOOLEAN), ("origin", TEXT), ("chosen", TEXT), ("reason", TEXT),
         ("sql", TEXT), ("asked", TEXT)), _indexes),
    "tars_recall_stats": (
        (("index", TEXT), ("table_name", TEXT), ("column", TEXT), ("method", TEXT),
         ("metric", TEXT), ("sample", BIGINT), ("k", BIGINT), ("effort", BIGINT),
         ("recall", DOUBLE), ("index_us", DOUBLE), ("exact_us", DOUBLE),
         ("fresh_rows", BIGINT), ("parts", BIGINT), ("reason", TEXT)), _recall_stats),
    "tars_models": (
        (("name", TEXT), ("task", TEXT), ("dim", BIGINT), ("default_version", TEXT),
         ("versions", BIGINT), ("numeric_mode", TEXT), ("bytes_stored", BIGINT),
         ("bytes_loaded", BIGINT), ("bytes_packed", BIGINT)), _models),
    "tars_model_versions": (
        (("model", TEXT), ("name", TEXT), ("is_default", BOOLEAN), ("tensors", BIGINT),
         ("files", BIGINT), ("lineage", TEXT)), _model_versions),
    "tars_functions": (
        (("name", TEXT), ("arguments", TEXT), ("returns", TEXT), ("language", TEXT),
         ("volatility", TEXT), ("strict", BOOLEAN), ("module", TEXT), ("export", TEXT),
         ("backend", TEXT), *function_figures.COLUMNS), _functions),
    "tars_modules": ((("name", TEXT), ("size", BIGINT), ("sha256", TEXT)), _modules),
    "tars_triggers": (
        (("name", TEXT), ("table_name", TEXT), ("event", TEXT), ("function", TEXT),
         ("sql", TEXT)), _triggers),
    "tars_views": ((("name", TEXT), ("sql", TEXT)), _views),
    "tars_metrics": ((("name", TEXT), ("value", DOUBLE)), _metrics),
    "tars_settings": ((("name", TEXT), ("value", TEXT), ("about", TEXT)), _settings),
    "tars_commits": (
        (("number", BIGINT), ("time", TIMESTAMP), ("changes", TEXT)), _commits),
    **STANDARD_TABLES,
}  # fmt: skip


def read(context: Context, name: str) -> tuple[list[str], list[Column]]:
    """Return names and columns of a system table."""
    definition = SYSTEM_TABLES.get(name.lower())
    if definition is None:
        raise CatalogError(
            f"system table {name!r} does not exist", hint=f"they are: {', '.join(SYSTEM_TABLES)}"
        )
    schema, reader = definition
    rows = reader(context)
    rows += [
        (known, *[None] * (len(schema) - 1))
        for kind, known in context.catalog.damaged
        if name.lower() == f"tars_{kind}s"
    ]
    columns = [
        from_list(sql_type, [to_storage(row[i], sql_type, column) for row in rows])
        for i, (column, sql_type) in enumerate(schema)
    ]
    return [column for column, _ in schema], columns
