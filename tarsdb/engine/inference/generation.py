"""``generate`` in SQL and from Python: options, KV memory, and whether the model is still there.

A text takes seconds, so no read transaction is held for it where the statement allows that: a lease
says between steps whether the model is still in the catalog. Knows no SQL text and no sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tarsdb.engine.inference import model_device
from tarsdb.engine.inference.loaded_models import model_threads
from tarsdb.engine.settings import size_bytes
from tarsdb.errors import ModelError, ProgrammingError
from tarsdb.kernels.gpu.device import Device
from tarsdb.schema import ModelDef
from tarsdb.storage import Environment, Snapshot

if TYPE_CHECKING:
    from tarsdb.engine.context import Context
    from tarsdb.engine.inference.model_functions import Request, Values
    from tarsdb.model_ops.generation.generation_options import GenerationOptions
    from tarsdb.model_ops.generation.generator import Generator, TextIterator
    from tarsdb.model_ops.generation.request import Completion


class Lease:
    """A model version in use without a read transaction.

    Its weights lie in memory, or on pages of the file that nobody writes over while they are
    mapped, so nothing breaks when the model goes; the work ends, because who dropped or replaced it
    does not want its answers any more.

    Parameters
    ----------
    env : Environment
    models : ModelDef
        As the catalog has them now: the model and, of an adapter, the one it adapts.
    """

    def __init__(self, env: Environment, *models: ModelDef) -> None:
        self.model = models[0]
        self._env = env
        self._versions = {model.name: model.find_version() for model in models}
        self._catalog = -1

    def check(self) -> None:
        """Raise ModelError when the model was dropped or its version replaced (about 10 us)."""
        snapshot = Snapshot(self._env)
        try:
            if snapshot.catalog_version == self._catalog:
                return
            found = {name: snapshot.catalog.model(name) for name in self._versions}
            self._catalog = snapshot.catalog_version
        finally:
            snapshot.close()
        for name, model in found.items():
            if model is None or self._versions[name] not in model.versions:
                raise ModelError(f"model {name} was dropped or replaced while it generated")


@contextmanager
def naming(model: ModelDef | None) -> Iterator[None]:
    """Have an error of a model's code, which knows no names, say which model it is about."""
    try:
        yield
    except ModelError as error:
        if model is None or f"model {model.name}" in error.message:
            raise
        raise type(error)(f"model {model.name}: {error.message}", hint=error.hint) from error


class NamedPieces(Iterator[str]):
    """The pieces of a model's text as they come; errors that end it name the model."""

    def __init__(self, pieces: TextIterator, model: ModelDef) -> None:
        self._pieces, self._model = pieces, model

    def __next__(self) -> str:
        with naming(self._model):
            return next(self._pieces)

    @property
    def completion(self) -> Completion | None:
        """What the whole text came to; None before its end."""
        return self._pieces.completion

    def close(self) -> None:
        """Give the text up."""
        self._pieces.close()


def open_model(
    context: Context, name: str, options: Mapping[str, Any]
) -> tuple[Lease, Generator, Mapping[str, Any]]:
    """Return a lease on a model that generates, the model with the connection's KV memory, options.

    Of the options a ``draft`` is loaded where the model is.

    Raises
    ------
    CatalogError
        There is no such model.
    ModelError
        It does something else.
    """
    from tarsdb.engine.inference.models import models_of

    model = _require(context, name)
    settings, models = context.engines.settings, models_of(context, model)

    def opened(device: Device | None) -> tuple[Generator, Mapping[str, Any]]:
        generator: Generator = context.engines.models.load(context, model, device)
        _prepare(generator, settings)
        return generator, with_draft(context, options, device)

    generator, prepared = model_device.run(settings, models, opened)
    return Lease(context.engines.env, *models), generator, prepared


def with_draft(
    context: Context, options: Mapping[str, Any], device: Device | None
) -> Mapping[str, Any]:
    """Return options whose ``draft`` is the model of that name, loaded; raises as `open_model`."""
    name = options.get("draft")
    if name is None:
        return options
    draft = context.engines.models.load(context, _require(context, str(name)), device)
    return {**options, "draft": draft}


def _require(context: Context, name: str) -> ModelDef:
    from tarsdb.engine.inference.models import require_model

    if not isinstance(name, str):
        raise ProgrammingError(f"generate takes the name of a model, not {type(name).__name__}")
    model = require_model(context.catalog.model(name), name)
    if model.task != "generate":
        raise ModelError(f"model {model.name} does {model.task}, not generate")
    return model


def generate(request: Request) -> Values:
    """Return the text each prompt is continued with."""
    options = _options(request.options)
    generator: Generator = request.model
    _prepare(generator, request.settings)
    prompts = [prompt for (prompt,) in request.items]
    done = generator.generate(prompts, options, request.check, request.progress)
    return [completion.text for completion in done]


def complete(
    generator: Generator, prompt: Any, options: Mapping[str, Any], check: Callable[[], None]
) -> str | list[str]:
    """Return the text of one prompt (a text, or messages), or the texts of a list of texts."""
    one = not _is_list_of_texts(prompt)
    done = generator.generate([prompt] if one else prompt, _options(options), check)
    return done[0].text if one else [completion.text for completion in done]


def stream(
    generator: Generator, prompt: Any, options: Mapping[str, Any], check: Callable[[], None]
) -> TextIterator:
    """Return the pieces of the text of one prompt, as they come."""
    if _is_list_of_texts(prompt):
        raise ProgrammingError("generate streams the text of one prompt, a list was given")
    return generator.stream(prompt, _options(options), check)


def _prepare(generator: Generator, settings: Mapping[str, Any]) -> None:
    """Give a model the memory and cores of a connection; connections share it, the last one says.

    No text depends on either.
    """
    generator.reserve(cache_bytes(settings))
    generator.decoder.limit_threads(model_threads(settings))


def cache_bytes(settings: Mapping[str, Any]) -> int:
    """Return the bytes of ``kv_cache_memory``."""
    return size_bytes("setting kv_cache_memory", settings["kv_cache_memory"])


def _is_list_of_texts(prompt: Any) -> bool:
    return isinstance(prompt, (list, tuple)) and all(isinstance(item, str) for item in prompt)


def _options(options: Mapping[str, Any]) -> GenerationOptions:
    from tarsdb.model_ops.generation.generation_options import GenerationOptions

    return GenerationOptions.from_mapping(options)
