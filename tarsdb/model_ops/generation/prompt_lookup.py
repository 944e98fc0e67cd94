"""Guess the next tokens of a text from the text itself.

Where the newest tokens stood before, what followed them there is likely to follow again:
quotations, code, forms (prompt lookup decoding, Saxena 2023; a case of speculative decoding,
Leviathan et al. 2023). A guess is only a draft: the model checks it, so the text is what it would
be without.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_DRAFTS = 8


class PromptLookup:
    """Where each run of ``width`` tokens of one text stood last, and how well guesses do.

    The number of drafts grows as they are right and shrinks as they are wrong, so that a text
    without repetitions costs little.
    """

    def __init__(self, width: int = 3) -> None:
        self._width = width
        self._places: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._length = 4

    def drafts(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return up to ``most`` tokens that may come next; ``tokens`` only ever grows."""
        for end in range(max(self._indexed, self._width), len(tokens)):
            self._places[tuple(tokens[end - self._width : end])] = end
        self._indexed = max(self._indexed, len(tokens))
        place = self._places.get(tuple(tokens[-self._width :]))
        if place is None:
            return []
        return list(tokens[place : place + min(self._length, most)])

    def learn(self, proposed: int, accepted: int) -> None:
        """Take in how many drafts of the last guess were right."""
        if accepted == proposed:
            self._length = min(2 * self._length, MAX_DRAFTS)
        else:
            self._length = max(accepted + 1, self._length // 2)
