"""Keys and values of past tokens, in blocks of 16 that sequences name by number.

Which block belongs to whom is the scheduler's; this is the memory. A block may serve several
sequences. Kwon et al. 2023 (paged attention).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import DataError
from tarsdb.kernels.decoder_reference import BLOCK_GROUP, BLOCK_TOKENS
from tarsdb.kernels.packing import from_bfloat16, to_bfloat16
from tarsdb.model_ops.decoder_spec import DecoderSpec
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

_LANES = 16


@dataclass(frozen=True)
class KVCache:
    """Memory for some blocks, in groups of 16, so that blocks of a head lie one after another.

    Attributes
    ----------
    keys : (layers, groups, kv_heads, 16 blocks, head_dim, 16) float32, or uint16
        Bits of bfloat16, unless the model is float32. Transposed inside a block, so that the
        scores of 16 tokens are one row of a product.
    values : (layers, groups, kv_heads, 16 blocks, 16, width), of the same type
        ``width`` is head_dim, padded with zeros to a multiple of 16.
    blocks : int
        Number of blocks.
    """

    keys: npt.NDArray[Any]
    values: npt.NDArray[Any]
    blocks: int

    @classmethod
    def for_model(cls, spec: DecoderSpec, blocks: int, kind: str = "f32") -> KVCache:
        """Allocate blocks; their memory is touched when they are first written.

        ``kind`` is that of the weights, see ``kernels/packing.py``.
        """
        if blocks < 1:
            raise DataError(f"a KV cache of {blocks} blocks holds nothing")
        heads = (len(spec.layers), -(-blocks // BLOCK_GROUP), spec.kv_heads, BLOCK_GROUP)
        width = -(-spec.head_dim // _LANES) * _LANES
        element: Any = np.float32 if kind == "f32" else np.uint16
        return cls(
            np.zeros((*heads, spec.head_dim, BLOCK_TOKENS), element),
            np.zeros((*heads, BLOCK_TOKENS, width), element),
            blocks,
        )

    @property
    def is_bfloat16(self) -> bool:
        """Whether elements are bits of bfloat16."""
        return bool(self.keys.dtype == np.uint16)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers together."""
        groups: int = self.keys.shape[1]
        return (self.keys.nbytes + self.values.nbytes) // (groups * BLOCK_GROUP)

    def write(self, layer: int, table: I32, position: int, keys: F32, values: F32) -> None:
        """Store keys and values (n, kv_heads, head_dim) of a sequence from ``position`` on."""
        places = np.arange(position, position + len(keys))
        block, slot = table[places // BLOCK_TOKENS], places % BLOCK_TOKENS
        group, place = block // BLOCK_GROUP, block % BLOCK_GROUP
        rounded = (to_bfloat16(keys), to_bfloat16(values)) if self.is_bfloat16 else (keys, values)
        self.keys[layer, group, :, place, :, slot] = rounded[0]
        self.values[layer, group, :, place, slot, : keys.shape[2]] = rounded[1]

    def read(self, layer: int, table: I32, count: int, head_dim: int) -> tuple[F32, F32]:
        """Return copies of the first tokens' keys (kv_heads, head_dim, m) and values (.., m, ..).

        ``m`` is ``count`` rounded up to whole blocks.
        """
        used = table[: -(-count // BLOCK_TOKENS)]
        group, place = used // BLOCK_GROUP, used % BLOCK_GROUP
        # (kv_heads, head_dim, blocks, 16)
        keys = np.moveaxis(self.keys[layer, group, :, place], 0, 2)
        values = np.moveaxis(self.values[layer, group, :, place], 0, 1)[..., :head_dim]
        heads = keys.shape[0]
        both = keys.reshape(heads, head_dim, -1), values.reshape(heads, -1, head_dim)
        return (from_bfloat16(both[0]), from_bfloat16(both[1])) if self.is_bfloat16 else both
