"""Models in the database: load, run.

A model version is immutable and content-addressed, so a loaded model is cached by what it is made
of and shared by all connections of the process. What a function computes is in
``model_functions``, how a model is imported in ``model_import``. Knows no SQL text.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.columns import Column, from_list
from tarsdb.engine.compare import both_valid
from tarsdb.engine.generation import Lease
from tarsdb.engine.model_functions import FUNCTIONS, Request, Values
from tarsdb.engine.progress import SILENT, Listener, Work
from tarsdb.errors import CatalogError, InternalError, ModelError
from tarsdb.metrics import METRICS
from tarsdb.schema import ModelDef, ModelVersion
from tarsdb.sql import expressions as ex
from tarsdb.storage import Environment
from tarsdb.types import SqlType, to_storage

if TYPE_CHECKING:
    from tarsdb.engine.context import Context


class ModelRuntime:
    """Runs the models of one environment; loaded ones are shared through ``env.caches``."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._lock = threading.Lock()
        self.listener: Listener = SILENT

    def call(self, context: Context, call: ex.Call, arguments: list[Column], rows: int) -> Column:
        """Run a model function over a batch of rows; a row with a NULL argument gives NULL."""
        if call.returns is None:
            raise InternalError(f"{call.name} has no result type")
        valid = None
        for argument in arguments:
            valid = both_valid(valid, argument.validity)
        known = np.arange(rows) if valid is None else np.flatnonzero(valid)
        columns = [argument.to_list() for argument in arguments]
        items = [tuple(column[row] for column in columns) for row in known.tolist()]
        values = self._run(context, call, items) if items else []
        return _column(call.returns, values, known, rows)

    def _run(self, context: Context, call: ex.Call, items: list[tuple[Any, ...]]) -> Values:
        """Return the function's value for every item."""
        loaded, checks = None, [context.engines.interrupt.check]
        if call.target:
            model = require_model(context.catalog.model(call.target), call.target)
            loaded = self.load(context, model)
            if context.writes is not None:
                context.writes.depend("model", model.name, model.version)
            else:
                checks.append(Lease(self._env, model).check)
        listener = self.listener
        if listener.begin is not None and call.target:
            listener.begin(Work(f"model {call.target}", "texts", len(items)))
        options = {name: context.constant(value) for name, value in call.options}
        interrupted = context.engines.interrupt.is_set

        def check() -> None:
            for each in checks:
                each()

        request = Request(
            call.name, loaded, items, options, listener.report, interrupted, check,
            context.engines.settings,
        )  # fmt: skip
        before = getattr(loaded, "truncated", 0)
        with context.without_snapshot():
            values = FUNCTIONS[call.name](request)
        METRICS.add(f"{call.name}_texts", len(items))
        METRICS.add(f"{call.name}_truncated", getattr(loaded, "truncated", 0) - before)
        return values

    def load(self, context: Context, model: ModelDef, version: str | None = None) -> Any:
        """Return the loaded form of a model version, loading it on first use.

        What it is depends on the model's task, see ``model_ops.TASKS``.
        """
        found = model.find_version(version)
        if found is None:
            raise ModelError(f"model {model.name} has no version {version!r}")
        loaded: dict[Any, Any] = self._env.caches.setdefault("models", {})
        key = (model.task,
               tuple(sorted(found.files.items())),
               tuple(sorted((n, t[2]) for n, t in found.tensors.items())),
               tuple(sorted(model.options.items())))  # fmt: skip
        instance = loaded.get(key)
        if instance is None:
            with self._lock:
                instance = loaded.get(key)
                if instance is None:
                    instance = loaded[key] = _load(context, model, found)
        return instance


def _column(returns: SqlType, values: Values, known: np.ndarray, rows: int) -> Column:
    """Put the values of the known rows among NULLs."""
    valid = None
    if len(known) < rows:
        valid = np.zeros(rows, bool)
        valid[known] = True
    if returns.is_vector:
        vectors = np.zeros((rows, returns.width), returns.dtype)
        if len(known):
            vectors[known] = values
        return Column(returns, vectors, None, valid)
    items: list[Any] = [None] * rows
    for row, value in zip(known.tolist(), values, strict=True):
        items[row] = to_storage(value, returns, "result")
    return from_list(returns, items)


def _load(context: Context, model: ModelDef, version: ModelVersion) -> Any:
    from tarsdb.model_ops import TASKS

    files = {name: context.read_blob(digest) for name, digest in version.files.items()}
    tensors = {
        name: np.frombuffer(context.read_blob(digest), dtype=dtype).reshape(shape)
        for name, (dtype, shape, digest) in version.tensors.items()
    }
    METRICS.add("models_loaded")
    return TASKS[model.task].load(files, tensors, dict(model.options))


def require_model(model: ModelDef | None, name: str) -> ModelDef:
    """Return the model or raise CatalogError."""
    if model is None:
        raise CatalogError(f"model {name!r} does not exist", hint="SHOW MODELS lists them")
    return model
