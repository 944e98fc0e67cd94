"""Tokens to logits with one decoder model: a step over rows of several sequences at once.

A step takes rows of prompts and single rows of sequences that are being generated, in any mixture;
a row's logits do not depend on the rows beside it or on how a prompt was cut. Knows no text and no
request: which rows, and which blocks of the KV cache, is the scheduler's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import DataError, ModelError
from tarsdb.kernels import decoder_reference as kernels
from tarsdb.kernels.decoder_reference import BLOCK_TOKENS
from tarsdb.model_ops.decoder_spec import DecoderSpec, read_decoder_spec
from tarsdb.model_ops.decoder_weights import DecoderLayer, load_decoder_weights
from tarsdb.model_ops.kv_cache import KVCache
from tarsdb.model_ops.rope import Angles
from tarsdb.model_ops.sentence import read_object

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

OPTIONS = ("task",)


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
    """

    tokens: I32
    offsets: I32
    positions: I32
    block_tables: I32
    wanted: I32


class Decoder:
    """A language model. Made by :meth:`from_files`; it owns all its memory.

    Attributes
    ----------
    spec : DecoderSpec
        Sizes, longest sequence, tokens that end a text.
    """

    def __init__(
        self, files: Mapping[str, bytes], tensors: Mapping[str, npt.NDArray[Any]],
        options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        check_options(options)
        self.spec: DecoderSpec = read_spec(files)
        self._weights = load_decoder_weights(self.spec, tensors)
        self._angles = Angles(self.spec.ropes, self.spec.head_dim)

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], tensors: Mapping[str, npt.NDArray[Any]],
        options: Mapping[str, Any] | None = None,
    ) -> Decoder:  # fmt: skip
        """Make a decoder.

        Parameters
        ----------
        files : mapping of str to bytes
            The model's small files by name, as :class:`ModelFiles` has them.
        tensors : mapping of str to ndarray
            Read one at a time and copied.
        options : mapping, optional
            Of CREATE MODEL.

        Raises
        ------
        ModelFormatError
            A file or tensor is missing, broken or disagrees with config.json.
        NotSupportedError
            A family, activation or rotary scaling that is not computed.
        ModelError
            An unknown option or a value it cannot have.
        """
        return cls(files, tensors, options or {})

    def new_cache(self, blocks: int) -> KVCache:
        """Allocate a KV cache of this many blocks of 16 tokens."""
        return KVCache.for_model(self.spec, blocks)

    def step(self, batch: StepBatch, cache: KVCache) -> F32:
        """Compute the rows of a batch; their keys and values go into the cache.

        Several threads may step one model, each with a cache of its own.

        Returns
        -------
        (w, vocabulary) float32
            Logits of the wanted rows.

        Raises
        ------
        DataError
            A token, position, block or row that does not exist.
        """
        _check(batch, self.spec, cache)
        spec, weights = self.spec, self._weights
        positions = _row_positions(batch)
        angles = self._angles.at(positions)
        rows = weights.words[batch.tokens] * np.float32(spec.embedding_scale)
        for number, layer in enumerate(weights.layers):
            turned = angles[spec.layers[number].rope]
            context = self._attention(number, rows, turned, batch, cache)
            update = _linear(context, layer.context, layer.context_bias)
            rows += _normalised(update, layer.context_norm, spec)
            update = _feed_forward(spec, layer, rows)
            rows += _normalised(update, layer.down_norm, spec)
        rows = kernels.rms_norm(rows[batch.wanted], weights.norm, spec.epsilon)
        return kernels.soft_cap(kernels.product(rows, weights.head), spec.logit_cap)

    def _attention(
        self, number: int, rows: F32, angles: F32, batch: StepBatch, cache: KVCache
    ) -> F32:
        """Attend with one layer; returns (n, heads * head_dim)."""
        spec, layer = self.spec, self._weights.layers[number]
        normed = kernels.rms_norm(rows, layer.attention_norm, spec.epsilon)
        qkv = _linear(normed, layer.qkv, layer.qkv_bias).reshape(len(rows), -1, spec.head_dim)
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


def read_spec(files: Mapping[str, bytes]) -> DecoderSpec:
    """Read a model's sizes; ``generation_config.json`` may name more tokens that end a text."""
    config = read_object(files, "config.json")
    generation = read_object(files, "generation_config.json")
    named = {key: generation[key] for key in ("eos_token_id",) if generation.get(key) is not None}
    return read_decoder_spec({**config, **named})


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that do not exist or cannot have their value."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise ModelError(
                f"a model for generate has no option {name!r}", "options: " + ", ".join(OPTIONS)
            )
        if name == "task" and value != "generate":
            raise ModelError(f"model option task cannot be {value!r}", "this one does 'generate'")


def _row_positions(batch: StepBatch) -> npt.NDArray[np.int64]:
    """Return the position of each row in its sequence."""
    shift = batch.positions.astype(np.int64) - batch.offsets[:-1]
    return np.arange(len(batch.tokens)) + np.repeat(shift, np.diff(batch.offsets))


def _linear(rows: F32, weight: F32, bias: F32 | None) -> F32:
    out = kernels.product(rows, weight)
    return out if bias is None else out + bias


def _normalised(rows: F32, scale: F32 | None, spec: DecoderSpec) -> F32:
    return rows if scale is None else kernels.rms_norm(rows, scale, spec.epsilon)


def _feed_forward(spec: DecoderSpec, layer: DecoderLayer, rows: F32) -> F32:
    normed = kernels.rms_norm(rows, layer.mlp_norm, spec.epsilon)
    gate_up = _linear(normed, layer.gate_up, layer.gate_up_bias)
    gate, up = np.split(gate_up, 2, axis=1)
    return _linear(kernels.gated(gate, up, spec.activation), layer.down, layer.down_bias)


def _check(batch: StepBatch, spec: DecoderSpec, cache: KVCache) -> None:
    """Refuse what would read or write outside an array."""
    counts = np.diff(batch.offsets)
    count = len(batch.tokens)
    if len(counts) == 0 or batch.offsets[0] != 0 or batch.offsets[-1] != count or counts.min() < 1:
        raise DataError(f"the sequences of a step do not cover its {count} rows")
    if len(batch.positions) != len(counts) or len(batch.block_tables) != len(counts):
        raise DataError(
            f"a step of {len(counts)} sequences has {len(batch.positions)} positions and "
            f"{len(batch.block_tables)} block tables"
        )
    _check_range("token", batch.tokens, spec.vocabulary)
    _check_range("wanted row", batch.wanted, count)
    _check_range("position", batch.positions, spec.max_positions)
    ends = batch.positions + counts
    capacity = batch.block_tables.shape[1] * BLOCK_TOKENS
    longest = int(ends.max())
    if longest > min(spec.max_positions, capacity):
        raise DataError(
            f"a sequence of {longest} tokens is longer than the model's {spec.max_positions} "
            f"positions or the {capacity} of its block table"
        )
    used = np.arange(batch.block_tables.shape[1]) * BLOCK_TOKENS < ends[:, None]
    _check_range("block", batch.block_tables[used], cache.blocks)


def _check_range(name: str, values: npt.NDArray[Any], stop: int) -> None:
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < stop:
        raise DataError(
            f"a step names {name} {int(values.min())} to {int(values.max())}, there are {stop}"
        )
