"""What a call of an encoder did and where its time went, for ``tars_metrics`` and EXPLAIN."""

from __future__ import annotations

import threading
import time

import numpy as np
import numpy.typing as npt

from tarsdb.metrics import METRICS

PADDED_BATCH = 32
"""Texts in a batch of an engine that pads, for ``padding_avoided``: the usual default."""
STAGES = ("tokenize", "queue", "forward", "pool")


class EncodeFigures:
    """Counts of one call, on a device or not; its panels report from several threads.

    ``padding_avoided`` is how many more tokens batches of 32 texts in the order given would have
    had, each padded to its longest text. Seconds of a stage are summed over threads.
    """

    def __init__(self, on_device: bool = False) -> None:
        self._on_device = on_device
        self._lock = threading.Lock()
        self._start = time.perf_counter()
        self._counts = dict.fromkeys(("texts", "tokens", "batches", "padding_avoided"), 0)
        self._seconds = dict.fromkeys(STAGES, 0.0)

    def tokenized(self, lengths: npt.NDArray[np.int64], seconds: float) -> None:
        """Note texts of these lengths in tokens."""
        counts = lengths.tolist()
        batches = (counts[at : at + PADDED_BATCH] for at in range(0, len(counts), PADDED_BATCH))
        padded = sum(max(batch) * len(batch) for batch in batches)
        tokens = sum(counts)
        with self._lock:
            self._counts["texts"] += len(lengths)
            self._counts["tokens"] += tokens
            self._counts["padding_avoided"] += padded - tokens
            self._seconds["tokenize"] += seconds

    def computed(self, forward: float, pool: float) -> None:
        """Note one panel and the seconds of its stages."""
        with self._lock:
            self._counts["batches"] += 1
            self._seconds["forward"] += forward
            self._seconds["pool"] += pool

    def waited(self, seconds: float) -> None:
        """Note how long panels waited for a core that others used."""
        with self._lock:
            self._seconds["queue"] += seconds

    def report(self) -> None:
        """Add everything to the counters, from the thread that asked."""
        found: dict[str, float] = {f"encode.{name}": n for name, n in self._counts.items()}
        found |= {f"encode.{name}_seconds": spent for name, spent in self._seconds.items()}
        found["encode.seconds"] = time.perf_counter() - self._start
        if self._on_device:
            found["encode.device_batches"] = self._counts["batches"]
        METRICS.add_all(found)
