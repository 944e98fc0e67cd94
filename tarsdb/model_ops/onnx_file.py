"""Weights of encoders in ONNX files, by the names their Hugging Face models give them.

An exporter keeps the names of biases, norms and vectors of tokens, and turns matrices, whose names
it drops; a matrix is found by the bias that is added to its product. Only the parts of the format
that this needs are read, without a library; nothing of a graph is run. That a graph is an encoder
is told by its operations. Nothing in the file is trusted: every length is checked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import field
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.kernels.transformer_reference import GELU, GELU_TANH, RELU
from tarsdb.model_ops.architecture import EncoderSpec
from tarsdb.model_ops.safetensors_file import widen_bfloat16
from tarsdb.records import dataclass

Array = npt.NDArray[Any]

_TYPES = {1: "<f4", 7: "<i8", 10: "<f2", 11: "<f8", 16: "<u2"}
_BFLOAT16, _FLOAT_DATA = 16, 4
_QUANTISED = ("Linear", "Integer", "NBits")
_ACTIVATIONS = {GELU: ("Erf", "Gelu"), GELU_TANH: ("Tanh", "Gelu", "FastGelu"), RELU: ("Relu",)}
_REWRITTEN = frozenset({
    "Attention", "MultiHeadAttention", "EmbedLayerNormalization", "SkipLayerNormalization",
    "BiasGelu", "FusedMatMul", "FusedGemm", "QuickGelu", "RotaryEmbedding",
})  # fmt: skip
_AS_IT_IS = "WITH (runtime = 'onnxruntime') runs the graph as it is"
_DAMAGED = "the file is damaged or incomplete; export it again"


@dataclass
class _Node:
    kind: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    turned: bool = False
    """Of a Gemm: its matrix lies (outputs, inputs)."""


def read_onnx_encoder(path: str, spec: EncoderSpec) -> dict[str, Array]:
    """Return the weights of an encoder; raises when the graph is no encoder of these sizes.

    Raises
    ------
    ModelFormatError
        The file is damaged, keeps its weights in other files, or its operations are not those of
        the config's encoder.
    NotSupportedError
        A quantised graph, or a type that is no weight's.
    """
    if spec.rotary is not None:
        raise NotSupportedError(
            f"weights of the kind {spec.family} are not read from ONNX files",
            f"use the model's safetensors, or {_AS_IT_IS}",
        )
    try:
        data: npt.NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        graphs = [graph for number, graph in _fields(data.data) if number == 7]
        nodes, tensors = _read_graph(path, graphs[0])
        for node in nodes:  # equal tensors are stored once
            if node.kind == "Identity" and node.inputs[0] in tensors:
                tensors[node.outputs[0]] = tensors[node.inputs[0]]
        found = {**tensors, **_named_matrices(nodes, tensors)}
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise ModelFormatError(f"{path} is no valid ONNX file: {error}", _DAMAGED) from error
    _check_operations(path, spec, Counter(node.kind for node in nodes))
    return found


def _named_matrices(nodes: list[_Node], tensors: dict[str, Array]) -> dict[str, Array]:
    """Return the matrices of products that a named bias is added to, (outputs, inputs)."""
    products = {node.outputs[0]: node for node in nodes if node.kind == "MatMul" and node.outputs}
    found = {}
    for node in nodes:
        if node.kind == "Gemm" and len(node.inputs) == 3:
            bias, matrix, turned = node.inputs[2], node.inputs[1], node.turned
        elif node.kind == "Add" and len(node.inputs) == 2:
            biases = [name for name in node.inputs if name.endswith(".bias")]
            made = [products[name] for name in node.inputs if name in products]
            if not biases or not made:
                continue
            bias, matrix, turned = biases[0], made[0].inputs[1], False
        else:
            continue
        name, weight = bias.removesuffix("bias") + "weight", tensors.get(matrix)
        if bias.endswith(".bias") and weight is not None and weight.ndim == 2:
            found[name] = weight if turned else weight.T
    return found


def _check_operations(path: str, spec: EncoderSpec, operations: Counter[str]) -> None:
    rewritten = sorted(_REWRITTEN & operations.keys())
    if rewritten:
        raise NotSupportedError(
            f"{path} was rewritten by an optimiser: it has the operation {rewritten[0]!r}",
            _AS_IT_IS,
        )
    quantised = [kind for kind in operations if any(part in kind for part in _QUANTISED)]
    if quantised:
        raise NotSupportedError(
            f"{path} is quantised: it has the operation {quantised[0]!r:.60}",
            f"export the float model, quantize = 'int8' makes it small here; or {_AS_IT_IS}",
        )
    activations = sum(operations[kind] for kind in _ACTIVATIONS[spec.activation])
    norms = operations["LayerNormalization"] or operations["Sqrt"]
    for what, count, wanted in (
        ("attentions (Softmax)", operations["Softmax"], spec.layers),
        ("norms", norms, 2 * spec.layers + 1),
    ):
        if count != wanted:
            raise ModelFormatError(
                f"the graph of {path} has {count} {what}, the encoder of config.json has {wanted}"
            )
    if activations < spec.layers:
        raise ModelFormatError(
            f"the graph of {path} has {activations} activations of the kind config.json names, "
            f"its {spec.layers} layers need one each"
        )


def _read_graph(path: str, graph: Any) -> tuple[list[_Node], dict[str, Array]]:
    nodes, tensors = [], {}
    for number, value in _fields(graph):
        if number == 1:
            nodes.append(_read_node(value))
        elif number == 5:
            name, tensor = _read_tensor(path, value)
            if tensor is not None:
                tensors[name] = tensor
    return nodes, tensors


def _read_node(data: Any) -> _Node:
    node = _Node()
    for number, value in _fields(data):
        if number == 1:
            node.inputs.append(str(value, "utf-8"))
        elif number == 2:
            node.outputs.append(str(value, "utf-8"))
        elif number == 4:
            node.kind = str(value, "utf-8")
        elif number == 5:
            attribute = dict(_fields(value))
            node.turned |= bytes(attribute.get(1, b"")) == b"transB" and bool(attribute.get(3))
    return node


def _read_tensor(path: str, data: Any) -> tuple[str, Array | None]:
    """Return name and values; None for a type that no weight has."""
    dims: list[int] = []
    name, kind, raw = "", 0, b""
    for number, value in _fields(data):
        if number == 1:
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif number == 2:
            kind = value
        elif number == 8:
            name = str(value, "utf-8")
        elif number == 9 or (number == _FLOAT_DATA and not isinstance(value, int)):
            raw = value
        elif number in (13, 14) and value:
            raise ModelFormatError(
                f"tensor {name!r:.80} of {path} lies in another file", "export into one file"
            )
    if kind not in _TYPES:
        return name, None
    dtype, shape = np.dtype(_TYPES[kind]), tuple(dims)
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise ModelFormatError(
            f"tensor {name!r:.80} of {path} of shape {shape} has {len(raw)} bytes, needs "
            f"{math.prod(shape) * dtype.itemsize}",
            _DAMAGED,
        )
    values: Array = np.frombuffer(raw, dtype).reshape(shape)
    return name, widen_bfloat16(values) if kind == _BFLOAT16 else values


def _fields(data: Any) -> Iterator[tuple[int, Any]]:
    """Return number and value of each field of a protobuf message: whole numbers, or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _varint(data, at)
        if size is None or size > len(data) - at:
            raise ValueError(f"field {key >> 3} at byte {at} goes beyond its message")
        yield key >> 3, data[at : at + size]
        at += size


def _varints(data: Any) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: Any, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a number ends behind its message")
        byte = int(data[at])
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"the number at byte {at} is too long")
