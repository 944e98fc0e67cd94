"""Which tokens of which sequences the next step computes: continuous batching in plain integers.

Every step walks the sequences in order (priority, then arrival). Decoding ones get a row for their
newest token and for drafts of the tokens after it; prompts are cut into chunks of a token budget. A
sequence that needs a block takes it, when none is free, from the last one in the order that holds
any: that one gives up all its blocks and is computed again later (preemption by recomputation).
The order never changes, so the first sequence always goes on and every sequence ends. Names and
policy follow vLLM (Kwon et al. 2023) and Orca (Yu et al. 2022). Knows no arrays, no model and no
clock.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import field
from typing import Any

from tarsdb.model_ops.generation.kv_blocks import BlockPool, chain
from tarsdb.records import dataclass


@dataclass(eq=False, slots=True)
class Sequence:
    """One text while it grows.

    Parameters
    ----------
    tokens : list of int
        The prompt, not empty; what is generated is appended.
    max_length : int
        Tokens it may have in the end.
    priority : int
        Higher goes first.
    deadline : float
        Time, by the caller's clock, after which it is given up.
    adapter : object, optional
        What adapts the model for this text.
    root : bytes
        Stands for the content of ``adapter``: blocks are shared among texts of one root.

    Attributes
    ----------
    computed : int
        Tokens whose keys and values lie in ``block_table``.
    drafts : list of int
        Guesses of the next tokens, checked by the next step.
    cached : int
        Prompt tokens that were taken over from other sequences.
    """

    tokens: list[int]
    max_length: int
    priority: int = 0
    deadline: float = math.inf
    adapter: Any = None
    root: bytes = b""
    prompt_length: int = field(init=False)
    computed: int = 0
    cached: int = 0
    drafts: list[int] = field(default_factory=list)
    block_table: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    order: tuple[int, int] = (0, -1)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)

    @property
    def is_decoding(self) -> bool:
        """True when only the newest token is not computed yet."""
        return self.computed > 0 and self.computed == len(self.tokens) - 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one sequence in one step: ``tokens`` at positions from ``start``.

    The logits of the last ``wanted`` rows are needed: none of an unfinished prompt, else one and
    one more for each draft.
    """

    sequence: Sequence
    start: int
    tokens: list[int]
    wanted: int


class Scheduler:
    """The sequences of one KV cache, and what each step does for them.

    Parameters
    ----------
    pool : BlockPool
    prefill_tokens : int
        Rows of one step that belong to prompts.
    max_sequences : int
        Sequences that hold blocks at a time.
    """

    def __init__(self, pool: BlockPool, prefill_tokens: int = 256, max_sequences: int = 64) -> None:
        self.pool = pool
        self.prefill_tokens = prefill_tokens
        self.max_sequences = max_sequences
        self.preemptions = 0
        self._live: list[Sequence] = []  # by order
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._live)

    @property
    def running(self) -> int:
        """Sequences that hold blocks."""
        return sum(1 for sequence in self._live if sequence.block_table)

    def add(self, sequence: Sequence) -> None:
        """Take a sequence in. The whole of it, ``max_length``, must fit the pool."""
        self._arrivals += 1
        sequence.order = (-sequence.priority, self._arrivals)
        bisect.insort(self._live, sequence, key=lambda other: other.order)

    def remove(self, sequence: Sequence) -> None:
        """Let a finished or cancelled sequence go; its full blocks stay cached."""
        self._live.remove(sequence)
        self._release(sequence)

    def expired(self, now: float) -> list[Sequence]:
        """Return the sequences whose deadline has passed."""
        return [sequence for sequence in self._live if sequence.deadline < now]

    def schedule(self) -> list[Chunk]:
        """Return the chunks of the next step; empty only when there is no sequence."""
        chunks: list[Chunk] = []
        computing: set[bytes] = set()  # the full blocks this step makes
        budget, running, blocked = self.prefill_tokens, self.running, False
        for sequence in list(self._live):
            if not sequence.block_table:
                if blocked or budget <= 0 or running >= self.max_sequences:
                    continue
                shared = self._prefix(sequence, computing)
                if shared is None:
                    continue
                if not self._has_room(sequence, shared):
                    blocked = True  # the ones after it may not overtake it
                    continue
                self._take(sequence, shared)
            decoding = sequence.is_decoding
            chunk = self._chunk(sequence, budget)
            if chunk is None:
                continue
            chunks.append(chunk)
            running = self.running
            if not decoding:
                budget -= len(chunk.tokens)
                first = chunk.start // self.pool.block_size
                last = (chunk.start + len(chunk.tokens)) // self.pool.block_size
                computing.update(self._digests(sequence, last)[first:last])
        return chunks

    def advance(self, chunk: Chunk, new: list[int]) -> None:
        """Note that a chunk was computed; ``new`` tokens follow, all but the last were drafts."""
        sequence = chunk.sequence
        rejected = max(chunk.wanted, 1) - max(len(new), 1)
        sequence.computed = chunk.start + len(chunk.tokens) - rejected
        sequence.tokens += new
        sequence.drafts = []
        first = chunk.start // self.pool.block_size
        last = sequence.computed // self.pool.block_size
        for index, digest in enumerate(self._digests(sequence, last)[first:last], first):
            self.pool.publish(sequence.block_table[index], digest)

    def _prefix(self, sequence: Sequence, computing: set[bytes]) -> list[int] | None:
        """Return the blocks a sequence can take over; None while this step computes the next one.

        Its last token is always computed: its logits are needed.
        """
        shared: list[int] = []
        for digest in self._digests(sequence, (len(sequence.tokens) - 1) // self.pool.block_size):
            block = self.pool.find(digest)
            if block is None:
                return None if digest in computing else shared
            shared.append(block)
        return shared

    def _has_room(self, sequence: Sequence, shared: list[int]) -> bool:
        """Return whether a sequence may begin, if need be by preempting less urgent ones.

        There must be room for all its tokens and for a block more of each running sequence: one
        that just fits would soon be preempted.
        """
        fresh = self.pool.needed(len(sequence.tokens)) - len(shared)
        while fresh + self._revived(shared) + self.running > self.pool.free:
            last = self._last_holder()
            if last is None or last.priority >= sequence.priority:
                return False
            self._preempt(last)
        return True

    def _revived(self, shared: list[int]) -> int:
        return sum(map(self.pool.is_idle, shared))

    def _take(self, sequence: Sequence, shared: list[int]) -> None:
        for block in shared:
            self.pool.share(block)
        sequence.block_table = shared
        sequence.computed = len(shared) * self.pool.block_size
        if len(sequence.tokens) == sequence.prompt_length:
            sequence.cached = sequence.computed

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk | None:
        """Return what a sequence computes next, its blocks reserved; None when it has to wait."""
        start, decoding = sequence.computed, sequence.is_decoding
        tokens = sequence.tokens[start:] if decoding else sequence.tokens[start : start + budget]
        if not tokens or not self._reserve(sequence, start + len(tokens)):
            return None
        if start + len(tokens) < len(sequence.tokens):
            return Chunk(sequence, start, tokens, 0)
        drafts = sequence.drafts if decoding else []
        more = self.pool.needed(start + 1 + len(drafts)) - len(sequence.block_table)
        if more > self.pool.free:
            drafts = []  # a guess is no reason to preempt anybody
        self._reserve(sequence, start + len(tokens) + len(drafts))
        return Chunk(sequence, start, tokens + drafts, 1 + len(drafts))

    def _reserve(self, sequence: Sequence, length: int) -> bool:
        """Give a sequence blocks for its first ``length`` tokens."""
        while len(sequence.block_table) < self.pool.needed(length):
            if not self.pool.free:
                last = self._last_holder()
                if last is None or last.order <= sequence.order:
                    return False
                self._preempt(last)
                continue  # its blocks may be shared with others
            sequence.block_table.append(self.pool.allocate())
        return True

    def _last_holder(self) -> Sequence | None:
        return next((s for s in reversed(self._live) if s.block_table), None)

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.computed = 0
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        """Give blocks back, the last first: the beginning of a text is wanted again most often."""
        for block in reversed(sequence.block_table):
            self.pool.release(block)
        sequence.block_table = []

    def _digests(self, sequence: Sequence, count: int) -> list[bytes]:
        """Return the digests of the first ``count`` full blocks."""
        known, size = sequence.digests, self.pool.block_size
        while len(known) < count:
            start = len(known) * size
            parent = known[-1] if known else sequence.root
            known.append(chain(parent, sequence.tokens[start : start + size]))
        return known[:count]
