"""Models on arrays: read a model directory, tokenise, encode texts into vectors.

:func:`read_model_directory` reads and checks a Hugging Face directory; :class:`Encoder` turns texts
into vectors with it. Storage, SQL and versions are the layers' above. tokenizers and safetensors
are imported on first use.
"""

from __future__ import annotations

from tarsdb.model_ops.decoder import Decoder, StepBatch
from tarsdb.model_ops.directory import ModelFiles, read_model_directory
from tarsdb.model_ops.encoder import Encoder
from tarsdb.model_ops.kv_cache import KVCache

__all__ = ["Decoder", "Encoder", "KVCache", "ModelFiles", "StepBatch", "read_model_directory"]
