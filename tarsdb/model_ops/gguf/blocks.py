"""The codings of tensors in GGUF files: how many elements a block holds, and their floats.

Blocks are ggml's; Q4_K and Q6_K are the codings that files of smaller ones mix in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    28: "F64", 29: "IQ1_M", 30: "BF16",
}  # fmt: skip


@dataclass(frozen=True)
class Coding:
    """One coding.

    Parameters
    ----------
    name : str
    elements, nbytes : int
        Of a block.
    decode : callable
        Takes the bytes of whole blocks; returns their elements, float32 (n,).
    """

    name: str
    elements: int
    nbytes: int
    decode: Callable[[U8], F32]


def _float32(data: U8) -> F32:
    return np.array(data.view("<f4"), np.float32)


def _float16(data: U8) -> F32:
    return data.view("<f2").astype(np.float32)


def _bfloat16(data: U8) -> F32:
    return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _halves(blocks: U8, at: int) -> F32:
    """Return the float16 at a place of each block, (blocks, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _q4_0(data: U8) -> F32:
    """Read a scale and 16 bytes: codes of the first half in the low bits, of the second above."""
    blocks = data.reshape(-1, 18)
    codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.int8) - 8
    return (codes * _halves(blocks, 0)).reshape(-1)


def _q8_0(data: U8) -> F32:
    """Read a scale; 32 codes."""
    blocks = data.reshape(-1, 34)
    codes = np.ascontiguousarray(blocks[:, 2:]).view(np.int8)
    return (codes * _halves(blocks, 0)).reshape(-1)


def _q4_k(data: U8) -> F32:
    """Read two scales, 8 scales and 8 minima of 6 bits in 12 bytes, 256 codes of 4 bits.

    Groups of 32 share a scale and a minimum; a byte holds a code of one group in its low and of the
    next group in its high bits. The upper two bits of the last four scales and minima lie in the
    upper bits of the first eight bytes.
    """
    blocks = data.reshape(-1, 144)
    packed = blocks[:, 4:16]
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | (first >> 6) << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | (second >> 6) << 4], axis=1)
    pairs = blocks[:, 16:].reshape(-1, 4, 1, 32)
    codes = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 8, 32)
    factor = _halves(blocks, 0) * scales.astype(np.float32)
    offset = _halves(blocks, 2) * minima.astype(np.float32)
    found: F32 = factor[:, :, None] * codes.astype(np.float32) - offset[:, :, None]
    return found.reshape(-1)


def _q6_k(data: U8) -> F32:
    """Read 128 bytes of low bits, 64 of high bits, 16 scales of 8 bits, a scale; codes of 6 bits.

    The two halves of a block are alike: 64 bytes of low bits, whose low nibbles come first, and 32
    of high bits, two of which belong to each of four runs of 32 codes. 16 codes share a scale.
    """
    blocks = data.reshape(-1, 210)
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    codes = (low | high << 4).astype(np.int8) - 32
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    factor = (_halves(blocks, 208) * scales)[:, :, None]
    return (factor * codes.reshape(-1, 16, 16)).reshape(-1)


CODINGS = {
    0: Coding("F32", 1, 4, _float32),
    1: Coding("F16", 1, 2, _float16),
    2: Coding("Q4_0", 32, 18, _q4_0),
    8: Coding("Q8_0", 32, 34, _q8_0),
    12: Coding("Q4_K", 256, 144, _q4_k),
    14: Coding("Q6_K", 256, 210, _q6_k),
    30: Coding("BF16", 1, 2, _bfloat16),
}  # fmt: skip
"""By their number in files."""
