"""Models in the database: import, load, run.

A model version is immutable and content-addressed, so a loaded encoder is cached by what it is
made of and shared by all connections of the process. Knows no SQL text.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.columns import Column
from tarsdb.engine.inference_cache import Question, through
from tarsdb.engine.progress import SILENT, Listener, Work
from tarsdb.errors import CatalogError, ModelError, NotSupportedError
from tarsdb.metrics import METRICS
from tarsdb.schema import ModelDef, ModelVersion
from tarsdb.storage import Environment, WriteSet
from tarsdb.types import Kind, SqlType

if TYPE_CHECKING:
    from tarsdb.engine.context import Context
    from tarsdb.model_ops import Encoder

_OPTIONS = frozenset({"task", "overflow", "pooling", "normalize", "max_length", "prompt", "quantize"})


class ModelRuntime:
    """Runs the models of one environment; encoders are shared through ``env.caches``."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._lock = threading.Lock()
        self.listener: Listener = SILENT

    def embed_column(self, context: Context, model: ModelDef, texts: Column) -> Column:
        """Embed a text column; NULL stays NULL."""
        items = texts.to_list()
        vectors = self.embed(context, model, items)
        return Column(SqlType(Kind.VECTOR, dim=model.dim), vectors, None, texts.validity)

    def embed(self, context: Context, model: ModelDef, texts: Sequence[str | None]) -> np.ndarray:
        """Return float32 (n, dim); rows of None texts are zero."""
        version = _require_version(model)
        if context.writes is not None:
            context.writes.depend("model", model.name, model.version)
        known = [i for i, text in enumerate(texts) if text is not None]
        result = np.zeros((len(texts), model.dim), dtype=np.float32)
        if not known:
            return result
        items = [(texts[i],) for i in known]

        def compute(missing: Sequence[tuple[Any, ...]]) -> np.ndarray:
            return self._embed(context, model, [text for (text,) in missing])

        if context.engines.settings["inference_cache"]:
            way = {"function": "embed", "mode": "fp32", "options": model.options}
            question = Question(version, way, model.dim)
            result[known] = through(context, question, items, compute)
        else:
            result[known] = compute(items)
        METRICS.add("embed_texts", len(known))
        return result

    def _embed(self, context: Context, model: ModelDef, texts: Sequence[str]) -> np.ndarray:
        encoder = self.encoder(context, model)
        before = encoder.truncated
        listener = self.listener
        if listener.begin is not None:
            listener.begin(Work(f"model {model.name}", "texts", len(texts)))
        with context.without_snapshot():
            vectors = encoder.encode(
                texts,
                progress=listener.report,
                interrupted=context.engines.interrupt.is_set,
            )
        METRICS.add("embed_truncated", encoder.truncated - before)
        return vectors

    def encoder(self, context: Context, model: ModelDef, version: str | None = None) -> Encoder:
        """Return the loaded encoder of a model version, loading it on first use."""
        if model.task != "embed":
            raise ModelError(f"model {model.name} does {model.task}, not embed")
        found = _require_version(model, version)
        loaded: dict[Any, Encoder] = self._env.caches.setdefault("encoders", {})
        key = (tuple(sorted(found.files.items())),
               tuple(sorted((n, t[2]) for n, t in found.tensors.items())),
               tuple(sorted(model.options.items())))  # fmt: skip
        encoder = loaded.get(key)
        if encoder is None:
            with self._lock:
                encoder = loaded.get(key)
                if encoder is None:
                    encoder = loaded[key] = _load(context, model, found)
        return encoder


def _load(context: Context, model: ModelDef, version: ModelVersion) -> Encoder:
    from tarsdb.model_ops import Encoder

    files = {name: context.read_blob(digest) for name, digest in version.files.items()}
    tensors = {
        name: np.frombuffer(context.read_blob(digest), dtype=dtype).reshape(shape)
        for name, (dtype, shape, digest) in version.tensors.items()
    }
    METRICS.add("models_loaded")
    return Encoder.from_files(files, tensors, dict(model.options))


def import_model(writes: WriteSet, name: str, source: str, options: dict[str, Any]) -> ModelDef:
    """Read a model directory and stage its bytes; returns the definition to publish.

    Raises
    ------
    ModelFormatError
        The source is no usable model.
    NotSupportedError
        An option this release does not have, or a hub address without the extra.
    """
    unknown = set(options) - _OPTIONS
    if unknown:
        raise NotSupportedError(
            f"CREATE MODEL {name}: option {sorted(unknown)[0]!r} is not known",
            hint=f"options: {', '.join(sorted(_OPTIONS))}",
        )
    from tarsdb.model_ops import read_model_directory

    kept = {key: value for key, value in options.items() if key != "task"}
    found = read_model_directory(source, kept)
    task = options.get("task", found.task)
    if task != found.task:
        raise ModelError(f"model {name}: {source} is a model for {found.task}, not {task}")
    files = {file: writes.put_blob(data) for file, data in found.files.items()}
    tensors = {
        tensor: (array.dtype.str, tuple(array.shape), writes.put_blob(_bytes(array)))
        for tensor, array in found.tensors.items()
    }
    version = ModelVersion("v1", 0, files, tensors, lineage=f"imported from {source}")
    return ModelDef(writes.new_id(), name, task, found.dim, "v1", (version,), kept)


def _bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _require_version(model: ModelDef, name: str | None = None) -> ModelVersion:
    found = model.find_version(name)
    if found is None:
        raise ModelError(f"model {model.name} has no version {name or model.default_version!r}")
    return found


def require_model(model: ModelDef | None, name: str) -> ModelDef:
    """Return the model or raise CatalogError."""
    if model is None:
        raise CatalogError(f"model {name!r} does not exist", hint="SHOW MODELS lists them")
    return model
