"""Texts cut into overlapping pieces: by words, by sentences, or by a model's tokens.

Every piece is a slice of the text, white space inside it included. Knows no database.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tarsdb.errors import DataError
from tarsdb.model_ops.tokenizer import TextTokenizer

UNITS = ("words", "sentences")
Span = tuple[int, int]

_WORD = re.compile(r"\S+")
# Behind . ! ? and closing quotes or brackets comes white space; behind the wide ones nothing need.
_END = re.compile(r"[.!?…]++[\"'”’»)\]]*+(\s++)|[。！？]++[」』”’）]*+\s*+|\n[^\S\n]*+\n\s*+")


def chunk_text(text: str, size: int, overlap: int = 0, by: str = "words") -> list[str]:
    """Cut a text into pieces of at most ``size`` words.

    Parameters
    ----------
    overlap : int
        Words at the end of a piece that the next one begins with again, at most; below ``size``.
    by : str
        'words' fills every piece; 'sentences' makes pieces of whole sentences, but for a sentence
        that is longer than a piece, and repeats whole sentences.

    Returns
    -------
    list of str
        Empty for a text without words.

    Raises
    ------
    DataError
        ``size``, ``overlap`` or ``by`` cannot have their value.
    """
    _check(size, overlap)
    if by not in UNITS:
        raise DataError(f"chunk: by cannot be {by!r}", "one of " + ", ".join(map(repr, UNITS)))
    words = [match.span() for match in _WORD.finditer(text)]
    groups = [[word] for word in words] if by == "words" else _sentences(text, words)
    return [text[start:end] for start, end in pack(groups, size, overlap)]


def chunk_tokens(tokenizer: TextTokenizer, text: str, size: int, overlap: int = 0) -> list[str]:
    """Cut a text into pieces of at most ``size`` tokens between words, special tokens not counted.

    Tokens are counted in the whole text; a tokenizer that joins words and the spaces before them
    may see one token more in a piece. Parameters and errors as of :func:`chunk_text`.
    """
    _check(size, overlap)
    return [text[start:end] for start, end in pack(tokenizer.spans(text), size, overlap)]


def chunk_spans(tokens: Sequence[Span], size: int, overlap: int = 0) -> list[Span]:
    """Return where pieces of at most ``size`` tokens lie, given where tokens do.

    Parameters and errors as of :func:`chunk_text`.
    """
    _check(size, overlap)
    return pack([[token] for token in tokens], size, overlap)


def pack(groups: Sequence[Sequence[Span]], size: int, overlap: int) -> list[Span]:
    """Return the spans of pieces of at most ``size`` units.

    ``groups`` are what should stay whole (a sentence's words, a word's tokens): a piece ends
    between groups, and begins again with as many of the last groups as have ``overlap`` units in
    all. A group of more than ``size`` units is taken apart.
    """
    whole: list[Sequence[Span]] = []
    for group in groups:
        whole += [group] if len(group) <= size else [[unit] for unit in group]
    pieces: list[Span] = []
    start = end = used = 0
    while end < len(whole):
        while end < len(whole) and used + len(whole[end]) <= size:
            used += len(whole[end])
            end += 1
        pieces.append((whole[start][0][0], whole[end - 1][-1][1]))
        if end == len(whole):
            break
        first, kept = end, 0
        while first - 1 > start and kept + len(whole[first - 1]) <= overlap:
            first -= 1
            kept += len(whole[first])
        if kept + len(whole[end]) > size:  # the next group does not fit behind what is repeated
            first, kept = end, 0
        start, used = first, kept
    return pieces


def _sentences(text: str, words: list[Span]) -> list[list[Span]]:
    """Group words by sentence: a mark ends one unless a lower-case letter follows."""
    ends = [
        match.end()
        for match in _END.finditer(text)
        if match[1] is None or not text[match.end() : match.end() + 1].islower()
    ]
    groups: list[list[Span]] = [[]]
    place = 0
    for start, end in words:
        while place < len(ends) and ends[place] <= start:
            place += 1
            groups.append([])
        while place < len(ends) and start < ends[place] < end:  # no white space behind a wide mark
            groups[-1].append((start, ends[place]))
            groups.append([])
            start = ends[place]
            place += 1
        groups[-1].append((start, end))
    return [group for group in groups if group]


def _check(size: int, overlap: int) -> None:
    for name, value in (("size", size), ("overlap", overlap)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise DataError(f"chunk: {name} must be a whole number, not {value!r:.40}")
    if size < 1 or not 0 <= overlap < size:
        raise DataError(
            f"chunk: size is {size} and overlap is {overlap}",
            "size is at least 1, overlap from 0 to size - 1",
        )
