"""Texts that follow a rule: a regular expression, JSON schema, grammar, or one of some choices.

The rule becomes an automaton over tokens (llguidance, the extra ``constrain``); at every step it
says which tokens may come next (Willard and Louf 2023, guided generation by masks).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelError, NotSupportedError

RULES = ("regex", "json_schema", "choice", "grammar")
MAX_RULE_CHARACTERS = 1 << 20


class ConstraintCompiler:
    """Makes constraints for one tokenizer.

    Parameters
    ----------
    tokenizer : bytes
        ``tokenizer.json``.
    vocabulary : int
        Logits of the model.
    end_tokens : sequence of int
        Tokens that end a text.
    """

    def __init__(self, tokenizer: bytes, vocabulary: int, end_tokens: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_tokens = list(end_tokens)
        self._lock = threading.Lock()
        self._loaded: Any = None
        self._grammars: dict[str, Any] = {}

    def compile(self, rules: Mapping[str, Any]) -> Constraint | None:
        """Return a new constraint of the rule among options; None where there is none.

        Raises
        ------
        ModelError
            Two rules, or a rule that is not usable.
        NotSupportedError
            llguidance is not installed.
        """
        given = {name: rules[name] for name in RULES if rules.get(name) is not None}
        if not given:
            return None
        if len(given) > 1:
            raise ModelError(f"generate: a text follows one of {' and '.join(given)}, not both")
        ((name, value),) = given.items()
        key = json.dumps([name, value], sort_keys=True, default=str)
        with self._lock:
            matcher = self._grammars.get(key)
            if matcher is None:
                if len(self._grammars) >= 64:
                    self._grammars.pop(next(iter(self._grammars)))
                matcher = self._grammars[key] = self._matcher(name, value)
        return Constraint(matcher.deep_copy(), self._vocabulary)

    def _matcher(self, name: str, value: Any) -> Any:
        llguidance = _library()
        try:
            grammar = _grammar(llguidance.LLMatcher, name, value)
        except ValueError as error:  # of the library; UnicodeError among them
            raise ModelError(f"generate: {name} is not usable: {error!s:.300}") from error
        if self._loaded is None:
            try:
                self._loaded = llguidance.LLTokenizer(
                    self._tokenizer.decode("utf-8"), n_vocab=self._vocabulary,
                    eos_token=self._end_tokens,
                )  # fmt: skip
            except ValueError as error:
                raise NotSupportedError(
                    f"generate: llguidance cannot read this model's tokenizer: {error}"
                ) from error
        matcher = llguidance.LLMatcher(self._loaded, grammar, log_level=0)
        if matcher.is_error():
            raise ModelError(f"generate: {name} is not usable: {matcher.get_error():.300}")
        return matcher


class Constraint:
    """Where one text stands in its rule."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return which tokens may come next, (vocabulary,) bool."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(np.bool_)

    def advance(self, token: int) -> bool:
        """Take in the token that was chosen; returns True when the text is complete with it.

        ModelError when the text cannot go on: the tokenizer has no tokens for the rule.
        """
        if not self._matcher.consume_token(token):
            raise ModelError(
                "generate: no token of the model follows the rule of the text here",
                hint=self._matcher.get_error()[:200] or None,
            )
        return bool(self._matcher.is_stopped())


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise NotSupportedError(
            "generate: regex, json_schema, choice and grammar need the package llguidance",
            hint="pip install 'tarsdb[constrain]'",
        ) from error
    return llguidance


def _grammar(matcher: Any, name: str, value: Any) -> str:
    if name == "choice":
        items = [value] if isinstance(value, str) else value
        usable = isinstance(items, Sequence) and items and all(isinstance(i, str) for i in items)
        if not usable or not all(items):
            raise ModelError(f"generate: choice {value!r:.60} is no list of texts")
        name, value = "regex", "|".join(map(re.escape, items))
    if name == "json_schema" and isinstance(value, (Mapping, bool)):
        value = json.dumps(value)
    if not isinstance(value, str) or len(value) > MAX_RULE_CHARACTERS:
        raise ModelError(
            f"generate: {name} {value!r:.60} is no text of up to {MAX_RULE_CHARACTERS} characters"
        )
    if name == "regex":
        return str(matcher.grammar_from_regex(value))
    if name == "grammar":
        return str(matcher.grammar_from_lark(value))
    try:
        json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"generate: json_schema is no valid JSON: {error}") from error
    compact = {"whitespace_flexible": False}  # a small model would go on with spaces for ever
    return str(matcher.grammar_from_json_schema(value, defaults=compact))
