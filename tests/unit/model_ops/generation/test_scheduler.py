"""The scheduler alone: shared prefixes, chunks, preemption, order; and that no block is lost."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tarsdb.errors import InternalError
from tarsdb.model_ops.generation.kv_blocks import BlockPool, chain
from tarsdb.model_ops.generation.scheduler import Chunk, Scheduler, Sequence

SIZE = 4


def make(blocks: int = 16, **options: Any) -> Scheduler:
    return Scheduler(BlockPool(blocks, SIZE), **options)


def next_token(tokens: list[int]) -> int:
    return (sum(tokens) * 7 + len(tokens)) % 50


def step(scheduler: Scheduler) -> list[Chunk]:
    """Compute one step as a model would that continues with :func:`next_token`."""
    chunks = scheduler.schedule()
    for chunk in chunks:
        new: list[int] = []
        sequence = chunk.sequence
        if chunk.wanted:
            drafts = chunk.tokens[len(chunk.tokens) - chunk.wanted + 1 :]
            for row in range(chunk.wanted):
                new.append(next_token(sequence.tokens + new))
                full = len(sequence.tokens) + len(new) >= sequence.max_length
                if full or row == len(drafts) or drafts[row] != new[-1]:
                    break
        scheduler.advance(chunk, new)
        if len(sequence.tokens) >= sequence.max_length:
            scheduler.remove(sequence)
    return chunks


def finish(scheduler: Scheduler, limit: int = 2000) -> None:
    for _ in range(limit):
        if not len(scheduler):
            return
        assert step(scheduler)
    raise AssertionError(f"{len(scheduler)} sequences never end")


def expected(prompt: list[int], length: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < length:
        tokens.append(next_token(tokens))
    return tokens


def test_a_prompt_is_cut_into_chunks_and_only_its_end_wants_logits() -> None:
    scheduler = make(prefill_tokens=5)
    sequence = Sequence(list(range(12)), 14)
    scheduler.add(sequence)
    seen = [[(c.start, len(c.tokens), c.wanted) for c in step(scheduler)] for _ in range(4)]
    assert seen == [[(0, 5, 0)], [(5, 5, 0)], [(10, 2, 1)], [(12, 1, 1)]]
    assert sequence.tokens == expected(list(range(12)), 14)


def test_decoding_goes_on_beside_a_long_prompt() -> None:
    scheduler = make(prefill_tokens=4)
    first, second = Sequence([1, 2], 10), Sequence(list(range(20)), 21)
    scheduler.add(second)
    scheduler.add(first)
    step(scheduler)
    while not first.is_decoding:
        step(scheduler)
    rows = {id(c.sequence): len(c.tokens) for c in step(scheduler)}
    assert rows[id(first)] == 1


def test_a_known_prefix_is_taken_over() -> None:
    scheduler = make()
    scheduler.add(Sequence(list(range(13)), 14))
    finish(scheduler)
    again = Sequence([*range(12), 40], 14)
    scheduler.add(again)
    (chunk,) = step(scheduler)
    assert (chunk.start, chunk.tokens, again.cached) == (12, [40], 12)
    other = Sequence([9, *range(12)], 14)
    scheduler.add(other)
    finish(scheduler)
    assert other.cached == 0


def test_the_last_token_of_a_known_prompt_is_computed_again() -> None:
    scheduler = make()
    for _ in range(2):
        sequence = Sequence(list(range(8)), 9)
        scheduler.add(sequence)
        finish(scheduler)
    assert sequence.cached == 4


def test_what_two_new_prompts_share_is_computed_once() -> None:
    scheduler = make()
    sequences = [Sequence([*range(12), 30 + i], 15) for i in range(4)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert [c.sequence for c in step(scheduler)] == sequences[:1]
    assert [(c.start, c.sequence) for c in step(scheduler)[1:]] == [(12, s) for s in sequences[1:]]
    finish(scheduler)
    for i, sequence in enumerate(sequences):
        assert sequence.tokens == expected([*range(12), 30 + i], 15)


def test_cached_blocks_go_when_room_is_needed_the_longest_unused_first() -> None:
    pool = BlockPool(2, SIZE)
    first, second = pool.allocate(), pool.allocate()
    pool.publish(first, chain(b"", [1] * SIZE))
    pool.publish(second, chain(b"", [2] * SIZE))
    pool.release(second)
    pool.release(first)
    assert pool.free == 2
    assert pool.allocate() == second
    assert pool.find(chain(b"", [2] * SIZE)) is None
    assert pool.find(chain(b"", [1] * SIZE)) == first
    assert pool.evictions == 1


def test_a_block_cannot_be_released_twice_nor_taken_from_an_empty_pool() -> None:
    pool = BlockPool(1, SIZE)
    block = pool.allocate()
    with pytest.raises(InternalError, match="none of 1 KV blocks"):
        pool.allocate()
    pool.release(block)
    with pytest.raises(InternalError, match="released twice"):
        pool.release(block)


def test_the_later_sequence_is_preempted_and_ends_with_the_same_tokens() -> None:
    scheduler = make(blocks=6)
    sequences = [Sequence([i, i, i], 16) for i in range(1, 3)]
    for sequence in sequences:
        scheduler.add(sequence)
    finish(scheduler)
    assert scheduler.preemptions > 0
    for i, sequence in enumerate(sequences, 1):
        assert sequence.tokens == expected([i, i, i], 16)


def test_the_earlier_sequence_is_never_preempted() -> None:
    scheduler = make(blocks=6)
    first = Sequence([1, 1, 1], 16)
    scheduler.add(first)
    scheduler.add(Sequence([2, 2, 2], 16))
    computed = 0
    while first in scheduler._live:
        step(scheduler)
        assert first.computed > computed
        computed = first.computed


def test_a_later_sequence_does_not_overtake_one_that_waits_for_room() -> None:
    scheduler = make(blocks=5)
    scheduler.add(Sequence([1] * 9, 17))
    step(scheduler)
    large, small = Sequence([2] * 12, 13), Sequence([3], 4)
    scheduler.add(large)
    scheduler.add(small)
    assert {id(c.sequence) for c in step(scheduler)}.isdisjoint({id(large), id(small)})


def test_an_urgent_sequence_takes_the_blocks_of_another() -> None:
    scheduler = make(blocks=4)
    slow = Sequence([1] * 9, 14)
    scheduler.add(slow)
    step(scheduler)
    urgent = Sequence([2] * 9, 14, priority=1)
    scheduler.add(urgent)
    assert [c.sequence for c in step(scheduler)] == [urgent]
    finish(scheduler)
    assert slow.tokens == expected([1] * 9, 14)
    assert urgent.tokens == expected([2] * 9, 14)


def test_drafts_that_are_right_are_kept_and_wrong_ones_are_not() -> None:
    scheduler = make()
    prompt = [5, 6]
    sequence = Sequence(prompt, 20)
    scheduler.add(sequence)
    step(scheduler)
    right = expected(prompt, 8)
    sequence.drafts = [*right[3:5], 99, 99]
    (chunk,) = step(scheduler)
    assert (chunk.wanted, len(chunk.tokens)) == (5, 5)
    assert sequence.tokens == right[:6]
    assert sequence.computed == 5
    finish(scheduler)
    assert sequence.tokens == expected(prompt, 20)


def test_a_block_with_a_wrong_draft_is_not_known_by_it() -> None:
    scheduler = make()
    sequence = Sequence([5, 6], 20)
    scheduler.add(sequence)
    step(scheduler)
    sequence.drafts = [99, 98, 97]
    step(scheduler)
    assert sequence.computed == 3
    assert scheduler.pool.find(chain(b"", sequence.tokens[:4])) is None
    finish(scheduler)
    assert scheduler.pool.find(chain(b"", sequence.tokens[:4])) is not None


def test_a_sequence_that_just_fits_waits_instead_of_being_preempted_soon() -> None:
    scheduler = make(blocks=6)
    scheduler.add(Sequence([1] * 12, 24))
    step(scheduler)
    second = Sequence([2] * 12, 14)
    scheduler.add(second)
    step(scheduler)
    assert not second.block_table
    finish(scheduler)
    assert scheduler.preemptions == 0


def test_a_sequence_past_its_deadline_is_named() -> None:
    scheduler = make()
    late, timely = Sequence([1], 3, deadline=5.0), Sequence([1], 3)
    scheduler.add(late)
    scheduler.add(timely)
    assert scheduler.expired(4.0) == []
    assert scheduler.expired(6.0) == [late]


class Machine(RuleBasedStateMachine):
    """Sequences come, go and are cancelled in any order; the blocks always add up."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = make(blocks=10, prefill_tokens=6, max_sequences=4)
        self.prompts: dict[int, tuple[Sequence, list[int]]] = {}
        self.contents: dict[tuple[int, int], list[int]] = {}

    @rule(
        prompt=st.lists(st.integers(0, 2), min_size=1, max_size=20),
        more=st.integers(1, 20),
        priority=st.integers(0, 1),
    )
    def add(self, prompt: list[int], more: int, priority: int) -> None:
        sequence = Sequence(list(prompt), len(prompt) + more, priority)
        self.scheduler.add(sequence)
        self.prompts[id(sequence)] = (sequence, list(prompt))

    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        live = self.scheduler._live
        if live:
            self.scheduler.remove(live[which % len(live)])

    @rule(drafts=st.lists(st.integers(0, 3), max_size=4), right=st.booleans())
    def run_step(self, drafts: list[int], right: bool) -> None:
        for sequence in self.scheduler._live:
            room = sequence.max_length - len(sequence.tokens) - 1
            tokens = sequence.tokens
            good = expected(tokens, len(tokens) + len(drafts))[len(tokens) :]
            sequence.drafts = (good if right else drafts)[: max(room, 0)]
        chunks = self.scheduler.schedule()
        self._check_contents(chunks)
        self.scheduler.schedule = lambda: chunks  # type: ignore[method-assign]
        try:
            step(self.scheduler)
        finally:
            del self.scheduler.schedule
        assert chunks or not len(self.scheduler)

    def _check_contents(self, chunks: list[Chunk]) -> None:
        """What a sequence reads is what it, or one that began like it, has written."""
        for chunk in chunks:
            for offset, _ in enumerate(chunk.tokens):
                place = chunk.start + offset
                block = chunk.sequence.block_table[place // SIZE]
                text = (chunk.sequence.tokens + chunk.sequence.drafts)[: place + 1]
                self.contents[block, place % SIZE] = text
        for chunk in chunks:
            for place in range(chunk.start):
                block = chunk.sequence.block_table[place // SIZE]
                assert self.contents[block, place % SIZE] == chunk.sequence.tokens[: place + 1]

    @invariant()
    def blocks_add_up(self) -> None:
        pool = self.scheduler.pool
        held = Counter(b for s in self.scheduler._live for b in s.block_table)
        assert [held[block] for block in range(len(pool))] == pool.references
        used = sum(1 for count in pool.references if count)
        assert used + pool.free == len(pool)
        assert set(pool._empty).isdisjoint(pool._idle)
        for sequence in self.scheduler._live:
            assert len(sequence.block_table) >= pool.needed(sequence.computed)

    @invariant()
    def texts_are_right(self) -> None:
        for sequence, prompt in self.prompts.values():
            assert sequence.tokens == expected(prompt, len(sequence.tokens))

    def teardown(self) -> None:
        finish(self.scheduler)
        assert self.scheduler.pool.free == len(self.scheduler.pool)
        self.texts_are_right()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
