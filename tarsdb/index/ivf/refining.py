"""Further bits beside the sign bits of rows in lists: what they are, and how they are made.

Sign bits name many candidates for few neighbours; two bits more an element, read of candidates
alone, say which of these to compare by their full vectors. ``kernels/cpu/refining.py`` has the
formula.
"""

from __future__ import annotations

import numpy as np

from tarsdb.kernels.ivf import FURTHER_CONSTANTS

CHOICES = (0, 2)
"""Bits an element: none, or two."""
_STEP = 0.586
"""Step of eight even levels for normal numbers, in root mean squares (Max 1960); the elements of a
rotated row are nearly such."""


def row_bytes(padded: int) -> int:
    """Return the bytes of a row."""
    return padded // 4 + FURTHER_CONSTANTS


def further(
    rotated: np.ndarray, turned: np.ndarray, signs: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """Return the further bits of rows and their constants, uint8 (n, row_bytes).

    Parameters
    ----------
    rotated : float32 (n, padded)
        What rows lack to their centroids, rotated.
    turned : float32 (n, padded)
        Their centroids, rotated.
    signs : bool (n, padded)
        Their sign bits: of an element next to zero another rounding may have another sign.
    known : float32 (n, 3)
        Base and slope of their sign bits first.
    """
    count, padded = rotated.shape
    squares = np.einsum("ij,ij->i", rotated, rotated, dtype=np.float64)
    steps = _STEP * np.sqrt(squares / padded)[:, np.newaxis]
    scaled = np.abs(rotated) / np.where(steps > 0, steps, 1).astype(np.float32)
    levels = np.minimum(scaled, np.float32(3)).astype(np.uint8)
    bits = np.where(signs, levels, 3 - levels)
    sizes = levels + np.float32(0.5)
    y = np.where(signs, sizes, -sizes)
    along = np.einsum("ij,ij->i", y, rotated, dtype=np.float64)
    slopes = np.zeros(count)
    np.divide(-2 * squares, along, out=slopes, where=along > 0)
    ratios = np.zeros(count)
    np.divide(4 * slopes, known[:, 1], out=ratios, where=known[:, 1] != 0)
    bases = squares - slopes * np.einsum("ij,ij->i", y, turned, dtype=np.float64)
    constants = np.stack([bases - ratios * known[:, 0], ratios, slopes, bits.sum(axis=1)], axis=1)
    quarters = bits.reshape(count, 4, -1) << np.arange(0, 8, 2, dtype=np.uint8)[:, np.newaxis]
    codes = np.bitwise_or.reduce(quarters, axis=1)
    return np.concatenate([codes, constants.astype(np.float32).view(np.uint8)], axis=1)
