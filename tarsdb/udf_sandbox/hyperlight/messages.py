"""Messages between the host and the adapter in a guest: bytes as text, requests and replies.

The guest's one entry takes a string and returns one, so bytes travel as 7-bit characters, eight
for every seven bytes. Hyperlight's output buffer holds 16 KiB; longer output is read in pieces.
"""

from __future__ import annotations

import numpy as np

REPLY_TEXT = 16_000  # characters; 16,288 were seen to fit
REPLY_BYTES = REPLY_TEXT // 8 * 7

STATE, CALL, READ, INVOKE = 0, 1, 2, 3  # kinds of requests
NOTHING = 0xFFFFFFFF
"""Number of the export of an INVOKE that only writes."""

_LENGTHS = np.arange(0, 56, 7, dtype=np.uint64)  # shifts of the seven-bit groups of 56 bits
_BYTES = np.arange(0, 56, 8, dtype=np.uint64)

CALL_REQUEST = np.dtype(
    [
        ("kind", "<u4"), ("size", "<u4"), ("rows", "<u4"), ("columns", "<u4"),
        ("image", "<u4"), ("validity", "<u4"), ("validity_bytes", "<u4"), ("wanted", "<u4"),
    ]
)  # fmt: skip
READ_REQUEST = np.dtype([("kind", "<u4"), ("address", "<u4"), ("size", "<u4")])
INVOKE_REQUEST = np.dtype(
    [("kind", "<u4"), ("export", "<u4"), ("writes", "<u4"), ("arguments", "<u4", 4)]
)
"""What each write follows it with: address and size (``WRITE``), then its bytes."""
WRITE = np.dtype([("address", "<u4"), ("size", "<u4")])
INVOKE_REPLY = np.dtype([("value", "<i4"), ("pages", "<u4")])
CALL_REPLY = np.dtype(
    [("base", "<u4"), ("pages", "<u4"), ("status", "<i4"), ("descriptor", "u1", 32)]
)
REFUSED_BYTES = 8  # of the reply when tars_alloc gave no usable region: that region, pages
MAX_WANTED = REPLY_BYTES - CALL_REPLY.itemsize


def to_text(data: np.ndarray) -> str:
    """Return bytes as 7-bit characters, zeros added up to a multiple of seven."""
    groups = -(-len(data) // 7)
    padded = np.zeros((groups, 8), dtype=np.uint8)
    whole = len(data) // 7
    padded[:whole, :7] = data[: whole * 7].reshape(whole, 7)
    padded[whole:, :7].reshape(-1)[: len(data) - whole * 7] = data[whole * 7 :]
    numbers = padded.view("<u8")
    characters = (numbers >> _LENGTHS) & np.uint64(0x7F)
    return characters.astype(np.uint8).tobytes().decode("ascii")


def to_bytes(text: str) -> np.ndarray:
    """Return the bytes of 7-bit characters; a text of another length loses its tail.

    Raises
    ------
    UnicodeEncodeError
        The text holds other characters.
    """
    raw = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    groups = raw[: len(raw) // 8 * 8].reshape(-1, 8).astype(np.uint64)
    numbers = (groups << _LENGTHS).sum(axis=1, dtype=np.uint64)
    return np.ascontiguousarray(numbers.astype("<u8")[:, None].view(np.uint8)[:, :7]).reshape(-1)
