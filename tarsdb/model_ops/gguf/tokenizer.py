"""The tokenizer in a GGUF file's metadata as a ``tokenizer.json``.

Two kinds are rebuilt: pairs of bytes with a list of merges (GPT-2's, Llama 3's, Qwen's), and
SentencePiece's pairs of characters (Llama 2's, Gemma's), whose merges follow from the scores of
its pieces. Knows no tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tarsdb.errors import ModelFormatError, NotSupportedError

if TYPE_CHECKING:
    import tokenizers

_PREFIX = "tokenizer.ggml."
_UNKNOWN, _CONTROL, _USER, _BYTE = 2, 3, 4, 6  # of tokenizer.ggml.token_type
_SPACE = "\u2581"  # what SentencePiece writes for a space
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}|"
    r" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_3 = frozenset({"llama-bpe", "llama3", "llama-v3"})
_QWEN = frozenset({"qwen2", "deepseek-r1-qwen"})
_DIGITS = r"\p{N}"
_SPLITS = {
    "gpt-2": None, "smollm": _DIGITS, **dict.fromkeys(_LLAMA_3, _WORDS.format(digits="{1,3}")),
    **dict.fromkeys(_QWEN, _WORDS.format(digits="")),
}  # fmt: skip
"""How ``tokenizer.ggml.pre`` cuts a text into words before merging; None: as GPT-2 does."""
_ENDS = frozenset({
    "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<end_of_turn>",
})  # fmt: skip
"""Special tokens that end a text or a turn, whether a file says so or not: llama.cpp's rule."""
_BESIDE = "put the model's tokenizer.json beside the file"


def tokenizer_json(path: str, metadata: Mapping[str, Any]) -> bytes:
    """Return the ``tokenizer.json`` of a file's metadata.

    Raises
    ------
    ModelFormatError
        The vocabulary is missing or broken.
    NotSupportedError
        A tokenizer that is not rebuilt.
    """
    whole = metadata.get("tokenizer.huggingface.json")
    if isinstance(whole, str):
        return whole.encode()
    kind, tokens = str(metadata.get(f"{_PREFIX}model")), metadata.get(f"{_PREFIX}tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ModelFormatError(f"{path} holds no vocabulary ({_PREFIX}tokens)", _BESIDE)
    makers = {"gpt2": _byte_pairs, "llama": _sentence_pieces}
    if kind not in makers:
        raise NotSupportedError(
            f"{path} holds a tokenizer of the kind {kind!r:.60}",
            f"supported: {', '.join(makers)}; else {_BESIDE}",
        )
    try:
        made = makers[kind](metadata, tokens)
        _add_special(made, metadata, tokens)
        _add_begin(made, metadata, tokens, default=kind == "llama")
    except (NotSupportedError, ModelFormatError):
        raise
    except Exception as error:  # the library raises a bare Exception
        raise ModelFormatError(f"the vocabulary of {path} is not usable: {error}") from error
    return str(made.to_str()).encode()


def end_tokens(metadata: Mapping[str, Any]) -> list[int]:
    """Return the tokens that end a text: those that a file names so, and those called so."""
    named = [metadata.get(f"{_PREFIX}{name}_token_id") for name in ("eos", "eot", "eom")]
    tokens, types = _list(metadata, "tokens"), _list(metadata, "token_type")
    called = [
        number
        for number, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in (_CONTROL, _USER) and token in _ENDS
    ]
    found: list[int] = []
    for token in [*named, *called]:
        if token is not None and token not in found:
            found.append(token)
    return found


def _list(metadata: Mapping[str, Any], name: str) -> list[Any]:
    """Return a list of the metadata; an empty one where there is none, or something else."""
    found = metadata.get(f"{_PREFIX}{name}")
    return found if isinstance(found, list) else []


def read_chat_template(metadata: Mapping[str, Any]) -> bytes | None:
    """Return a ``tokenizer_config.json`` with the chat template and the texts it uses, if any."""
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str):
        return None
    tokens = _list(metadata, "tokens")
    config = {"chat_template": template}
    for name in ("bos", "eos"):
        token = metadata.get(f"{_PREFIX}{name}_token_id")
        if isinstance(token, int) and 0 <= token < len(tokens):
            config[f"{name}_token"] = tokens[token]
    return json.dumps(config).encode()


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for number, token in enumerate(tokens):
        found.setdefault(token, number)
    return found


def _types(metadata: Mapping[str, Any], tokens: list[str]) -> list[int]:
    types = metadata.get(f"{_PREFIX}token_type")
    if types is None:
        return [1] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ModelFormatError(f"{_PREFIX}token_type does not name {len(tokens)} tokens")
    return types


def _byte_pairs(metadata: Mapping[str, Any], tokens: list[str]) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    words = metadata.get(f"{_PREFIX}pre", "gpt-2")
    if words not in _SPLITS:
        raise NotSupportedError(
            f"texts are cut into words as in {words!r:.60}",
            f"supported: {', '.join(_SPLITS)}; else {_BESIDE}",
        )
    merges = metadata.get(f"{_PREFIX}merges")
    if not isinstance(merges, list):
        raise ModelFormatError(f"the vocabulary has no {_PREFIX}merges", _BESIDE)
    pairs = [(first, rest) for first, _, rest in (str(merge).partition(" ") for merge in merges)]
    model: Any = models.BPE(
        vocab=_vocabulary(tokens), merges=pairs, ignore_merges=words in _LLAMA_3
    )
    made = Tokenizer(model)
    pattern = _SPLITS[words]
    as_gpt_2 = pattern in (None, _DIGITS)
    last: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=as_gpt_2)
    if pattern is not None:
        split: Any = pre_tokenizers.Split(Regex(pattern), "isolated")
        last = pre_tokenizers.Sequence([split, last])
    made.pre_tokenizer = last
    made.decoder = decoders.ByteLevel()
    if words in _QWEN:
        made.normalizer = normalizers.NFC()
    return made


def _sentence_pieces(metadata: Mapping[str, Any], tokens: list[str]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get(f"{_PREFIX}scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelFormatError(f"{_PREFIX}scores does not score {len(tokens)} tokens", _BESIDE)
    types = _types(metadata, tokens)
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN),
                   None)  # fmt: skip
    made = Tokenizer(
        models.BPE(
            vocab=_vocabulary(tokens),
            merges=_merges(tokens, scores, types),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=_BYTE in types,
        )
    )
    begins = bool(metadata.get(f"{_PREFIX}add_space_prefix", True))
    spaces: list[Any] = [normalizers.Prepend(_SPACE)] if begins else []
    made.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", _SPACE)])
    strip: list[Any] = [decoders.Strip(" ", 1, 0)] if begins else []
    made.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return made


def _merges(tokens: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Return which pairs of pieces make a piece, the best first."""
    pieces = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind not in (_UNKNOWN, _CONTROL, _BYTE)
    }
    found = []
    for piece, number in pieces.items():
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [pair for pair in cuts if pair[0] in pieces and pair[1] in pieces]
        known.sort(key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))
        found += [(scores[number], *pair) for pair in known]
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(first, second) for _, first, second in found]


def _add_special(
    made: tokenizers.Tokenizer, metadata: Mapping[str, Any], tokens: list[str]
) -> None:
    from tokenizers import AddedToken

    types = _types(metadata, tokens)
    for kind, special in ((_CONTROL, True), (_UNKNOWN, True), (_USER, False)):
        named = [token for token, own in zip(tokens, types, strict=True) if own == kind and token]
        added = [AddedToken(token, special=special, normalized=False) for token in named]
        if special:
            made.add_special_tokens(added)
        else:
            made.add_tokens(added)


def _add_begin(
    made: tokenizers.Tokenizer, metadata: Mapping[str, Any], tokens: list[str], *, default: bool
) -> None:
    """Let texts begin with the token that begins every text, where the file says so."""
    from tokenizers import processors

    begin = metadata.get(f"{_PREFIX}bos_token_id")
    default = default or metadata.get(f"{_PREFIX}pre") in _LLAMA_3
    wanted = metadata.get(f"{_PREFIX}add_bos_token", default)
    if wanted and isinstance(begin, int) and 0 <= begin < len(tokens):
        token = tokens[begin]
        made.post_processor = processors.TemplateProcessing(
            single=[token, "$A"], pair=[token, "$A", token, "$B:1"], special_tokens=[(token, begin)]
        )
