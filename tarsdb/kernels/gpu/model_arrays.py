"""What models do between matrix products, over an array namespace: defines the CUDA kernels.

Encoders equal ``kernels/transformer_reference``, decoders ``kernels/decoder_reference``, but for
the rounding of sums. Rows are float32 arrays of the device. Knows no models.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tarsdb.kernels import decoder_reference
from tarsdb.kernels.decoder_reference import BLOCK_TOKENS, AttentionSpec
from tarsdb.kernels.transformer_reference import (
    GELU,
    GELU_LIMIT,
    GELU_LOGIT,
    RELU,
    SILU,
    TANH_LOGIT,
)
from tarsdb.records import dataclass

HALF_ROOM = 2.0**15
"""Factors and products in half precision are at most this: half of what float16 holds."""


@dataclass(frozen=True)
class Paged:
    """Rows of a decoder's step beside one layer's part of a paged KV cache.

    Attributes
    ----------
    rows : int32 (n, 2 + b)
        Position of each row in its sequence, the place of its own key and value (16 times the block
        and the token in it), then the blocks of its sequence.
    keys : float32 or float16 (blocks, kv_heads, head_dim, 16)
    values : float32 or float16 (blocks, kv_heads, 16, width)
        Width is at least head_dim.
    """

    rows: Any
    keys: Any
    values: Any


class ArrayKernels:
    """The definition, by the namespace's own functions.

    Attributes
    ----------
    recordable : bool
        Whether a decoder's kernels never read the device's numbers to decide what to do next.
    """

    recordable = False

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    def residual_norm(
        self, values: Any, update: Any, bias: Any, scale: Any, shift: Any, epsilon: float
    ) -> None:
        """``values = layer_norm(values + update + bias)`` in place; (n, width), (width,)."""
        xp = self.xp
        values += update
        values += bias
        values -= values.mean(axis=1, keepdims=True)
        variance = xp.square(values).mean(axis=1, keepdims=True)
        values *= 1 / xp.sqrt(variance + xp.float32(epsilon))
        values *= scale
        values += shift

    def bias_activation(self, values: Any, bias: Any, activation: int) -> None:
        """``values = activation(values + bias)`` in place; gelu, gelu by tanh, relu or silu."""
        xp = self.xp
        values += bias
        if activation == RELU:
            xp.maximum(values, xp.float32(0), out=values)
            return
        if activation == SILU:
            with np.errstate(over="ignore"):
                values /= 1 + xp.exp(-values)
            return
        square = values * values
        if activation == GELU:
            square = xp.minimum(square, xp.float32(GELU_LIMIT))
        logit = xp.zeros_like(values)
        for factor in reversed(GELU_LOGIT if activation == GELU else TANH_LOGIT):
            logit = logit * square + xp.float32(factor)
        with np.errstate(over="ignore"):  # exp overflows to infinity where gelu is 0
            values /= 1 + xp.exp(-logit * values)

    def self_attention(
        self, qkv: Any, offsets: np.ndarray, heads: int, relative: Any, scale: float,
        reach: int = 0,
    ) -> Any:  # fmt: skip
        """Attend inside each text.

        Parameters
        ----------
        qkv : (n, 3 * width)
            Queries, keys and values of all heads, side by side.
        offsets : int64 (texts + 1,), of the host
            Where each text starts; none is empty.
        heads : int
        relative : (heads, 2 * longest - 1) or None
            Added to scores by the distance key - query, which is 0 in the middle.
        scale : float
            Scores are multiplied by it.
        reach : int
            Tokens to either side that are seen; 0: all.

        Returns
        -------
        (n, width) float32
        """
        xp, width = self.xp, qkv.shape[1] // 3
        out = xp.empty((len(qkv), width), xp.float32)
        for first, last in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            parts = qkv[first:last].reshape(last - first, 3, heads, -1).transpose(1, 2, 0, 3)
            scores = xp.matmul(parts[0], parts[1].transpose(0, 2, 1))
            place = xp.arange(last - first)
            distance = place - place[:, None]
            if relative is not None:
                scores += relative[:, distance + relative.shape[1] // 2]
            if reach:
                scores = xp.where(xp.abs(distance) > reach, xp.float32(-np.inf), scores)
            found = xp.matmul(self._softmax(scores * xp.float32(scale)), parts[2])
            out[first:last] = found.transpose(1, 0, 2).reshape(last - first, width)
        return out

    def rms_norm(self, rows: Any, scale: Any, epsilon: float) -> Any:
        """Return rows (n, width) of mean square 1, times ``scale`` (width,)."""
        xp = self.xp
        mean = xp.square(rows).mean(axis=-1, keepdims=True)
        return rows * (1 / xp.sqrt(mean + xp.float32(epsilon))) * scale

    def add_rms_norm(self, rows: Any, update: Any, scale: Any, epsilon: float) -> Any:
        """``rows += update`` in place; returns their :meth:`rms_norm`."""
        rows += update
        return self.rms_norm(rows, scale, epsilon)

    def gated(self, gate_up: Any, activation: int) -> Any:
        """Return ``activation(gate) * up`` of gates beside ups (n, 2 * width)."""
        xp = self.xp
        gate, up = xp.split(gate_up, 2, axis=1)
        logit = gate
        if activation == decoder_reference.GELU_TANH:
            logit = gate * (xp.float32(TANH_LOGIT[0]) + xp.float32(TANH_LOGIT[1]) * gate * gate)
        with np.errstate(over="ignore"):
            return gate / (1 + xp.exp(-logit)) * up

    def turn_and_store(
        self, qkv: Any, angles: Any, norms: tuple[Any, Any] | None, epsilon: float, paged: Paged
    ) -> Any:
        """Normalise and turn queries and keys; put keys and values into the cache.

        Parameters
        ----------
        qkv : (n, heads + 2 * kv_heads, head_dim)
        angles : (n, head_dim)
            Cosines, then sines, of each row.
        norms : ((head_dim,), (head_dim,)) or None
            Scales of :meth:`rms_norm` of each query and of each key.
        epsilon : float
        paged : Paged

        Returns
        -------
        (n, heads, head_dim) float32
            Queries.
        """
        xp, kv_heads = self.xp, paged.keys.shape[1]
        heads, half = qkv.shape[1] - 2 * kv_heads, qkv.shape[2] // 2
        queries, keys = qkv[:, :heads], qkv[:, heads : heads + kv_heads]
        if norms is not None:
            queries = self.rms_norm(queries, norms[0], epsilon)
            keys = self.rms_norm(keys, norms[1], epsilon)
        cosines, sines = angles[:, None, :half], angles[:, None, half:]

        def turned(rows: Any) -> Any:
            first, second = rows[..., :half], rows[..., half:]
            parts = [first * cosines - second * sines, second * cosines + first * sines]
            return xp.concatenate(parts, axis=2)

        block, slot = paged.rows[:, 1] // BLOCK_TOKENS, paged.rows[:, 1] % BLOCK_TOKENS
        paged.keys[block, :, :, slot] = turned(keys)
        paged.values[block, :, slot, : 2 * half] = qkv[:, heads + kv_heads :]
        return turned(queries)

    def paged_attention(self, queries: Any, paged: Paged, spec: AttentionSpec) -> Any:
        """Attend from each row to the tokens of its sequence up to itself.

        ``queries`` (n, heads, head_dim); returns (n, heads * head_dim) float32.
        """
        xp, (count, heads, size) = self.xp, queries.shape
        kv_heads = paged.keys.shape[1]
        grouped = queries.reshape(count, kv_heads, heads // kv_heads, size)
        out = xp.empty_like(grouped)
        for row, position in enumerate(paged.rows[:, 0].tolist()):
            stop = position + 1
            start = max(0, stop - spec.window) if spec.window else 0
            blocks = paged.rows[row, 2 : 2 + math.ceil(stop / BLOCK_TOKENS)]
            keys, values = (each[blocks].astype(xp.float32) for each in (paged.keys, paged.values))
            keys = xp.moveaxis(keys, 0, 2).reshape(kv_heads, size, -1)
            values = xp.moveaxis(values, 0, 1).reshape(kv_heads, -1, values.shape[3])
            scores = xp.matmul(grouped[row], keys[:, :, start:stop]) * xp.float32(spec.scale)
            if spec.cap:
                scores = xp.tanh(scores / xp.float32(spec.cap)) * xp.float32(spec.cap)
            out[row] = xp.matmul(self._softmax(scores), values[:, start:stop, :size])
        return out.reshape(count, heads * size)

    def half_product(self, rows: Any, weight: Any, longest: float) -> Any:
        """Multiply rows by weights in half precision, summed in float32.

        Each row is scaled by a power of two, so that neither it nor, by Cauchy and Schwarz, a
        product of it leaves what float16 holds.

        Parameters
        ----------
        rows : (n, inputs)
        weight : float16 (outputs, inputs)
        longest : float
            The largest norm of a row of the weights.

        Returns
        -------
        (n, outputs) float32
        """
        xp = self.xp
        norms = xp.sqrt(xp.square(rows).sum(axis=1, keepdims=True))
        room = xp.float32(HALF_ROOM / max(longest, 1.0))
        power = xp.floor(xp.log2(room / xp.maximum(norms, xp.float32(1e-30))))
        factor = xp.exp2(xp.clip(power, -100, 100)).astype(xp.float32)
        products = xp.matmul((rows * factor).astype(xp.float16), weight.T)
        return products.astype(xp.float32) / factor

    def coded_product(self, rows: Any, codes: Any, scales: Any, group: int) -> Any:
        """Multiply rows by coded weights; see ``coded.quantised``.

        Parameters
        ----------
        rows : (n, inputs)
        codes : int32 (outputs, words)
            Four int8 a word, or eight int4, the first in the lowest bits.
        scales : float32 (outputs, groups)
        group : int
            Inputs that share a scale.

        Returns
        -------
        (n, outputs) float32
        """
        return self.xp.matmul(rows, self.decoded(codes, scales, group).T)

    def decoded(self, codes: Any, scales: Any, group: int) -> Any:
        """Return the weights (outputs, inputs) that codes stand for."""
        xp, inputs = self.xp, scales.shape[1] * group
        bits = 32 * codes.shape[1] // inputs
        shifts = xp.arange(0, 32, bits, dtype=xp.int32)
        sign = 1 << (bits - 1)
        parts = (codes[:, :, None] >> shifts) & xp.int32(2 * sign - 1)
        values = ((parts ^ xp.int32(sign)) - xp.int32(sign)).astype(xp.float32)
        scaled = values.reshape(len(codes), -1, group) * scales[:, :, None]
        return scaled.reshape(len(codes), inputs)

    def _softmax(self, scores: Any) -> Any:
        xp = self.xp
        scores = xp.exp(scores - scores.max(axis=-1, keepdims=True))
        return scores / scores.sum(axis=-1, keepdims=True)
