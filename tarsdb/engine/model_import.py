"""CREATE MODEL: read a model from disk, stage its bytes, define it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tarsdb.schema import ModelDef, ModelVersion
from tarsdb.storage import WriteSet


def import_model(writes: WriteSet, name: str, source: str, options: dict[str, Any]) -> ModelDef:
    """Read a model and stage its bytes; returns the definition to publish.

    Raises
    ------
    ModelFormatError
        The source is no usable model.
    ModelError
        An option that the model's task does not have, or a value it cannot have.
    NotSupportedError
        A family that is not computed, or a hub address without the extra.
    """
    from tarsdb.model_ops import read_model_directory

    found = read_model_directory(source, options)
    files = {file: writes.put_blob(data) for file, data in found.files.items()}
    tensors = {
        tensor: (array.dtype.str, tuple(array.shape), writes.put_blob(_bytes(array)))
        for tensor, array in found.tensors.items()
    }
    version = ModelVersion("v1", 0, files, tensors, lineage=f"imported from {source}")
    kept = {key: value for key, value in options.items() if key != "task"}
    return ModelDef(writes.new_id(), name, found.task, found.dim, "v1", (version,), kept)


def _bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()
