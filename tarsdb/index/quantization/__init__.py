"""Short codes of vectors, with distances from a query to them. Knows no storage and no SQL.

``rabitq`` needs no training and gives lower bounds, ``product`` is smallest (with OPQ's rotation),
``scalar`` is nearest to the vectors. ``base`` is what they share,
``principal`` a rotation to the axes that matter most.
"""

from __future__ import annotations

from tarsdb.index.quantization.base import Distortion, Quantizer
from tarsdb.index.quantization.product import ProductQuantizer
from tarsdb.index.quantization.rabitq import RaBitQ
from tarsdb.index.quantization.scalar import Float16, Int4, Int8

KINDS: dict[str, type[Quantizer]] = {
    "rabitq": RaBitQ, "pq": ProductQuantizer, "int8": Int8, "int4": Int4, "float16": Float16,
}  # fmt: skip
"""Name, as stored beside a quantiser's arrays -> its class."""

__all__ = [
    "KINDS",
    "Distortion",
    "Float16",
    "Int4",
    "Int8",
    "ProductQuantizer",
    "Quantizer",
    "RaBitQ",
]
