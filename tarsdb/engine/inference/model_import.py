"""CREATE MODEL: read a model from disk, stage its bytes, define it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.engine.inference.loaded_models import ADAPTER_OF, adapted_model
from tarsdb.errors import CatalogError, ModelError
from tarsdb.kernels import forms
from tarsdb.schema import ModelDef, ModelVersion
from tarsdb.storage import WriteSet

if TYPE_CHECKING:
    from tarsdb.engine.context import Context
    from tarsdb.model_ops import ModelFiles


StoredTensor = tuple[str, tuple[int, ...], np.ndarray]
"""Type and shape as a ``ModelVersion`` has them, and the elements that are stored."""
ADAPTABLE = ("embed", "classify", "rerank", "generate")
"""Tasks of models that adapters add to."""


def import_model(context: Context, name: str, source: str, options: dict[str, Any]) -> ModelDef:
    """Read a model and stage its bytes; returns the definition to publish.

    It names the numbers that the model computes with, also where the statement does not.

    Raises
    ------
    ModelFormatError
        The source is no usable model.
    ModelError
        An option that the model's task does not have, or a value it cannot have.
    NotSupportedError
        A family that is not computed, or a hub address without the extra.
    """
    from tarsdb.model_ops import predictor, read_model_directory

    kept = {key: value for key, value in options.items() if key != "task"}
    found = read_model_directory(source, options)
    if predictor.FILE not in found.files:  # else onnxruntime's
        kept.setdefault("quantize", chosen_quantize(context.engines.settings))
    return _staged(context.require_writes(), name, source, found, kept)


def chosen_quantize(settings: Mapping[str, Any]) -> str:
    """Return the value of ``quantize`` for models that name none, by ``default_quantize``.

    It becomes part of the model: another machine computes with the same numbers, and so does this
    one under other settings.
    """
    setting = str(settings["default_quantize"])
    if setting != "auto":
        return setting
    return "bf16" if forms.multiplies_bfloat16() else "none"


def import_adapter(context: Context, name: str, source: str, options: dict[str, Any]) -> ModelDef:
    """Read an adapter of a model of the database and stage its bytes; raises as `import_model`.

    CatalogError where there is no model to adapt.
    """
    from tarsdb.model_ops import read_adapter_directory

    unknown = [key for key in options if key not in (ADAPTER_OF, "task")]
    if unknown:
        raise ModelError(f"an adapter has no option {unknown[0]!r}", f"options: {ADAPTER_OF}")
    base = context.catalog.model(str(options[ADAPTER_OF]))
    if base is None:
        raise CatalogError(f"model {options[ADAPTER_OF]!r}, to be adapted, does not exist")
    version = base.find_version()
    is_adaptable = base.task in ADAPTABLE and not adapted_model(base)
    if version is None or not is_adaptable or base.task != options.get("task", base.task):
        raise ModelError(
            f"model {base.name} cannot be adapted", f"adapters are for {', '.join(ADAPTABLE)}"
        )
    files = {name: context.read_blob(digest) for name, digest in version.files.items()}
    writes = context.require_writes()
    writes.depend("model", base.name, base.version)
    found = read_adapter_directory(source, files, base.task)
    found = dataclasses.replace(found, dim=base.dim)
    return _staged(writes, name, source, found, {ADAPTER_OF: base.name})


def _staged(
    writes: WriteSet, name: str, source: str, found: ModelFiles, kept: dict[str, Any]
) -> ModelDef:
    files = {file: writes.put_blob(data) for file, data in found.files.items()}
    tensors = {
        tensor: (dtype, tuple(shape), writes.put_blob(np.ascontiguousarray(array).tobytes()))
        for tensor, (dtype, shape, array) in _stored(found.tensors)
    }
    version = ModelVersion("v1", 0, files, tensors, lineage=f"imported from {source}")
    return ModelDef(writes.new_id(), name, found.task, found.dim, "v1", (version,), kept)


def _stored(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, StoredTensor]]:
    """Yield names and how a file keeps them: as wide as what the model was read from."""
    stored: Callable[[str], StoredTensor] | None = getattr(tensors, "stored", None)
    for name in tensors:
        if stored is not None:
            yield name, stored(name)
        else:
            array = tensors[name]
            yield name, (array.dtype.str, array.shape, array)
