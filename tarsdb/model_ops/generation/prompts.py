"""Prompts to tokens and tokens to text, for one model that generates.

Texts of special tokens inside a prompt are plain text unless the caller says otherwise, so that a
stored text cannot end a message or begin one in another's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tarsdb.errors import DataError, ModelError
from tarsdb.model_ops.generation.chat import (
    ChatTemplate,
    Message,
    check_messages,
    named_special_tokens,
)
from tarsdb.model_ops.generation.generation_options import GenerationOptions
from tarsdb.model_ops.tokenizer import load_tokenizer, tokenizing

if TYPE_CHECKING:
    import tokenizers

Prompt = str | Sequence[Message]


class PromptTokenizer:
    """The tokenizer and the chat template of one model. Thread-safe.

    Parameters
    ----------
    files : mapping of str to bytes
        The model's small files by name.
    begin_token : int
        What an empty prompt is; -1 where the model has no such token.
    end_tokens : sequence of int
        Tokens that end a text: special ones, whatever the tokenizer's file calls them.
    """

    def __init__(
        self, files: Mapping[str, bytes], begin_token: int = -1, end_tokens: Sequence[int] = ()
    ) -> None:
        self._same: PromptTokenizer | None = None  # the last one found to have equal tokens
        self._begin = [begin_token] if begin_token >= 0 else []
        self._parsing = load_tokenizer(files["tokenizer.json"])
        self._literal: tokenizers.Tokenizer = load_tokenizer(files["tokenizer.json"])
        self._literal.encode_special_tokens = True
        bounds, named = {*self._begin, *end_tokens}, named_special_tokens(files)
        special = [
            token.content
            for number, token in self._parsing.get_added_tokens_decoder().items()
            if token.special or number in bounds or token.content in named
        ]
        self._literal.add_special_tokens(special)
        self.template = ChatTemplate.from_files(files, special)

    def encode(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions,
        check: Callable[[], None] = lambda: None,
    ) -> list[list[int]]:
        """Return the tokens of each prompt.

        A prompt is a text, or messages: dicts of ``role`` and ``content``. ``check`` is called
        while a chat template works and before each text; what it raises ends that.

        Raises
        ------
        ModelError
            Messages or a system text for a model without a chat template, or one that refuses them.
        DataError
            A text is no valid Unicode, or empty where the model has no token to begin with.
        """
        rows = [self._encode(prompt, options, check) or self._begin for prompt in prompts]
        if not all(rows):
            raise DataError(f"generate: prompt {rows.index([])} is empty, there is no first token")
        return rows

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, nothing of special ones."""
        with tokenizing("an answer"):
            text: str = self._parsing.decode(list(tokens), skip_special_tokens=True)
        return text

    def require_same_tokens(self, other: PromptTokenizer) -> None:
        """Raise ModelError unless another model's tokens stand for the same texts."""
        if self is other or self._same is other:
            return
        ours, theirs = (each._parsing.get_vocab(True) for each in (self, other))
        if ours != theirs:
            token, _ = next(item for item in (ours.items() ^ theirs.items()))
            raise ModelError(
                f"generate: the draft model has other tokens: {token!r:.40} is "
                f"{ours.get(token)} here and {theirs.get(token)} there",
                hint="a draft model shares the tokenizer of the model it drafts for",
            )
        self._same = other

    def _encode(
        self, prompt: Prompt, options: GenerationOptions, check: Callable[[], None]
    ) -> list[int]:
        if not isinstance(prompt, str):
            check_messages(prompt)
        chat = options.chat
        if chat is None:
            wanted = options.system is not None or not isinstance(prompt, str)
            chat = wanted or self.template is not None
        if not chat:
            if options.system is not None or not isinstance(prompt, str):
                raise ModelError("generate: messages and a system text cannot go with chat false")
            check()
            return self._ids(prompt, parse=options.special_tokens, whole=True)
        if self.template is None:
            raise ModelError(
                "generate: messages, system and chat need a chat template, the model has none",
                hint="give the whole prompt as one text",
            )
        ids: list[int] = []
        for text, plain in self.template.render(_messages(prompt, options), check):
            check()
            ids += self._ids(text, parse=options.special_tokens or not plain, whole=False)
        return ids

    def _ids(self, text: Any, *, parse: bool, whole: bool) -> list[int]:
        """Tokenise a text; a ``whole`` prompt gets the tokens that begin every text."""
        tokenizer = self._parsing if parse else self._literal
        with tokenizing("a prompt"):
            ids: list[int] = tokenizer.encode(text, add_special_tokens=whole).ids
        return ids


def _messages(prompt: Prompt, options: GenerationOptions) -> list[dict[str, str]]:
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    if isinstance(prompt, str):
        return [*system, {"role": "user", "content": prompt}]
    return [*system, *check_messages(prompt)]
