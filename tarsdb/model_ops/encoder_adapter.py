"""Low-rank adapters of encoders: what they add to the products of a base's weights.

An adapted text is computed layer by layer: products by the compiled kernel on the base's packed
weights, which stay the only copy, the rest by NumPy. An adapter of a classifier or reranker may
bring a head of its own, as peft saves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.kernels import gemm
from tarsdb.kernels.forms import form_of
from tarsdb.kernels.packing import TILE, PackedMatrix, pack
from tarsdb.model_ops.architecture import EncoderSpec, layer_tensor, tensor_shapes
from tarsdb.model_ops.encoder_families import BY_NAMING
from tarsdb.model_ops.lora import Adaptable, LowRank, check_lora, read_lora
from tarsdb.model_ops.weights import EncoderWeights, Linear, padded_heads, query_scale, read_tensor
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]

_HEAD_MODULES = {"classifier", "score", "pre_classifier", "head"}
_PREFIX = "base_model.model."


@dataclass(frozen=True, eq=False)
class EncoderAdapter:
    """What an adapter adds, and the head it brings.

    Attributes
    ----------
    layers : tuple of mappings
        Of each layer, by the names of ``LayerWeights``: two products one after the other.
    head : mapping
        Tensors in place of the base's.
    """

    layers: tuple[Mapping[str, tuple[Linear, Linear]], ...]
    head: Mapping[str, F32]

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory it takes beside its base."""
        low = [each for layer in self.layers for pair in layer.values() for each in pair]
        matrices = [each.matrix for each in low]
        arrays = [m.data if isinstance(m, PackedMatrix) else m for m in matrices]
        return sum(array.nbytes for array in (*arrays, *self.head.values()))


class AdaptedProducts:
    """The products of an encoder with an adapter; a ``transformer.Multiply``."""

    def __init__(self, weights: EncoderWeights, adapter: EncoderAdapter) -> None:
        self._weights, self._adapter = weights, adapter

    def __call__(self, number: int, name: str, rows: F32) -> F32:
        """Return rows times a matrix of a layer, without the bias."""
        found = _product(getattr(self._weights.layers[number], name), rows)
        added = self._adapter.layers[number].get(name)
        if added is not None:
            down, up = added
            found += _product(up, _product(down, rows))
        return found


def _product(linear: Linear, rows: F32) -> F32:
    """Multiply by the compiled kernel where there is one; a row does not depend on the others."""
    matrix = linear.matrix
    if not isinstance(matrix, PackedMatrix):
        return linear.product(rows)
    kernel = gemm.wait(matrix.kind)
    if kernel is None:
        return linear.product(rows)
    if not matrix.gated:
        return gemm.gemm(rows, matrix)
    tiles = matrix.tiles  # of gate and up in turn
    whole = PackedMatrix(matrix.layout, TILE * tiles, matrix.depth, False, matrix.data)
    parts = gemm.gemm(rows, whole).reshape(len(rows), tiles // 2, 2, TILE).transpose(2, 0, 1, 3)
    lines = parts.reshape(2, len(rows), -1)[:, :, : matrix.columns]
    return np.concatenate([lines[0], lines[1]], axis=1)


def adaptable(spec: EncoderSpec) -> Adaptable:
    """Return what of an encoder can be adapted: all its matrices but the vectors of tokens."""
    parts = BY_NAMING[spec.family].parts
    groups = {
        "qkv": [part for part in ("query", "key", "value", "qkv") if part in parts],
        "context": ["context"],
        "expand": [part for part in ("gate_up", "gate", "expand") if part in parts],
        "reduce": ["reduce"],
    }
    layers = [
        {name: tuple(layer_tensor(spec, number, part, "")[:-1] for part in group)
         for name, group in groups.items()}
        for number in range(spec.layers)
    ]  # fmt: skip
    known = tensor_shapes(spec)
    stems = [stem for layer in layers for group in layer.values() for stem in group]
    shapes = {stem: (known[f"{stem}.weight"][0], known[f"{stem}.weight"][1]) for stem in stems}
    return Adaptable(
        tuple(layers),
        shapes,
        "query, key, value and output of attention, and the network's matrices",
    )


def check_adapter(
    spec: EncoderSpec, head: Mapping[str, tuple[int, ...]], config: Mapping[str, Any],
    found: Mapping[str, tuple[int, ...]],
) -> None:  # fmt: skip
    """Check config, names and shapes of an adapter; raises as :func:`read_adapter`.

    ``head`` are the names and shapes of the base's head; an encoder that embeds has none.
    """
    kept, low = _separated(head, config, found)
    check_lora(adaptable(spec), {**config, "modules_to_save": None}, low)
    for name, stored in kept.items():
        if tuple(found[stored]) != head[name]:
            raise ModelFormatError(
                f"tensor {stored!r} has shape {tuple(found[stored])}, the base's head asks for "
                f"{head[name]}"
            )


def read_adapter(
    spec: EncoderSpec, head: Mapping[str, tuple[int, ...]], config: Mapping[str, Any],
    tensors: Mapping[str, npt.NDArray[Any]],
) -> EncoderAdapter:  # fmt: skip
    """Read an adapter as peft saves it.

    Raises
    ------
    ModelFormatError
        A tensor is missing, has a shape that does not fit the base, or holds NaN or infinity.
    NotSupportedError
        An adapter of another kind, or of parts that cannot be adapted.
    """
    shapes = {name: tensors[name].shape for name in tensors}
    check_adapter(spec, head, config, shapes)
    kept, low = _separated(head, config, shapes)
    layers = read_lora(
        adaptable(spec), {**config, "modules_to_save": None}, {name: tensors[name] for name in low}
    )
    return EncoderAdapter(
        tuple({name: _pair(spec, name, part) for name, part in layer.items()} for layer in layers),
        {name: read_tensor(tensors, stored, head[name]) for name, stored in kept.items()},
    )


def _separated(
    head: Mapping[str, tuple[int, ...]], config: Mapping[str, Any],
    found: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:  # fmt: skip
    """Return tensors of the head, by the base's names, and what is of low rank."""
    modules = config.get("modules_to_save") or []
    if not isinstance(modules, list) or not set(map(str, modules)) <= _HEAD_MODULES:
        raise NotSupportedError(f"adapter_config.json: modules_to_save is {modules!r:.60}")
    kept, low = {}, {}
    for stored, shape in found.items():
        name = stored.removeprefix(_PREFIX)
        if name in head:
            kept[name] = stored
        else:
            low[stored] = shape
    return kept, low


def _pair(spec: EncoderSpec, name: str, part: LowRank) -> tuple[Linear, Linear]:
    """Return both products, with heads as wide as the base's and queries scaled like its."""
    down, up = part.down, part.up
    if name == "qkv":
        query, key, value = np.split(up, 3)
        query = query * query_scale(spec)
        up = np.concatenate([padded_heads(spec, each) for each in (query, key, value)])
    elif name == "context":
        down = padded_heads(spec, np.ascontiguousarray(down.T)).T
    return _linear(down), _linear(up)


def _linear(weight: F32) -> Linear:
    form = form_of("f32")
    nothing = np.zeros(len(weight), np.float32)
    if form is None:
        return Linear(np.ascontiguousarray(weight.T), nothing)
    return Linear(pack(np.ascontiguousarray(weight), *form.split("/")), nothing)
