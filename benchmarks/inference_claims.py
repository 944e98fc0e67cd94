"""The bars of inference, on processors without matrix units: speeds beside the best rival's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.claim import Claim, Record, path

OWN = "tarsdb"
_RIVALS = {"none": "llama.cpp F32", "bf16": "llama.cpp BF16", "int8": "llama.cpp Q8_0",
           "int4": "llama.cpp Q4_0"}  # fmt: skip


def _of_rivals(kind: str, mode: str, threads: int = 1) -> Callable[[Record], Any]:
    """Return a reader of our time over the fastest rival's of the same precision, by the clock."""

    def read(record: Record) -> float:
        seconds = record[f"threads_{threads}"][kind]
        rivals = [taken["wall"] for name, taken in seconds.items()
                  if name.endswith(mode) and not name.startswith(OWN)]  # fmt: skip
        return float(seconds[f"{OWN} {mode}"]["wall"] / min(rivals))

    return read


def _times_faster(kind: str, mode: str) -> Callable[[Record], Any]:
    share = _of_rivals(kind, mode)
    return lambda record: 1 / share(record)


def _times_theirs(record: Record) -> float:
    """Return how many times as fast texts as they come are in bf16 as a user's first choice."""
    seconds = record["threads_1"]["unsorted"]
    theirs = seconds["sentence-transformers fp32"]["wall"]
    return float(theirs / seconds[f"{OWN} bf16"]["wall"])


def _scaling(record: Record) -> float:
    one, two = (record[f"threads_{n}"]["unsorted"][f"{OWN} fp32"]["wall"] for n in (1, 2))
    return float(one / two)


def _of_interval(record: Record) -> float:
    """Return how far nDCG@10 of int8 is from float32's, in halves of its 95% interval."""
    exact, coded = (record["accuracy"][f"{OWN} {mode}"] for mode in ("fp32", "int8"))
    return float(abs(coded["ndcg_at_10"] - exact["ndcg_at_10"]) / exact["half_interval"])


def _speed(what: str, mode: str, rival: str) -> Callable[[Record], Any]:
    def read(record: Record) -> float:
        speeds = record[what]["tokens_per_second"]
        return float(speeds[f"{OWN} {mode}"] / speeds[rival])

    return read


def _of_bandwidth(mode: str) -> Callable[[Record], Any]:
    def read(record: Record) -> float:
        speed = record["b1"]["tokens_per_second"][f"{OWN} {mode}"]
        return float(speed * record["bytes_a_token"][mode] / record["bandwidth"])

    return read


def _on_device(part: str, what: str, ours: str, theirs: str) -> Callable[[Record], Any]:
    """Return a reader of tokens a second on a device over those of PyTorch there."""

    def read(record: Record) -> float:
        found = record[part][what] if what else record[part]
        speeds = found["tokens_per_second"]
        return float(speeds[f"{OWN} {ours}"] / speeds[theirs])

    return read


def _batch(mode: str) -> Callable[[Record], Any]:
    def read(record: Record) -> float:
        one, eight = (record[what]["tokens_per_second"][f"{OWN} {mode}"] for what in ("b1", "b8"))
        return float(eight / one)

    return read


def _mapped(key: str, *, inverse: bool = False) -> Callable[[Record], Any]:
    """Return a reader of what a process that maps packed weights takes, over one that packs."""

    def read(record: Record) -> float:
        maps, packs = (record[mode][key]["median"] for mode in ("maps", "packs"))
        return float(packs / maps if inverse else maps / packs)

    return read


def _decoding(shape: str, modes: Sequence[str], batches: Mapping[str, float]) -> Iterator[Claim]:
    """Yield the bars of a decoder's shape; ``batches``: of eight sequences together, by mode."""
    name, head = f"decode_{shape}_1", f"{shape}, decoding"
    for mode in modes:
        rival = _RIVALS[mode]
        yield Claim(name, f"{head} {mode}, one sequence, times faster", ">= 1.5",
                    _speed("b1", mode, rival), rival)  # fmt: skip
    for mode, rival in (("none", "torch float32"), ("bf16", "torch bfloat16")):
        if mode in modes:
            yield Claim(name, f"{head} {mode}, one sequence, times faster", ">= 2",
                        _speed("b1", mode, rival), rival)  # fmt: skip
    for mode, bar in (("bf16", 0.85), ("int8", 0.8), ("int4", 0.7)):
        share = f"{head} {mode}, share of the memory's bandwidth"
        yield Claim(name, share, f">= {bar}", _of_bandwidth(mode))
    for mode, bar in batches.items():
        together = f"{head} {mode}, eight sequences, times the tokens/s"
        yield Claim(name, together, f">= {bar}", _batch(mode), "one sequence")
    yield Claim(name, f"{shape}, a prompt of 256 tokens, bf16, times faster", ">= 1.5",
                _speed("prefill", "bf16", "torch bfloat16"), "torch bfloat16")  # fmt: skip


INFERENCE = (
    *(
        Claim("embed", f"MiniLM {mode}, texts {kind} by length, times faster", f">= {bar}",
              _times_faster(kind, mode), f"the best {mode} rival")
        for mode, kind, bar in (("fp32", "sorted", 0.95), ("fp32", "unsorted", 1.5),
                                ("bf16", "sorted", 2), ("bf16", "unsorted", 2),
                                ("int8", "sorted", 1.5), ("int8", "unsorted", 1.5))
    ),
    *(
        Claim("embed", f"MiniLM int8, texts {kind} by length, with AMX, times faster", ">= 4",
              _times_faster(kind, "int8"), "the best int8 rival", ("amx",))
        for kind in ("sorted", "unsorted")
    ),
    Claim("embed", "MiniLM bf16, texts unsorted, times faster", ">= 8", _times_theirs,
          "sentence-transformers fp32"),
    *(
        Claim("embed", f"MiniLM {mode}, one text of 16 tokens, share of the time", "<= 0.75",
              _of_rivals("one_text", mode), f"the best {mode} rival")
        for mode in ("fp32", "bf16", "int8")
    ),
    Claim("embed", "MiniLM, two threads, times faster", ">= 1.9", _scaling, "one thread"),
    *(
        Claim("embed", f"MiniLM {mode}, {words}", f">= {bar}",
              path("accuracy", f"{OWN} {mode}", figure))
        for mode, figure, words, bar in (
            ("fp32", "cosine_min", "least cosine to the reference", 0.9999),
            ("bf16", "cosine_min", "least cosine to the reference", 0.9999),
            ("int8", "cosine_mean", "mean cosine to the reference", 0.997),
            ("int8", "overlap_at_10", "overlap of the ten nearest", 0.92),
        )
    ),
    Claim("embed", "MiniLM int8, nDCG@10 on Cranfield, distance in halves of the interval", "<= 1",
          _of_interval, "fp32"),
    *_decoding("110M", ("none", "bf16", "int8", "int4"), {"none": 3.5, "bf16": 3.5, "int8": 3.5}),
    *_decoding("0.5B", ("bf16", "int8", "int4"), {"bf16": 6}),
    Claim("first_embedding", "first embedding of a new process, through SQL, s", "<= 0.6",
          path("tarsdb", "whole", "median")),
    Claim("packed_weights", "110M decoder packed in the file, first token, times sooner", ">= 5",
          _mapped("first_token_s", inverse=True), "packed by the process"),
    Claim("packed_weights", "110M decoder packed in the file, share of the private memory",
          "<= 0.3", _mapped("private_bytes"), "packed by the process"),
    Claim("packed_weights", "110M decoder packed in the file, time of a token", "<= 1.1",
          _mapped("cpu_ms_a_token"), "packed by the process"),
    Claim("serving", "second request with the same 1,000 tokens, times sooner", ">= 10",
          path("prefix", "times_sooner"), "the first"),
    Claim("serving", "16 mixed requests, times sooner", ">= 3", path("together", "times_sooner"),
          "one after another"),
    Claim("serving", "16 mixed requests, the same texts in any company (1: yes)", "== 1",
          path("together", "texts_equal")),
    *(
        Claim("gpu_models", f"device: MiniLM's shape {mode}, times faster", ">= 1",
              _on_device("embed", "", mode, rival), f"{rival} there")
        for mode, rival in (("none", "torch float32"), ("bf16", "torch float16"))
    ),
    *(
        Claim("gpu_models", f"device: decoding 0.5B {mode}, one sequence, times faster", ">= 1.5",
              _on_device("0.5B", "b1", mode, rival), f"{rival} there")
        for mode, rival in (("none", "torch float32"), ("bf16", "torch float16"))
    ),
    *(
        Claim("gpu_models", f"device: decoding 0.5B {mode}, share of the bandwidth", ">= 0.5",
              path("0.5B", "b1", "share_of_bandwidth", mode))
        for mode in ("none", "bf16", "int8")
    ),
)  # fmt: skip
