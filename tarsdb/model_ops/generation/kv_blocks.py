"""Who owns which block of a KV cache: reference counts, shared prefixes, the order of eviction.

Plain integers. A full block is known by the chained digest of all tokens up to its end, so that a
sequence that begins like an earlier one takes its blocks over instead of computing them (automatic
prefix caching, as vLLM does; Kwon et al. 2023, PagedAttention). Knows no arrays and no model.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from tarsdb.errors import InternalError


def chain(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return the digest of a full block whose predecessors have the digest ``parent``."""
    return hashlib.blake2b(parent + array("i", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """The blocks of one KV cache.

    A block is empty, in use by ``references`` sequences, or idle: in use by nobody, its content
    kept until the room is needed. Idle blocks are given up least recently used first.

    Parameters
    ----------
    blocks : int
    block_size : int
        Tokens of a block.
    """

    def __init__(self, blocks: int, block_size: int = 16) -> None:
        self.block_size = block_size
        self.references = [0] * blocks
        self._digests: list[bytes | None] = [None] * blocks
        self._cached: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._empty = list(range(blocks - 1, -1, -1))
        self.evictions = 0

    def __len__(self) -> int:
        return len(self.references)

    @property
    def free(self) -> int:
        """Blocks that :meth:`allocate` can give."""
        return len(self._empty) + len(self._idle)

    def needed(self, tokens: int) -> int:
        """Return how many blocks hold so many tokens."""
        return -(-tokens // self.block_size)

    def find(self, digest: bytes) -> int | None:
        """Return the block with that content, used or idle."""
        return self._cached.get(digest)

    def is_idle(self, block: int) -> bool:
        """Return whether nobody uses a block that holds content."""
        return block in self._idle

    def share(self, block: int) -> None:
        """Add a user to a block found by its content."""
        self._idle.pop(block, None)
        self.references[block] += 1

    def allocate(self) -> int:
        """Return a block for one user; InternalError when none is free."""
        if self._empty:
            block = self._empty.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
            self.evictions += 1
        else:
            raise InternalError(f"none of {len(self.references)} KV blocks is free")
        self.references[block] = 1
        return block

    def publish(self, block: int, digest: bytes) -> None:
        """Make a full block known by its content; of two equal ones the first stays known."""
        if self._digests[block] is None and digest not in self._cached:
            self._digests[block] = digest
            self._cached[digest] = block

    def release(self, block: int) -> None:
        """Take a user from a block; InternalError when it has none."""
        if self.references[block] <= 0:
            raise InternalError(f"KV block {block} was released twice")
        self.references[block] -= 1
        if self.references[block]:
            return
        if self._digests[block] is None:
            self._empty.append(block)
        else:
            self._idle[block] = None

    def _forget(self, block: int) -> None:
        digest = self._digests[block]
        if digest is not None:
            del self._cached[digest]
            self._digests[block] = None
