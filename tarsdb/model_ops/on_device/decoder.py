"""The layers of a decoder on a device; steps of few rows are recorded once for each shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.kernels.decoder_reference import BLOCK_TOKENS, AttentionSpec
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.model_arrays import ArrayKernels, Paged
from tarsdb.kernels.gpu.recording import Recorder, Work
from tarsdb.metrics import METRICS
from tarsdb.model_ops.decoder_forward import Adapter, StepBatch
from tarsdb.model_ops.decoder_spec import DecoderSpec
from tarsdb.model_ops.decoder_weights import DecoderLayer, DecoderReader
from tarsdb.model_ops.kv_cache import KVCache
from tarsdb.model_ops.lora import LayerAdapter, LowRank
from tarsdb.model_ops.on_device.device_model import DeviceModel
from tarsdb.model_ops.on_device.matrices import longest_row
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]
Runs = Sequence[tuple[int, int, Adapter]]

MOST_RECORDED = 32
"""Rows of a step that is recorded; larger ones are launched kernel by kernel."""
_LEAST_BLOCKS = 8  # in the block table of a recorded step: fewer shapes


@dataclass(frozen=True)
class _Inputs:
    """Arrays of a step on the device.

    Attributes
    ----------
    tokens : int32 (n,)
    rows : int32 (n, 2 + b)
        See :class:`Paged`.
    angles : float32 (kinds, n, head_dim)
    """

    tokens: Any
    rows: Any
    angles: Any


@dataclass(frozen=True)
class DeviceCache(KVCache):
    """A KV cache on a device, and the steps over it that were recorded, by their shapes."""

    recorded: dict[tuple[int, int], tuple[_Inputs, Work]] = field(default_factory=dict)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers together."""
        return int(self.keys.nbytes + self.values.nbytes) // self.blocks


class DeviceDecoder(DeviceModel):
    """The layers of a decoder on a device; a :class:`~tarsdb.model_ops.decoder_forward.Forward`.

    Parameters
    ----------
    device, kernels, kind
        Of :class:`DeviceModel`. Vectors of tokens are float16 but for ``f32``, and of ``bf16``
        the KV cache is.
    spec : DecoderSpec
    read : DecoderReader
        Read part by part; each goes to the device before the next.

    Raises
    ------
    DeviceError
        The device failed: the message says how many bytes were there already.
    NotSupportedError
        As ``Matrices.product``.
    """

    threads = 1
    workspace_bytes = 0

    def __init__(
        self, device: Device, kernels: ArrayKernels, spec: DecoderSpec, read: DecoderReader,
        kind: str = "f32",
    ) -> None:  # fmt: skip
        super().__init__(device, kernels, kind)
        self._spec, self._recorder = spec, Recorder(device.xp)
        self._records = kernels.recordable or not hasattr(device.xp, "cuda")
        with self._bringing():
            words = read.words()
            self._words = self._matrices.words(words)
            self._norm = self._matrices.array(read.final_norm())
            self._layers = [self._brought(read.layer(at)) for at in range(len(spec.layers))]
            self._head = self._matrices.product(read.head()) if not spec.tied else (
                self._tied(words)
            )  # fmt: skip

    def new_cache(self, blocks: int) -> DeviceCache:
        """Allocate a KV cache on the device: (layers, blocks, kv_heads, ...), without groups."""
        shaped = KVCache.for_model(self._spec, 1)
        xp = self._device.xp
        number = xp.float16 if self._kind == "bf16" else xp.float32
        nbytes = shaped.block_bytes * blocks * np.dtype(number).itemsize // 4
        with self._working(lambda: f"KV cache of {blocks} blocks, {nbytes} bytes"):
            keys, values = (
                xp.zeros((each.shape[0], blocks, each.shape[2], *each.shape[4:]), number)
                for each in (shaped.keys, shaped.values)
            )
        return DeviceCache(keys, values, blocks)

    def adapter(self, layers: tuple[LayerAdapter, ...]) -> Adapter:
        """Copy what is added to each layer to the device."""
        nbytes = sum(part.nbytes for layer in layers for part in layer.values())
        with self._working(lambda: f"adapter of {nbytes} bytes"):
            there = self._device.xp.asarray
            content = tuple(
                {name: LowRank(there(part.down), there(part.up)) for name, part in layer.items()}
                for layer in layers
            )
        return Adapter(content, nbytes)

    def logits(
        self, batch: StepBatch, positions: npt.NDArray[np.int64], angles: F32, cache: KVCache
    ) -> F32:
        """Compute the rows of a checked batch.

        Parameters
        ----------
        batch : StepBatch
        positions : (n,) int64
            Of each row in its sequence.
        angles : (kinds, n, head_dim) float32
            Of each row; see ``rope.Angles``.
        cache : DeviceCache
            Of :meth:`new_cache`.

        Returns
        -------
        (w, vocabulary) float32
            Of the wanted rows.

        Raises
        ------
        DeviceError
            The device failed.
        """
        assert isinstance(cache, DeviceCache)
        count = len(batch.tokens)
        tables = np.repeat(batch.block_tables, np.diff(batch.offsets), axis=0)
        blocks = tables[np.arange(count), positions // BLOCK_TOKENS]
        places = blocks * BLOCK_TOKENS + positions % BLOCK_TOKENS
        rows = np.concatenate([positions[:, None], places[:, None], tables], axis=1)
        inputs = _Inputs(batch.tokens, rows.astype(np.int32), angles)
        all_wanted = np.array_equal(batch.wanted, np.arange(count))
        runs = batch.adapted_rows()
        METRICS.add("generate.device_steps")
        with self._working(lambda: f"step of {count} rows"):
            if self._records and all_wanted and count <= MOST_RECORDED and not runs:
                return self._repeated(inputs, cache)[:count]
            there = _Inputs(*map(self._device.xp.asarray, vars(inputs).values()))
            return self._device.host(self._compute(there, cache, batch.wanted, runs))

    @contextmanager
    def _working(self, task: Callable[[], str]) -> Iterator[None]:
        """Keep the device for one caller, everything in one order."""
        with self._device.working(task), self._recorder.working():
            yield

    def _repeated(self, inputs: _Inputs, cache: DeviceCache) -> F32:
        """Do a step by the recording of its shape, the next power of two in rows and blocks.

        Rows that fill it up are the first one again: they write what that one writes.
        """
        xp, count = self._device.xp, len(inputs.tokens)
        width = inputs.rows.shape[1] - 2
        shape = (_power(count), _power(max(width, _LEAST_BLOCKS)))
        chosen = np.where(np.arange(shape[0]) < count, np.arange(shape[0]), 0)
        rows = np.zeros((shape[0], 2 + shape[1]), np.int32)
        rows[:, : 2 + width] = inputs.rows[chosen]
        filled = (inputs.tokens[chosen], rows, np.ascontiguousarray(inputs.angles[:, chosen]))
        found = cache.recorded.get(shape)
        if found is None:
            there = _Inputs(*(xp.array(each) for each in filled))
            arrays = KVCache(
                cache.keys, cache.values, cache.blocks
            )  # not the cache: it holds the recording
            work = self._recorder.record(lambda: self._compute(there, arrays))
            found = cache.recorded[shape] = (there, work)
        else:
            for kept, values in zip(vars(found[0]).values(), filled, strict=True):
                kept[...] = xp.asarray(values)
        METRICS.add("generate.recorded_steps")
        return self._device.host(found[1]())

    def _compute(self, inputs: _Inputs, cache: KVCache, wanted: Any = None, runs: Runs = ()) -> Any:
        """Return the logits of wanted rows, all unless given; reads nothing back."""
        xp, spec = self._device.xp, self._spec
        hidden = self._words[inputs.tokens].astype(xp.float32)
        hidden *= xp.float32(spec.embedding_scale)
        for number, layer in enumerate(self._layers):
            own = [(first, count, each.content[number]) for first, count, each in runs]
            self._layer(number, layer, hidden, (inputs, cache, own))
        if wanted is not None:
            if not len(wanted):  # a part of a prompt: no kernel is asked for nothing
                return xp.zeros((0, spec.vocabulary), xp.float32)
            hidden = hidden[xp.asarray(wanted)]
        logits = self._head(self._kernels.rms_norm(hidden, self._norm, spec.epsilon))
        cap = xp.float32(spec.logit_cap)
        return xp.tanh(logits / cap) * cap if cap else logits

    def _layer(self, number: int, layer: DecoderLayer, hidden: Any, step: Any) -> None:
        """Pass rows through one layer, in place."""
        spec, kernels, own = self._spec, self._kernels, self._spec.layers[number]
        inputs, cache, adapters = step
        normed = kernels.rms_norm(hidden, layer.attention_norm, spec.epsilon)
        qkv = _adapted("qkv", _linear(layer.qkv, layer.qkv_bias, normed), normed, adapters)
        qkv = qkv.reshape(len(hidden), -1, spec.head_dim)
        paged = Paged(inputs.rows, cache.keys[number], cache.values[number])
        norms = None
        if layer.query_norm is not None and layer.key_norm is not None:
            norms = (layer.query_norm, layer.key_norm)
        queries = kernels.turn_and_store(qkv, inputs.angles[own.rope], norms, spec.epsilon, paged)
        scoring = AttentionSpec(spec.query_scale, own.window, spec.score_cap)
        context = kernels.paged_attention(queries, paged, scoring)
        update = _linear(layer.context, layer.context_bias, context)
        update = self._normalised(
            _adapted("context", update, context, adapters), layer.context_norm
        )
        normed = kernels.add_rms_norm(hidden, update, layer.mlp_norm, spec.epsilon)
        gate_up = _linear(layer.gate_up, layer.gate_up_bias, normed)
        inner = kernels.gated(_adapted("gate_up", gate_up, normed, adapters), spec.activation)
        update = _adapted("down", _linear(layer.down, layer.down_bias, inner), inner, adapters)
        hidden += self._normalised(update, layer.down_norm)

    def _normalised(self, rows: Any, scale: Any) -> Any:
        return rows if scale is None else self._kernels.rms_norm(rows, scale, self._spec.epsilon)

    def _brought(self, layer: DecoderLayer) -> DecoderLayer:
        """Return a layer whose matrices are products on the device."""
        found: dict[str, Any] = {}
        for name, array in vars(layer).items():
            bring = self._matrices.array if array is None or array.ndim == 1 else (
                self._matrices.product
            )  # fmt: skip
            found[name] = None if array is None else bring(array)
        return DecoderLayer(**found)

    def _tied(self, words: F32) -> Any:
        """Return the product with the vectors of tokens, which are there already."""
        if self._kind == "f32":
            return self._matrices.plain_product(self._words)
        if self._kind == "bf16":
            return self._matrices.half_product(self._words, longest_row(words))
        return self._matrices.product(words)


def _linear(weight: Any, bias: Any, rows: Any) -> Any:
    out = weight(rows)
    if bias is not None:
        out += bias
    return out


def _adapted(matrix: str, out: Any, rows: Any, adapters: Any) -> Any:
    """Add to a product what the rows' adapters say; returns it."""
    for first, count, parts in adapters:
        part = parts.get(matrix)
        if part is not None:
            own = slice(first, first + count)
            out[own] += (rows[own] @ part.down.T) @ part.up.T
    return out


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()
