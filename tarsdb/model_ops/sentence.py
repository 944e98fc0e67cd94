"""From token vectors to one vector per text: what a sentence-transformers directory asks for.

Reads ``modules.json``, the pooling module's config, ``sentence_bert_config.json`` and
``config_sentence_transformers.json``, applies the options of CREATE MODEL, and pools. A directory
without ``modules.json`` means mean pooling without normalisation, as in sentence-transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelError, ModelFormatError, NotSupportedError
from tarsdb.model_ops.architecture import EncoderSpec
from tarsdb.model_ops.weights import QUANTIZE
from tarsdb.records import dataclass

MAX_CONFIG_BYTES = 4 << 20
POOLING_MODES = ("mean", "cls", "max", "mean_sqrt_len", "lasttoken")
OPTIONS = ("pooling", "normalize", "max_length", "overflow", "prompt", "quantize", "runtime")

POOLING_FILE = "1_Pooling/config.json"
"""Says how to pool where there is no ``modules.json``, as beside exported graphs."""
_DOCUMENT = ("document", "passage", "corpus")
_LEGACY_KEYS = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean", "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip


@dataclass(frozen=True)
class SentenceSettings:
    """How one model turns a text into a vector.

    Parameters
    ----------
    pooling : tuple of str
        Modes of POOLING_MODES; several are concatenated.
    normalize : bool
        Scale every vector to length 1.
    max_length : int
        Tokens of a text that are read, special tokens included.
    lower : bool
        Lower-case the text before the tokenizer sees it.
    prompt : str
        Put in front of every text.
    prompts : dict of str to str
        Prompts of ``config_sentence_transformers.json`` by name.
    refuse_long : bool
        Raise DataError for a longer text instead of truncating it.
    weights : str
        Kind of packed weights matrices are kept as.
    """

    pooling: tuple[str, ...]
    normalize: bool
    max_length: int
    lower: bool
    prompt: str
    refuse_long: bool
    weights: str = "f32"
    prompts: Mapping[str, str] = field(default_factory=dict)


def read_json(files: Mapping[str, bytes], name: str) -> Any:
    """Parse one file of a model, None where it is absent; ModelFormatError when it is broken."""
    data = files.get(name)
    if data is None:
        return None
    if len(data) > MAX_CONFIG_BYTES:
        raise ModelFormatError(f"{name} has {len(data)} bytes, the limit is {MAX_CONFIG_BYTES}")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{name} is no valid JSON: {error}") from error


def read_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Parse one file that must hold a JSON object; an absent file reads as {}."""
    value = read_json(files, name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ModelFormatError(f"{name} holds a {type(value).__name__}, not an object")
    return value


def module_paths(files: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Return (kind, folder) of each entry of ``modules.json``, e.g. ('Pooling', '1_Pooling')."""
    modules = read_json(files, "modules.json")
    if modules is None:
        return []
    if not isinstance(modules, list) or len(modules) > 16:
        raise ModelFormatError("modules.json is no list of up to 16 modules")
    found = []
    for module in modules:
        kind = module.get("type") if isinstance(module, dict) else None
        folder = module.get("path", "") if isinstance(module, dict) else None
        if not isinstance(kind, str) or not isinstance(folder, str):
            raise ModelFormatError("modules.json has an entry without type and path")
        if "/" in folder or "\\" in folder or folder.startswith("."):
            raise ModelFormatError(f"modules.json points outside the model: {folder!r}")
        found.append((kind.rpartition(".")[2], folder))
    return found


def read_settings(
    files: Mapping[str, bytes], spec: EncoderSpec, options: Mapping[str, Any]
) -> SentenceSettings:
    """Combine a directory's sentence settings with the options of CREATE MODEL.

    Raises
    ------
    ModelFormatError, NotSupportedError
        The directory's files are broken, or ask for a module that is not computed.
    ModelError
        An option is unknown or has no usable value.
    """
    check_options(options)
    pooling, normalize = _modules(files)
    sentence = read_object(files, "sentence_bert_config.json")
    chosen = options.get("pooling")
    prompts = _prompts(files)
    prompt = _prompt(files, prompts, options)
    if _leaves_prompts_out(files) and any((prompt, *prompts.values())):
        raise NotSupportedError("include_prompt = false: pooling that leaves the prompt out")
    return SentenceSettings(
        pooling=pooling if chosen is None else (str(chosen).lower(),),
        normalize=bool(options.get("normalize", normalize)),
        max_length=read_max_length(files, spec, options.get("max_length")),
        lower=bool(sentence.get("do_lower_case", False)),
        prompt=prompt,
        refuse_long=options.get("overflow") == "error",
        weights=QUANTIZE[options.get("quantize", "none")],
        prompts=prompts,
    )


def check_options(options: Mapping[str, Any], known: Sequence[str] = OPTIONS) -> None:
    """Refuse options that do not exist or cannot have their value."""
    for name, value in options.items():
        if name not in known:
            raise ModelError(
                f"unknown model option {name!r}", "options: " + ", ".join(("task", *known))
            )
        allowed: tuple[Any, ...] | None = {
            "pooling": POOLING_MODES, "overflow": ("truncate", "error"),
            "normalize": (True, False), "quantize": tuple(QUANTIZE),
            "runtime": ("onnxruntime",),
        }.get(name)  # fmt: skip
        if allowed is not None and value not in allowed:
            text = ", ".join(map(repr, allowed))
            raise ModelError(f"model option {name} cannot be {value!r}", f"one of {text}")


def pooled_width(settings: SentenceSettings, spec: EncoderSpec) -> int:
    """Return the width of a text's vector."""
    return spec.hidden * len(settings.pooling)


def pool(
    hidden: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64], settings: SentenceSettings
) -> npt.NDArray[np.float32]:
    """Turn packed token vectors (n, width) into one vector per text (texts, dim).

    ``offsets`` (texts + 1) says where each text starts; no text is empty.
    """
    parts = [_pool(hidden, offsets, mode) for mode in settings.pooling]
    vectors = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    return _normalized(vectors) if settings.normalize else vectors


def cut_vectors(
    vectors: npt.NDArray[np.float32], dimensions: int, settings: SentenceSettings
) -> npt.NDArray[np.float32]:
    """Return the first ``dimensions`` elements of vectors, with length 1 if they had it."""
    kept = vectors[:, :dimensions].copy()
    return _normalized(kept) if settings.normalize else kept


def _normalized(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    vectors /= np.maximum(norms, np.float32(1e-12))[:, None]
    return vectors


def read_prompt(settings: SentenceSettings, kind: str | None) -> str:
    """Return what is put before texts of a kind.

    'query' and 'document' are '' where the model knows neither: such a model treats both alike.
    'passage' and 'corpus' are other names of 'document'.

    Raises
    ------
    ModelError
        The model has no prompt of that kind.
    """
    if kind is None:
        return settings.prompt
    names = _DOCUMENT if kind in _DOCUMENT else (kind,)
    for name in names:
        if name in settings.prompts:
            return settings.prompts[name]
    if kind in ("query", *_DOCUMENT):
        return ""
    known = ", ".join(map(repr, settings.prompts)) or "none"
    raise ModelError(f"the model has no prompt {kind!r}", f"its prompts: {known}")


def _pool(
    hidden: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64], mode: str
) -> npt.NDArray[np.float32]:
    if mode == "cls":
        return hidden[offsets[:-1]]
    if mode == "lasttoken":
        return hidden[offsets[1:] - 1]
    if mode == "max":
        return np.maximum.reduceat(hidden, offsets[:-1], axis=0)
    lengths = (offsets[1:] - offsets[:-1]).astype(np.float32)
    sums = np.add.reduceat(hidden, offsets[:-1], axis=0)
    sums /= (lengths if mode == "mean" else np.sqrt(lengths))[:, None]
    return sums


def _modules(files: Mapping[str, bytes]) -> tuple[tuple[str, ...], bool]:
    """Return pooling modes and whether vectors are normalised."""
    pooling: tuple[str, ...] = ("mean",)
    normalize = False
    if POOLING_FILE in files and "modules.json" not in files:
        pooling = _pooling_modes(read_object(files, POOLING_FILE))
    for kind, folder in module_paths(files):
        if kind == "Pooling":
            pooling = _pooling_modes(read_object(files, f"{folder}/config.json"))
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise NotSupportedError(
                f"modules.json asks for a {kind[:60]!r} module, which is not supported",
                "supported: Transformer, Pooling, Normalize",
            )
    return pooling, normalize


def _leaves_prompts_out(files: Mapping[str, bytes]) -> bool:
    """Return whether pooling is told to read a text without the prompt in front of it."""
    folders = [folder for kind, folder in module_paths(files) if kind == "Pooling"]
    names = [f"{folder}/config.json" for folder in folders] or [POOLING_FILE]
    return any(read_object(files, name).get("include_prompt") is False for name in names)


def _pooling_modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    if named is None:
        modes = [mode for key, mode in _LEGACY_KEYS.items() if config.get(key) is True]
    else:
        modes = named if isinstance(named, list) else [named]
    modes = [str(mode).removesuffix("_tokens") for mode in modes] or ["mean"]
    unknown = [mode for mode in modes if mode not in POOLING_MODES]
    if unknown:
        raise NotSupportedError(
            f"pooling mode {unknown[0][:60]!r} is not supported",
            "supported: " + ", ".join(POOLING_MODES),
        )
    return tuple(modes)


def read_max_length(files: Mapping[str, bytes], spec: EncoderSpec, option: Any = None) -> int:
    """Return how many tokens of a text are read: the option's, the files' or the model's number.

    ModelError when the option is no such number.
    """
    if option is not None:
        valid = isinstance(option, int) and not isinstance(option, bool)
        if not valid or not 4 <= option <= spec.max_tokens:
            raise ModelError(
                f"max_length {option!r} is not between 4 and the model's {spec.max_tokens} tokens"
            )
        return int(option)
    wanted = read_object(files, "sentence_bert_config.json").get("max_seq_length")
    if wanted is None:
        wanted = read_object(files, "tokenizer_config.json").get("model_max_length")
    if isinstance(wanted, bool) or not isinstance(wanted, (int, float)) or not wanted >= 4:
        return spec.max_tokens
    return int(min(wanted, spec.max_tokens))  # "no limit" is written as 1e30


def _prompts(files: Mapping[str, bytes]) -> dict[str, str]:
    prompts = read_object(files, "config_sentence_transformers.json").get("prompts")
    if not isinstance(prompts, dict):
        return {}
    return {str(name): text for name, text in prompts.items() if isinstance(text, str)}


def _prompt(
    files: Mapping[str, bytes], prompts: Mapping[str, str], options: Mapping[str, Any]
) -> str:
    if options.get("prompt") is not None:
        return str(options["prompt"])
    default = read_object(files, "config_sentence_transformers.json").get("default_prompt_name")
    return prompts.get(str(default), "") if default is not None else ""
