"""Loads and drops a model until killed: ``python packed_workload.py FILE``; a line a round."""

from __future__ import annotations

import sys

import tarsdb
from tarsdb.engine.inference import packed_weights
from tarsdb.engine.inference.loaded_models import loaded_models
from tarsdb.storage import packed
from tarsdb.storage.transaction import WriteTxn

QUERY = "SELECT generate('m', 'abc', max_tokens => 8)"


def _remove_a_chunk(txn: WriteTxn) -> None:
    key, _ = next(iter(txn.range(packed.DATABASE, b"", None)))
    txn.delete(packed.DATABASE, key)


def main(path: str) -> None:
    """Run until killed."""
    packed_weights.SMALLEST_BYTES = 0
    with tarsdb.connect(path) as db:
        env = db._require_session().env
        db.execute("SET inference_cache = off")
        while True:
            db.execute(QUERY).fetchall()
            packed_weights.queue_of(env).wait()
            env.stage(_remove_a_chunk)
            loaded_models(env).keep_only(())
            print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
