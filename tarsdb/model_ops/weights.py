"""A model's tensors in the layout the encoder computes with.

Query, key and value are one matrix, the query scaled by log2(e) / sqrt(head size) so that scores
are powers of two; gate and what it multiplies are one; positions, or words where there are none,
and token type 0 are added up. Matrices are packed for compiled
products, or kept as NumPy multiplies them. Arrays are copied one tensor at a time, or lie packed on
a shelf; either way they outlive the transaction they were read in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelFormatError
from tarsdb.kernels import gemm_reference
from tarsdb.kernels.decoder_reference import product
from tarsdb.kernels.packed_plan import Plan, Slot, Weight, matrix_slot, store
from tarsdb.kernels.packing import TILE, PackedMatrix
from tarsdb.memory_region import Region
from tarsdb.model_ops.architecture import (
    EncoderSpec,
    layer_tensor,
    norm_tensor,
    tensor_shapes,
    word_tensor,
)
from tarsdb.model_ops.rope import Angles
from tarsdb.model_ops.shelf import Shelf, packed_weights
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]

QUANTIZE = {"none": "f32", "bf16": "bf16", "int8": "int8", "int4": "int4"}
"""How matrices are kept: value of the option ``quantize`` -> kind of ``kernels/packing``."""
LOG2E = np.float32(math.log2(math.e))
_AT_A_TIME = 1 << 20  # elements looked at
_NAMED = 8  # missing tensors spelled out in an error
_LAYER_NORMS = ("context_norm", "output_norm")
_ALIASES = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))


@dataclass(frozen=True)
class Linear:
    """A product with a weight matrix, and a bias.

    ``matrix`` is packed, or float32 (inputs, outputs); ``bias`` float32 (outputs,). Of a gated
    matrix the outputs are those of the gate, then those of what it multiplies, and ``bias`` has two
    rows.
    """

    matrix: PackedMatrix | F32
    bias: F32

    def product(self, rows: F32) -> F32:
        """Return ``rows`` (n, inputs) times the matrix, without the bias, by NumPy.

        A row's result does not depend on the rows beside it.
        """
        matrix = self.matrix
        if not isinstance(matrix, PackedMatrix):
            return product(rows, matrix.T)
        if matrix.kind in ("int8", "int4"):
            parts = [gemm_reference.product(rows, matrix, n) for n in range(1 + matrix.gated)]
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        return product(gemm_reference.rounded_rows(rows, matrix.kind), self.dense().T)

    def dense(self) -> F32:
        """Return the matrix as float32 (inputs, outputs)."""
        if not isinstance(self.matrix, PackedMatrix):
            return self.matrix
        return self.matrix.unpack().reshape(-1, self.matrix.depth).T


@dataclass(frozen=True)
class LayerWeights:
    """One layer. Heads are ``head_size`` wide in queries, keys, values and context.

    ``expand`` is gated where the spec says so. Of a pre-norm encoder, ``output_norm`` is the norm
    in front of the next layer, or behind the last one.
    """

    qkv: Linear
    context: Linear
    context_norm: tuple[F32, F32]
    expand: Linear
    reduce: Linear
    output_norm: tuple[F32, F32]


@dataclass(frozen=True)
class EncoderWeights:
    """All weights of an encoder.

    ``words`` (vocabulary, hidden); ``positions`` (max_tokens, hidden), token type 0 included, or
    None: then words include it; ``types`` (token_types, hidden), how each type differs from type 0;
    ``relative``
    (heads, 2 * max_tokens - 1), in powers of two like the scores, or None. ``head_size`` is filled
    up with zeros to a multiple of 16. ``angles``, by position, of an encoder that turns queries and
    keys. ``region`` holds the arrays, where matrices are packed.
    """

    words: F32
    positions: F32 | None
    types: F32
    norm: tuple[F32, F32]
    layers: tuple[LayerWeights, ...]
    relative: F32 | None
    head_size: int
    angles: Angles | None = None
    region: Region | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all of it takes."""
        return sum(part.nbytes for part in _arrays(self))


def _arrays(value: Any) -> Iterator[npt.NDArray[Any]]:
    """Yield the arrays that weights, or parts of them, consist of."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, PackedMatrix):
        yield value.data
    elif isinstance(value, (EncoderWeights, LayerWeights, Linear, tuple)):
        for part in value if isinstance(value, tuple) else vars(value).values():
            yield from _arrays(part)


def check_tensors(spec: EncoderSpec, shapes: Mapping[str, tuple[int, ...]], where: str) -> str:
    """Check names and shapes against the config.

    Parameters
    ----------
    shapes : mapping of str to tuple
        Shape of each tensor at hand.
    where : str
        Names the model in messages.

    Returns
    -------
    str
        The prefix all names carry, such as 'bert.'.

    Raises
    ------
    ModelFormatError
        Names the missing tensors, or the tensor and the two shapes that disagree.
    """
    prefix = _prefix(shapes, where, word_tensor(spec))
    compare_shapes(tensor_shapes(spec), shapes, where, prefix)
    return prefix


def shapes_of(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor; a mapping that knows them, as ``shapes``, is not read."""
    known = getattr(tensors, "shapes", None)
    return {name: tensors[name].shape for name in tensors} if known is None else dict(known)


def compare_shapes(
    expected: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], where: str,
    prefix: str = "",
) -> None:  # fmt: skip
    """Raise ModelFormatError unless every expected tensor is there in its shape."""
    missing = []
    for name, shape in expected.items():
        found = _find(shapes, prefix + name)
        if found is None:
            missing.append(name)
        elif tuple(shapes[found]) != shape:
            raise ModelFormatError(
                f"tensor {found!r} of {where} has shape {tuple(shapes[found])}, "
                f"config.json asks for {shape}"
            )
    if missing:
        listed = ", ".join(missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ModelFormatError(
            f"{where} lacks {len(missing)} tensors: {listed}{more}",
            "the weights are incomplete or belong to another config.json",
        )


def load_weights(
    spec: EncoderSpec, tensors: Mapping[str, npt.NDArray[Any]], form: str | None = None,
    shelf: Shelf | None = None,
) -> EncoderWeights:  # fmt: skip
    """Copy the tensors an encoder needs; each is read from the mapping once.

    Matrices are packed in a form KIND/VARIANT of the kernels, or kept for NumPy where it is None.
    What the shelf has packed is not read.

    Raises
    ------
    ModelFormatError
        A tensor is missing, has another shape than the config asks for, or holds NaN or infinity.
    """
    prefix = _prefix(tensors, "the model", word_tensor(spec))
    if any(_find(tensors, prefix + name) is None for name in tensor_shapes(spec)):
        check_tensors(spec, shapes_of(tensors), "the model")
    read = _Reader(spec, tensors, prefix)
    if form is None:
        dense = {name: _dense(name, parts) for name, parts in _parts(spec, read)}
        return _assembled(spec, dense)

    def pack(views: Mapping[str, Weight]) -> None:
        for name, parts in _parts(spec, read):
            store(views[name], *parts)

    packed, region = packed_weights(encoder_plan(spec, form), shelf, pack)
    return _assembled(spec, packed, region)


def encoder_plan(spec: EncoderSpec, form: str) -> Plan:
    """Return where weights lie, packed in a form KIND/VARIANT of the kernels."""
    kind, _, variant = form.partition("/")
    hidden, inner, wide = spec.hidden, spec.intermediate, spec.heads * _padded_size(spec)
    slots = {"words": _floats(spec.vocabulary, hidden), "types": _floats(spec.token_types, hidden)}
    if spec.rotary is None:
        slots["positions"] = _floats(spec.max_tokens, hidden)
    if spec.relative_buckets:
        slots["relative"] = _floats(spec.heads, 2 * spec.max_tokens - 1)
    slots["norm"] = slots["shift"] = _floats(hidden)
    layer = {
        "qkv": matrix_slot(kind, variant, (3 * wide, hidden)),
        "qkv_bias": _floats(3 * wide),
        "context": matrix_slot(kind, variant, (hidden, wide)),
        "context_bias": _floats(hidden),
        "expand": matrix_slot(kind, variant, (inner, hidden), spec.gated),
        "expand_bias": _floats(2, inner) if spec.gated else _floats(inner),
        "reduce": matrix_slot(kind, variant, (hidden, inner)),
        "reduce_bias": _floats(hidden),
    }
    for name in _LAYER_NORMS:
        layer[name] = layer[f"{name}_shift"] = _floats(hidden)
    for number in range(spec.layers):
        slots.update({f"{number}/{name}": slot for name, slot in layer.items()})
    return Plan(slots)


def _floats(*shape: int) -> Slot:
    return Slot("float32", shape)


def _dense(name: str, parts: tuple[F32, ...]) -> F32:
    """Return an array as NumPy multiplies it: matrices of layers (inputs, outputs)."""
    is_matrix = "/" in name and parts[0].ndim == 2 and not name.endswith("_bias")
    return np.ascontiguousarray(np.concatenate(parts).T) if is_matrix else parts[0]


def _parts(spec: EncoderSpec, read: _Reader) -> Iterator[tuple[str, tuple[F32, ...]]]:
    """Yield name and content of every array; matrices (outputs, inputs), of a gated one two."""
    words, positions = read(word_tensor(spec)), None
    if spec.rotary is None:
        positions = read("embeddings.position_embeddings.weight")[spec.position_offset :].copy()
    types = np.zeros((0, spec.hidden), np.float32)
    if spec.token_types:
        types = read("embeddings.token_type_embeddings.weight")
        both = words if positions is None else positions
        both += types[0]
        types = types - types[0]
    if positions is not None:
        yield "positions", (positions,)
    yield "words", (words,)
    yield "types", (types,)
    if spec.relative_buckets:
        table = read("encoder.relative_attention_bias.weight") * LOG2E
        yield "relative", (_relative_bias(table, spec.max_tokens),)
    yield "norm", (read(norm_tensor(spec, "weight")),)
    yield "shift", (read.bias(norm_tensor(spec, "bias"), spec.hidden),)
    for number in range(spec.layers):
        for name, parts in _layer(spec, read, number):
            yield f"{number}/{name}", parts


def _assembled(
    spec: EncoderSpec, parts: Mapping[str, Any], region: Region | None = None
) -> EncoderWeights:
    """Give the arrays of a model their places."""

    def layer(number: int) -> LayerWeights:
        def linear(name: str) -> Linear:
            return Linear(parts[f"{number}/{name}"], parts[f"{number}/{name}_bias"])

        def norm(name: str) -> tuple[F32, F32]:
            return parts[f"{number}/{name}"], parts[f"{number}/{name}_shift"]

        return LayerWeights(
            qkv=linear("qkv"), context=linear("context"), context_norm=norm("context_norm"),
            expand=linear("expand"), reduce=linear("reduce"), output_norm=norm("output_norm"),
        )  # fmt: skip

    rotary = spec.rotary
    return EncoderWeights(
        words=parts["words"],
        positions=parts.get("positions"),
        types=parts["types"],
        norm=(parts["norm"], parts["shift"]),
        layers=tuple(layer(number) for number in range(spec.layers)),
        relative=parts.get("relative"),
        head_size=_padded_size(spec),
        angles=None if rotary is None else Angles(rotary.ropes, spec.hidden // spec.heads),
        region=region,
    )


class _Reader:
    """Reads checked float32 copies by name."""

    def __init__(
        self, spec: EncoderSpec, tensors: Mapping[str, npt.NDArray[Any]], prefix: str
    ) -> None:
        self._tensors = tensors
        self._prefix = prefix
        self._shapes = tensor_shapes(spec)

    def __call__(self, name: str) -> F32:
        found = _find(self._tensors, self._prefix + name) or name
        return read_tensor(self._tensors, found, self._shapes[name])

    def bias(self, name: str, size: int) -> F32:
        """Return a bias, of zeros where the model has none."""
        return self(name) if name in self._shapes else np.zeros(size, np.float32)


def read_tensor(tensors: Mapping[str, npt.NDArray[Any]], name: str, shape: tuple[int, ...]) -> F32:
    """Return a checked float32 copy of one tensor, the caller's to write to.

    A mapping that says ``makes_arrays`` gives away the writeable ones: these are not copied again.

    Raises
    ------
    ModelFormatError
        It has another shape or no float type, or holds NaN or infinity.
    """
    tensor = tensors[name]
    if tensor.shape != shape:
        raise ModelFormatError(
            f"tensor {name!r} has shape {tensor.shape}, config.json asks for {shape}"
        )
    if tensor.dtype.kind != "f":
        raise ModelFormatError(f"tensor {name!r} has dtype {tensor.dtype}, not a float type")
    given = bool(getattr(tensors, "makes_arrays", False)) and tensor.flags.writeable
    with np.errstate(over="ignore"):  # a float64 beyond float32 is refused below
        values = np.array(tensor, np.float32, order="C", copy=None if given else True)
    flat = values.reshape(-1)
    starts = range(0, len(flat), _AT_A_TIME)
    if not all(np.isfinite(flat[start : start + _AT_A_TIME]).all() for start in starts):
        raise ModelFormatError(f"tensor {name!r} holds NaN or infinity")
    return values


def _layer(spec: EncoderSpec, read: _Reader, number: int) -> Iterator[tuple[str, tuple[F32, ...]]]:
    def weight(part: str) -> F32:
        return read(layer_tensor(spec, number, part, "weight"))

    def bias(part: str, size: int = spec.hidden) -> F32:
        return read.bias(layer_tensor(spec, number, part, "bias"), size)

    if spec.rotary is None:
        parts = ("query", "key", "value")
        qkv, qkv_bias = [weight(part) for part in parts], [bias(part) for part in parts]
    else:
        qkv = np.split(weight("qkv"), 3)
        qkv_bias = np.split(bias("qkv", 3 * spec.hidden), 3)
    for query in (qkv[0], qkv_bias[0]):
        query *= query_scale(spec)
    yield "qkv", (np.concatenate([padded_heads(spec, each) for each in qkv]),)
    yield "qkv_bias", (np.concatenate([padded_heads(spec, each) for each in qkv_bias]),)
    yield "context", (padded_heads(spec, weight("context").T).T,)
    yield "context_bias", (bias("context"),)
    yield from _expand(spec, weight, bias)
    yield "reduce", (weight("reduce"),)
    yield "reduce_bias", (bias("reduce"),)
    for part in _LAYER_NORMS:
        yield part, (weight(part),)
        yield f"{part}_shift", (bias(part),)


def _expand(
    spec: EncoderSpec, weight: Callable[[str], F32], bias: Callable[[str, int], F32]
) -> Iterator[tuple[str, tuple[F32, ...]]]:
    """Yield the first product of the feed-forward network."""
    size = spec.intermediate
    if not spec.gated:
        yield "expand", (weight("expand"),)
        yield "expand_bias", (bias("expand", size),)
    elif spec.family == "modernbert":
        gate, up = np.split(weight("gate_up"), 2)
        yield "expand", (gate, up)
        yield "expand_bias", (bias("gate_up", 2 * size).reshape(2, size),)
    else:
        yield "expand", (weight("gate"), weight("expand"))
        yield "expand_bias", (np.stack([bias("gate", size), bias("expand", size)]),)


def _padded_size(spec: EncoderSpec) -> int:
    return -(-(spec.hidden // spec.heads) // TILE) * TILE


def query_scale(spec: EncoderSpec) -> np.float32:
    """Return what queries are multiplied by, so that scores are powers of two."""
    return LOG2E / np.float32(math.sqrt(spec.hidden // spec.heads))


def padded_heads(spec: EncoderSpec, values: F32) -> F32:
    """Fill each head's rows up with zeros: (heads * size, ...) to (heads * head_size, ...)."""
    size, rest = spec.hidden // spec.heads, values.shape[1:]
    whole = np.zeros((spec.heads, _padded_size(spec), *rest), np.float32)
    whole[:, :size] = values.reshape(spec.heads, size, *rest)
    return whole.reshape(-1, *rest)


def _relative_bias(table: F32, longest: int) -> F32:
    """Spread MPNet's bucketed bias (buckets, heads) over distances key - query.

    Buckets are T5's: half of them for each direction, exact up to a quarter, then logarithmic up
    to distance 128 (Raffel et al. 2020, section 2.1).
    """
    distance = np.arange(-(longest - 1), longest)
    half = len(table) // 2
    exact = half // 2
    size = np.abs(distance)
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    far = exact + (ratio / np.float32(math.log(128 / exact)) * (half - exact)).astype(np.int64)
    bucket = np.where(size < exact, size, np.minimum(far, half - 1)) + (distance > 0) * half
    return np.ascontiguousarray(table[bucket].T)


def _prefix(names: Iterable[str], where: str, anchor: str) -> str:
    found = [name[: -len(anchor)] for name in names if name.endswith(anchor)]
    prefixes = sorted({prefix for prefix in found if prefix == "" or prefix.endswith(".")}, key=len)
    if not prefixes:
        raise ModelFormatError(
            f"{where} lacks the tensor {anchor!r}", "are these the weights of a text encoder?"
        )
    return prefixes[0]


def _find(names: Mapping[str, Any], name: str) -> str | None:
    if name in names:
        return name
    for modern, old in _ALIASES:  # TensorFlow-era checkpoints
        alias = name.removesuffix(modern) + old
        if name.endswith(modern) and alias in names:
            return alias
    return None
