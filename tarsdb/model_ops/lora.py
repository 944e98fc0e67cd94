"""Low-rank adapters (LoRA, Hu et al. 2021), as the package peft saves them.

An adapter adds ``(rows @ down.T) @ up.T`` to the products of some matrices of its base model. The
scale is part of ``up``; query, key and value lie one below the other as they do in the base, and
so do gate and up. Knows no files and no base weights, only what of the base can be adapted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.model_ops.config_values import real, short, whole
from tarsdb.model_ops.decoder_spec import DecoderSpec, decoder_tensors
from tarsdb.model_ops.weights import read_tensor
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]

CONFIG = "adapter_config.json"
MATRICES: dict[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "context": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Matrices as they are computed with, and the base's matrices they are made of."""
_NAME = re.compile(r"(?:base_model\.model\.)?([\w.]+)\.lora_([AB])\.weight")
_MAX_RANK = 1024


@dataclass(frozen=True)
class LowRank:
    """What is added to one product: ``down`` (rank, inputs), ``up`` (outputs, rank)."""

    down: F32
    up: F32

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.down.nbytes + self.up.nbytes


LayerAdapter = Mapping[str, LowRank]
"""By the names of MATRICES; matrices that are not adapted are absent."""


@dataclass(frozen=True)
class Adaptable:
    """What of a base model adapters can add to.

    Parameters
    ----------
    layers : tuple of mappings
        Of each layer: matrices as they are computed with, and the base's that they are made of.
    shapes : mapping
        Of each of the base's matrices, outputs and inputs.
    named : str
        Says the same in messages.
    """

    layers: tuple[Mapping[str, tuple[str, ...]], ...]
    shapes: Mapping[str, tuple[int, int]]
    named: str

    def key(self, name: str) -> tuple[str, str] | None:
        """Return the base's matrix and A or B of a tensor's name; the model may be inside one."""
        match = _NAME.fullmatch(name)
        for stem in () if match is None else (match[1], match[1].partition(".")[2]):
            if match is not None and stem in self.shapes:
                return stem, match[2]
        return None


def adaptable(spec: DecoderSpec) -> Adaptable:
    """Return what of a decoder can be adapted: the seven matrices of its layers."""
    known = decoder_tensors(spec)
    layers = tuple(
        {name: tuple(f"model.layers.{number}.{stem}" for stem in stems)
         for name, stems in MATRICES.items()}
        for number in range(len(spec.layers))
    )  # fmt: skip
    stems = [stem for layer in layers for group in layer.values() for stem in group]
    shapes = {stem: (known[f"{stem}.weight"][0], known[f"{stem}.weight"][1]) for stem in stems}
    return Adaptable(layers, shapes, "q, k, v and o of attention, gate, up and down")


def read_lora(
    base: Adaptable, config: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]
) -> tuple[LayerAdapter, ...]:
    """Read an adapter; returns what it adds, layer by layer.

    Parameters
    ----------
    base : Adaptable
    config : mapping
        Parsed ``adapter_config.json``.
    tensors : mapping of str to ndarray
        By the names peft gives them.

    Raises
    ------
    ModelFormatError
        A tensor is missing, has a shape that does not fit the base, or holds NaN or infinity.
    NotSupportedError
        An adapter of another kind, or of parts that cannot be adapted.
    """
    check_lora(base, config, {name: tensors[name].shape for name in tensors})
    scale = _Scale(config)
    named = {base.key(name): name for name in tensors}

    def part(stem: str) -> LowRank | None:
        if (stem, "A") not in named:
            return None
        rank = tensors[named[stem, "A"]].shape[0]
        outputs, inputs = base.shapes[stem]
        down = read_tensor(tensors, named[stem, "A"], (rank, inputs))
        up = read_tensor(tensors, named[stem, "B"], (outputs, rank))
        return LowRank(down, up * np.float32(scale.of(stem, rank)))

    layers = []
    for matrices in base.layers:
        layer = {}
        for matrix, stems in matrices.items():
            found = _stacked([part(stem) for stem in stems], [base.shapes[stem] for stem in stems])
            if found is not None:
                layer[matrix] = found
        layers.append(layer)
    return tuple(layers)


def check_lora(
    base: Adaptable, config: Mapping[str, Any], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Check config, names and shapes against the base; raises as :func:`read_lora`."""
    _refuse_variants(config)
    stems: dict[str, dict[str, str]] = {}
    for name in found:
        key = base.key(name)
        if key is None:
            raise NotSupportedError(
                f"the adapter has a tensor {name!r:.120}",
                f"adapted can be {base.named} of the base's layers",
            )
        stems.setdefault(key[0], {})[key[1]] = name
    if not stems:
        raise ModelFormatError("the adapter has no tensors")
    for stem, pair in stems.items():
        lacking = {"A", "B"} - pair.keys()
        if lacking:
            raise ModelFormatError(f"the adapter lacks lora_{lacking.pop()} of {stem}")
        first, second = found[pair["A"]], found[pair["B"]]
        outputs, inputs = base.shapes[stem]
        rank = first[0] if len(first) == 2 else 0
        if not 1 <= rank <= _MAX_RANK:
            raise ModelFormatError(
                f"tensor {pair['A']!r} has shape {first}, no rank to {_MAX_RANK}"
            )
        for name, shape, wanted in (
            (pair["A"], first, (rank, inputs)), (pair["B"], second, (outputs, rank)),
        ):  # fmt: skip
            if tuple(shape) != wanted:
                raise ModelFormatError(
                    f"tensor {name!r} has shape {tuple(shape)}, the base's {stem} asks for {wanted}"
                )
    _Scale(config)


class _Scale:
    """What products of an adapter are multiplied by: alpha / rank, or alpha / sqrt(rank)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._rank = whole(config, "r", 8, _MAX_RANK)
        self._alpha = real(config, "lora_alpha", 8.0, 1e-6)
        self._rooted = bool(config.get("use_rslora"))
        if config.get("alpha_pattern"):
            raise NotSupportedError(f"{CONFIG}: alpha_pattern {short(config['alpha_pattern'])}")

    def of(self, stem: str, rank: int) -> float:
        """Return the scale of one matrix; its rank may differ from the config's."""
        return self._alpha / (math.sqrt(rank) if self._rooted else rank)


def _refuse_variants(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise NotSupportedError(
            f"{CONFIG}: an adapter of the kind {short(kind)}", "supported: LORA"
        )
    for key in ("use_dora", "fan_in_fan_out", "modules_to_save", "layer_replication",
                "trainable_token_indices", "target_parameters", "use_qalora"):  # fmt: skip
        if config.get(key):
            raise NotSupportedError(f"{CONFIG}: {key} is {short(config[key])}")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise NotSupportedError(f"{CONFIG}: an adapter with biases")


def _stacked(parts: list[LowRank | None], shapes: list[tuple[int, int]]) -> LowRank | None:
    """Put adapters of matrices that are computed together into one of all their ranks."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    rank = sum(len(part.down) for part in known)
    up = np.zeros((sum(shape[0] for shape in shapes), rank), np.float32)
    row = column = 0
    for part, shape in zip(parts, shapes, strict=True):
        if part is not None:
            up[row : row + shape[0], column : column + len(part.down)] = part.up
            column += len(part.down)
        row += shape[0]
    return LowRank(np.concatenate([part.down for part in known]), up)
