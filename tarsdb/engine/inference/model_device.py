"""Where models are computed: on the processor, or on the device that ``SET device`` names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tarsdb.engine.inference.loaded_models import adapted_model, numeric_mode
from tarsdb.errors import DeviceError, NotSupportedError
from tarsdb.kernels.gpu import device as devices
from tarsdb.kernels.gpu.device import Device
from tarsdb.metrics import METRICS
from tarsdb.schema import ColumnDef, IndexDef, ModelDef, TableDef
from tarsdb.sql.expressions import Call

if TYPE_CHECKING:
    from tarsdb.engine.context import Context

Value = TypeVar("Value")

ELSEWHERE = frozenset({"predict"})
"""Tasks that no device computes: onnxruntime has its own."""
_BITS = {"none": 32, "bf16": 16, "int8": 8, "int4": 4}
"""Of a weight on a device, by the model's ``quantize``."""


def choose(
    settings: Mapping[str, Any], models: Sequence[ModelDef], may_refuse: bool = True
) -> Device | None:
    """Return the device that is to compute with a model; None for the processor.

    Parameters
    ----------
    settings : mapping
        Of the connection.
    models : sequence of ModelDef
        The model and, of an adapter, the one it adapts.
    may_refuse : bool
        Else a model that does not fit is left to the processor whatever the setting.

    Raises
    ------
    DeviceError
        ``device`` is 'gpu', and there is none, or the weights are larger than what models may take
        of its memory; under 'auto' the processor computes then.
    """
    setting = settings["device"]
    device = None if models[0].task in ELSEWHERE else devices.choose(setting)
    if device is None:
        return None
    needed = sum(map(least_bytes, models))
    if needed <= device.arrays.budget:
        return device
    if setting == "auto" or not may_refuse:
        return None
    raise DeviceError(
        f"model {models[0].name} takes {needed} bytes or more, device {device.name} has "
        f"{device.arrays.budget} for models",
        "SET device = 'auto' leaves it to the processor",
    )


def least_bytes(model: ModelDef) -> int:
    """Return the bytes that a model's weights take on a device, what goes with codes left out."""
    version = model.find_version()
    bits = _BITS[str(model.options.get("quantize", "none"))]
    return 0 if version is None else version.elements * bits // 8


def run(
    settings: Mapping[str, Any], models: Sequence[ModelDef], work: Callable[[Device | None], Value]
) -> Value:
    """Return what work gives where :func:`choose` says; under 'auto' a device may fail."""
    device = choose(settings, models)
    try:
        return work(device)
    except (DeviceError, NotSupportedError):
        if device is None or settings["device"] != "auto":
            raise
    METRICS.add("models.device_failures")
    return work(None)


def notes(context: Context, plan: Any) -> list[str]:
    """Return a line for each model that a plan calls: what would compute it; none without SET."""
    settings = context.engines.settings
    if settings["device"] == "cpu":
        return []
    lines = []
    for name in dict.fromkeys(call.target for call in _model_calls(plan) if call.target):
        model = context.catalog.model(name)
        if model is None:
            continue
        base = context.catalog.model(adapted_model(model)) if adapted_model(model) else None
        models = [model] if base is None else [model, base]
        device = choose(settings, models, may_refuse=False)
        where = "the processor" if device is None else f"device {device.name}"
        lines.append(f"model {model.name}: by {where}, {numeric_mode(model.options, device)}")
    return lines


def _model_calls(value: Any) -> Iterator[Call]:
    """Yield the calls of models in a plan, and in the plans and expressions it is made of."""
    if isinstance(value, Call) and value.kind == "model":
        yield value
    if isinstance(value, (list, tuple)):
        inner: Sequence[Any] = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, (TableDef, ColumnDef, IndexDef)):
        inner = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        return
    for each in inner:
        yield from _model_calls(each)
