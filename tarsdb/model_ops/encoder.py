"""Texts to vectors with one model: the public face of the encoder.

Ties tokenizer, packing, forward pass and pooling together. Correct for any batch: a text's vector
does not depend on its neighbours. Knows no storage; tensors come as arrays.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import DataError, ModelFormatError
from tarsdb.model_ops import blas_threads
from tarsdb.model_ops.architecture import read_spec
from tarsdb.model_ops.panels import Watch, cut_panels, run_panels
from tarsdb.model_ops.sentence import pool, pooled_width, read_object, read_settings
from tarsdb.model_ops.tokenizer import TextTokenizer, TokenizedTexts
from tarsdb.model_ops.transformer import Panel, Transformer

F32 = npt.NDArray[np.float32]

_WINDOW = 4096  # texts tokenised at a time: bounds the memory of ids


class Encoder:
    """A text encoder. Several threads may call it at once.

    Made by :meth:`from_files`; it owns all its memory.

    Attributes
    ----------
    dim : int
        Width of a vector.
    max_length : int
        Tokens of a text that are read, special tokens included.
    truncated : int
        Texts cut to ``max_length`` so far.
    """

    def __init__(
        self, files: Mapping[str, bytes], tensors: Mapping[str, npt.NDArray[Any]],
        options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self._spec = read_spec(read_object(files, "config.json"))
        self._settings = read_settings(files, self._spec, options)
        if "tokenizer.json" not in files:
            raise ModelFormatError("the model has no tokenizer.json")
        self._tokenizer = TextTokenizer(
            files["tokenizer.json"], self._settings.max_length,
            lower=self._settings.lower, prompt=self._settings.prompt,
        )  # fmt: skip
        self._transformer = Transformer(self._spec, tensors, self._settings.weights)
        self._count_lock = threading.Lock()
        self.dim = pooled_width(self._settings, self._spec)
        self.max_length = self._settings.max_length
        self.truncated = 0

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], tensors: Mapping[str, npt.NDArray[Any]],
        options: Mapping[str, Any] | None = None,
    ) -> Encoder:  # fmt: skip
        """Make an encoder.

        Parameters
        ----------
        files : mapping of str to bytes
            The model's small files by name, as :class:`ModelFiles` has them.
        tensors : mapping of str to ndarray
            Read one at a time and copied, so a lazy mapping never holds two copies of a model.
        options : mapping, optional
            Of CREATE MODEL: pooling, normalize, max_length, overflow ('truncate' | 'error'),
            prompt, quantize ('none' | 'bf16' | 'int8').

        Raises
        ------
        ModelFormatError
            A file or tensor is missing, broken or disagrees with config.json.
        NotSupportedError
            A family, activation or module that is not computed.
        ModelError
            An unknown option or a value it cannot have.
        """
        return cls(files, tensors, options or {})

    def encode(
        self, texts: Sequence[str | None], *, threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        interrupted: Callable[[], bool] | None = None,
    ) -> F32:  # fmt: skip
        """Return one vector per text.

        Parameters
        ----------
        texts : sequence of str
            Any length; equal texts are computed once. A longer text than ``max_length`` is cut.
        threads : int, optional
            At most this many threads; the number of cores unless given.
        progress : callable, optional
            Called on this thread with (texts done, texts in all).
        interrupted : callable, optional
            Asked between panels of a few hundred tokens; InterruptError when it says yes.

        Returns
        -------
        (n, dim) float32

        Raises
        ------
        DataError
            A text is None, no string, or too long under ``overflow = 'error'``.
        """
        batch = _Batch(texts, self.dim)
        watch = Watch(len(texts), progress, interrupted)
        workers = _threads(threads)
        with blas_threads.single_threaded():
            for start in range(0, len(batch.unique), _WINDOW):
                self._encode_window(batch, start, workers, watch)
        return batch.vectors if len(batch.unique) == len(texts) else batch.vectors[batch.places]

    def tokenize(self, text: str) -> list[int]:
        """Return all token ids of a text, special tokens included, nothing cut."""
        return self._tokenizer.tokens(text)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has, special tokens included."""
        return len(self._tokenizer.tokens(text))

    def _encode_window(self, batch: _Batch, start: int, threads: int, watch: Watch) -> None:
        tokens = self._tokenizer.encode(batch.unique[start : start + _WINDOW])
        self._check(tokens, batch, start)
        lengths = np.diff(tokens.offsets)
        vectors, repeats = batch.vectors[start:], batch.repeats[start:]

        def work(rows: npt.NDArray[np.int64]) -> int:
            vectors[rows] = self._panel(tokens, rows)
            return int(repeats[rows].sum())

        filled = np.flatnonzero(lengths)  # a text without any token keeps its zero vector
        panels = [filled[panel] for panel in cut_panels(lengths[filled], threads)]
        before = watch.done
        run_panels(panels, work, threads, lambda done: watch.check(before + done))
        watch.check(before + int(repeats[: len(lengths)].sum()))

    def _panel(self, tokens: TokenizedTexts, rows: npt.NDArray[np.int64]) -> F32:
        """Compute the vectors of some tokenised texts together."""
        parts = [tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]] for row in rows]
        offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        hidden = self._transformer.forward(Panel(np.concatenate(parts), offsets))
        return pool(hidden, offsets, self._settings)

    def _check(self, tokens: TokenizedTexts, batch: _Batch, start: int) -> None:
        """Refuse long texts where the model is told to, and ids the model has no row for."""
        long = np.flatnonzero(tokens.found > self.max_length)
        if len(long) and self._settings.refuse_long:
            text = int(long[0])
            raise DataError(
                f"text {batch.place(start + text)} has {tokens.found[text]} tokens or more, "
                f"the model reads {self.max_length}",
                "shorten or chunk the text, or set overflow = 'truncate'",
            )
        highest = int(tokens.ids.max(initial=0))
        if highest >= self._spec.vocabulary:
            raise ModelFormatError(
                f"tokenizer.json made token {highest}, the model knows {self._spec.vocabulary}",
                "tokenizer.json and config.json belong to different models",
            )
        with self._count_lock:
            self.truncated += int(batch.repeats[start + long].sum())


class _Batch:
    """The texts of one call, each distinct one once."""

    def __init__(self, texts: Sequence[str | None], dim: int) -> None:
        distinct: dict[str, int] = {}
        self.places = [
            distinct.setdefault(_text(text, row), len(distinct)) for row, text in enumerate(texts)
        ]
        self.unique = list(distinct)
        self.repeats = np.bincount(self.places, minlength=len(distinct)).astype(np.int64)
        self.vectors = np.zeros((len(distinct), dim), np.float32)

    def place(self, unique: int) -> int:
        """Return the first place of a distinct text in the call."""
        return self.places.index(unique)


def _text(text: str | None, row: int) -> str:
    if not isinstance(text, str):
        kind = "NULL" if text is None else type(text).__name__
        raise DataError(
            f"text {row} to embed is {kind}, not a string", "a NULL has no vector: leave it out"
        )
    return text


def _threads(wanted: int | None) -> int:
    """Return how many threads to use: one where BLAS brings its own and cannot be told not to."""
    if not blas_threads.controllable():
        return 1
    cores = os.cpu_count() or 1
    return cores if wanted is None else max(1, min(int(wanted), cores))
