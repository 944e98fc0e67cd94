"""The bars of indexes on a device; those of models there are beside the other bars of inference."""

from __future__ import annotations

from benchmarks.claim import Claim, Record, path


def _built(record: Record) -> float:
    seconds = record["graph"]["seconds"]
    return float(seconds["device"] / seconds["processor"])


def _lost(record: Record) -> float:
    recall = record["graph"]["recall"]
    return float(recall["processor"] - recall["device"])


DEVICE = (
    Claim("gpu_index", "device: a graph built, share of the time", "<= 0.25", _built,
          "the processor, all cores"),
    Claim("gpu_index", "device: recall that its graph lacks at the same ef", "<= 0.01", _lost,
          "the processor's graph"),
    Claim("gpu_index", "device: 10,000 queries in lists, times faster", ">= 10",
          path("lists", "batches", "10000", "ratios", "one thread"), "one thread"),
)  # fmt: skip
