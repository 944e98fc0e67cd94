"""A decoder's weights as compiled steps read them: what there is, and how it is packed.

Names of a layer's parts are ``NUMBER/part``, by the names ``LAYER`` of ``kernels/cpu/decoder.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tarsdb.kernels import packing
from tarsdb.kernels.packed_plan import Plan, Slot, Weight, bias_slot, matrix_slot, store
from tarsdb.model_ops.decoder_spec import DecoderSpec
from tarsdb.model_ops.decoder_weights import DecoderReader

_ROWS = 1024  # of vectors of tokens rounded at a time


def decoder_plan(spec: DecoderSpec, kind: str, form: str) -> Plan:
    """Return where the weights lie, of a kind of ``packing.KINDS`` for kernels of a form.

    Vectors of tokens are float32 where the kind is, bfloat16 otherwise.
    """
    words = "float32" if kind == "f32" else "uint16"
    slots = {
        "norm": _vector(spec.hidden),
        "words": Slot(words, (spec.vocabulary, spec.hidden)),
        "head": matrix_slot(kind, form, (spec.vocabulary, spec.hidden)),
    }
    layer = _layer_slots(spec, kind, form)
    for number in range(len(spec.layers)):
        slots.update({f"{number}/{part}": slot for part, slot in layer.items()})
    return Plan(slots)


def _layer_slots(spec: DecoderSpec, kind: str, form: str) -> dict[str, Slot]:
    hidden, inner, own = spec.hidden, spec.intermediate, spec.heads * spec.head_dim
    qkv = own + 2 * spec.kv_heads * spec.head_dim
    norm, head_norm = _vector(hidden), _vector(spec.head_dim)
    found = {
        "attention_norm": norm,
        "qkv": matrix_slot(kind, form, (qkv, hidden)),
        "context": matrix_slot(kind, form, (hidden, own)),
        "mlp_norm": norm,
        "gate_up": matrix_slot(kind, form, (inner, hidden), gated=True),
        "down": matrix_slot(kind, form, (hidden, inner)),
    }
    if spec.qkv_bias:
        found["qkv_bias"] = bias_slot(qkv)
    if spec.query_norm:
        found |= {"query_norm": head_norm, "key_norm": head_norm}
    if spec.context_bias:
        found["context_bias"] = bias_slot(hidden)
    if spec.post_norms:
        found |= {"context_norm": norm, "down_norm": norm}
    if spec.mlp_bias:
        found |= {"gate_up_bias": bias_slot(inner, 2), "down_bias": bias_slot(hidden)}
    return found


def _vector(size: int) -> Slot:
    return Slot("float32", (size,))


def _store_words(view: Weight, words: npt.NDArray[np.float32]) -> None:
    """Store vectors of tokens, as bfloat16 where the view is: some rows at a time."""
    if not isinstance(view, np.ndarray) or view.dtype != np.uint16:
        store(view, words)
        return
    for start in range(0, len(words), _ROWS):
        view[start : start + _ROWS] = packing.to_bfloat16(words[start : start + _ROWS])


def pack_decoder(spec: DecoderSpec, read: DecoderReader, views: Mapping[str, Weight]) -> None:
    """Read the weights, one layer at a time, and pack them into the arrays of a plan."""
    words = read.words()
    _store_words(views["words"], words)
    if not spec.tied:
        del words  # before the next one of its size
        words = read.head()
    store(views["head"], words)
    del words
    store(views["norm"], read.final_norm())
    for number in range(len(spec.layers)):
        for name, array in vars(read.layer(number)).items():
            if array is None:
                continue
            parts = np.split(array, 2) if name.startswith("gate_up") else [array]
            if name.endswith("bias"):
                parts = [packing.pack_bias(*parts)]
            store(views[f"{number}/{name}"], *parts)
