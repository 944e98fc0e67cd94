"""Tokens to text, piece by piece: whole characters only, nothing of a stop string.

Knows how to decode a list of tokens, not how tokens are chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"  # what decoding makes of the first bytes of a character
_MAX_HELD = 16  # tokens; one character has at most four bytes


class TextStream:
    """The text of one sequence as its tokens come.

    Parameters
    ----------
    decode : callable
        Tokens to text.
    context : sequence of int
        Last tokens of the prompt: whether the text begins with a space may depend on them.
    stop : tuple of str
        The text ends before the first of these.

    Attributes
    ----------
    text : str
        What was given out so far.
    stopped : bool
        A stop string was met; later tokens are ignored.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        context: Sequence[int] = (),
        stop: tuple[str, ...] = (),
    ) -> None:
        self._decode = decode
        self._stop = stop
        self._tokens = list(context)  # from the last word boundary that was decoded
        self._read = len(self._tokens)  # of them, those whose text is known
        self._known = decode(self._tokens) if self._tokens else ""
        self._held = ""  # may be the beginning of a stop string
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that is certain now."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        decoded = self._decode(self._tokens)
        unfinished = decoded.endswith(_UNFINISHED)
        if unfinished and len(self._tokens) - self._read <= _MAX_HELD:
            return ""
        return self._give(self._advance(decoded))

    def finish(self) -> str:
        """Return what was held back; the text ends here."""
        if self.stopped:
            return ""
        piece = self._give(self._advance(self._decode(self._tokens)) if self._tokens else "")
        rest, self._held = self._held, ""  # nothing once a stop string was met
        self.text += rest
        return piece + rest

    def _advance(self, decoded: str) -> str:
        """Take over the text of the newest tokens; older ones are only their context."""
        piece = decoded[len(self._known) :]
        newest = self._tokens[self._read :]
        shown = self._decode(newest) if newest else ""
        if shown:
            self._tokens, self._known = newest, shown
        else:  # special tokens have no text: they are no context for the next ones
            self._known = decoded
        self._read = len(self._tokens)
        return piece

    def _give(self, piece: str) -> str:
        """Return a piece up to a stop string, less what may become one."""
        if not self._stop:
            self.text += piece
            return piece
        held = self._held + piece
        places = [place for stop in self._stop if (place := held.find(stop)) >= 0]
        if places:
            self.stopped = True
            ready, self._held = held[: min(places)], ""
        else:
            kept = max(_overlap(held, stop) for stop in self._stop)
            ready, self._held = held[: len(held) - kept], held[len(held) - kept :]
        self.text += ready
        return ready


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
