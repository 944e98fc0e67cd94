from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tarsdb.errors import DataError
from tarsdb.model_ops import Encoder, chunk_text, chunk_tokens, chunking

TEXT = "One two. Three four five! Six? seven eight. Nine 3.5 ten (eleven.) Twelve"


def test_words() -> None:
    assert chunk_text("a b\n c d  e", 2) == ["a b", "c d", "e"]
    assert chunk_text("a b c d e", 3, 1) == ["a b c", "c d e"]
    assert chunk_text("a b c d e", 3, 2) == ["a b c", "b c d", "c d e"]
    assert chunk_text("", 3) == chunk_text(" \n ", 3) == []
    assert chunk_text("  one ", 3) == ["one"]


def test_sentences_stay_whole() -> None:
    assert chunk_text(TEXT, 5, by="sentences") == [
        "One two. Three four five!", "Six? seven eight.", "Nine 3.5 ten (eleven.) Twelve",
    ]  # fmt: skip
    # a sentence that fits in the overlap is repeated whole
    assert chunk_text("A b. C d. E f. G h.", 4, 2, by="sentences") == [
        "A b. C d.", "C d. E f.", "E f. G h.",
    ]  # fmt: skip
    assert chunk_text("a b c d e. F.", 2, by="sentences") == ["a b", "c d", "e. F."]


def test_where_sentences_end() -> None:
    def sentences(text: str) -> list[str]:
        """Pieces of one sentence each: there is no room for a second one."""
        longest = max(len(part.split()) for part in text.split("|"))
        return chunk_text(text.replace("|", ""), longest, by="sentences")

    assert sentences("Use e.g. this. |It is one.") == ["Use e.g. this.", "It is one."]
    assert sentences("He said “no.” |Then he left us.") == ["He said “no.”", "Then he left us."]
    assert chunk_text("今日は。明日も。", 1, by="sentences") == ["今日は。", "明日も。"]
    assert chunk_text("A title\n\nA text here", 3, by="sentences") == ["A title", "A text here"]
    assert chunk_text("one line\nand the next", 5, by="sentences") == ["one line\nand the next"]


@given(
    st.text(alphabet="ab.!? \n。é", max_size=60), st.integers(1, 6), st.integers(0, 5),
    st.sampled_from(["words", "sentences"]),
)  # fmt: skip
@example("? ? ? ?", 3, 1, "words")
def test_pieces_cover_the_text_in_order(text: str, size: int, overlap: int, by: str) -> None:
    """By places: the same piece may stand several times in a text."""
    overlap = min(overlap, size - 1)
    words = [match.span() for match in re.finditer(r"\S+", text)]
    groups = [[word] for word in words] if by == "words" else chunking._sentences(text, words)
    spans = chunking.pack(groups, size, overlap)
    assert chunk_text(text, size, overlap, by=by) == [text[start:end] for start, end in spans]
    covered = last = 0
    for start, end in spans:
        assert text[start:end] == text[start:end].strip()
        assert len(text[start:end].split()) <= size
        assert not text[covered:start].strip(), "words left out"
        assert len(text[start:covered].split()) <= overlap, "more repeated than asked"
        assert start >= last and end > covered, "no progress"
        last, covered = start, end
    assert not text[covered:].strip()


@pytest.mark.parametrize(
    ("size", "overlap", "by", "message"),
    [
        (0, 0, "words", "size is 0"), (3, 3, "words", "overlap is 3"), (3, -1, "words", "is -1"),
        (2.5, 0, "words", "whole number, not 2.5"), (True, 0, "words", "whole number"),
        (3, None, "words", "overlap must be a whole number, not None"),
        (3, 0, "lines", "by cannot be 'lines'"),
    ],
)  # fmt: skip
def test_bad_values_are_named(size: int, overlap: int, by: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        chunk_text("a b", size, overlap, by=by)


def test_tokens(tiny_encoder: Encoder) -> None:
    tokenizer = tiny_encoder.tokenizer
    text = "How do i timeing the  date? time"  # 'timeing' is two tokens
    assert chunk_tokens(tokenizer, text, 4) == ["How do i", "timeing the  date", "? time"]
    assert chunk_tokens(tokenizer, text, 3, 1) == [
        "How do i", "i timeing", "the  date?", "? time",
    ]  # fmt: skip
    assert chunk_tokens(tokenizer, "the timeing", 1) == ["the", "time", "ing"]
    assert chunk_tokens(tokenizer, "", 4) == []
    for piece in chunk_tokens(tokenizer, "date time " * 50, 18):
        assert tiny_encoder.count_tokens(piece) <= tiny_encoder.max_length


def test_long_white_space_takes_linear_time() -> None:
    assert chunk_text("a." + " \n" * 200_000 + "b", 1, by="sentences") == ["a.", "b"]
    assert chunk_text("a" + "\n" * 200_000 + "b" + " " * 200_000, 1, by="sentences") == ["a", "b"]
