"""The options of ``generate``, read from what a caller wrote by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any

from tarsdb.errors import ModelError
from tarsdb.model_ops.generation.constraint import RULES
from tarsdb.model_ops.generation.sampling import SamplingOptions, number
from tarsdb.records import dataclass

_SAMPLING = tuple(item.name for item in fields(SamplingOptions))
_OWN = ("system", "chat", "special_tokens", "speculate", "draft", "priority", "timeout")
OPTIONS = (*_SAMPLING, *RULES, *_OWN)


@dataclass(frozen=True)
class GenerationOptions:
    """What one call of ``generate`` asks for.

    Parameters
    ----------
    sampling : SamplingOptions
    rules : mapping
        At most one of ``regex``, ``json_schema`` and ``choice``: what the text must follow.
    system : str, optional
        Instructions for the model; needs a chat template.
    chat : bool, optional
        Put the prompt into the model's chat template; None: where it has one.
    special_tokens : bool
        Read the texts of special tokens in a prompt as these, not as plain text.
    speculate : bool
        Guess tokens from repetitions in the text and check several at once.
    draft : Generator, optional
        A smaller model of the same tokens that guesses in place of the repetitions.
    priority : int
        Higher goes first.
    timeout : float, optional
        Seconds a text may take, waiting included.
    """

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    rules: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    chat: bool | None = None
    special_tokens: bool = False
    speculate: bool = True
    draft: Any = None
    priority: int = 0
    timeout: float | None = None

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> GenerationOptions:
        """Read options; None stands for the default.

        Raises
        ------
        ModelError
            An option that does not exist, or a value it cannot have.
        """
        given = {name: value for name, value in options.items() if value is not None}
        for name in given:
            if name not in OPTIONS:
                raise ModelError(
                    f"generate: option {name!r} is not known", hint="options: " + ", ".join(OPTIONS)
                )
        own = {name: given[name] for name in _OWN if name in given}
        for name in ("chat", "special_tokens", "speculate"):
            if not isinstance(own.get(name, True), bool):
                raise ModelError(f"generate: {name} {own[name]!r:.60} is neither true nor false")
        if not isinstance(own.get("system", ""), str):
            raise ModelError(f"generate: system {own['system']!r:.60} is no text")
        if "priority" in own:
            own["priority"] = int(number("priority", own["priority"], -1000, 1000, True))
        if "timeout" in own:
            own["timeout"] = float(number("timeout", own["timeout"], 0, 1e9, False))
        sampling = SamplingOptions(**{name: given[name] for name in _SAMPLING if name in given})
        rules = {name: given[name] for name in RULES if name in given}
        return cls(sampling, rules, **own)
