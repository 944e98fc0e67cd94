"""Texts from prompts with one decoder model, for all callers of a process.

Puts tokenizer, chat template, constraints, scheduler and decoder together. Knows no database: which
model, and whether it is still there, is the caller's to say.
"""

from __future__ import annotations

import copy
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy.typing as npt

from tarsdb.errors import DataError, ModelError, QueueFullError
from tarsdb.kernels.gpu.device import Device
from tarsdb.model_ops.decoder import Decoder
from tarsdb.model_ops.decoder_forward import Adapter
from tarsdb.model_ops.generation import scheduler
from tarsdb.model_ops.generation.constraint import ConstraintCompiler
from tarsdb.model_ops.generation.continuous_batch import ContinuousBatch, timed_out
from tarsdb.model_ops.generation.draft_model import DraftBatch, DraftModel
from tarsdb.model_ops.generation.generation_options import GenerationOptions
from tarsdb.model_ops.generation.prompt_lookup import PromptLookup
from tarsdb.model_ops.generation.prompts import Prompt, PromptTokenizer
from tarsdb.model_ops.generation.request import Completion, Drafter, Request
from tarsdb.model_ops.shelf import Shelf
from tarsdb.model_ops.tokenizer import TextTokenizer
from tarsdb.records import dataclass

DEFAULT_CACHE_BYTES = 512 << 20
_AT_A_TIME = 64  # texts of one call that run or wait


@dataclass
class _Running:
    """The running batch of a model and its adapters."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    batch: ContinuousBatch | None = None
    cache_bytes: int = 0
    drafting: weakref.ref[DraftBatch] | None = None


class Generator:
    """A model that writes texts. Thread-safe: callers share one running batch.

    Parameters
    ----------
    decoder : Decoder
    prompts : PromptTokenizer
    constraints : ConstraintCompiler
    tokenizer : TextTokenizer, optional
        Splits texts that are no prompts.
    """

    def __init__(
        self, decoder: Decoder, prompts: PromptTokenizer, constraints: ConstraintCompiler,
        tokenizer: TextTokenizer | None = None,
    ) -> None:  # fmt: skip
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.prompts = prompts
        self._constraints = constraints
        self._running = _Running()
        self._adapter: Adapter | None = None
        self._root = b""

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory, or of a device, that the weights take."""
        return self.decoder.weight_bytes

    @classmethod
    def from_files(
        cls,
        files: Mapping[str, bytes],
        tensors: Mapping[str, npt.NDArray[Any]],
        options: Mapping[str, Any] | None = None,
        device: Device | None = None,
        shelf: Shelf | None = None,
    ) -> Generator:
        """Make a generator of what a model directory holds, as :meth:`Decoder.from_files`."""
        decoder = Decoder.from_files(files, tensors, options or {}, device, shelf)
        spec = decoder.spec
        prompts = PromptTokenizer(files, spec.begin_token, spec.end_tokens)
        return cls(
            decoder, prompts,
            ConstraintCompiler(files["tokenizer.json"], spec.vocabulary, spec.end_tokens),
            TextTokenizer(files["tokenizer.json"], spec.max_positions),
        )  # fmt: skip

    def new_adapter(
        self, files: Mapping[str, bytes], tensors: Mapping[str, npt.NDArray[Any]]
    ) -> Adapter:
        """Read a low-rank adapter of this model; raises as `read_lora`."""
        return self.decoder.new_adapter(files, tensors)

    def with_adapter(self, adapter: Adapter, root: bytes) -> Generator:
        """Return this model as an adapter makes it; both share one running batch.

        ``root`` stands for the adapter's content: texts of one root share what they have in common.
        """
        adapted = copy.copy(self)
        adapted._adapter, adapted._root = adapter, root
        return adapted

    def reserve(self, cache_bytes: int) -> None:
        """Set the memory of the KV cache; while texts are running it stays as it is.

        DataError when it is less than one block of the model takes.
        """
        running = self._running
        with running.lock:
            batch = running.batch
            if batch is not None and (cache_bytes == running.cache_bytes or not batch.idle):
                return
            block_bytes = self.decoder.new_cache(1).block_bytes
            if cache_bytes < block_bytes:
                raise DataError(
                    f"kv_cache_memory of {cache_bytes} bytes is less than one block of this model, "
                    f"{block_bytes} bytes"
                )
            cache = self.decoder.new_cache(cache_bytes // block_bytes)
            decoder = self.decoder
            running.batch = ContinuousBatch(lambda rows: decoder.step(rows, cache), cache.blocks)
            running.cache_bytes = cache_bytes

    def generate(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions,
        check: Callable[[], None] = lambda: None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """Write a text for each prompt, all of them in one running batch.

        Parameters
        ----------
        prompts : sequence of str or of messages
        options : GenerationOptions
        check : callable
            Called between steps and while prompts are made of chat templates and tokenised; what
            it raises ends this call and nobody else's.
        progress : callable, optional
            Takes how many texts are finished and how many there are.

        Raises
        ------
        DataError
            A prompt does not fit the model's context or the KV cache, or is no valid Unicode.
        ModelError
            An option does not suit the model.
        QueueFullError
            Too many texts of other callers wait.
        StatementTimeoutError
            ``timeout`` passed.
        """
        batch = self._require_batch()
        requests = self._requests(batch, prompts, options, check)
        waiting, running = deque(requests), list[Request]()
        try:
            while waiting or running:
                self._fill(batch, waiting, running)
                batch.run(lambda: any(request.finished for request in running), check)
                for request in running:
                    if request.error is not None:
                        raise request.error
                running[:] = [request for request in running if not request.finished]
                if progress is not None:
                    progress(len(requests) - len(waiting) - len(running), len(requests))
        finally:
            batch.cancel([request for request in running if not request.finished])
        return [request.completion() for request in requests]

    def stream(
        self,
        prompt: Prompt,
        options: GenerationOptions,
        check: Callable[[], None] = lambda: None,
    ) -> TextIterator:
        """Write a text piece by piece; raises as :meth:`generate`, at once or while it goes on."""
        batch = self._require_batch()
        (request,) = self._requests(batch, [prompt], options, check)
        request.streamed = True
        batch.submit([request])
        return TextIterator(batch, request, check)

    def _require_batch(self) -> ContinuousBatch:
        if self._running.batch is None:
            self.reserve(DEFAULT_CACHE_BYTES)
        batch = self._running.batch
        assert batch is not None
        return batch

    def _requests(
        self,
        batch: ContinuousBatch,
        prompts: Sequence[Prompt],
        options: GenerationOptions,
        check: Callable[[], None],
    ) -> list[Request]:
        spec = self.decoder.spec
        began = time.monotonic()
        deadline = math.inf if options.timeout is None else began + options.timeout

        def in_time() -> None:
            check()
            if (now := time.monotonic()) > deadline:
                raise timed_out(now - began)

        requests = []
        for number, tokens in enumerate(self.prompts.encode(prompts, options, in_time)):
            length = min(len(tokens) + options.sampling.max_tokens, spec.max_positions)
            _check_length(number, len(tokens), length, spec.max_positions, batch)
            sequence = scheduler.Sequence(
                tokens, length, options.priority, deadline, self._adapter, self._root
            )  # fmt: skip
            constraint = self._constraints.compile(options.rules)
            request = Request(
                sequence, options.sampling, self.prompts.decode, spec.end_tokens, constraint,
                self._drafter(options, length),
            )  # fmt: skip
            requests.append(request)
        return requests

    def _drafter(self, options: GenerationOptions, length: int) -> Drafter | None:
        if not options.speculate:
            return None
        if options.draft is None:
            return PromptLookup()
        if not isinstance(options.draft, Generator):
            raise ModelError(f"generate: draft {options.draft!r:.60} is no model that generates")
        self.prompts.require_same_tokens(options.draft.prompts)
        return DraftModel(options.draft.drafting(), self.decoder.spec.vocabulary, length)

    def drafting(self) -> DraftBatch:
        """Return what drafts for texts of larger models; it lives as long as one of them."""
        with self._running.lock:
            found = None if self._running.drafting is None else self._running.drafting()
            if found is None:
                found = DraftBatch(self.decoder)
                self._running.drafting = weakref.ref(found)
            return found

    def _fill(
        self, batch: ContinuousBatch, waiting: deque[Request], running: list[Request]
    ) -> None:
        """Queue as many texts of a call as may run or wait at a time."""
        while waiting and len(running) < _AT_A_TIME:
            try:
                batch.submit([waiting[0]])
            except QueueFullError:
                if not running:
                    raise
                return
            running.append(waiting.popleft())


class TextIterator(Iterator[str]):
    """The pieces of a text while it is written. Closing it, or dropping it, ends the text.

    The text goes on only while somebody waits: who takes the next piece, or other callers of the
    same model.
    """

    def __init__(self, batch: ContinuousBatch, request: Request, check: Callable[[], None]) -> None:
        self._batch = batch
        self._request = request
        self._check = check

    def __next__(self) -> str:
        request = self._request
        if not request.pieces and not request.finished:
            try:
                self._batch.run(lambda: bool(request.pieces) or request.finished, self._check)
            except BaseException:
                self.close()
                raise
        if request.pieces:
            return request.pieces.popleft()
        if request.error is not None:
            raise request.error
        raise StopIteration

    @property
    def completion(self) -> Completion | None:
        """What the whole text came to; None before its end."""
        return self._request.completion() if self._request.reason else None

    def close(self) -> None:
        """Give the text up."""
        if not self._request.finished:
            self._batch.cancel([self._request])

    def __del__(self) -> None:
        request = getattr(self, "_request", None)
        if request is not None:
            request.cancelled = True  # whoever steps the batch next drops it; no lock is taken here


def _check_length(
    number: int, prompt: int, length: int, positions: int, batch: ContinuousBatch
) -> None:
    """Refuse a prompt that leaves no room for an answer."""
    if prompt >= positions:
        raise DataError(
            f"generate: prompt {number + 1} has {prompt} tokens, the model reads at most "
            f"{positions}, its answer included"
        )
    pool = batch.scheduler.pool
    if pool.needed(length) > len(pool):
        raise DataError(
            f"generate: prompt {number + 1} and its answer may take {length} tokens, the KV cache "
            f"holds {len(pool) * pool.block_size}",
            hint="SET kv_cache_memory to more, or lower max_tokens",
        )
