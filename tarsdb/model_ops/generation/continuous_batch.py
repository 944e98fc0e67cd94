"""One running batch that the callers of several threads share.

There is no thread of its own: of the callers that wait for texts one, the leader, steps the batch
for all of them, and leaves it to another when its own texts are done or it is interrupted. A step
takes rows of every running text (Orca, Yu et al. 2022; vLLM, Kwon et al. 2023). Knows no text and
no database.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tarsdb.errors import (
    DatabaseError,
    InternalError,
    ModelError,
    QueueFullError,
    StatementTimeoutError,
)
from tarsdb.metrics import METRICS
from tarsdb.model_ops.decoder_forward import StepBatch
from tarsdb.model_ops.generation.draft_model import DraftBatch, DraftModel
from tarsdb.model_ops.generation.kv_blocks import BlockPool
from tarsdb.model_ops.generation.request import Request
from tarsdb.model_ops.generation.scheduler import Chunk, Scheduler

MAX_QUEUED = 1024
_POLL_S = 0.05  # how often a caller that waits looks whether it was interrupted
_SPECULATING = 4  # texts at a time; with more, rows are better spent on the texts themselves


class Steps(Protocol):
    """A decoder with its KV cache."""

    def __call__(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """Return the logits of the wanted rows, (w, vocabulary) float32."""


class ContinuousBatch:
    """Texts that are generated together.

    Parameters
    ----------
    step : callable
        Computes the rows of a step.
    blocks : int
        Blocks of the KV cache.
    block_size : int
        Tokens of a block.
    max_queued : int
        Texts that run or wait at most.
    """

    def __init__(
        self, step: Steps, blocks: int, block_size: int = 16, max_queued: int = MAX_QUEUED
    ) -> None:
        self._step_rows = step
        self.scheduler = Scheduler(BlockPool(blocks, block_size))
        self.max_queued = max_queued
        self._requests: dict[int, Request] = {}  # by id() of the sequence
        self._changed = threading.Condition()
        self._leader: object | None = None

    @property
    def idle(self) -> bool:
        """True when no text runs or waits."""
        return all(request.finished for request in tuple(self._requests.values()))

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue texts; QueueFullError, and none of them is queued, when there are too many."""
        with self._changed:
            if self._leader is None:
                self._drop()
            if len(self._requests) + len(requests) > self.max_queued:
                raise QueueFullError(
                    f"{len(self._requests)} texts run or wait, {len(requests)} more would be over "
                    f"the limit of {self.max_queued}",
                    hint="try again later",
                )
            now = time.monotonic()
            for request in requests:
                request.submitted = now
                self._requests[id(request.sequence)] = request
                self.scheduler.add(request.sequence)
            self._changed.notify_all()

    def cancel(self, requests: Sequence[Request]) -> None:
        """Let go of texts nobody waits for; a step that runs now is not stopped."""
        for request in requests:
            request.cancelled = True
        with self._changed:
            if self._leader is None:
                self._drop()

    def run(self, done: Callable[[], bool], check: Callable[[], None]) -> None:
        """Return when ``done()``; meanwhile step the batch, or wait for the thread that does.

        ``check`` runs between steps and may raise: the batch goes on without this thread.
        """
        me = object()
        while not done():
            check()
            try:
                with self._changed:
                    if self._leader is not None:
                        self._changed.wait(_POLL_S)
                        continue
                    self._leader = me
                while not done():
                    check()
                    self._step()
            finally:
                if self._leader is me:  # an interruption may come anywhere above
                    self._leader = None
                    with self._changed:
                        self._changed.notify_all()

    def _step(self) -> None:
        with self._changed:
            self._drop()
            preempted = self.scheduler.preemptions
            chunks = self.scheduler.schedule()
            chunks.sort(key=lambda chunk: chunk.sequence.root)  # rows of an adapter lie together
            preempted = self.scheduler.preemptions - preempted
        if not chunks:
            self._fail(list(self._requests.values()), InternalError("no text can go on"))
            return
        started = time.perf_counter()
        requests = [self._requests[id(chunk.sequence)] for chunk in chunks]
        try:
            logits = self._step_rows(assemble(chunks))
        except Exception as error:  # the same rows would fail again and again
            self._fail(requests, error)
            return
        seconds = time.perf_counter() - started
        row = 0
        for chunk, request in zip(chunks, requests, strict=True):
            self._accept(request, chunk, logits[row : row + chunk.wanted])
            row += chunk.wanted
        self._count(chunks, requests, seconds, preempted)
        self._speculate(requests)
        with self._changed:
            if any(request.finished or request.pieces for request in requests):
                self._drop()
                self._changed.notify_all()

    def _accept(self, request: Request, chunk: Chunk, logits: npt.NDArray[np.float32]) -> None:
        """Take the outcome of a step into one text; another text's failure is not its own."""
        drafts = chunk.tokens[len(chunk.tokens) - chunk.wanted + 1 :] if chunk.wanted > 1 else []
        try:
            new = request.take(logits, drafts) if chunk.wanted else []
            self.scheduler.advance(chunk, new)
        except BaseException as error:
            # it cannot be taken again: part of it may be in the text already
            request.error = _failure(error)
            if not isinstance(error, Exception):
                raise
            return
        if drafts:
            METRICS.add("generate.drafts", len(drafts))
            METRICS.add("generate.accepted_drafts", len(new) - 1)
        if new:
            METRICS.add("generate.tokens", len(new))

    def _speculate(self, requests: Sequence[Request]) -> None:
        if len(requests) > _SPECULATING:
            return
        started = time.perf_counter()
        together: dict[DraftBatch, list[Request]] = {}
        for request in requests:
            if request.finished or not request.room:
                continue
            if isinstance(request.drafter, DraftModel):
                together.setdefault(request.drafter.batch, []).append(request)
            else:
                request.draft()
        for batch, group in together.items():
            _draft_together(batch, group)
        METRICS.add("generate.draft_seconds", time.perf_counter() - started)

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        for request in requests:
            request.error = _failure(error)
        with self._changed:
            self._drop()
            self._changed.notify_all()

    def _drop(self) -> None:
        """Take out what has ended, is no longer wanted or comes too late."""
        for sequence in self.scheduler.expired(time.monotonic()):
            request = self._requests[id(sequence)]
            request.error = timed_out(time.monotonic() - request.submitted)
        for key, request in list(self._requests.items()):
            if request.finished:
                del self._requests[key]
                self.scheduler.remove(request.sequence)

    def _count(
        self, chunks: Sequence[Chunk], requests: Sequence[Request], seconds: float, preempted: int
    ) -> None:
        METRICS.add("generate.steps")
        METRICS.add("generate.rows", sum(len(chunk.tokens) for chunk in chunks))
        METRICS.add("generate.step_seconds", seconds)
        if preempted:
            METRICS.add("generate.preemptions", preempted)
        now = time.monotonic()
        for chunk, request in zip(chunks, requests, strict=True):
            sequence = chunk.sequence
            if not request.started and chunk.start == sequence.cached:
                request.started = True
                METRICS.add("generate.prompt_tokens", sequence.prompt_length)
                METRICS.add("generate.cached_tokens", sequence.cached)
                METRICS.add("generate.queue_seconds", now - seconds - request.submitted)


def timed_out(waited: float) -> StatementTimeoutError:
    """Return the error of a text that takes longer than its ``timeout``, seconds so far."""
    return StatementTimeoutError(
        f"generate: a text was not finished after {waited:.1f} s, its timeout"
    )


def _draft_together(batch: DraftBatch, requests: Sequence[Request]) -> None:
    asked = [
        (request.drafter, request.sequence.tokens, request.room)
        for request in requests
        if isinstance(request.drafter, DraftModel)
    ]
    try:
        for request, drafts in zip(requests, batch.drafts(asked), strict=True):
            request.sequence.drafts = drafts
    except Exception as error:  # a draft model may fail, and not the texts that do without it
        for request in requests:
            request.error = _failure(error)


def assemble(chunks: Sequence[Chunk]) -> StepBatch:
    """Put the rows of a step into arrays."""
    counts = [len(chunk.tokens) for chunk in chunks]
    offsets = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    tables = [chunk.sequence.block_table for chunk in chunks]
    block_tables = np.zeros((len(chunks), max(map(len, tables))), np.int32)
    for row, table in enumerate(tables):
        block_tables[row, : len(table)] = table
    wanted = [
        row
        for chunk, end in zip(chunks, offsets[1:].tolist(), strict=True)
        for row in range(end - chunk.wanted, end)
    ]
    return StepBatch(
        np.array([token for chunk in chunks for token in chunk.tokens], np.int32),
        offsets,
        np.array([chunk.start for chunk in chunks], np.int32),
        block_tables,
        np.array(wanted, np.int32),
        [chunk.sequence.adapter for chunk in chunks],
    )


def _failure(error: BaseException) -> Exception:
    if isinstance(error, DatabaseError):
        return error
    return ModelError(f"generate: a step failed: {type(error).__name__}: {error}")
