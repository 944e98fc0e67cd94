"""A decoder's forward pass in NumPy, and in one compiled call: the same results but for rounding.

Takes batches that :class:`Decoder` has checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tarsdb.kernels import decoder as compiled
from tarsdb.kernels import decoder_reference as kernels
from tarsdb.kernels import gemm_reference, packing
from tarsdb.kernels.decoder_reference import BLOCK_TOKENS, GELU_TANH
from tarsdb.model_ops.decoder_spec import DecoderSpec
from tarsdb.model_ops.decoder_weights import DecoderLayer, DecoderReader, DecoderWeights
from tarsdb.model_ops.kv_cache import KVCache
from tarsdb.model_ops.lora import LayerAdapter, LowRank
from tarsdb.model_ops.packed_decoder import decoder_plan, pack_decoder
from tarsdb.model_ops.shelf import Shelf, packed_weights
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Adapter:
    """A low-rank adapter in the form that steps of one model compute with.

    Parameters
    ----------
    content : PackedAdapter, or tuple of LayerAdapter
    weight_bytes : int
        Of memory.
    """

    content: Any
    weight_bytes: int


@dataclass(frozen=True)
class StepBatch:
    """Rows to compute together.

    Parameters
    ----------
    tokens : (n,) int32
        Token of each row, the rows of a sequence one after another.
    offsets : (s + 1,) int32
        Rows of sequence i are ``offsets[i]`` to ``offsets[i + 1]``; at least one each.
    positions : (s,) int32
        Position of each sequence's first row; what lies before it is in the cache.
    block_tables : (s, b) int32
        Blocks of each sequence in the order of its tokens; unused entries hold anything.
    wanted : (w,) int32
        Rows whose logits are needed.
    adapters : sequence of Adapter or None, optional
        What adapts the model for each sequence.
    """

    tokens: I32
    offsets: I32
    positions: I32
    block_tables: I32
    wanted: I32
    adapters: Sequence[Adapter | None] = ()

    def adapted_rows(self) -> list[tuple[int, int, Adapter]]:
        """Return first row, number of rows and adapter of every run of rows that has one."""
        runs: list[tuple[int, int, Adapter]] = []
        for number, adapter in enumerate(self.adapters):
            first, stop = int(self.offsets[number]), int(self.offsets[number + 1])
            if adapter is None:
                continue
            if runs and runs[-1][2] is adapter and sum(runs[-1][:2]) == first:
                first = runs.pop()[0]
            runs.append((first, stop - first, adapter))
        return runs

    def row_positions(self) -> npt.NDArray[np.int64]:
        """Return the position of each row in its sequence."""
        shift = self.positions.astype(np.int64) - self.offsets[:-1]
        return np.arange(len(self.tokens)) + np.repeat(shift, np.diff(self.offsets))


class Forward(Protocol):
    """Computes checked batches.

    Attributes
    ----------
    threads : int
        How many share a step; what they compute does not depend on it.
    weight_bytes, workspace_bytes : int
        Memory held for the weights, and for what a step computes.
    """

    threads: int

    @property
    def weight_bytes(self) -> int: ...  # noqa: D102
    @property
    def workspace_bytes(self) -> int: ...  # noqa: D102

    def new_cache(self, blocks: int) -> KVCache:
        """Allocate a KV cache where steps are computed."""
        ...

    def adapter(self, layers: tuple[LayerAdapter, ...]) -> Adapter:
        """Bring what is added to each layer into the form that steps compute with."""
        ...

    def logits(
        self, batch: StepBatch, positions: npt.NDArray[np.int64], angles: F32, cache: KVCache
    ) -> F32:
        """Return the wanted rows' logits; ``positions`` and ``angles`` are those of the rows."""
        ...


class NumpyForward:
    """The definition, and the portable path."""

    def __init__(self, spec: DecoderSpec, read: DecoderReader, kind: str) -> None:
        self._spec, self._kind = spec, kind
        self._weights = _rounded(read.weights(), kind)
        self.threads = 1  # BLAS brings its own

    @property
    def weight_bytes(self) -> int:
        """See :class:`Forward`."""
        weights = self._weights
        arrays = [
            weights.words,
            weights.norm,
            *(a for x in weights.layers for a in vars(x).values()),
        ]
        arrays += [] if weights.head is weights.words else [weights.head]
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def workspace_bytes(self) -> int:
        """See :class:`Forward`."""
        return 0  # allocated by each step

    def new_cache(self, blocks: int) -> KVCache:
        """See :class:`Forward`."""
        return KVCache.for_model(self._spec, blocks, self._kind)

    def adapter(self, layers: tuple[LayerAdapter, ...]) -> Adapter:
        """See :class:`Forward`."""
        return Adapter(layers, sum(part.nbytes for layer in layers for part in layer.values()))

    def logits(
        self, batch: StepBatch, positions: npt.NDArray[np.int64], angles: F32, cache: KVCache
    ) -> F32:
        """See :class:`Forward`."""
        spec, weights = self._spec, self._weights
        rows = weights.words[batch.tokens] * np.float32(spec.embedding_scale)
        for number, layer in enumerate(weights.layers):
            turned = angles[spec.layers[number].rope]
            context = self._attention(number, rows, turned, batch, cache)
            update = self._linear(context, layer.context, layer.context_bias)
            _adapt(update, context, batch, number, "context")
            rows += _normalised(update, layer.context_norm, spec)
            update = self._feed_forward(number, rows, batch)
            rows += _normalised(update, layer.down_norm, spec)
        rows = kernels.rms_norm(rows[batch.wanted], weights.norm, spec.epsilon)
        return kernels.soft_cap(self._linear(rows, weights.head, None), spec.logit_cap)

    def _attention(
        self, number: int, rows: F32, angles: F32, batch: StepBatch, cache: KVCache
    ) -> F32:
        """Attend with one layer; returns (n, heads * head_dim)."""
        spec, layer = self._spec, self._weights.layers[number]
        normed = kernels.rms_norm(rows, layer.attention_norm, spec.epsilon)
        qkv = self._linear(normed, layer.qkv, layer.qkv_bias)
        _adapt(qkv, normed, batch, number, "qkv")
        qkv = qkv.reshape(len(rows), -1, spec.head_dim)
        queries, keys, values = np.split(qkv, [spec.heads, spec.heads + spec.kv_heads], axis=1)
        queries = kernels.rotate(_normalised(queries, layer.query_norm, spec), angles)
        keys = kernels.rotate(_normalised(keys, layer.key_norm, spec), angles)
        scoring = kernels.AttentionSpec(
            spec.query_scale, spec.layers[number].window, spec.score_cap
        )
        out = np.empty((len(rows), spec.heads * spec.head_dim), np.float32)
        for sequence, first in enumerate(batch.positions.tolist()):
            own = slice(batch.offsets[sequence], batch.offsets[sequence + 1])
            table = batch.block_tables[sequence]
            cache.write(number, table, first, keys[own], values[own])
            end = first + own.stop - own.start
            past = cache.read(number, table, end, spec.head_dim)
            out[own] = kernels.attend(queries[own], *past, first, scoring)
        return out

    def _feed_forward(self, number: int, rows: F32, batch: StepBatch) -> F32:
        layer = self._weights.layers[number]
        normed = kernels.rms_norm(rows, layer.mlp_norm, self._spec.epsilon)
        gate_up = self._linear(normed, layer.gate_up, layer.gate_up_bias)
        _adapt(gate_up, normed, batch, number, "gate_up")
        gate, up = np.split(gate_up, 2, axis=1)
        hidden = kernels.gated(gate, up, self._spec.activation)
        found = self._linear(hidden, layer.down, layer.down_bias)
        _adapt(found, hidden, batch, number, "down")
        return found

    def _linear(self, rows: F32, weight: F32, bias: F32 | None) -> F32:
        out = kernels.product(gemm_reference.rounded_rows(rows, self._kind), weight)
        return out if bias is None else out + bias


class CompiledForward:
    """One compiled call a step, on packed weights, which are the only copy."""

    def __init__(
        self, spec: DecoderSpec, read: DecoderReader, kernel: compiled.StepKernel,
        shelf: Shelf | None = None,
    ) -> None:  # fmt: skip
        kind, form = kernel.variant.split("/")
        self._spec, self._kind = spec, kind
        weights, self._region = packed_weights(
            decoder_plan(spec, kind, form), shelf, lambda views: pack_decoder(spec, read, views)
        )
        silu = gemm_reference.GATED + gemm_reference.SILU
        sizes: dict[str, Any] = {
            "hidden": spec.hidden, "heads": spec.heads, "kv_heads": spec.kv_heads,
            "head_dim": spec.head_dim, "width": -(-spec.head_dim // 16) * 16,
            "intermediate": spec.intermediate, "vocabulary": spec.vocabulary,
            "gate": silu if spec.activation != GELU_TANH
            else gemm_reference.GATED + gemm_reference.GELU_TANH,
            "halved_words": int(kind != "f32"), "norm": weights["norm"],
            "words": weights["words"], "head": weights["head"],
            "epsilon": spec.epsilon, "embedding_scale": spec.embedding_scale,
            "query_scale": spec.query_scale, "score_cap": spec.score_cap,
            "logit_cap": spec.logit_cap,
        }  # fmt: skip
        layers: list[dict[str, compiled.Value]] = [
            {"window": layer.window, "rope": layer.rope} for layer in spec.layers
        ]
        for name, weight in weights.items():
            layer, _, part = name.rpartition("/")
            if layer:
                layers[int(layer)][part] = weight
        self._step = compiled.DecoderStep(kernel, sizes, layers)

    @property
    def threads(self) -> int:
        """See :class:`Forward`."""
        return self._step.threads

    @threads.setter
    def threads(self, count: int) -> None:
        self._step.threads = count

    @property
    def weight_bytes(self) -> int:
        """See :class:`Forward`."""
        return self._step.weight_bytes

    @property
    def workspace_bytes(self) -> int:
        """See :class:`Forward`."""
        return self._step.workspace_bytes

    def new_cache(self, blocks: int) -> KVCache:
        """See :class:`Forward`."""
        return KVCache.for_model(self._spec, blocks, self._kind)

    def adapter(self, layers: tuple[LayerAdapter, ...]) -> Adapter:
        """See :class:`Forward`."""
        packed = compiled.PackedAdapter(
            [{name: _packed_pair(name, part) for name, part in layer.items()} for layer in layers]
        )
        return Adapter(packed, packed.nbytes)

    def logits(
        self, batch: StepBatch, positions: npt.NDArray[np.int64], angles: F32, cache: KVCache
    ) -> F32:
        """See :class:`Forward`."""
        sequences = np.repeat(np.arange(len(batch.positions)), np.diff(batch.offsets))
        blocks = batch.block_tables[sequences, positions // BLOCK_TOKENS].astype(np.int64)
        slots = blocks * BLOCK_TOKENS + positions % BLOCK_TOKENS
        names = ("tokens", "offsets", "positions", "block_tables", "wanted")
        tokens, offsets, firsts, tables, wanted = (
            np.ascontiguousarray(getattr(batch, name), np.int32) for name in names
        )
        runs = batch.adapted_rows()
        adapters = list(dict.fromkeys(adapter for _, _, adapter in runs))
        lines = [(first, count, adapters.index(adapter)) for first, count, adapter in runs]
        return self._step.run(
            compiled.StepInput(
                tokens, offsets, firsts, tables, slots, wanted, angles, cache.keys, cache.values,
                np.array(lines, np.int64).reshape(-1, 3), [each.content for each in adapters],
            )
        )  # fmt: skip


def _packed_pair(name: str, part: LowRank) -> tuple[packing.PackedMatrix, packing.PackedMatrix]:
    """Pack what an adapter adds to one product; outputs lie as those of the base's matrix."""
    if name == "gate_up":
        gate, up = np.split(part.up, 2)
        return packing.pack(part.down), packing.pack_gated(gate, up)
    return packing.pack(part.down), packing.pack(part.up)


def _adapt(out: F32, rows: F32, batch: StepBatch, number: int, matrix: str) -> None:
    """Add to a layer's product what the rows' adapters say."""
    for first, count, adapter in batch.adapted_rows():
        part = adapter.content[number].get(matrix)
        if part is not None:
            own = slice(first, first + count)
            out[own] += kernels.product(kernels.product(rows[own], part.down), part.up)


def _rounded(weights: DecoderWeights, kind: str) -> DecoderWeights:
    """Return the weights that packed ones of a kind stand for; vectors of tokens are bfloat16."""
    if kind == "f32":
        return weights

    def matrices(layer: DecoderLayer) -> dict[str, F32]:
        found = {name: array for name, array in vars(layer).items() if array is not None}
        return {n: packing.pack(a, kind).unpack() for n, a in found.items() if a.ndim == 2}

    return replace(
        weights,
        words=packing.from_bfloat16(packing.to_bfloat16(weights.words)),
        layers=tuple(replace(layer, **matrices(layer)) for layer in weights.layers),
        head=packing.pack(weights.head, kind).unpack(),
    )


def _normalised(rows: F32, scale: F32 | None, spec: DecoderSpec) -> F32:
    return rows if scale is None else kernels.rms_norm(rows, scale, spec.epsilon)
