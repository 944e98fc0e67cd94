"""Bulk insert of vectors with scalar columns, durable at the end, beside LMDB alone and databases.

Every sample is a fresh process: it loads its input, warms up with few rows, then inserts. tarsdb
and ``raw`` (the same blocks through LMDB alone) take turns; slower peers run once, Chroma with
fewer rows (in its favour: it slows down as it grows). Chroma builds its vector index on the way,
the others hold vectors for exact search. Memory is the peak above what the process held before.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from typing import Any

from benchmarks import harness

harness.one_thread()

from benchmarks import inputs, processes  # noqa: E402  # after the thread limit

MEMORY_TOUCHED = 512 << 20
MODULE = "benchmarks.workloads.bulk_insert"
PACKAGES = ("numpy", "lmdb", "pyarrow", "duckdb", "sqlite-vec", "chromadb")
PEERS = {"sqlite-vec": 1.0, "chroma": 0.1}
"""Share of the rows each peer gets."""


def run(rows: int, repeats: int) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    samples: dict[str, list[dict[str, Any]]] = {"tarsdb": [], "raw": [], "raw_and_index": []}
    with inputs.scratch() as folder:
        kept, transactions = folder / "kept", 1
        for turn in range(repeats + 1):
            for name, found in samples.items():
                home = kept if turn == 0 and name == "tarsdb" else folder / f"{name}{turn}"
                answer = _child(name, rows, home, kept, transactions)
                transactions = answer.get("transactions", transactions)
                if turn:  # the first turn fills caches, and leaves the file `raw` copies
                    found.append(answer)
        peers: dict[str, dict[str, Any]] = {}
        for name, share in PEERS.items():
            try:
                peers[name] = _child(name, max(100, int(rows * share)), folder / name, kept)
            except processes.ChildError as reason:
                peers[name] = {"absent": str(reason).rpartition("|")[2].strip()}
    return _record(rows, samples, peers)


def _child(
    name: str, rows: int, folder: pathlib.Path, source: pathlib.Path, transactions: int = 1
) -> dict[str, Any]:
    python = processes.interpreter() if name in PEERS else None
    try:
        return processes.call(
            MODULE, "--child", name, "--rows", rows, "--folder", folder, "--source", source,
            "--transactions", transactions, python=python,
        )  # fmt: skip
    finally:
        _empty(folder, keep=folder == source)


def _empty(folder: pathlib.Path, keep: bool) -> None:
    import shutil

    if not keep:
        shutil.rmtree(folder, ignore_errors=True)


def _record(
    rows: int, samples: dict[str, list[dict[str, Any]]], peers: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    seconds = {
        name: harness.summary(s["seconds"] for s in found) for name, found in samples.items()
    }
    speed = {name: rows / figure["median"] for name, figure in seconds.items()}
    first = samples["tarsdb"][0]
    memory = [s["extra_bytes"] for s in samples["tarsdb"] if s["extra_bytes"] is not None]
    for name, answer in peers.items():
        if "seconds" in answer:
            speed[name] = answer["rows"] / answer["seconds"]
    return {
        "data": {"rows": rows, "dim": inputs.DIM, "source": first["source"],
                 "columns": "primary key, INT, 2 TEXT, DOUBLE, VECTOR"},
        "seconds": seconds,
        "cpu_seconds": {n: harness.summary(s["cpu"] for s in f) for n, f in samples.items()},
        "rows_per_second": {name: round(value) for name, value in speed.items()},
        "times_of": {n: speed["tarsdb"] / v for n, v in speed.items() if n != "tarsdb"},
        "peers": peers,
        "peak_extra_mb": max(memory) / 1e6 if memory else None,
        "disk": {
            "file_bytes": first["disk_bytes"], "vector_bytes": first["vector_bytes"],
            "text_bytes": first["text_bytes"],
            "ratio": (first["disk_bytes"] - first["text_bytes"]) / first["vector_bytes"],
        },
    }  # fmt: skip


def child(given: argparse.Namespace) -> dict[str, Any]:
    """Insert once and return time, memory and disk."""
    name, rows, folder = given.child, given.rows, given.folder
    folder.mkdir(parents=True, exist_ok=True)
    if name.startswith("raw"):
        from benchmarks.adapters.raw_lmdb import RawLmdb
        from benchmarks.adapters.tarsdb_store import FILE

        raw = RawLmdb(
            folder, given.source / FILE, given.transactions, with_index=name == "raw_and_index"
        )
        return _timed(raw, raw.insert) | {"value_bytes": raw.nbytes}
    columns, data = inputs.scalars(rows), inputs.vectors(rows)
    store = _store(name)(folder, inputs.DIM)
    few = slice(0, min(rows, 300))
    store.warm({key: values[few] for key, values in columns.items()}, data.base[few])
    before = store.transactions() if name == "tarsdb" else 0
    answer = _timed(store, lambda: store.insert(columns, data.base))
    if name == "tarsdb":
        answer["transactions"] = store.transactions() - before
    text = sum(len(t.encode()) for key in ("label", "body") for t in columns[key])
    return answer | {
        "rows": rows, "source": data.source, "vector_bytes": data.base.nbytes, "text_bytes": text,
    }  # fmt: skip


def _store(name: str) -> Any:
    if name == "tarsdb":
        from benchmarks.adapters.tarsdb_store import TarsdbStore

        return TarsdbStore
    if name == "chroma":
        from benchmarks.adapters.chroma_store import ChromaStore

        return ChromaStore
    from benchmarks.adapters.sqlite_vec_store import SqliteVecStore

    return SqliteVecStore


def _touch_memory() -> None:
    """Touch memory and free it: the first touch of a page can be slow in a virtual machine."""
    import numpy as np

    np.ones(MEMORY_TOUCHED, dtype=np.uint8)


def _timed(store: Any, insert: Any) -> dict[str, Any]:
    _touch_memory()
    with processes.PeakMemory() as memory:
        start, cpu = time.perf_counter(), time.process_time()
        insert()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    disk = store.disk_bytes()
    store.close()
    return {"seconds": seconds, "cpu": cpu, "extra_bytes": memory.extra_bytes, "disk_bytes": disk}


def main() -> None:
    """Measure and store, or be the child that inserts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child")
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--source", type=pathlib.Path)
    parser.add_argument("--transactions", type=int, default=1)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given)))
        return
    record = run(given.rows, given.repeats)
    print(harness.table(f"{given.rows} rows, seconds", record["seconds"], 1.0))
    for key in ("rows_per_second", "times_of", "peers", "peak_extra_mb", "disk"):
        print(f"  {key}: {record[key]}")
    harness.write("bulk_insert", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
