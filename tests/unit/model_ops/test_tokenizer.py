from __future__ import annotations

import json
from typing import Any

import pytest

from tarsdb.errors import DataError, InterruptError, ModelFormatError
from tarsdb.model_ops import Encoder, tokenizer
from tarsdb.model_ops.tokenizer import TextTokenizer
from tests.golden.models.varied_texts import varied_texts
from tests.unit.model_ops.conftest import tokenizer_json


def rows(tokenizer: TextTokenizer, texts: list[str]) -> list[list[int]]:
    tokens = tokenizer.encode(texts)
    return [
        tokens.ids[start:stop].tolist()
        for start, stop in zip(tokens.offsets, tokens.offsets[1:], strict=False)
    ]


def test_cutting_equals_the_librarys_truncation() -> None:
    import tokenizers

    library = tokenizers.Tokenizer.from_str(tokenizer_json())
    library.no_padding()
    library.enable_truncation(16)
    ours = TextTokenizer(tokenizer_json().encode(), 16)
    texts = [
        *varied_texts(120),
        "[SEP] a [SEP]" * 20,
        " " * 3000 + "date",
        "date" + " " * 9000 + "b",
    ]
    assert rows(ours, texts) == [library.encode(text).ids for text in texts]


def test_only_the_beginning_of_a_huge_text_is_read() -> None:
    tokenizer = TextTokenizer(tokenizer_json().encode(), 16)
    tokens = tokenizer.encode(["date " * 1_000_000])
    assert tokens.offsets.tolist() == [0, 16]
    assert 16 < tokens.found[0] < 10_000


def test_lower_casing() -> None:
    data = tokenizer_json().replace('"lowercase":true', '"lowercase":false').encode()
    assert TextTokenizer(data, 9).tokens("DATE") == [2, 1, 3]
    assert TextTokenizer(data, 9, lower=True).tokens("DATE") == [2, 6, 3]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("post_processor", "special_tokens"), {}),  # the library panics
        (("model", "vocab"), {"[PAD]": 0, "b": 1}),  # no [UNK]: a bare Exception
        (("model", "vocab", "a"), 1 << 31),
        (("post_processor", "pair", 1, "Sequence", "type_id"), 1 << 31),
        (("post_processor", "pair", 2, "SpecialToken", "id"), "none"),
    ],
)
def test_files_that_disagree_with_themselves(path: tuple[str | int, ...], value: object) -> None:
    whole = json.loads(tokenizer_json())
    pair: list[object] = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 1}},
    ]
    whole["post_processor"]["pair"] = pair
    TextTokenizer(json.dumps(whole).encode(), 16).encode_pairs([("a date", "b")])
    part = whole
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json"):
        tokenizer = TextTokenizer(json.dumps(whole).encode(), 16)
        tokenizer.encode(["a date"])
        tokenizer.encode_pairs([("a date", "b")])


@pytest.mark.parametrize("text", [3, None, b"a", "\ud800"])
def test_what_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(DataError, match="a text is no string, or no valid Unicode"):
        TextTokenizer(tokenizer_json().encode(), 16).tokens(text)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0", "model": {}}'])
def test_unusable_files(data: bytes) -> None:
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json"):
        TextTokenizer(data, 16)


def test_a_batch_is_given_in_parts_and_can_be_stopped_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, texts = TextTokenizer(tokenizer_json().encode(), 5000), varied_texts(120)
    pairs, asked = list(zip(texts, reversed(texts), strict=True)), []
    whole = [tokens.tolist() for tokens in (ours.encode(texts).ids, ours.encode_pairs(pairs).ids)]
    ours.encode(texts, lambda: asked.append(1))
    assert not asked  # they are given at once
    monkeypatch.setattr(tokenizer, "CHARACTERS_AT_A_TIME", 200)
    cut = ours.encode(texts, lambda: asked.append(1)).ids.tolist()
    assert len(asked) > 5
    assert whole == [cut, ours.encode_pairs(pairs, lambda: asked.append(2)).ids.tolist()]
    assert asked.count(2) > 5

    def stop() -> None:
        raise InterruptError("enough")

    with pytest.raises(InterruptError, match="enough"):
        ours.encode(texts, stop)
    assert rows(ours, []) == []


def test_encoding_can_be_stopped_before_all_is_tokenised(
    tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, given = varied_texts(120), []
    encode = tiny_encoder.tokenizer._tokenizer.encode_batch_fast
    stand_in: Any = type("Library", (), {})()
    stand_in.encode_batch_fast = lambda some, **options: given.append(some) or encode(some)
    monkeypatch.setattr(tiny_encoder.tokenizer, "_tokenizer", stand_in)
    monkeypatch.setattr(tokenizer, "CHARACTERS_AT_A_TIME", 200)
    with pytest.raises(InterruptError, match="after 0 of 120 texts"):
        tiny_encoder.encode(texts, interrupted=lambda: len(given) >= 2)
    assert len(given) == 2
