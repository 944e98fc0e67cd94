"""Embeds texts until killed: ``python inference_workload.py FILE SEED``; prints a line a statement.

The cache is small, so that results are removed and moved all the time, and some are erased.
"""

from __future__ import annotations

import random
import sys

import tarsdb
from tarsdb.engine.inference import inference_cache

WORDS = ("a", "b", "date", "time", "parse", "string", "the", "how", "do", "i")


def main(path: str, seed: int) -> None:
    """Run until killed."""
    rng = random.Random(seed)
    inference_cache.LINGER_S = 0.001
    with tarsdb.connect(path) as db:
        db.execute("PRAGMA inference_cache_size = '1MiB'")
        while True:
            texts = [" ".join(rng.choices(WORDS, k=rng.randrange(1, 6))) for _ in range(400)]
            rows = ", ".join(f"('{text}')" for text in texts)
            db.execute(f"SELECT embed('m', t) FROM (VALUES {rows}) v(t)").fetchall()
            if rng.random() < 0.1:
                db.execute(f"PRAGMA forget_inference('{texts[0]}')")
            print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
