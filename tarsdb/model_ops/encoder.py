"""Texts, or pairs of them, to vectors with one model: the public face of the encoder.

Ties tokenizer, packing, forward pass and pooling together. Correct for any batch: a text's vector
does not depend on its neighbours. Knows no storage; tensors come as arrays.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import DataError, ModelError, ModelFormatError, NotSupportedError
from tarsdb.kernels.gpu.device import Device
from tarsdb.model_ops import blas_threads
from tarsdb.model_ops.architecture import EncoderSpec, read_spec
from tarsdb.model_ops.encode_figures import EncodeFigures
from tarsdb.model_ops.encoder_adapter import EncoderAdapter, read_adapter
from tarsdb.model_ops.lora import CONFIG
from tarsdb.model_ops.on_device import DeviceEncoder, kernels_on
from tarsdb.model_ops.onnx_encoder import OnnxTransformer, read_onnx_spec
from tarsdb.model_ops.panels import Watch, cut_panels, run_panels
from tarsdb.model_ops.predictor import FILE
from tarsdb.model_ops.sentence import (
    SentenceSettings,
    cut_vectors,
    pool,
    pooled_width,
    read_object,
    read_prompt,
    read_settings,
)
from tarsdb.model_ops.shelf import Shelf
from tarsdb.model_ops.tokenizer import TextTokenizer, TokenizedTexts
from tarsdb.model_ops.transformer import Panel, Transformer, weigh_layers
from tarsdb.model_ops.weights import QUANTIZE, check_tensors, load_weights

F32 = npt.NDArray[np.float32]
Text = str | tuple[str, str]

_CORES = os.cpu_count() or 1
_WINDOW = 4096  # texts tokenised at a time: bounds the memory of ids


class Encoder:
    """A text encoder. Several threads may call it at once.

    Made by :meth:`from_files`; nobody takes its memory away.

    Attributes
    ----------
    dim : int
        Width of a vector.
    max_length : int
        Tokens of a text that are read, special tokens included.
    cut : CutTexts
        Counts texts cut to ``max_length``, also by what :meth:`with_adapter` returns.
    """

    def __init__(
        self, files: Mapping[str, bytes], tensors: Mapping[str, npt.NDArray[Any]],
        spec: EncoderSpec, settings: SentenceSettings, device: Device | None = None,
        shelf: Shelf | None = None,
    ) -> None:  # fmt: skip
        self._spec = spec
        self._settings = settings
        if "tokenizer.json" not in files:
            raise ModelFormatError("the model has no tokenizer.json")
        self._tokenizer = TextTokenizer(
            files["tokenizer.json"], settings.max_length, lower=settings.lower
        )
        self._is_on_device = device is not None
        self._transformer = (
            OnnxTransformer(files[FILE])
            if FILE in files
            else _transformer(spec, tensors, settings.weights, device, shelf)
        )
        self._base: Encoder | None = None
        self._adapter: EncoderAdapter | None = None
        self.dim = pooled_width(self._settings, self._spec)
        self.max_length = self._settings.max_length
        self.cut = CutTexts()

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory, or of a device, that the weights take."""
        return self._transformer.weight_bytes

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], tensors: Mapping[str, npt.NDArray[Any]],
        options: Mapping[str, Any] | None = None, device: Device | None = None,
        shelf: Shelf | None = None,
    ) -> Encoder:  # fmt: skip
        """Make an encoder.

        Parameters
        ----------
        files : mapping of str to bytes
            The model's small files by name, as :class:`ModelFiles` has them.
        tensors : mapping of str to ndarray
            Read one at a time and copied, so a lazy mapping never holds two copies of a model; not
            at all where the shelf has them packed.
        options : mapping, optional
            Of CREATE MODEL: pooling, normalize, max_length, overflow ('truncate' | 'error'),
            prompt, quantize ('none' | 'bf16' | 'int8' | 'int4').
        device : Device, optional
            Computes token vectors, and holds the weights. Activations are float32 there, 'bf16' is
            float16 and whole numbers are weights only.
        shelf : Shelf, optional
            Where packed weights may lie; see :func:`packed_weights`.

        Raises
        ------
        ModelFormatError
            A file or tensor is missing, broken or disagrees with config.json.
        NotSupportedError
            A family, activation or module that is not computed.
        ModelError
            An unknown option or a value it cannot have.
        DeviceError
            The device failed, or has no room.
        """
        spec = _read_spec(files, options or {})
        if FILE in files and device is not None:
            raise NotSupportedError("encoders of onnxruntime do not run on a device")
        return cls(files, tensors, spec, read_settings(files, spec, options or {}), device, shelf)

    def encode(
        self, texts: Sequence[Text | None], *, kind: str | None = None,
        threads: int | None = None, progress: Callable[[int, int], None] | None = None,
        interrupted: Callable[[], bool] | None = None,
    ) -> F32:  # fmt: skip
        """Return one vector per text.

        Parameters
        ----------
        texts : sequence of str or of (str, str)
            Any length; equal texts are computed once. A longer text than ``max_length`` is cut.
            Pairs are joined as the model's tokenizer does, and cut the longer text first.
        kind : str, optional
            Of the prompts in ``config_sentence_transformers.json``, such as 'query' or 'document':
            put in front of every text instead of the model's default; pairs have no prompt.
        threads : int, optional
            At most this many threads; the number of cores unless given.
        progress : callable, optional
            Called on this thread with (texts done, texts in all).
        interrupted : callable, optional
            Asked between panels of a few hundred tokens, and while texts are tokenised;
            InterruptError when it says yes.

        Returns
        -------
        (n, dim) float32

        Raises
        ------
        ModelError
            The model has no prompt of that kind.
        DataError
            A text is None, no string, or too long under ``overflow = 'error'``.
        """
        batch = _Batch(texts, self.dim, read_prompt(self._settings, kind))
        watch = Watch(len(texts), progress, interrupted)
        workers = 1 if self._is_on_device else _threads(threads)
        figures = EncodeFigures(self._is_on_device)
        for start in range(0, len(batch.unique), _WINDOW):
            self._encode_window(batch, start, workers, watch, figures)
        figures.report()
        return batch.vectors if len(batch.unique) == len(texts) else batch.vectors[batch.places]

    def new_adapter(
        self, files: Mapping[str, bytes], tensors: Mapping[str, npt.NDArray[Any]],
        head: Mapping[str, tuple[int, ...]] | None = None,
    ) -> EncoderAdapter:  # fmt: skip
        """Read a low-rank adapter of this model; raises as :func:`read_adapter`.

        ``head`` are the names and shapes of a head's tensors, which it may bring.
        """
        if not isinstance(self._transformer, Transformer):
            raise NotSupportedError("adapters of encoders run on the processor, on our own weights")
        return read_adapter(self._spec, head or {}, read_object(files, CONFIG), tensors)

    def with_adapter(self, adapter: EncoderAdapter | None) -> Encoder:
        """Return this model as an adapter makes it; both share the weights."""
        adapted = copy.copy(self)
        adapted._base, adapted._adapter = self.base, adapter
        return adapted

    @property
    def base(self) -> Encoder:
        """The model without an adapter."""
        return self._base or self

    @property
    def adapter(self) -> EncoderAdapter | None:
        """What is added to the model's weights."""
        return self._adapter

    def encode_way(
        self, texts: Sequence[Text | None], kind: tuple[str | None, EncoderAdapter | None],
        threads: int | None = None,
    ) -> F32:  # fmt: skip
        """Return vectors of texts with a kind of prompt and an adapter; see :meth:`encode`."""
        return self.with_adapter(kind[1]).encode(texts, kind=kind[0], threads=threads)

    def shorten(self, vectors: F32, dimensions: int) -> F32:
        """Cut vectors to their first elements and give them length 1 again, if they had it.

        For models trained so (Kusupati et al. 2022, Matryoshka representation learning).
        """
        return cut_vectors(vectors, dimensions, self._settings)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of memory for activations, kept for the next calls."""
        return self._transformer.scratch_bytes if isinstance(self._transformer, Transformer) else 0

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    def tokenize(self, text: str) -> list[int]:
        """Return all token ids of a text, special tokens included, nothing cut."""
        return self._tokenizer.tokens(text)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has, special tokens included."""
        return len(self._tokenizer.tokens(text))

    def _encode_window(
        self, batch: _Batch, start: int, threads: int, watch: Watch, figures: EncodeFigures
    ) -> None:
        began = time.perf_counter()
        texts = batch.unique[start : start + _WINDOW]
        tokens = self._tokens(texts, lambda: watch.check(watch.done))
        self._check(tokens, batch, start)
        lengths = tokens.offsets[1:] - tokens.offsets[:-1]
        figures.tokenized(lengths, time.perf_counter() - began)
        vectors, repeats = batch.vectors[start:], batch.repeats[start:]

        def work(rows: npt.NDArray[np.int64]) -> int:
            vectors[rows] = self._panel(tokens, rows, figures)
            return int(repeats[rows].sum())

        filled = np.flatnonzero(lengths)  # a text without any token keeps its zero vector
        cut = cut_panels(lengths[filled], threads, self._transformer.panel_tokens)
        panels = [filled[panel] for panel in cut]
        before = watch.done
        figures.waited(run_panels(panels, work, threads, lambda done: watch.check(before + done)))
        watch.check(before + int(repeats[: len(lengths)].sum()))

    def _tokens(self, texts: list[Text], check: Callable[[], None]) -> TokenizedTexts:
        pairs = [text for text in texts if isinstance(text, tuple)]
        if not pairs:
            return self._tokenizer.encode([text for text in texts if isinstance(text, str)], check)
        if len(pairs) < len(texts):
            raise DataError("texts and pairs of texts cannot be mixed in one call")
        tokens = self._tokenizer.encode_pairs(pairs, check)
        # RoBERTa's kind knows one type or none and is never told them
        return tokens if self._spec.token_types > 1 else replace(tokens, types=None)

    def _panel(
        self, tokens: TokenizedTexts, rows: npt.NDArray[np.int64], figures: EncodeFigures
    ) -> F32:
        """Compute the vectors of some tokenised texts together."""
        panel = _gathered(tokens, rows)
        began = time.perf_counter()
        if self._adapter is not None and isinstance(self._transformer, Transformer):
            hidden = self._transformer.forward(panel, self._adapter)
        else:
            hidden = self._transformer.forward(panel)
        middle = time.perf_counter()
        vectors = require_finite(pool(hidden, panel.offsets, self._settings), "a text's vector")
        figures.computed(middle - began, time.perf_counter() - middle)
        return vectors

    def _check(self, tokens: TokenizedTexts, batch: _Batch, start: int) -> None:
        """Refuse long texts where the model is told to, and ids the model has no row for."""
        if tokens.found.max(initial=0) > self.max_length:
            self._truncate(tokens, batch, start)
        highest = int(tokens.ids.max(initial=0))
        if highest >= self._spec.vocabulary:
            raise ModelFormatError(
                f"tokenizer.json made token {highest}, the model knows {self._spec.vocabulary}",
                "tokenizer.json and config.json belong to different models",
            )
        if tokens.types is not None and tokens.types.max(initial=0) >= self._spec.token_types:
            raise ModelFormatError(
                f"tokenizer.json made token type {tokens.types.max()}, the model knows "
                f"{self._spec.token_types}",
                "tokenizer.json and config.json belong to different models",
            )

    def _truncate(self, tokens: TokenizedTexts, batch: _Batch, start: int) -> None:
        """Count the texts that were cut, or refuse them."""
        long = np.flatnonzero(tokens.found > self.max_length)
        if self._settings.refuse_long:
            text = int(long[0])
            raise DataError(
                f"text {batch.place(start + text)} has {tokens.found[text]} tokens or more, "
                f"the model reads {self.max_length}",
                "shorten or chunk the text, or set overflow = 'truncate'",
            )
        self.cut.add(int(batch.repeats[start + long].sum()))


class CutTexts:
    """How many texts were cut, and how many of these nobody was told of yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = self._untold = 0

    def add(self, texts: int) -> None:
        """Count texts."""
        with self._lock:
            self.total += texts
            self._untold += texts

    def told(self) -> int:
        """Return those added since the last call, each to one caller only."""
        with self._lock:
            found, self._untold = self._untold, 0
        return found


def require_finite(values: F32, what: str) -> F32:
    """Return values; ModelError where one is NaN or infinite: no text may be compared by it."""
    if not np.isfinite(values).all():
        raise ModelError(f"{what} is not of finite numbers: the weights are damaged or too large")
    return values


def _gathered(tokens: TokenizedTexts, rows: npt.NDArray[np.int64]) -> Panel:
    """Return some texts one after another."""
    if len(rows) == len(tokens.offsets) - 1 == 1:
        return Panel(tokens.ids, tokens.offsets, tokens.types)
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum((tokens.offsets[1:] - tokens.offsets[:-1])[rows], out=offsets[1:])
    types = None if tokens.types is None else tokens.take(rows, tokens.types)
    return Panel(tokens.take(rows, tokens.ids), offsets, types)


def _transformer(
    spec: EncoderSpec, tensors: Mapping[str, npt.NDArray[Any]], kind: str, device: Device | None,
    shelf: Shelf | None,
) -> Transformer | DeviceEncoder:  # fmt: skip
    if device is None:
        return Transformer(spec, tensors, kind, shelf)
    return DeviceEncoder(device, kernels_on(device.xp), spec, load_weights(spec, tensors), kind)


def _read_spec(files: Mapping[str, bytes], options: Mapping[str, Any]) -> EncoderSpec:
    config = read_object(files, "config.json")
    if FILE not in files:
        return read_spec(config)
    if "quantize" in options:
        raise ModelError("onnxruntime runs the graph as it is: there is no option 'quantize'")
    return read_onnx_spec(config, OnnxTransformer(files[FILE]))


def weigh_encoder(files: Mapping[str, bytes], options: Mapping[str, Any]) -> int:
    """Return the ``weight_bytes`` of an encoder that is loaded here, not on a device."""
    if FILE in files:
        return len(files[FILE])
    spec = read_spec(read_object(files, "config.json"))
    return weigh_layers(spec, QUANTIZE[options.get("quantize", "none")])


def check_encoder(
    files: Mapping[str, bytes], shapes: Mapping[str, tuple[int, ...]],
    options: Mapping[str, Any], where: str,
) -> tuple[int, int]:  # fmt: skip
    """Check an encoder's files, tensors and options; returns its width and its longest text."""
    spec = _read_spec(files, options)
    settings = read_settings(files, spec, options)
    if FILE not in files:
        check_tensors(spec, shapes, where)
    return pooled_width(settings, spec), settings.max_length


class _Batch:
    """The texts of one call, each distinct one once."""

    def __init__(self, texts: Sequence[Text | None], dim: int, prompt: str) -> None:
        distinct: dict[Text, int] = {}
        checked = (_checked(text, row) for row, text in enumerate(texts))
        if prompt:
            checked = (prompt + text if isinstance(text, str) else text for text in checked)
        self.places = [distinct.setdefault(text, len(distinct)) for text in checked]
        self.unique = list(distinct)
        self.repeats = np.bincount(self.places, minlength=len(distinct)).astype(np.int64)
        self.vectors = np.zeros((len(distinct), dim), np.float32)

    def place(self, unique: int) -> int:
        """Return the first place of a distinct text in the call."""
        return self.places.index(unique)


def _checked(text: Text | None, row: int) -> Text:
    for part in text if isinstance(text, tuple) else (text,):
        if not isinstance(part, str):
            kind = "NULL" if part is None else type(part).__name__
            raise DataError(
                f"text {row} to embed is {kind}, not a string",
                "a NULL has no vector: leave it out",
            )
    return text  # type: ignore[return-value] # its parts were looked at


def _threads(wanted: int | None) -> int:
    """Return how many threads to use: one where BLAS brings its own and cannot be told not to."""
    if not blas_threads.controllable():
        return 1
    return _CORES if wanted is None else max(1, min(int(wanted), _CORES))
