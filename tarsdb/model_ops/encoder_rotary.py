"""Encoders that turn queries and keys by position, and layers that see their neighbourhood only.

ModernBERT (Warner et al. 2024) alternates layers that see the whole text with layers that see some
tokens to either side; Nomic BERT (Nussbaum et al. 2024) sees all in every layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.model_ops.config_values import real, short, whole
from tarsdb.model_ops.rope import Rope, read_rope
from tarsdb.records import dataclass

_KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Rotary:
    """How the layers of an encoder see positions.

    Parameters
    ----------
    ropes : tuple of Rope
        The kinds of rotation.
    kinds : tuple of int
        Of each layer, which of them.
    reaches : tuple of int
        Of each layer, how many tokens to either side a token sees; 0: all.
    """

    ropes: tuple[Rope, ...]
    kinds: tuple[int, ...]
    reaches: tuple[int, ...]


def read_rotary(naming: str, config: Mapping[str, Any], layers: int) -> Rotary | None:
    """Read how an encoder of a family sees positions; None: by a table of vectors.

    Raises
    ------
    ModelFormatError
        A number is missing or out of bounds.
    NotSupportedError
        Something that is not computed.
    """
    if naming == "modernbert":
        return _modernbert(config, layers)
    if naming == "nomic":
        return _nomic(config, layers)
    return None


def _modernbert(config: Mapping[str, Any], layers: int) -> Rotary:
    every = whole(config, "global_attn_every_n_layers", 3, layers + 1024)
    types = config.get("layer_types")
    if types is None:
        types = [_KINDS[bool(number % every)] for number in range(layers)]
    if not isinstance(types, list) or len(types) != layers or not set(types) <= set(_KINDS):
        raise ModelFormatError(
            f"config.json: layer_types {short(types)} does not say of {layers} layers which of "
            f"{' and '.join(_KINDS)} they have"
        )
    reach = whole(config, "local_attention", 128, 1 << 20, lowest=2) // 2
    global_theta = real(config, "global_rope_theta", 160_000.0, 2.0)
    local_theta = real(config, "local_rope_theta", 10_000.0, 2.0)
    kinds = tuple(_KINDS.index(each) for each in types)
    return Rotary(
        (read_rope(config, _KINDS[0], global_theta), read_rope(config, _KINDS[1], local_theta)),
        kinds, tuple(reach * kind for kind in kinds),
    )  # fmt: skip


def _nomic(config: Mapping[str, Any], layers: int) -> Rotary:
    for key, only in (
        ("prenorm", False), ("parallel_block", False), ("use_rms_norm", False), ("causal", False),
        ("rotary_emb_interleaved", False), ("rotary_emb_scale_base", None),
        ("rotary_emb_fraction", 1.0), ("rotary_scaling_factor", None), ("moe_every_n_layers", 0),
    ):  # fmt: skip
        if config.get(key) not in (None, only):
            raise NotSupportedError(f"config.json: {key} is {short(config[key])}")
    theta = real(config, "rotary_emb_base", 1000.0, 2.0)
    return Rotary((read_rope(config, _KINDS[0], theta),), (0,) * layers, (0,) * layers)
