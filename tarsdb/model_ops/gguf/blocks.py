"""The codings of tensors in GGUF files: how many elements a block holds, and their floats.

Blocks are ggml's. The database keeps them as files have them, under the names of ``schema.BLOCKS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.records import dataclass
from tarsdb.schema import BFLOAT16, BLOCKS

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_AT_A_TIME = 1 << 16  # elements; what they are made of stays in the processor's cache
_SHIFTS = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
"""What the codes of IQ4_NL and IQ4_XS stand for."""


@dataclass(frozen=True)
class Coding:
    """One coding.

    Parameters
    ----------
    name : str
    stored : str
        The type that the database keeps such elements as.
    elements, nbytes : int
        Of a block.
    read : callable
        Takes the bytes of whole blocks; returns their elements, float32 (n,).
    """

    name: str
    stored: str
    elements: int
    nbytes: int
    read: Callable[[U8], F32]

    def decode(self, data: U8) -> F32:
        """Return the elements of whole blocks; besides them it takes memory for a few only."""
        size, count = self.nbytes, self.elements
        found = np.empty(data.size // size * count, np.float32)
        data = np.ascontiguousarray(data).reshape(-1)
        step = _AT_A_TIME // count
        with np.errstate(over="ignore", invalid="ignore"):  # damaged scales: refused by who reads
            for block in range(0, data.size // size, step):
                some = self.read(data[block * size : (block + step) * size])
                found[block * count : (block + step) * count] = some
        return found


def decode_stored(dtype: str, data: bytes) -> F32:
    """Return the elements of a tensor that the database keeps as a type of ``schema.BLOCKS``."""
    return _STORED[dtype].decode(np.frombuffer(data, np.uint8))


def _float32(data: U8) -> F32:
    return np.array(data.view("<f4"), np.float32)


def _float16(data: U8) -> F32:
    return data.view("<f2").astype(np.float32)


def _bfloat16(data: U8) -> F32:
    return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _halves(blocks: U8, at: int) -> F32:
    """Return the float16 at a place of each block, (blocks, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(data: U8, run: int) -> U8:
    """Return codes of 4 bits, (blocks, n): of each run of bytes the low bits, then the high."""
    pairs = data.reshape(len(data), -1, 1, run)
    return np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(len(data), -1)


def _quarters(data: U8) -> U8:
    """Return codes of 2 bits, (blocks, n): of each 32 bytes the lowest bits first."""
    codes: U8 = data.reshape(len(data), -1, 1, 32) >> _SHIFTS & np.uint8(3)
    return codes.reshape(len(data), -1)


def _q4_0(data: U8) -> F32:
    """Read a scale and 16 bytes: codes of the first half in the low bits, of the second above."""
    blocks = data.reshape(-1, 18)
    codes = _nibbles(blocks[:, 2:], 16).astype(np.int8) - 8
    return (codes * _halves(blocks, 0)).reshape(-1)


def _q4_1(data: U8) -> F32:
    """Read a scale, a minimum; codes as those of Q4_0."""
    blocks = data.reshape(-1, 20)
    return (_nibbles(blocks[:, 4:], 16) * _halves(blocks, 0) + _halves(blocks, 2)).reshape(-1)


def _fifth_bits(blocks: U8, at: int) -> U8:
    """Return the highest bit of each of 32 codes, in its place, of 4 bytes of each block."""
    bits: U8 = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    bits <<= 4
    return bits


def _q5_0(data: U8) -> F32:
    """Read a scale, 32 high bits; low bits as those of Q4_0."""
    blocks = data.reshape(-1, 22)
    codes = (_nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks, 2)).astype(np.int8) - 16
    return (codes * _halves(blocks, 0)).reshape(-1)


def _q5_1(data: U8) -> F32:
    """Read a scale, a minimum, 32 high bits; low bits as those of Q4_0."""
    blocks = data.reshape(-1, 24)
    codes = _nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks, 4)
    return (codes * _halves(blocks, 0) + _halves(blocks, 2)).reshape(-1)


def _q8_0(data: U8) -> F32:
    """Read a scale; 32 codes."""
    blocks = data.reshape(-1, 34)
    codes = np.ascontiguousarray(blocks[:, 2:]).view(np.int8)
    return (codes * _halves(blocks, 0)).reshape(-1)


def _q2_k(data: U8) -> F32:
    """Read 16 bytes of a scale and a minimum each, 64 bytes of codes of 2 bits, two scales."""
    blocks = data.reshape(-1, 84)
    factor = _halves(blocks, 80) * (blocks[:, :16] & 15).astype(np.float32)
    offset = _halves(blocks, 82) * (blocks[:, :16] >> 4).astype(np.float32)
    return _grouped(_quarters(blocks[:, 16:80]), factor, offset)


def _q3_k(data: U8) -> F32:
    """Read 32 bytes of high bits, 64 of low bits, 16 scales of 6 bits in 12 bytes, a scale.

    A high bit that is 0 takes 4 off its code. Scales have their low bits in nibbles of the first
    eight bytes, their high ones in the last four.
    """
    blocks = data.reshape(-1, 110)
    low, high = _nibbles(blocks[:, 96:104], 8), blocks[:, 104:108].reshape(-1, 1, 4)
    high = (high >> _SHIFTS[0] & 3).reshape(-1, 16)
    scales = (low | high << 4).astype(np.int8) - 32
    bits = blocks[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    lower = (bits ^ 1).reshape(-1, 256).astype(np.int8) << 2
    codes = _quarters(blocks[:, 32:96]).astype(np.int8) - lower
    return _grouped(codes, _halves(blocks, 108) * scales.astype(np.float32))


def _grouped(codes: npt.NDArray[Any], factor: F32, offset: F32 | None = None) -> F32:
    """Return codes (blocks, n) times their groups' factors, less their offsets, (blocks, g)."""
    groups = codes.reshape(*factor.shape, -1).astype(np.float32)
    groups *= factor[:, :, None]
    if offset is not None:
        groups -= offset[:, :, None]
    return groups.reshape(-1)


def _q4_k(data: U8) -> F32:
    """Read two scales, 8 scales and 8 minima in 12 bytes, 256 codes of 4 bits.

    Groups of 32 share a scale and a minimum; a byte holds a code of one group in its low and of the
    next group in its high bits.
    """
    blocks = data.reshape(-1, 144)
    return _grouped(_nibbles(blocks[:, 16:], 32), *_scales_and_minima(blocks))


def _q5_k(data: U8) -> F32:
    """Read what a block of Q4_K has, 32 bytes of high bits in front of its codes.

    Each of these bytes has a bit for each of the eight groups.
    """
    blocks = data.reshape(-1, 176)
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes = _nibbles(blocks[:, 48:], 32) | high.reshape(-1, 256) << 4
    return _grouped(codes, *_scales_and_minima(blocks))


def _scales_and_minima(blocks: U8) -> tuple[F32, F32]:
    """Return the eight groups' scales and minima, of 6 bits in 12 bytes behind their own scales.

    The upper two bits of the last four scales and minima lie in the upper bits of the first eight
    bytes.
    """
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, third & 15 | (first >> 6) << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | (second >> 6) << 4], axis=1)
    return (
        _halves(blocks, 0) * scales.astype(np.float32),
        _halves(blocks, 2) * minima.astype(np.float32),
    )


def _q6_k(data: U8) -> F32:
    """Read 128 bytes of low bits, 64 of high bits, 16 scales of 8 bits, a scale; codes of 6 bits.

    The two halves of a block are alike: 64 bytes of low bits, whose low nibbles come first, and 32
    of high bits, two of which belong to each of four runs of 32 codes. 16 codes share a scale.
    """
    blocks = data.reshape(-1, 210)
    codes = _nibbles(blocks[:, :128], 64) | _quarters(blocks[:, 128:192]) << 4
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return _grouped(codes.astype(np.int8) - 32, _halves(blocks, 208) * scales)


def _iq4_nl(data: U8) -> F32:
    """Read a scale; codes as those of Q4_0, of levels at uneven distances."""
    blocks = data.reshape(-1, 18)
    return (_LEVELS[_nibbles(blocks[:, 2:], 16)] * _halves(blocks, 0)).reshape(-1)


def _iq4_xs(data: U8) -> F32:
    """Read a scale, 8 scales of 6 bits: 2 bytes of high and 4 of low bits; levels as IQ4_NL."""
    blocks = data.reshape(-1, 136)
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = (blocks[:, 2:4].reshape(-1, 2, 1) >> _SHIFTS[0, 0, :, 0] & 3).reshape(-1, 8)
    scales = (low | high << 4).astype(np.int8) - 32
    return _grouped(
        _LEVELS[_nibbles(blocks[:, 8:], 16)], _halves(blocks, 0) * scales.astype(np.float32)
    )


_READERS: dict[str, Callable[[U8], F32]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k,
    "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}  # fmt: skip
_STORED = {name: Coding(name, name, *BLOCKS[name], read) for name, read in _READERS.items()}
_PLAIN = {
    "F32": Coding("F32", "<f4", 1, 4, _float32),
    "F16": Coding("F16", "<f2", 1, 2, _float16),
    "BF16": Coding("BF16", BFLOAT16, 1, 2, _bfloat16),
}
CODINGS = {n: {**_PLAIN, **_STORED}[name] for n, name in NAMES.items() if name in _PLAIN | _STORED}
"""By their number in files."""
