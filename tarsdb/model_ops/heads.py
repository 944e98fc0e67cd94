"""Sequence classifiers and cross-encoder rerankers: an encoder with a head on its first token.

A head is one dense layer with its activation, of ModernBERT also a norm, and one row of weights per
label, as Hugging Face's ``...ForSequenceClassification`` models have it. One table says how each
family names its parts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelError, ModelFormatError, NotSupportedError
from tarsdb.kernels import gemm_reference, transformer_reference
from tarsdb.kernels.gpu.device import Device
from tarsdb.model_ops.architecture import EncoderSpec, read_spec
from tarsdb.model_ops.config_values import flag, real, short
from tarsdb.model_ops.encoder import CutTexts, Encoder, Text, require_finite, weigh_encoder
from tarsdb.model_ops.encoder_adapter import EncoderAdapter
from tarsdb.model_ops.sentence import (
    SentenceSettings,
    check_options,
    read_max_length,
    read_object,
)
from tarsdb.model_ops.shelf import Shelf
from tarsdb.model_ops.tokenizer import TextTokenizer
from tarsdb.model_ops.weights import (
    QUANTIZE,
    check_tensors,
    compare_shapes,
    read_tensor,
    shapes_of,
)
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

OPTIONS = ("max_length", "overflow", "quantize")
MAX_LABELS = 100_000
_IDENTITIES = ("torch.nn.modules.linear.Identity", "torch.nn.Identity")


@dataclass(frozen=True)
class _Layout:
    """Names of a family's head; a dense name that starts with a dot follows the model's prefix."""

    dense: str
    output: str
    activation: Callable[[F32], F32]
    norm: str = ""


def _relu(values: F32) -> F32:
    return np.maximum(values, np.float32(0))


def _gelu(values: F32) -> F32:
    return gemm_reference.activation(values, gemm_reference.GELU)


_POOLED = _Layout(".pooler.dense", "classifier", np.tanh)
_DENSE = _Layout("classifier.dense", "classifier.out_proj", np.tanh)
_LAYOUTS = {
    "bert": _POOLED, "roberta": _DENSE, "xlm-roberta": _DENSE, "camembert": _DENSE, "mpnet": _DENSE,
    "distilbert": _Layout("pre_classifier", "classifier", _relu),
    "modernbert": _Layout("head.dense", "classifier", _gelu, "head.norm"),
}  # fmt: skip


@dataclass(frozen=True)
class HeadSpec:
    """What a config says about a head.

    Parameters
    ----------
    labels : tuple of str
        In the order of the outputs.
    exclusive : bool
        The labels exclude each other (softmax); else each is judged alone (sigmoid).
    raw : bool
        A reranker whose score is the output itself instead of its sigmoid.
    norm : str
        What lies behind the activation; '': nothing.
    pooling : str
        What the head reads: 'cls', the first token, or 'mean'.
    unbiased : frozenset of str
        Parts without a bias, or shift.
    epsilon : float
        Of the norm.
    """

    labels: tuple[str, ...]
    exclusive: bool
    raw: bool
    dense: str
    output: str
    activation: Callable[[F32], F32]
    norm: str = ""
    pooling: str = "cls"
    unbiased: frozenset[str] = frozenset()
    epsilon: float = 0.0


def read_head(config: Mapping[str, Any], prefix: str = "") -> HeadSpec:
    """Read a head out of a parsed ``config.json``; ``prefix`` is that of the encoder's tensors.

    Raises
    ------
    NotSupportedError
        A family without a head here, or a problem type that is not computed.
    ModelFormatError
        ``id2label`` does not number its labels from 0.
    """
    layout = _LAYOUTS.get(str(config.get("model_type")))
    if layout is None:
        raise NotSupportedError(
            f"classifiers of type {str(config.get('model_type'))[:60]!r} are not supported",
            "supported: " + ", ".join(_LAYOUTS),
        )
    labels = read_labels(config)
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification", "multi_label_classification",
                       "regression"):  # fmt: skip
        raise NotSupportedError(f"config.json: problem_type {str(problem)[:60]!r}")
    if problem == "regression" and len(labels) > 1:
        raise NotSupportedError(f"config.json: regression with {len(labels)} outputs")
    more = _read_modern(config) if layout.norm else {}
    return HeadSpec(
        labels=labels,
        exclusive=len(labels) > 1 and problem != "multi_label_classification",
        raw=problem == "regression" or _is_identity(config),
        dense=prefix + layout.dense[1:] if layout.dense.startswith(".") else layout.dense,
        output=layout.output,
        activation=layout.activation,
        norm=layout.norm,
        **more,
    )


def _read_modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read what ModernBERT says of its head."""
    pooling, activation = config.get("classifier_pooling", "cls"), "classifier_activation"
    if pooling not in ("cls", "mean"):
        raise NotSupportedError(f"config.json: classifier_pooling {short(pooling)}")
    if config.get(activation, "gelu") != "gelu":
        raise NotSupportedError(f"config.json: {activation} {short(config[activation])}")
    biases = (("classifier_bias", "dense"), ("norm_bias", "norm"))
    unbiased = frozenset(part for key, part in biases if not flag(config, key, False))
    epsilon = real(config, "norm_eps", 1e-5, 0.0, 0.1)
    return {"pooling": pooling, "unbiased": unbiased, "epsilon": epsilon}


def read_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the outputs; two, as in transformers, where the config names none."""
    named = config.get("id2label")
    if named is None:
        count = config.get("num_labels", 2)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_LABELS:
            raise ModelFormatError(f"config.json: num_labels is {str(count)[:60]}")
        return tuple(f"LABEL_{number}" for number in range(count))
    if not isinstance(named, dict) or not 1 <= len(named) <= MAX_LABELS:
        raise ModelFormatError("config.json: id2label is no object of labels by number")
    labels = [named.get(str(number)) for number in range(len(named))]
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise ModelFormatError(
            f"config.json: id2label does not give {len(named)} different labels the numbers 0 to "
            f"{len(named) - 1}"
        )
    return tuple(map(str, labels))


def _is_identity(config: Mapping[str, Any]) -> bool:
    """Return True where sentence-transformers was told to leave the output as it is."""
    section = config.get("sentence_transformers")
    named = section.get("activation_fn") if isinstance(section, dict) else None
    return (named or config.get("sbert_ce_default_activation_function")) in _IDENTITIES


def head_shapes(spec: EncoderSpec, head: HeadSpec) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of a head."""
    shapes: dict[str, tuple[int, ...]] = {f"{head.dense}.weight": (spec.hidden, spec.hidden)}
    if "dense" not in head.unbiased:
        shapes[f"{head.dense}.bias"] = (spec.hidden,)
    if head.norm:
        shapes[f"{head.norm}.weight"] = (spec.hidden,)
        if "norm" not in head.unbiased:
            shapes[f"{head.norm}.bias"] = (spec.hidden,)
    shapes[f"{head.output}.weight"] = (len(head.labels), spec.hidden)
    shapes[f"{head.output}.bias"] = (len(head.labels),)
    return shapes


def check_classifier(
    files: Mapping[str, bytes], shapes: Mapping[str, tuple[int, ...]],
    options: Mapping[str, Any], where: str,
) -> int:  # fmt: skip
    """Check a classifier's or reranker's files, tensors and options; returns its longest text."""
    check_options(options, OPTIONS)
    config = read_object(files, "config.json")
    spec = read_spec(config)
    head = read_head(config, check_tensors(spec, shapes, where))
    compare_shapes(head_shapes(spec, head), shapes, where)
    return read_max_length(files, spec, options.get("max_length"))


def weigh_classifier(files: Mapping[str, bytes], options: Mapping[str, Any]) -> int:
    """Return the ``weight_bytes`` of a :class:`Classifier` that is loaded here, not on a device."""
    config = read_object(files, "config.json")
    shapes = head_shapes(read_spec(config), read_head(config))
    return weigh_encoder(files, options) + 4 * sum(map(math.prod, shapes.values()))


class Classifier:
    """A sequence classifier or cross-encoder reranker. Several threads may call it at once.

    Attributes
    ----------
    labels : tuple of str
        In the order of the outputs.
    """

    def __init__(
        self, encoder: Encoder, head: HeadSpec, tensors: Mapping[str, npt.NDArray[Any]],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:  # fmt: skip
        self.encoder = encoder
        self.labels = head.labels
        self._head, self._shapes = head, shapes
        self._weights = {n: read_tensor(tensors, n, shape) for n, shape in shapes.items()}

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory, or of a device, that the weights take."""
        return self.encoder.weight_bytes + sum(array.nbytes for array in self._weights.values())

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], tensors: Mapping[str, npt.NDArray[Any]],
        options: Mapping[str, Any] | None = None, device: Device | None = None,
        shelf: Shelf | None = None,
    ) -> Classifier:  # fmt: skip
        """Make a classifier; parameters as of :meth:`Encoder.from_files`.

        Raises
        ------
        ModelFormatError
            A file or tensor is missing, broken or disagrees with config.json.
        NotSupportedError
            A family or head that is not computed.
        ModelError
            An unknown option or a value it cannot have.
        """
        options = options or {}
        shapes = shapes_of(tensors)
        longest = check_classifier(files, shapes, options, "the model")
        config = read_object(files, "config.json")
        spec = read_spec(config)
        head = read_head(config, check_tensors(spec, shapes, "the model"))
        settings = SentenceSettings(
            pooling=(head.pooling,), normalize=False, max_length=longest, lower=False, prompt="",
            refuse_long=options.get("overflow") == "error",
            weights=QUANTIZE[options.get("quantize", "none")],
        )  # fmt: skip
        encoder = Encoder(files, tensors, spec, settings, device, shelf)
        return cls(encoder, head, tensors, head_shapes(spec, head))

    def new_adapter(
        self, files: Mapping[str, bytes], tensors: Mapping[str, npt.NDArray[Any]]
    ) -> EncoderAdapter:
        """Read a low-rank adapter of this model, with or without a head of its own."""
        return self.encoder.new_adapter(files, tensors, self._shapes)

    def with_adapter(self, adapter: EncoderAdapter) -> Classifier:
        """Return this model as an adapter makes it; both share the weights."""
        adapted = copy.copy(self)
        adapted.encoder = self.encoder.with_adapter(adapter)
        adapted._weights = {**self._weights, **adapter.head}
        return adapted

    @property
    def cut(self) -> CutTexts:
        """Counts texts cut to the longest the model reads."""
        return self.encoder.cut

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer."""
        return self.encoder.tokenizer

    def logits(self, texts: Sequence[Text | None], **watch: Any) -> F32:
        """Return the head's outputs (n, labels) float32 of texts or pairs of texts.

        ``watch`` are ``threads``, ``progress`` and ``interrupted`` of :meth:`Encoder.encode`, which
        also says what is raised.
        """
        head = self._head
        inner = head.activation(self._linear(head.dense, self.encoder.encode(texts, **watch)))
        if head.norm:
            scale = self._weights[f"{head.norm}.weight"]
            shift = self._weights.get(f"{head.norm}.bias", np.zeros_like(scale))
            transformer_reference.layer_norm(
                inner, np.empty_like(inner), scale, shift, head.epsilon
            )
        return require_finite(self._linear(head.output, inner), "a text's output")

    def _linear(self, part: str, rows: F32) -> F32:
        """Multiply each row by a matrix alone: no row depends on its batch."""
        products: F32 = np.matmul(self._weights[f"{part}.weight"], rows[:, :, None])[:, :, 0]
        bias = self._weights.get(f"{part}.bias")
        return products if bias is None else products + bias

    def probabilities(self, texts: Sequence[Text | None], **watch: Any) -> F64:
        """Return the labels' probabilities (n, labels), of sum 1 if labels exclude each other."""
        logits = self.logits(texts, **watch).astype(np.float64)
        if not self._head.exclusive:
            return _sigmoid(logits)
        powers: F64 = np.exp(logits - logits.max(axis=1, keepdims=True))
        powers /= powers.sum(axis=1, keepdims=True)
        return powers

    def relevance(self, pairs: Sequence[Text | None], **watch: Any) -> F64:
        """Return the score (n,) a reranker of one output gives pairs, as sentence-transformers.

        ModelError where the model has several outputs.
        """
        if len(self.labels) != 1:
            raise ModelError(
                f"a reranker has one output, this model has {len(self.labels)}",
                "score(model, query, text, label => ...) gives one of them",
            )
        logits = self.logits(pairs, **watch).astype(np.float64)[:, 0]
        return logits if self._head.raw else _sigmoid(logits)


def _sigmoid(values: F64) -> F64:
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1.0, small) / (1.0 + small)
