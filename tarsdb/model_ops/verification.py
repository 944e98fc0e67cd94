"""Is a model computed right: its outputs here beside those of transformers, on sample texts.

Needs the extra ``tarsdb[verify]``. Only safetensors are read, and no code of the model is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.model_ops.architecture import EncoderSpec, read_spec
from tarsdb.model_ops.decoder import Decoder
from tarsdb.model_ops.decoder_forward import StepBatch
from tarsdb.model_ops.directory import ModelFiles, read_model_directory, resolve_directory
from tarsdb.model_ops.encoder import Encoder
from tarsdb.model_ops.heads import Classifier
from tarsdb.model_ops.sentence import pool, read_object, read_settings
from tarsdb.model_ops.tokenizer import TextTokenizer
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]

SAMPLES = (
    "How do I parse a date from a string?", "a", "The file does not shrink; freed pages are used.",
    "naïve café, Straße, 日本語のテキスト, Привет мир", "word " * 600,
)  # fmt: skip
TOLERANCE = 1e-3
"""Largest difference of two outputs taken as equal, relative to the largest output."""

_BLOCK = 16  # tokens of a KV block


@dataclass(frozen=True)
class Comparison:
    """One output of a model, computed here and by transformers.

    Attributes
    ----------
    text : str
        The sample.
    output : str
        'tokens', 'vector', 'logits', 'logits of a pair' or 'next-token logits'.
    difference : float
        Largest absolute difference, relative to the largest output; of tokens 0 or 1; infinite
        where the shapes differ.
    cosine : float
        Smallest cosine between rows of the two.
    """

    text: str
    output: str
    difference: float
    cosine: float

    @property
    def equal(self) -> bool:
        """Whether the outputs agree; an output that is no number never does."""
        return self.difference <= TOLERANCE


def verify_model(source: str, texts: Sequence[str] = SAMPLES) -> Iterator[Comparison]:
    """Compare a model's outputs with transformers', text by text.

    Parameters
    ----------
    source : str
        As of :func:`read_model_directory`.
    texts : sequence of str
        Samples, at least one; what is longer than the model reads is cut by both. Pairs are made
        of the first one and each.

    Raises
    ------
    NotSupportedError
        transformers or torch is not installed.
    ModelFormatError
        The model is not usable here, or transformers cannot load it.
    """
    library = _library()
    directory = resolve_directory(source)
    model = read_model_directory(directory)
    tokenizer = _load(library.AutoTokenizer, directory)
    outputs = _OUTPUTS[model.task](model, library, directory)
    own = TextTokenizer(model.files["tokenizer.json"], model.max_length)
    for text in texts:
        ids = own.encode([text]).ids.tolist()
        cut = {"truncation": True, "max_length": model.max_length}
        theirs = tokenizer(text, **cut)["input_ids"]
        yield Comparison(text, "tokens", float(ids != theirs), float(ids == theirs))
        yield from (_compare(text, *found) for found in outputs(text, ids, texts[0]))


def _library() -> Any:
    try:
        import torch  # noqa: F401 # transformers loads without it and then has no models
        import transformers
    except ImportError as error:
        raise NotSupportedError(
            f"comparing a model with transformers needs the package {error.name}",
            hint="pip install 'tarsdb[verify]'",
        ) from error
    return transformers


def _load(kind: Any, directory: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, **options
        )
    except Exception as error:  # of many libraries
        raise ModelFormatError(
            f"transformers cannot load {directory}: {type(error).__name__}: {error}"
        ) from error


def _reference(kind: Any, directory: str) -> Callable[..., Any]:
    """Return a function of token ids, and token types, that runs transformers' model in fp32."""
    import torch

    model = _load(kind, directory, use_safetensors=True, dtype=torch.float32).eval()

    def run(ids: Sequence[int], types: Sequence[int] | None = None) -> Any:
        inputs = {"input_ids": torch.tensor([list(ids)])}
        if types is not None:
            inputs["token_type_ids"] = torch.tensor([list(types)])
        with torch.no_grad():
            return model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))

    return run


def _spec(model: ModelFiles) -> EncoderSpec:
    return read_spec(read_object(model.files, "config.json"))


def _embed(model: ModelFiles, library: Any, directory: str) -> Callable[..., Any]:
    encoder = Encoder.from_files(model.files, model.tensors)
    settings = read_settings(model.files, _spec(model), {})
    reference = _reference(library.AutoModel, directory)

    def outputs(text: str, ids: list[int], first: str) -> Iterator[tuple[str, F32, F32]]:
        prompted = encoder.tokenizer.encode([settings.prompt + text]).ids
        hidden = reference(prompted.tolist()).last_hidden_state[0].numpy()
        bounds = np.array([0, len(hidden)], np.int64)
        yield "vector", encoder.encode([text]), pool(hidden, bounds, settings)

    return outputs


def _classify(model: ModelFiles, library: Any, directory: str) -> Callable[..., Any]:
    classifier = Classifier.from_files(model.files, model.tensors)
    typed = _spec(model).token_types > 1
    reference = _reference(library.AutoModelForSequenceClassification, directory)

    def outputs(text: str, ids: list[int], first: str) -> Iterator[tuple[str, F32, F32]]:
        yield "logits", classifier.logits([text]), reference(ids).logits.numpy()
        pair = (first, text)
        tokens = classifier.tokenizer.encode_pairs([pair])
        types = tokens.types if typed else None
        theirs = reference(tokens.ids.tolist(), None if types is None else types.tolist())
        yield "logits of a pair", classifier.logits([pair]), theirs.logits.numpy()

    return outputs


def _generate(model: ModelFiles, library: Any, directory: str) -> Callable[..., Any]:
    decoder = Decoder.from_files(model.files, model.tensors)
    reference = _reference(library.AutoModelForCausalLM, directory)

    def outputs(text: str, ids: list[int], first: str) -> Iterator[tuple[str, F32, F32]]:
        count = len(ids)
        blocks = -(-count // _BLOCK)
        batch = StepBatch(
            np.array(ids, np.int32), np.array([0, count], np.int32), np.zeros(1, np.int32),
            np.arange(blocks, dtype=np.int32)[None], np.arange(count, dtype=np.int32),
        )  # fmt: skip
        ours = decoder.step(batch, decoder.new_cache(blocks))
        yield "next-token logits", ours, reference(ids).logits[0].numpy()

    return outputs


_OUTPUTS: dict[str, Callable[[ModelFiles, Any, str], Callable[..., Any]]] = {
    "embed": _embed, "classify": _classify, "rerank": _classify, "generate": _generate,
}  # fmt: skip


def _compare(text: str, output: str, ours: F32, theirs: F32) -> Comparison:
    if ours.shape != theirs.shape:
        return Comparison(text, output, float("inf"), 0.0)
    scale = float(np.abs(theirs).max(initial=0)) or 1.0
    difference = float(np.abs(ours - theirs).max(initial=0)) / scale
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1) / np.where(lengths > 0, lengths, 1)
    return Comparison(text, output, difference, float(cosines.min(initial=1)))
