"""Random rotations: they spread a vector evenly over all dimensions. Knows no codes."""

from __future__ import annotations

import numpy as np

from tarsdb.index.quantization.base import F32

_STREAM = 0x726F74  # apart from what callers draw from the plain seed


def random_rotation(dim: int, out: int, seed: int) -> F32:
    """Return a random matrix with orthonormal rows, float32 (dim, out), out >= dim.

    The first rows of an orthogonal matrix drawn uniformly (QR of Gaussian numbers with the signs
    of R's diagonal taken out, Mezzadri 2007). QR differs between LAPACKs in the last bits: the
    matrix is to be stored, not its seed.
    """
    gaussian = np.random.default_rng([seed, _STREAM]).standard_normal((out, dim))
    q, r = np.linalg.qr(gaussian)
    signs = np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return np.ascontiguousarray((q * signs).T, np.float32)
