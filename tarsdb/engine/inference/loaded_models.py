"""Models in memory: loaded once per file and process, the one used longest ago leaves first.

A model version is immutable, so what was loaded is known by its content and shared by every
connection to the file. Whoever computes with a model that leaves keeps it until the work is done.
Knows no task: what a model is once loaded is the business of ``model_ops``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tarsdb.engine.settings import size_bytes
from tarsdb.errors import ModelError
from tarsdb.kernels.gpu.device import Device
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass
from tarsdb.schema import ModelDef
from tarsdb.storage import Environment

ADAPTER_OF = "adapter_of"
"""The option of CREATE MODEL that names the model an adapter adapts."""
Key = tuple[Any, ...]
"""What was loaded: digest of the weights first, then everything else that makes a difference."""


@dataclass(slots=True)
class _Loaded:
    model: Any
    nbytes: int


class LoadedModels:
    """The models one environment has in memory; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._models: dict[Key, _Loaded] = {}

    def get(
        self, key: Key, load: Callable[[], Any], weigh: Callable[[], int], budget: int, name: str
    ) -> Any:
        """Return a model, loaded by whoever asks first.

        Parameters
        ----------
        key : tuple
        load : callable
            Returns the model; its ``weight_bytes`` say what it takes.
        weigh : callable
            Returns what it is going to take, so that no other leaves for one that is refused.
        budget : int
            Bytes that all models may take; others leave for this one.
        name : str
            For the message.

        Raises
        ------
        ModelError
            The model alone is larger than the budget.
        """
        found = self._use(key)
        if found is None:
            with self._loading:
                found = self._use(key)
                if found is None:
                    found = self._load(key, load, weigh(), budget, name)
        return found

    def _use(self, key: Key) -> Any:
        """Return a model that is there, now the one used last."""
        with self._lock:
            found = self._models.pop(key, None)
            if found is None:
                return None
            self._models[key] = found
            return found.model

    def _load(self, key: Key, load: Callable[[], Any], nbytes: int, budget: int, name: str) -> Any:
        if nbytes > budget:
            raise too_large(name, nbytes, budget)
        self._make_room(budget - nbytes)
        model = load()
        nbytes = int(model.weight_bytes)
        if nbytes > budget:
            raise too_large(name, nbytes, budget)
        METRICS.add("models.loaded")
        self._make_room(budget - nbytes)
        with self._lock:
            self._models[key] = _Loaded(model, nbytes)
        return model

    def _make_room(self, budget: int) -> None:
        with self._lock:
            while self._models and sum(each.nbytes for each in self._models.values()) > budget:
                del self._models[next(iter(self._models))]
                METRICS.add("models.evicted")

    def keep_only(self, weights: Collection[bytes]) -> None:
        """Let go of models whose weights are not among these: nobody can ask for them."""
        with self._lock:
            for key in [key for key in self._models if key[0] not in weights]:
                del self._models[key]
                METRICS.add("models.evicted")

    def nbytes(self, *start: Any) -> int:
        """Return the bytes of the models whose keys start so; of all, where nothing is said."""
        with self._lock:
            return sum(
                each.nbytes for key, each in self._models.items() if key[: len(start)] == start
            )


def too_large(name: str, nbytes: int, budget: int) -> ModelError:
    """Return the error of a model that does not fit."""
    return ModelError(
        f"model {name} takes {nbytes} bytes of memory, model_memory is {budget}",
        hint=f"SET model_memory = '{nbytes // 10**6 + 1}MB', or more",
    )


def key_of(model: ModelDef, weights: bytes) -> Key:
    """Return what a model of these weights, which is no adapter, is loaded as."""
    return weights, model.task, tuple(sorted(model.options.items()))


def loaded_models(env: Environment) -> LoadedModels:
    """Return what an environment has in memory."""
    found: LoadedModels = env.caches.setdefault("models", LoadedModels())
    return found


def adapted_model(model: ModelDef) -> str:
    """Return the name of the model that an adapter adapts, '' for any other model."""
    return str(model.options.get(ADAPTER_OF, ""))


def numeric_mode(options: Mapping[str, Any], device: Device | None = None) -> str:
    """Return what numbers a model computes with, by its options; results depend on it.

    A device rounds otherwise than the processor, and has float16 for 'bf16'.
    """
    quantize = str(options.get("quantize", "none"))
    if device is None:
        return "fp32" if quantize == "none" else quantize
    return "gpu " + {"none": "fp32", "bf16": "fp16"}.get(quantize, quantize)


def model_threads(settings: Mapping[str, Any]) -> int | None:
    """Return the cores a connection lets models use, by ``model_threads``; None: all of them."""
    setting = settings["model_threads"]
    return None if setting == "auto" else int(setting)


def memory_bytes(setting: str) -> int:
    """Return the bytes of the setting ``model_memory``: a size, or auto, half of the machine's."""
    if setting != "auto":
        return size_bytes("setting model_memory", setting)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 4 << 30
