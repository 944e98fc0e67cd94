"""What models are for: one row per task, with what to check at import and how to load.

The task is read off ``config.json`` unless CREATE MODEL says it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tarsdb.errors import ModelError
from tarsdb.model_ops.encoder import Encoder, check_encoder
from tarsdb.model_ops.heads import Classifier, check_classifier, read_labels
from tarsdb.model_ops.sentence import module_paths, read_object


@dataclass(frozen=True)
class Task:
    """How models for one task are checked and loaded.

    Parameters
    ----------
    check : callable
        Takes files, tensors' shapes, options and the model's name for messages; returns the width
        of its vectors (0 where it makes none) and the longest text in tokens, or raises.
    load : callable
        Takes files, tensors and options; returns what the engine runs.
    """

    check: Callable[..., tuple[int, int]]
    load: Callable[..., Any]


def _check_labels(*of_model: Any) -> tuple[int, int]:
    return 0, check_classifier(*of_model)


def _check_reranker(files: Mapping[str, bytes], *of_model: Any) -> tuple[int, int]:
    labels = len(read_labels(read_object(files, "config.json")))
    if labels != 1:
        raise ModelError(
            f"a reranker has one output, config.json names {labels} labels",
            "WITH (task = 'classify') makes a classifier of it",
        )
    return 0, check_classifier(files, *of_model)


TASKS = {
    "embed": Task(check_encoder, Encoder.from_files),
    "classify": Task(_check_labels, Classifier.from_files),
    "rerank": Task(_check_reranker, Classifier.from_files),
}


def choose_task(files: Mapping[str, bytes], wanted: Any = None) -> str:
    """Return the task of a model, the wanted one or the one its files tell.

    ``...ForSequenceClassification`` with one output reranks, with several it classifies; a model
    with a ``modules.json`` of sentence-transformers, and any other encoder, embeds.
    """
    if wanted is not None:
        if wanted not in TASKS:
            raise ModelError(f"task {wanted!r} is not known", "tasks: " + ", ".join(TASKS))
        return str(wanted)
    config = read_object(files, "config.json")
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    if architecture.endswith("ForSequenceClassification") and not module_paths(files):
        return "rerank" if len(read_labels(config)) == 1 else "classify"
    return "embed"
