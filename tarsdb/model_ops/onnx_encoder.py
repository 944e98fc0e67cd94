"""Encoders whose graph onnxruntime runs as it is: any that gives a vector for each token.

For graphs that an optimiser rewrote or a tool quantised, and for families this package does not
compute itself. A text is run by itself, so its vectors do not depend on the texts beside it, even
where a graph takes scales from all it is given. Knows no tokenizer and no pooling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelError, NotSupportedError
from tarsdb.kernels.transformer_reference import GELU
from tarsdb.model_ops.architecture import EncoderSpec
from tarsdb.model_ops.config_values import whole
from tarsdb.model_ops.encoder_families import FAMILIES
from tarsdb.model_ops.panels import PANEL_TOKENS
from tarsdb.model_ops.predictor import open_session
from tarsdb.model_ops.transformer import Panel

F32 = npt.NDArray[np.float32]

RUNTIME = "onnxruntime"
"""Value of the option ``runtime``."""
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class OnnxTransformer:
    """A graph from token ids to token vectors. Several threads may call it at once.

    Parameters
    ----------
    data : bytes
        The ONNX file.

    Attributes
    ----------
    hidden : int
        Width of a token's vector; 0 where the graph does not say it.
    takes_types : bool
        Whether the graph takes token types.

    Raises
    ------
    ModelFormatError
        The file is damaged, or keeps its weights in other files.
    NotSupportedError
        onnxruntime is not installed, or the graph takes or gives something else.
    """

    panel_tokens = PANEL_TOKENS

    def __init__(self, data: bytes) -> None:
        self._session = open_session(data, threads=1)  # panels are shared out among threads
        inputs = {each.name: each for each in self._session.get_inputs()}
        strange = [
            f"{each.name}: {each.type} {each.shape}" for each in inputs.values()
            if each.name not in _INPUTS or each.type not in _INTEGERS or len(each.shape) != 2
        ]  # fmt: skip
        if strange or "input_ids" not in inputs:
            raise NotSupportedError(
                f"the encoder's graph takes {', '.join(strange or inputs):.200}",
                f"it may take whole numbers {', '.join(_INPUTS)}, each (texts, tokens)",
            )
        outputs = self._session.get_outputs()
        by_token = [each for each in outputs if len(each.shape) == 3]
        if not by_token:
            named = ", ".join(f"{each.name} {each.shape}" for each in outputs)
            raise NotSupportedError(f"the encoder's graph gives no vector for each token: {named}")
        self._inputs = {name: _INTEGERS[each.type] for name, each in inputs.items()}
        self._output = by_token[0].name
        width = by_token[0].shape[2]
        self.hidden = width if isinstance(width, int) else 0
        self.takes_types = "token_type_ids" in inputs
        self.weight_bytes = len(data)

    def forward(self, panel: Panel) -> F32:
        """Return the token vectors of a panel, float32 (n, hidden).

        ModelError where onnxruntime fails or gives something else.
        """
        found = []
        for first, end in zip(panel.offsets[:-1].tolist(), panel.offsets[1:].tolist(), strict=True):
            ids = panel.ids[first:end]
            types = np.zeros_like(ids) if panel.types is None else panel.types[first:end]
            known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
            feeds = {name: known[name][None].astype(kind) for name, kind in self._inputs.items()}
            try:
                vectors = self._session.run([self._output], feeds)[0]
            except Exception as error:  # its own kinds, none of which is public
                raise ModelError(
                    f"onnxruntime failed on {len(ids)} tokens: {error!s:.300}"
                ) from error
            if vectors.shape[:2] != (1, len(ids)):
                raise ModelError(
                    f"output {self._output} has shape {vectors.shape} for a text of {len(ids)}"
                )
            found.append(vectors[0].astype(np.float32, copy=False))
        return np.concatenate(found)


def read_onnx_spec(config: Mapping[str, Any], graph: OnnxTransformer) -> EncoderSpec:
    """Return what is known of an encoder of another maker: width, vocabulary, longest text.

    ModelFormatError where a number of ``config.json`` is missing or out of bounds.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    is_padded = family is not None and family.padding_positions
    return EncoderSpec(
        family="bert", layers=1, hidden=graph.hidden or whole(config, "hidden_size", None, 16_384),
        heads=1, intermediate=1, vocabulary=whole(config, "vocab_size", None, 4 << 20),
        positions=whole(config, "max_position_embeddings", 512, 1 << 20, lowest=8),
        position_offset=2 if is_padded else 0,
        token_types=whole(config, "type_vocab_size", 2, 64) if graph.takes_types else 0,
        relative_buckets=0, epsilon=0.0, activation=GELU,
    )  # fmt: skip
