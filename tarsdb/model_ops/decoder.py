"""Tokens to logits with one decoder model: a step over rows of several sequences at once.

A step takes rows of prompts and single rows of sequences that are being generated, in any mixture;
a row's logits do not depend on the rows beside it or on how a prompt was cut. Knows no text and no
request: which rows, and which blocks of the KV cache, is the scheduler's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import DataError, ModelError
from tarsdb.kernels import decoder as compiled
from tarsdb.kernels.decoder_reference import BLOCK_TOKENS
from tarsdb.kernels.forms import form_of
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.team import cores
from tarsdb.model_ops import proofs
from tarsdb.model_ops.decoder_forward import (
    Adapter,
    CompiledForward,
    Forward,
    NumpyForward,
    StepBatch,
)
from tarsdb.model_ops.decoder_spec import DecoderSpec, decoder_tensors, read_decoder_spec
from tarsdb.model_ops.decoder_weights import DecoderReader
from tarsdb.model_ops.kv_cache import KVCache
from tarsdb.model_ops.lora import CONFIG, adaptable, read_lora
from tarsdb.model_ops.on_device import DeviceDecoder, kernels_on
from tarsdb.model_ops.packed_decoder import decoder_plan
from tarsdb.model_ops.rope import Angles
from tarsdb.model_ops.sentence import read_object
from tarsdb.model_ops.shelf import Shelf
from tarsdb.model_ops.weights import QUANTIZE

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

OPTIONS = ("task", "quantize")
_SMALL = {
    "model_type": "qwen3", "vocab_size": 37, "hidden_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 72,
    "max_position_embeddings": 32, "attention_bias": True,
}  # fmt: skip
"""What kernels are tried on: no size is a multiple of a register."""


class Decoder:
    """A language model. Made by :meth:`from_files`; nobody takes its memory away.

    Attributes
    ----------
    spec : DecoderSpec
        Sizes, longest sequence, tokens that end a text.
    """

    def __init__(
        self, files: Mapping[str, bytes], tensors: Mapping[str, npt.NDArray[Any]],
        options: Mapping[str, Any], device: Device | None = None,
        shelf: Shelf | None = None,
    ) -> None:  # fmt: skip
        check_options(options)
        self.spec: DecoderSpec = read_spec(files)
        kind = QUANTIZE[str(options.get("quantize", "none"))]
        self._forward = _forward(self.spec, DecoderReader(self.spec, tensors), kind, device, shelf)
        self._threads = self._forward.threads
        self._angles = Angles(self.spec.ropes, self.spec.head_dim)

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], tensors: Mapping[str, npt.NDArray[Any]],
        options: Mapping[str, Any] | None = None, device: Device | None = None,
        shelf: Shelf | None = None,
    ) -> Decoder:  # fmt: skip
        """Make a decoder.

        Parameters
        ----------
        files : mapping of str to bytes
            The model's small files by name, as :class:`ModelFiles` has them.
        tensors : mapping of str to ndarray
            Read one at a time and copied; not at all where the shelf has them packed.
        options : mapping, optional
            Of CREATE MODEL: ``quantize`` is 'none' (float32), 'bf16' (weights), 'int8' (weights by
            output, activations by row) or 'int4' (weights of 4 bits, activations of 8, both in
            groups of 32 inputs).
        device : Device, optional
            Computes the steps, and holds weights and caches. Activations are float32 there,
            'bf16' is float16 and whole numbers are weights only.
        shelf : Shelf, optional
            Where packed weights may lie; see :func:`packed_weights`.

        Raises
        ------
        ModelFormatError
            A file or tensor is missing, broken or disagrees with config.json.
        NotSupportedError
            A family, activation or rotary scaling that is not computed.
        ModelError
            An unknown option or a value it cannot have.
        DeviceError
            The device failed, or has no room.
        """
        return cls(files, tensors, options or {}, device, shelf)

    @property
    def threads(self) -> int:
        """How many threads share a step; the logits do not depend on it."""
        return self._forward.threads

    @threads.setter
    def threads(self, count: int) -> None:
        self._forward.threads = max(1, min(int(count), cores()))

    def limit_threads(self, most: int | None) -> None:
        """Let at most this many threads share a step, of as many as suit the model; None: all."""
        self.threads = self._threads if most is None else min(most, self._threads)

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory the weights take."""
        return self._forward.weight_bytes

    @property
    def workspace_bytes(self) -> int:
        """Bytes of memory kept for what steps compute, the cache apart."""
        return self._forward.workspace_bytes

    def new_adapter(
        self, files: Mapping[str, bytes], tensors: Mapping[str, npt.NDArray[Any]]
    ) -> Adapter:
        """Read a low-rank adapter of this model, to be named by steps; raises as `read_lora`."""
        config = read_object(files, CONFIG)
        return self._forward.adapter(read_lora(adaptable(self.spec), config, tensors))

    def new_cache(self, blocks: int) -> KVCache:
        """Allocate a KV cache of this many blocks of 16 tokens."""
        return self._forward.new_cache(blocks)

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
        positions = batch.row_positions()
        return self._forward.logits(batch, positions, self._angles.at(positions), cache)


def _forward(
    spec: DecoderSpec, read: DecoderReader, kind: str, device: Device | None, shelf: Shelf | None
) -> Forward:
    """Choose how steps are computed, for as long as the decoder lives."""
    if device is not None:
        return DeviceDecoder(device, kernels_on(device.xp), spec, read, kind)
    kernel = compiled.wait(kind)
    if kernel is None or not is_proven(kernel):
        return NumpyForward(spec, read, kind)
    return CompiledForward(spec, read, kernel, shelf)


def weigh_decoder(files: Mapping[str, bytes], options: Mapping[str, Any]) -> int:
    """Return the ``weight_bytes`` of a :class:`Decoder` that is loaded here, not on a device.

    Less where kernels that are there turn out not to be usable.
    """
    spec, kind = read_spec(files), QUANTIZE[str(options.get("quantize", "none"))]
    form = form_of(kind)
    if form is not None:
        return decoder_plan(spec, *form.split("/")).array_bytes
    shapes = list(decoder_tensors(spec).values())
    if spec.tied and kind != "f32":
        shapes.append((spec.vocabulary, spec.hidden))  # rounded otherwise than vectors of tokens
    return 4 * sum(map(math.prod, shapes))


def is_proven(kernel: compiled.StepKernel) -> bool:
    """Return whether a kernel computes a small decoder as NumPy does."""
    kind = kernel.variant.partition("/")[0]

    def try_out() -> tuple[F32, F32]:
        spec = read_decoder_spec(_SMALL)
        read = DecoderReader(spec, proofs.random_tensors(decoder_tensors(spec)))
        rows = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 3, 1, 4, 1, 5, 9, 2, 6, 5, 3], np.int32)
        batch = StepBatch(
            rows, np.array([0, 19, 20], np.int32), np.zeros(2, np.int32),
            np.array([[2, 0], [1, 1]], np.int32), np.arange(len(rows), dtype=np.int32),
        )  # fmt: skip
        positions = batch.row_positions()
        angles = Angles(spec.ropes, spec.head_dim).at(positions)
        ways = (NumpyForward(spec, read, kind), CompiledForward(spec, read, kernel))
        exact, found = (way.logits(batch, positions, angles, way.new_cache(3)) for way in ways)
        return exact, found

    return proofs.is_proven(kernel, kind, try_out)


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
        allowed = ("generate",) if name == "task" else tuple(QUANTIZE)
        if value not in allowed:
            raise ModelError(
                f"model option {name} cannot be {value!r}",
                "one of " + ", ".join(map(repr, allowed)),
            )


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
    if len(batch.adapters) not in (0, len(counts)):
        raise DataError(f"a step of {len(counts)} sequences has {len(batch.adapters)} adapters")
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
