"""The bars the project holds itself to: each one beside the figures that were measured.

``python -m benchmarks.claims [FOLDER]`` reads stored results, prints a line per bar and level of
the kernels and exits with 1 when one is missed. A bar no result is there for is printed as such and
fails only with ``--strict``.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import harness
from benchmarks.claim import LEVELS, Claim, Record, Records, path
from benchmarks.device_claims import DEVICE
from benchmarks.inference_claims import INFERENCE


def _recall(record: Record) -> float:
    """Return the least recall of any figure of exact search."""
    return min(figure["recall"]["tarsdb"] for figure in record["figures"].values())


def _group_speed(record: Record) -> float | None:
    """Return commits/s of many threads over one thread's, where a sync takes 1 ms."""
    if record["milliseconds"]["write_and_fdatasync"]["p50"] < 1:
        return None
    return float(record["group"]["times_commits_per_second"])


WIDE = ("avx512", "amx")
OTHER = "128 dimensions, inner product"
KINDS = {
    "unfiltered": "unfiltered", "one_percent": "filter of 1%", "ten_percent": "filter of 10%",
    "half": "filter of 50%", "label": "filter of a correlated label",
}  # fmt: skip


def _least_recall(record: Record) -> float:
    return min(float(found["tarsdb"]["recall"]) for found in record["figures"].values())


def _loading(rival: str) -> Callable[[Record], Any]:
    """Return a reader of how many times a rival's rows/s tarsdb loads and indexes."""

    def read(record: Record) -> float:
        own, other = (record["loaded"][name] for name in ("tarsdb", rival))
        return float(own["rows"] / own["seconds"] / (other["rows"] / other["seconds"]))

    return read


def _during_merge(record: Record) -> float:
    return float(record["merge"]["p50_us"] / record["idle"]["p50_us"])


def _least_grown_recall(record: Record) -> float:
    sizes = record["figures"].values()
    return min(float(f[name]["recall"]) for f in sizes for name in ("tarsdb", "tarsdb_sql"))


def _list_search_ms(record: Record) -> float:
    return float(record["figures"]["tarsdb_sql_bits"]["microseconds"] / 1000)


LISTS = {"bits": "lists of signs", "bits+2": "lists of signs and two bits more"}
"""What is measured under a limit of memory, by the name of the codes."""


def _limited_search_ms(codes: str) -> Callable[[Record], float]:
    def read(record: Record) -> float:
        figure = record["figures"][codes]
        if figure["limit"] != "applied":
            raise KeyError("limit")
        return float(figure["warm"]["cpu_us"] / 1000)

    return read


def _worker_adds(record: Record) -> float:
    return max(float(figure["worker_adds_ms"]) for figure in record["calls"].values())


def _latest_kill(record: Record) -> float:
    return max(float(figure["max"]) for figure in record["kills"].values())


def _whole(read: Callable[[Record], Any]) -> Callable[[Record], Any]:
    """Return a reader that knows no figure of a run over fewer rows or minutes than is claimed."""

    def read_whole(record: Record) -> Any:
        data = record["data"]
        return read(record) if data["rows"] >= 1_000_000 and data.get("minutes", 30) >= 30 else None

    return read_whole


CLAIMS = (
    Claim("bulk_insert", "bulk insert, rows/s as a share of raw LMDB", ">= 0.8",
          path("times_of", "raw"), "LMDB, the same blocks"),
    Claim("bulk_insert", "bulk insert, times the rows/s", ">= 10", path("times_of", "chroma"),
          "Chroma"),
    Claim("bulk_insert", "bulk insert, peak extra memory, MB", "<= 200", path("peak_extra_mb")),
    Claim("bulk_insert", "file size less texts, times the raw vectors", "<= 1.10",
          path("disk", "ratio")),
    Claim("one_row_insert", "durable insert of one row, times as long", "<= 2",
          path("times_of_sqlite"), "SQLite, WAL, synchronous=FULL"),
    Claim("one_row_insert", "flushes per commit", "<= 2",
          path("flushes_per_commit", "tarsdb", "all")),
    Claim("one_row_insert", "16 threads, commits per sync", ">= 4",
          path("group", "commits_per_sync")),
    Claim("one_row_insert", "16 threads, times the commits/s of one thread", ">= 5", _group_speed,
          "where fdatasync takes 1 ms or more"),
    Claim("one_row_changes", "UPDATE of one row by its key in a transaction, CPU us", "<= 100",
          path("figures", "update", "transaction", "cpu_us")),
    Claim("small_queries", "small statements, median of times as long (CPU)", "<= 4",
          path("median_times_of_sqlite"), "sqlite3 module"),
    *(
        Claim("joins", f"100,000 rows, nearest {how}, share of the time (CPU)", "<= 0.25",
              path("figures", f"nearest, {kind}", "share_of", peer), name)
        for how, kind, peer, name in (
            ("of a join, exact", "exact", "duckdb", "DuckDB"),
            ("of a join, by a graph", "by a graph", "sqlite", "sqlite-vec (vec0), exact"),
        )
    ),
    Claim("joins", "100,000 rows, a row and its parent by a key, times as long (CPU)", "<= 2",
          path("figures", "a row and its parent", "share_of", "duckdb"), "DuckDB's own tables"),
    Claim("concurrent_embed", "8 threads and 3 processes, lock errors", "== 0",
          path("lock_errors")),
    Claim("concurrent_embed", "point write beside them, p99 ms", "<= 100",
          path("point_write_ms", "p99")),
    Claim("concurrent_embed", "history consistent (1: yes)", "== 1", path("history", "consistent")),
    Claim("point_read", "point read by SQL, times as long", "<= 4",
          path("point", "times_of_sqlite3"), "sqlite3 module"),
    Claim("point_read", "kNN statement over the bare kernel, in point reads", "<= 10",
          path("overhead_small", "point_reads_of_sqlite3"), "sqlite3 point read"),
    Claim("point_read", "filtered kNN, 1%, times as long", "<= 3",
          path("filtered", "tarsdb_as_share_of", "numpy_diff"),
          "NumPy ((rows - q)**2).sum on filtered rows"),
    Claim("point_read", "filtered kNN, 1%, share of the time", "<= 0.05",
          path("filtered", "tarsdb_as_share_of", "sqlite_vec0"), "sqlite-vec (vec0)"),
    Claim("point_read", "filtered kNN, 1%, share of the time", "<= 0.05",
          path("filtered", "tarsdb_as_share_of", "duckdb"), "DuckDB"),
    Claim("point_read", "filtered kNN, recall", "== 1", path("filtered", "recall", "tarsdb")),
    Claim("exact_knn", "exact kNN, one query, times faster (CPU)", ">= 1.3",
          path("figures", "l2_batch1", "ratios", "faiss"), "faiss IndexFlat"),
    Claim("exact_knn", "exact kNN, one query, times faster (CPU)", ">= 4",
          path("figures", "l2_batch1", "ratios", "sqlite-vec"), "sqlite-vec"),
    *(
        Claim("exact_knn", f"exact kNN, {words}, times faster (CPU)", f">= {bar}",
              path("figures", f"{metric}_{kind}", "ratios", "faiss"), f"faiss IndexFlat, {metric}")
        for kind, words, bar in (("batch1", "one query", 6), ("batch128", "128 queries", 8))
        for metric in ("l2", "ip")
    ),
    Claim("exact_knn", "exact kNN, recall", "== 1", _recall),
    *(
        Claim("graph_index", f"graph search at recall {target}, times faster (CPU)", f">= {bar}",
              path("tarsdb_times", rival, target), rival, levels)
        for target in ("0.95", "0.99")
        for rival, bar, levels in (("hnswlib", 3.5, WIDE), ("svs-lvq8", 1.5, WIDE),
                                   ("hnswlib", 1.2, ("avx2",)))
    ),
    Claim("graph_index", "building a graph, share of the time (CPU)", "<= 0.35",
          path("build_share_of", "hnswlib"), "hnswlib"),
    Claim("graph_index", "building a graph fast, share of the time (CPU)", "<= 0.2",
          path("fast_build_share_of", "hnswlib"), "hnswlib"),
    Claim("graph_index", "searching it at recall 0.95, times faster (CPU)", ">= 1",
          path("fast_build_times", "hnswlib", "0.95"), "hnswlib"),
    Claim("graph_index", "graph, bytes a vector of 384 dimensions", "<= 640",
          path("bytes_per_vector")),
    Claim("graph_index", "file with a graph, times the raw vectors", "<= 1.45",
          path("disk_of_raw")),
    *(
        Claim("graph_index_ip128", f"{OTHER}: graph search at recall {target}, times faster (CPU)",
              ">= 3.5", path("tarsdb_times", "hnswlib", target), "hnswlib", WIDE)
        for target in ("0.95", "0.99")
    ),
    *(
        Claim("graph_index_ip128", f"{OTHER}: building a graph{how}, share of the time (CPU)",
              f"<= {bar}", path(key, "hnswlib"), "hnswlib", WIDE)
        for how, key, bar in (("", "build_share_of", 0.35), (" fast", "fast_build_share_of", 0.2))
    ),
    *(
        Claim("end_to_end", f"through SQL, {words}, share of the time (CPU)", f"<= {bar}",
              path("tarsdb_share_of", kind, rival), words_of)
        for rival, words_of, bars in (
            ("hnswlib_sqlite", "hnswlib and SQLite", {"unfiltered": 0.75}),
            ("zvec", "zvec", {"unfiltered": 0.4, "one_percent": 0.7, "ten_percent": 0.35,
                              "half": 0.5, "label": 0.75}),
            ("chroma", "Chroma", dict.fromkeys(KINDS, 0.1)),
            ("lancedb", "LanceDB", dict.fromkeys(KINDS, 0.1)),
        )
        for kind, words in KINDS.items() if (bar := bars.get(kind)) is not None
    ),
    Claim("end_to_end", "through SQL, least recall@10", ">= 0.985", _least_recall),
    Claim("end_to_end", "rows/s to indexed and durable, times as many", ">= 5",
          _loading("chroma"), "Chroma"),
    Claim("end_to_end", "rows/s to indexed and durable, times as many", ">= 2.5",
          _loading("hnswlib_sqlite"), "hnswlib and SQLite"),
    Claim("index_updates", "search at steady churn, times as long", "<= 1.7",
          path("churn_over_idle"), "right after OPTIMIZE"),
    Claim("index_updates", "vectors updated a second, durable by the hundred", ">= 5000",
          path("vector_updates", "rows_per_second")),
    Claim("index_updates", "scalars updated a second", ">= 20000",
          path("scalar_updates", "rows_per_second")),
    Claim("index_updates", "graphs built by scalar updates", "== 0",
          path("scalar_updates", "parts_built")),
    Claim("index_updates", "search during a merge, p50, times as long", "<= 1.5",
          _during_merge, "idle"),
    *(
        Claim("index_updates", f"recall lost by deleting {share}%", "<= 0.01",
              path("recall_lost", f"deleted_{share}"))
        for share in (20, 95)
    ),
    *(
        Claim("growth", f"{words}, twice the rows (fitted, 10,000 to 1,000,000), times as long",
              "<= 1.15", _whole(path("fit", name, "times_per_doubling")))
        for name, words in (("tarsdb", "graph search"), ("tarsdb_sql", "through SQL"))
    ),
    Claim("growth", "graph search, 300,000 rows at recall 0.95, times faster (CPU)", ">= 3.5",
          path("tarsdb_times", "hnswlib", "300000"), "hnswlib"),
    Claim("growth", "least recall@10, 10,000 to 1,000,000 rows", ">= 0.95",
          _whole(_least_grown_recall)),
    Claim("growth", "private memory of searching 1,000,000 rows, bytes a vector", "<= 640",
          path("figures", "1000000", "tarsdb_sql", "private_bytes")),
    *(
        Claim("churn", f"1,000,000 rows, three processes changing them: {words}", bar,
              _whole(path(*names)), peer)
        for words, bar, names, peer in (
            ("recall@10 lost", "<= 0.01", ("recall_lost",), ""),
            ("search p50, times as long", "<= 1.7", ("p50_over_optimised",),
             "right after OPTIMIZE"),
            ("most graphs in the index", "<= 8", ("churn", "most_parts"), ""),
            ("rows missing or come back", "== 0", ("live_rows_wrong",), ""),
        )
    ),
    *(
        Claim("ivf", f"1,000,000 rows, inverted lists of {words}", "<= 0.25",
              _whole(path(*names)), peer)
        for words, names, peer in (
            ("signs at recall 0.95, share of the time (CPU)",
             ("share_of", "tarsdb_bits", "faiss_pq"), "faiss IVF-PQ, refined"),
            ("signs, the same", ("share_of", "tarsdb_bits", "faiss_fast_scan"),
             "faiss IVF-PQ fast scan, refined"),
            ("signs and two bits more at recall 0.95, share of the time (CPU)",
             ("share_of", "tarsdb_bits+2", "faiss_pq"), "faiss IVF-PQ, refined"),
            ("signs and two bits more, the same", ("share_of", "tarsdb_bits+2", "faiss_fast_scan"),
             "faiss IVF-PQ fast scan, refined"),
            ("product codes at recall 0.95, share of the time (CPU)",
             ("share_of", "tarsdb_pq", "faiss_pq"), "faiss IVF-PQ, refined"),
            ("product codes, the same", ("share_of", "tarsdb_pq", "faiss_fast_scan"),
             "faiss IVF-PQ fast scan, refined"),
        )
    ),
    Claim("ivf", "1,000,000 rows, a search through SQL by lists of signs, ms of CPU", "<= 3",
          _whole(_list_search_ms)),
    *(
        Claim("ivf_limited", f"1,000,000 rows in 25% of their memory, {words}, {what}", bar,
              _whole(figure), peer)
        for codes, words in LISTS.items()
        for what, bar, figure, peer in (
            ("warm, ms of CPU", "<= 3", _limited_search_ms(codes), ""),
            ("recall", ">= 0.95", path("figures", codes, "recall"), ""),
            ("share of the time (CPU)", "<= 0.25", path("share_of_faiss_pq", codes),
             "faiss IVF-PQ, refined, without a limit"),
        )
    ),
    Claim("two_threads", "searches/s of two threads, times one's: single queries", ">= 1.8",
          path("two_over_one")),
    Claim("two_threads", "searches/s of two threads, times one's: batches", ">= 1.8",
          path("batches_two_over_one")),
    *(
        Claim("sandbox", f"sandboxed function, {words}, times as long (CPU)", bar, path(*names),
              "the same function by Numba")
        for words, bar, names in (
            ("polynomial of 1,000,000 float64, bare", "<= 2",
             ("polynomial_f64", "bare", "times_of_numba")),
            ("polynomial of 1,000,000 float32, bare", "<= 1.5",
             ("polynomial_f32", "bare", "times_of_numba")),
            ("dot products of 384 float32, bare", "<= 4.5", ("dot", "bare", "times_of_numba")),
            ("what f(x) adds to SELECT x", "<= 4.5", ("sql", "added_times_of_numba")),
            ("what f(x) adds to WHERE x > c", "<= 4.5", ("sql", "where", "added_times_of_numba")),
            ("what f(x) adds to sum(x)", "<= 4.5", ("sql", "sum", "added_times_of_numba")),
            ("the whole of SELECT f(x)", "<= 4.5", ("sql", "statement_times_of_numba")),
            ("the whole of WHERE f(x) > c", "<= 4.5",
             ("sql", "where", "statement_times_of_numba")),
            ("the whole of sum(f(x))", "<= 4.5", ("sql", "sum", "statement_times_of_numba")),
            ("100,000 vectors ordered by a metric", "<= 6", ("metric", "order", "times_of_numba")),
        )
    ),
    Claim("sandbox", "sandboxed function, what a row adds to a call, ns", "<= 5",
          path("calls", "row_adds_ns")),
    *(
        Claim("sandbox", f"sandboxed function, what a row adds to {words}, ns (CPU)", "<= 5",
              path("sql", name, "added_ns_a_row"))
        for words, name in (("WHERE", "where"), ("sum", "sum"))
    ),
    Claim("sandbox", "sandboxed function called row by row, times the time a row", ">= 1000",
          path("calls", "per_row_over_batched"), "batches of 60,000"),
    Claim("sandbox", "sandboxed function, a new instance, us (CPU)", "<= 200",
          lambda record: max(record["calls"]["new_instance_us"].values())),
    Claim("sandbox_worker", "1,000 rows in a worker process, ms more than in process", "<= 1",
          _worker_adds),
    Claim("sandbox_worker", "a worker that hangs is killed, ms after its deadline, worst", "<= 100",
          _latest_kill),
    Claim("sandbox_worker", "native code of a module from the cache, ms", "<= 1",
          path("code", "textkit", "load_ms")),
    Claim("startup", "import, times as long", "<= 1.3", path("import", "times_of_numpy"),
          "import numpy"),
    Claim("startup", "open 100k rows and answer the first kNN, s", "<= 0.5",
          path("warm", "open", "median")),
    Claim("startup", "the same with an empty kernel cache: recall", "== 1",
          path("no_cache", "recall")),
    Claim("sql_logic", "sqllogictest select1-3, share that agrees", "== 1",
          path("rate", "select")),
    Claim("sql_logic", "sqllogictest random files, share that agrees", ">= 0.998",
          path("rate", "random")),
    *INFERENCE,
    *DEVICE,
)  # fmt: skip


def load(folder: pathlib.Path) -> dict[str, dict[str, Record]]:
    """Return all stored records by workload and level, the widest level last."""
    records: dict[str, dict[str, Record]] = {}
    for level in LEVELS:
        for file in sorted(folder.glob(f"*.{level}.json")):
            name = file.name.removesuffix(f".{level}.json")
            records.setdefault(name, {})[level] = json.loads(file.read_text(encoding="utf-8"))
    return records


def values_of(claim: Claim, records: Records) -> dict[str, float]:
    """Return a claim's figure at each level at which it is a bar and was measured."""
    found = {}
    for level, record in records.get(claim.workload, {}).items():
        try:
            value = claim.figure(record)
        except (KeyError, TypeError, ValueError):
            continue
        if level in claim.levels and value is not None:
            found[level] = float(value)
    return found


def main() -> int:
    """Print all bars and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=harness.RESULTS)
    parser.add_argument("--strict", action="store_true", help="absent figures fail too")
    given = parser.parse_args()
    records = load(given.folder)
    missed = absent = 0
    for claim in CLAIMS:
        against = f" [{claim.peer}]" if claim.peer else ""
        about = f"{claim.bar:<8} {claim.text}{against}"
        values = values_of(claim, records)
        for level, value in values.items():
            missed += not claim.passes(value)
            state = "pass" if claim.passes(value) else "MISS"
            print(f"{state:<6} {level:<8} {value:>9.3f} {about}")
        if not values:
            absent += 1
            print(f"absent {'-':<8} {'-':>9} {about}")
    print(f"{missed} missed, {absent} not measured")
    return int(missed > 0 or (given.strict and absent > 0))


if __name__ == "__main__":
    sys.exit(main())
