"""Text piece by piece: whole characters, spaces kept, stop strings cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarsdb.model_ops.generation.text_stream import TextStream


def of_bytes(tokens: Sequence[int]) -> str:
    """Decode tokens that are single bytes, as a byte-level tokenizer does."""
    return bytes(tokens).decode("utf-8", errors="replace")


def pieces(data: bytes, stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(of_bytes, (), stop)
    found = [stream.push(token) for token in data] + [stream.finish()]
    assert "".join(found) == stream.text
    return found


@given(st.text(max_size=60))
def test_pieces_are_the_text_and_never_half_a_character(text: str) -> None:
    found = pieces(text.encode())
    assert "".join(found) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in found)


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    assert "".join(pieces("aé".encode()[:-1])) == "a\ufffd"


def test_bytes_that_are_no_text_do_not_hold_it_back_for_ever() -> None:
    found = pieces(b"\xff" * 40)
    assert any(found[:-1])
    assert "".join(found) == "\ufffd" * 40


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    places = [place for item in stop if (place := text.find(item)) >= 0]
    ends = min((text.find(item) + len(item) for item in stop if item in text), default=len(text))
    # the stop string that is complete first decides; of those, the one that begins first
    complete = [text.find(item) for item in stop if item in text[:ends]]
    wanted = text[: min(complete)] if places else text
    assert "".join(pieces(text.encode(), tuple(stop))) == wanted


def test_nothing_of_a_stop_string_is_given_out_early() -> None:
    stream = TextStream(of_bytes, (), ("END",))
    found = [stream.push(token) for token in b"x EN y E"]
    assert found == ["x", " ", "", "", "EN ", "y", " ", ""]
    assert [stream.push(token) for token in b"ND more"] == [""] * 7
    assert stream.stopped
    assert stream.finish() == ""
    assert stream.text == "x EN y "


@pytest.mark.parametrize("context", [(), (1,)])
def test_the_space_between_prompt_and_text_is_kept(context: tuple[int, ...]) -> None:
    words = {1: " a", 2: " b", 3: "c"}

    def decode(tokens: Sequence[int]) -> str:
        return "".join(words[token] for token in tokens).removeprefix(" ")

    stream = TextStream(decode, context)
    assert stream.push(2) + stream.push(3) == (" bc" if context else "bc")


def test_a_space_behind_a_special_token_is_kept() -> None:
    words = {1: "", 2: " b", 3: "c"}

    def decode(tokens: Sequence[int]) -> str:
        return "".join(words[token] for token in tokens).removeprefix(" ")

    stream = TextStream(decode)
    assert [stream.push(token) for token in (3, 1, 1, 2, 3)] == ["c", "", "", " b", "c"]
