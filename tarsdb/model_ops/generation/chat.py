"""Chat templates: messages to the text a model was trained on.

A template is a Jinja program that comes with the model, so it runs in a sandbox that counts its
work. Knows no tokens but the text of special ones: where they stand in a message they are marked,
so that the tokenizer can take them as plain text there.
"""

from __future__ import annotations

import datetime
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tarsdb.errors import ModelError, ModelFormatError
from tarsdb.model_ops.sentence import read_object

if TYPE_CHECKING:
    import jinja2

    from tarsdb.model_ops.generation.template_work import CountingEnvironment

MAX_TEMPLATE_CHARACTERS = 1 << 18
Message = Mapping[str, str]
_VARIABLES = ("bos_token", "eos_token", "unk_token", "pad_token")


class ChatTemplate:
    """The chat template of one model.

    Parameters
    ----------
    source : str
        Jinja text.
    variables : mapping
        The model's special tokens by role, e.g. ``bos_token``.
    special : iterable of str
        Texts of all special tokens.

    Raises
    ------
    ModelFormatError
        The text is no Jinja template.
    """

    def __init__(
        self, source: str, variables: Mapping[str, str], special: Iterable[str] = ()
    ) -> None:
        self._variables = dict(variables)
        self._special = _any_of(special)
        self._environment, self._template = _compile(source)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], special: Iterable[str]) -> ChatTemplate | None:
        """Return the template of a model directory's files, None where there is none."""
        config = read_object(files, "tokenizer_config.json")
        source = _source(files, config)
        if source is None:
            return None
        tokens = {**read_object(files, "special_tokens_map.json"), **config}
        return cls(source, dict(_texts(tokens)), special)

    def render(
        self, messages: Sequence[Message], check: Callable[[], None] = lambda: None
    ) -> list[tuple[str, bool]]:
        """Return the text of a conversation up to where the model's answer begins, in pieces.

        A piece that comes with True is a special token's text found inside a message: it is to be
        read as plain text. ``check`` is called now and then; what it raises ends the rendering.

        Raises
        ------
        ModelError
            A message has no role or content, the template refuses the messages, or it does more
            work than a template may.
        """
        marked, found = self._mark(check_messages(messages))
        with self._environment.counting(check) as work:
            try:
                text = self._template.render(
                    messages=marked, add_generation_prompt=True, **self._variables
                )
            except Exception as error:  # it is a program of others, and may raise what it likes
                if work.stopped is not None:
                    raise work.stopped from None
                refused = f"the chat template refuses the messages: {error!s:.300}"
                raise ModelError(refused) from error
        if not found:
            return [(text, False)]
        pieces = re.split("(" + "|".join(map(re.escape, found)) + ")", text)
        return [(found.get(piece, piece), piece in found) for piece in pieces if piece]

    def _mark(self, messages: list[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, str]]:
        """Put a marker nobody can guess in place of each special token inside a message."""
        found: dict[str, str] = {}
        if self._special is None:
            return messages, found
        mark = secrets.token_hex(16)

        def replaced(match: re.Match[str]) -> str:
            name = f"\ue000{mark}{len(found)}\ue001"
            found[name] = match[0]
            return name

        for message in messages:
            for key, value in message.items():
                message[key] = self._special.sub(replaced, value)
        return messages, found


def named_special_tokens(files: Mapping[str, bytes]) -> set[str]:
    """Return the texts that a tokenizer's settings call special tokens.

    Not every ``tokenizer.json`` says so of them too.
    """
    found: set[str] = set()
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_object(files, name).items():
            if key.endswith(("_token", "special_tokens")):
                values = value if isinstance(value, list) else [value]
                found.update(text for text in map(_text, values) if text is not None)
    return found


def check_messages(messages: Any) -> list[dict[str, str]]:
    """Return messages as dicts of texts; ModelError when they are none."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise ModelError(
            f"a prompt is a text, or messages in a list of dicts, not {type(messages).__name__}"
        )
    found = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ModelError(f"message {number} has no role and content: {message!r:.60}")
        for key, value in message.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise ModelError(f"message {number}: {key} is {value!r:.60}, not a text")
        found.append(dict(message))
    if not found:
        raise ModelError("there are no messages to answer")
    return found


def _source(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFormatError(f"chat_template.jinja is no UTF-8: {error}") from error
    source = config.get("chat_template")
    if isinstance(source, list):  # several by name
        named = [entry for entry in source if isinstance(entry, Mapping)]
        source = next((e.get("template") for e in named if e.get("name") == "default"), None)
    if source is not None and not isinstance(source, str):
        raise ModelFormatError(f"chat_template is a {type(source).__name__}, not a text")
    return source


def _texts(tokens: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name in _VARIABLES:
        text = _text(tokens.get(name))
        if text is not None:
            yield name, text


def _text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _compile(source: str) -> tuple[CountingEnvironment, jinja2.Template]:
    # on first need: keeps `import tarsdb` light
    from tarsdb.model_ops.generation.template_work import CountingEnvironment

    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise ModelFormatError(
            f"the chat template has {len(source)} characters, at most {MAX_TEMPLATE_CHARACTERS} are"
            " read"
        )
    environment = CountingEnvironment()
    environment.globals.update(raise_exception=_refuse, strftime_now=_now)
    try:
        return environment, environment.from_string(source)
    except Exception as error:  # its own, and what a deep nesting makes of Python's parser
        raise ModelFormatError(f"the chat template is not usable: {error!s:.300}") from error


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
