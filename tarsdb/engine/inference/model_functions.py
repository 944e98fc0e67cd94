"""What each model function computes for a batch of rows, given the loaded model.

Knows no catalog, versions or NULLs: :class:`~tarsdb.engine.inference.models.ModelRuntime` deals
with those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tarsdb.engine.inference import generation, shared_batches
from tarsdb.engine.inference.loaded_models import model_threads
from tarsdb.errors import BindError
from tarsdb.records import dataclass

_CHARACTERS = 1 << 17  # taken apart between two looks whether to stop


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a model function over a batch.

    Attributes
    ----------
    name : str
        The function, for messages.
    model : object
        What ``model_ops.TASKS`` made of the model by its task; None for a function without.
    items : list of tuple
        The arguments of every row that has no NULL among them; at least one.
    options : mapping
        Constants given by name.
    progress : callable, optional
        Takes rows done and rows in all.
    interrupted : callable
        Says whether to stop.
    check : callable
        Raises when the statement is to stop, or when the model is gone.
    settings : mapping
        Of the connection.
    """

    name: str
    model: Any
    items: list[tuple[Any, ...]]
    options: Mapping[str, Any]
    progress: Callable[[int, int], None] | None
    interrupted: Callable[[], bool]
    check: Callable[[], None]
    settings: Mapping[str, Any]


Values = Sequence[Any] | np.ndarray
"""One Python value per item, or an array (items, dim) for vectors."""


def _watch(request: Request) -> dict[str, Any]:
    return {
        "progress": request.progress, "interrupted": request.interrupted,
        "threads": model_threads(request.settings),
    }  # fmt: skip


def _texts(request: Request) -> list[Any]:
    """Return the texts, or the pairs where the function was given two."""
    return [item[0] if len(item) == 1 else item for item in request.items]


def _single(request: Request) -> Iterator[str]:
    """Yield the texts of a function that computes them one by one, and lets itself be stopped."""
    characters = 0
    for (text,) in request.items:
        if characters >= _CHARACTERS:
            request.check()
            characters = 0
        characters += len(text)
        yield text


def embed(request: Request) -> Values:
    """Return the texts' vectors, cut to ``dimensions`` where asked."""
    kind, dimensions = request.options.get("kind"), request.options.get("dimensions")
    vectors = shared_batches.encode(request.model, _texts(request), kind, **_watch(request))
    return vectors if dimensions is None else request.model.shorten(vectors, dimensions)


def classify(request: Request) -> Values:
    """Return the most probable label of each text."""
    labels, logits = request.model.labels, request.model.logits(_texts(request), **_watch(request))
    return [labels[place] for place in logits.argmax(axis=1).tolist()]


def score(request: Request) -> Values:
    """Return the probability of ``label``, or of the most probable one."""
    labels, label = request.model.labels, request.options.get("label")
    if label is not None and label not in labels:
        shown = ", ".join(map(repr, labels[:8])) + (", ..." if len(labels) > 8 else "")
        raise BindError(f"score: the model has no label {label!r}", hint=f"its labels are {shown}")
    probabilities = request.model.probabilities(_texts(request), **_watch(request))
    chosen = probabilities.max(axis=1) if label is None else probabilities[:, labels.index(label)]
    return list(chosen.tolist())


def rerank(request: Request) -> Values:
    """Return how relevant each text is to its query."""
    return list(request.model.relevance(_texts(request), **_watch(request)).tolist())


def predict(request: Request) -> Values:
    """Return an object of all labels and their probabilities, or what an ONNX model gives."""
    if not hasattr(request.model, "labels"):
        given, inputs = len(request.items[0]), request.model.inputs
        if given != len(inputs):
            raise BindError(
                f"predict: the model takes a list of features for each of its {len(inputs)} inputs "
                f"({', '.join(inputs)}), {given} are given"
            )
        watch = {name: value for name, value in _watch(request).items() if name != "threads"}
        found: list[Any] = request.model.predict(request.items, **watch)
        return found
    labels = request.model.labels
    probabilities = request.model.probabilities(_texts(request), **_watch(request))
    return [dict(zip(labels, row, strict=True)) for row in probabilities.tolist()]


def tokenize(request: Request) -> Values:
    """Return each text's token ids, special tokens included, nothing cut."""
    return [request.model.tokenizer.tokens(text) for text in _single(request)]


def chunk(request: Request) -> Values:
    """Return each text's pieces, by words or sentences, or by a model's tokens."""
    from tarsdb.model_ops import chunk_text, chunk_tokens

    options = dict(request.options)
    if "size" not in options:
        raise BindError("chunk: the size is missing", "write chunk(text, size, overlap)")
    if request.model is None:
        return [chunk_text(text, **options) for text in _single(request)]
    tokenizer = request.model.tokenizer
    return [chunk_tokens(tokenizer, text, **options) for text in _single(request)]


KEPT = frozenset({"embed", "classify", "score", "rerank", "predict", "generate"})
"""Functions whose results are worth keeping: they cost more to compute than to look up."""

FUNCTIONS: dict[str, Callable[[Request], Values]] = {
    "embed": embed, "classify": classify, "score": score, "rerank": rerank, "predict": predict,
    "tokenize": tokenize, "chunk": chunk, "generate": generation.generate,
}  # fmt: skip
