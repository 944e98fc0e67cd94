"""Models in the database: load, run.

A model version is immutable and content-addressed, so a loaded model is cached by what it is made
of and shared by all connections of the process. What a function computes is in
``model_functions``, how a model is imported in ``model_import``. Knows no SQL text.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.columns import Column, from_list
from tarsdb.engine.inference import model_device
from tarsdb.engine.inference.generation import Lease, naming, with_draft
from tarsdb.engine.inference.inference_cache import question_of, through
from tarsdb.engine.inference.loaded_models import (
    adapted_model,
    key_of,
    loaded_models,
    memory_bytes,
)
from tarsdb.engine.inference.model_functions import FUNCTIONS, Request, Values
from tarsdb.engine.inference.packed_weights import shelf_for
from tarsdb.engine.progress import SILENT, Listener, Work
from tarsdb.engine.reading.compare import both_valid
from tarsdb.errors import CatalogError, CorruptionError, InternalError, ModelError
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.packing import from_bfloat16
from tarsdb.metrics import METRICS
from tarsdb.schema import BFLOAT16, BLOCKS, ModelDef, ModelVersion, stored_bytes, stored_type
from tarsdb.sql import expressions as ex
from tarsdb.storage import Environment
from tarsdb.types import Kind, SqlType, from_storage, to_storage

if TYPE_CHECKING:
    from tarsdb.engine.context import Context


class ModelRuntime:
    """Runs the models of one environment; loaded ones are shared through ``env.caches``."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self.listener: Listener = SILENT

    def call(self, context: Context, call: ex.Call, arguments: list[Column], rows: int) -> Column:
        """Run a model function over a batch of rows; a row with a NULL argument gives NULL."""
        if call.returns is None:
            raise InternalError(f"{call.name} has no result type")
        valid = None
        for argument in arguments:
            valid = both_valid(valid, argument.validity)
        known = np.arange(rows) if valid is None else np.flatnonzero(valid)
        columns = [_values(argument) for argument in arguments]
        items = [tuple(column[row] for column in columns) for row in known.tolist()]
        values: Values = []
        if items:
            with METRICS.recorded() as done:
                values = self._run(context, call, items)
            context.engines.done.add_all(done)
        return _column(call.returns, values, known, rows)

    def _run(self, context: Context, call: ex.Call, items: list[tuple[Any, ...]]) -> Values:
        """Return the function's value for every item, known ones from the file."""
        options = {name: context.constant(value) for name, value in call.options}
        METRICS.add(f"{call.name}_texts", len(items))
        if not call.target:
            return self._compute(context, call, (None, None), options, items)
        model = require_model(context.catalog.model(call.target), call.target)
        used = models_of(context, model)
        if context.writes is not None:
            for each in used:
                context.writes.depend("model", each.name, each.version)
        settings = context.engines.settings

        def answers(device: Device | None) -> Values:
            asked = dict(options)
            question = question_of(used, call, asked, settings, device)
            compute = functools.partial(self._compute, context, call, (model, device), asked)
            if question is None:
                return compute(items)
            return through(context, question, items, compute)

        return model_device.run(settings, used, answers)

    def _compute(
        self, context: Context, call: ex.Call, place: tuple[ModelDef | None, Device | None],
        options: dict[str, Any], items: list[tuple[Any, ...]],
    ) -> Values:  # fmt: skip
        model, device = place
        loaded = None if model is None else self.load(context, model, device)
        listener = self.listener
        if listener.begin is not None and model is not None:
            listener.begin(Work(f"model {model.name}", "texts", len(items)))
        interrupt = context.engines.interrupt
        lease = None
        if model is not None and context.writes is None:
            lease = Lease(self._env, *models_of(context, model))

        def check() -> None:
            interrupt.check()
            if lease is not None:
                lease.check()

        request = Request(
            call.name, loaded, items, with_draft(context, options, device), listener.report,
            interrupt.is_set, check, context.engines.settings,
        )  # fmt: skip
        with context.without_snapshot(), naming(model):
            values = FUNCTIONS[call.name](request)
        cut = getattr(loaded, "cut", None)
        METRICS.add(f"{call.name}_truncated", cut.told() if cut else 0)
        return values

    def load(self, context: Context, model: ModelDef, device: Device | None = None) -> Any:
        """Return the loaded form of a model's version, loading it on first use.

        What it is depends on the model's task, see ``model_ops.TASKS``, and on the device that is
        to compute, see :func:`model_device.choose`.
        """
        found = _version(model)
        if adapted_model(model):
            return self._adapted(context, model, found, device)
        key = key_of(model, found.weights_digest)
        key += () if device is None else (device.name,)
        budget = memory_bytes(context.engines.settings["model_memory"])

        source = _Source(context, model, found)

        def load() -> Any:
            with naming(model):
                return source.load(device)

        def weigh() -> int:
            with naming(model):
                return source.weigh(device)

        return loaded_models(self._env).get(key, load, weigh, budget, model.name)

    def _adapted(
        self, context: Context, model: ModelDef, version: ModelVersion, device: Device | None
    ) -> Any:
        """Return the model an adapter adapts, with the adapter; both are kept apart."""
        _, base = models_of(context, model)
        loaded = self.load(context, base, device)
        key = (version.weights_digest, _version(base).weights_digest, *sorted(base.options.items()))
        key += () if device is None else (device.name,)
        budget = memory_bytes(context.engines.settings["model_memory"])

        def load() -> Any:
            files = {name: context.read_blob(digest) for name, digest in version.files.items()}
            return loaded.new_adapter(files, _Tensors(context, version))

        def weigh() -> int:
            return 4 * version.elements  # float32, whatever the mode

        adapter = loaded_models(self._env).get(key, load, weigh, budget, model.name)
        root = (version.weights_digest,) if base.task == "generate" else ()
        return loaded.with_adapter(adapter, *root)


def models_of(context: Context, model: ModelDef) -> list[ModelDef]:
    """Return a model and, of an adapter, the one it adapts; CatalogError where that is gone."""
    name = adapted_model(model)
    return [model, require_model(context.catalog.model(name), name)] if name else [model]


def _version(model: ModelDef) -> ModelVersion:
    found = model.find_version()
    if found is None:
        raise ModelError(f"model {model.name} has no version {model.default_version!r}")
    return found


def _values(column: Column) -> list[Any]:
    """Return what a model reads: storage values, of arrays lists."""
    if column.type.kind is not Kind.ARRAY:
        return column.to_list()
    return [from_storage(value, column.type) for value in column.to_list()]


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


class _Source:
    """A model version in the file, to be loaded for a device or None, the processor."""

    def __init__(self, context: Context, model: ModelDef, version: ModelVersion) -> None:
        self._context, self._model, self._version = context, model, version

    @cached_property
    def _files(self) -> dict[str, bytes]:
        read = self._context.read_blob
        return {name: read(digest) for name, digest in self._version.files.items()}

    def weigh(self, device: Device | None) -> int:
        """Return the bytes it is going to take there; of a device, at least."""
        from tarsdb.model_ops import TASKS

        if device is not None:
            return model_device.least_bytes(self._model)
        return TASKS[self._model.task].weigh(self._files, self._model.options)

    def load(self, device: Device | None) -> Any:
        """Return what its task makes of it."""
        from tarsdb.model_ops import TASKS

        tensors, options = _Tensors(self._context, self._version), dict(self._model.options)
        place: dict[str, Any] = {"device": device}
        if device is None:
            place = {"shelf": shelf_for(self._context, self._version)}
        return TASKS[self._model.task].load(self._files, tensors, options, **place)


class _Tensors(Mapping[str, np.ndarray]):
    """The tensors of a version, each read when asked for: never a second copy of a whole model."""

    makes_arrays = True
    """Writeable arrays that it gives are the caller's."""

    def __init__(self, context: Context, version: ModelVersion) -> None:
        self._context = context
        self._stored = version.tensors

    def __getitem__(self, name: str) -> np.ndarray:
        from tarsdb.model_ops.gguf.blocks import decode_stored

        dtype, shape, digest = self._stored[name]
        data = self._context.read_blob(digest)
        if len(data) != (expected := stored_bytes(dtype, shape)):
            raise CorruptionError(
                f"tensor {name!r} of type {dtype} and shape {shape} takes {expected} bytes, "
                f"{len(data)} are stored"
            )
        if dtype in BLOCKS:
            return decode_stored(dtype, data).reshape(shape)
        array = np.frombuffer(data, dtype=stored_type(dtype)).reshape(shape)
        return from_bfloat16(array) if dtype == BFLOAT16 else array

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, none of them read."""
        return {name: tuple(shape) for name, (_, shape, _) in self._stored.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def require_model(model: ModelDef | None, name: str) -> ModelDef:
    """Return the model or raise CatalogError."""
    if model is None:
        raise CatalogError(f"model {name!r} does not exist", hint="SHOW MODELS lists them")
    return model
