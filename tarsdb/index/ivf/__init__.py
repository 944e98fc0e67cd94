"""Inverted lists: approximate nearest neighbours whose codes may stay on disk, as plain arrays.

``build_ivf`` makes an :class:`Ivf` of vectors, ``Ivf.search`` returns candidates that the caller
compares by their full vectors. Knows no storage, no transactions and no SQL.
"""

from tarsdb.index.ivf.build import build_ivf, estimated_bytes
from tarsdb.index.ivf.index import Ivf
from tarsdb.index.ivf.options import IvfOptions
from tarsdb.index.resources import Resources

__all__ = ["Ivf", "IvfOptions", "Resources", "build_ivf", "estimated_bytes"]
