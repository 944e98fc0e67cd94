"""What models are for: one row per task, with what to check at import and how to load.

The task is read off ``config.json`` unless CREATE MODEL says it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tarsdb.errors import ModelError, ModelFormatError
from tarsdb.model_ops import decoder, predictor
from tarsdb.model_ops.decoder_spec import FAMILIES as DECODERS
from tarsdb.model_ops.decoder_spec import decoder_tensors
from tarsdb.model_ops.decoder_weights import check_decoder_tensors
from tarsdb.model_ops.encoder import Encoder, check_encoder, weigh_encoder
from tarsdb.model_ops.generation.generator import Generator
from tarsdb.model_ops.heads import Classifier, check_classifier, read_labels, weigh_classifier
from tarsdb.model_ops.predictor import Predictor
from tarsdb.model_ops.sentence import module_paths, read_object
from tarsdb.model_ops.tokenizer import TextTokenizer
from tarsdb.records import dataclass


@dataclass(frozen=True)
class Task:
    """How models for one task are checked and loaded.

    Parameters
    ----------
    check : callable
        Takes files, tensors' shapes, options and the model's name for messages; returns what was
        found or raises.
    load : callable
        Takes files, tensors, options and, but for 'predict', a device or none; returns what the
        engine runs.
    weigh : callable
        Takes files and options; returns the bytes of memory that a model without a device is going
        to take, its ``weight_bytes``.
    """

    check: Callable[..., Facts]
    load: Callable[..., Any]
    weigh: Callable[[Mapping[str, bytes], Mapping[str, Any]], int]


@dataclass(frozen=True)
class Facts:
    """What a check found.

    Parameters
    ----------
    dim : int
        Width of the model's vectors, 0 where it makes none.
    max_length : int
        Tokens of a text that are read; prompt and answer together for 'generate'.
    tensors : tuple of str, optional
        The tensors that are needed; all of a float type unless given.
    """

    dim: int
    max_length: int
    tensors: tuple[str, ...] | None = None


def _check_encoder(*of_model: Any) -> Facts:
    return Facts(*check_encoder(*of_model))


def _check_classifier(*of_model: Any) -> Facts:
    return Facts(0, check_classifier(*of_model))


def _check_reranker(files: Mapping[str, bytes], *of_model: Any) -> Facts:
    labels = len(read_labels(read_object(files, "config.json")))
    if labels != 1:
        raise ModelError(
            f"a reranker has one output, config.json names {labels} labels",
            "WITH (task = 'classify') makes a classifier of it",
        )
    return Facts(0, check_classifier(files, *of_model))


def _check_generator(
    files: Mapping[str, bytes], shapes: Mapping[str, tuple[int, ...]],
    options: Mapping[str, Any], where: str,
) -> Facts:  # fmt: skip
    decoder.check_options(options)
    spec = decoder.read_spec(files)
    tokenizer = TextTokenizer(files["tokenizer.json"], spec.max_positions)
    if tokenizer.highest_id >= spec.vocabulary:
        raise ModelFormatError(
            f"tokenizer.json names token {tokenizer.highest_id}, the model knows {spec.vocabulary}",
            "tokenizer.json and config.json belong to different models",
        )
    check_decoder_tensors(spec, dict(shapes), where)
    return Facts(0, spec.max_positions, tuple(decoder_tensors(spec)))


def _check_predictor(
    files: Mapping[str, bytes], shapes: Mapping[str, tuple[int, ...]],
    options: Mapping[str, Any], where: str,
) -> Facts:  # fmt: skip
    predictor.check_options(options)
    return Facts(0, Predictor(files[predictor.FILE]).width)


def _weigh_predictor(files: Mapping[str, bytes], options: Mapping[str, Any]) -> int:
    return len(files[predictor.FILE])


TASKS = {
    "embed": Task(_check_encoder, Encoder.from_files, weigh_encoder),
    "classify": Task(_check_classifier, Classifier.from_files, weigh_classifier),
    "rerank": Task(_check_reranker, Classifier.from_files, weigh_classifier),
    "generate": Task(_check_generator, Generator.from_files, decoder.weigh_decoder),
    "predict": Task(_check_predictor, Predictor.from_files, _weigh_predictor),
}


def choose_task(files: Mapping[str, bytes], wanted: Any = None) -> str:
    """Return the task of a model, the wanted one or the one its files tell.

    Decoders generate. ``...ForSequenceClassification`` with one output reranks, with several it
    classifies; a model with a ``modules.json`` of sentence-transformers, and any other encoder,
    embeds.
    """
    if wanted is not None:
        if wanted not in TASKS:
            raise ModelError(f"task {wanted!r} is not known", "tasks: " + ", ".join(TASKS))
        return str(wanted)
    config = read_object(files, "config.json")
    if config.get("model_type") in DECODERS:
        return "generate"
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    if architecture.endswith("ForSequenceClassification") and not module_paths(files):
        return "rerank" if len(read_labels(config)) == 1 else "classify"
    return "embed"
