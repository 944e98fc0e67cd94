"""Models on arrays: read a model directory, tokenise, encode texts into vectors, classify them.

:func:`read_model_directory` reads and checks a Hugging Face directory; ``TASKS`` says how a model
is loaded: :class:`Encoder` turns texts into vectors, :class:`Classifier` gives them labels.
Storage, SQL and versions are the layers' above. tokenizers and safetensors are imported on first
use.
"""

from __future__ import annotations

from tarsdb.model_ops.chunking import chunk_spans, chunk_text, chunk_tokens
from tarsdb.model_ops.decoder import Decoder
from tarsdb.model_ops.decoder_forward import StepBatch
from tarsdb.model_ops.directory import (
    ModelFiles,
    read_adapter_directory,
    read_model_directory,
)
from tarsdb.model_ops.encoder import Encoder
from tarsdb.model_ops.heads import Classifier
from tarsdb.model_ops.kv_cache import KVCache
from tarsdb.model_ops.tasks import TASKS

__all__ = [
    "TASKS", "Classifier", "Decoder", "Encoder", "KVCache", "ModelFiles", "StepBatch",
    "chunk_spans", "chunk_text", "chunk_tokens", "read_adapter_directory", "read_model_directory",
]  # fmt: skip
