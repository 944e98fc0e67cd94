"""A million indexed rows in one file while three processes change and search them for half an hour.

Each process inserts, updates, deletes (100 rows a durable commit, equally many commits of each)
and searches, as fast as it can, in random order; an id belongs to one process, so each knows what
must be there at the end. When they have stopped and the work behind their writes is done, some
more rows are changed, which no graph covers then. The file as it is (``churned``) and a copy of it
after ``OPTIMIZE`` (``optimised``) are searched in turns, with the list size that reached the recall
in the first place (``fresh``). New vectors are drawn around real ones (``inputs.Expansion``).
Writes ``results/churn.LEVEL.json``.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

from benchmarks import exact, inputs, processes  # noqa: E402
from benchmarks.adapters.served import tarsdb as ours  # noqa: E402
from benchmarks.served import rows  # noqa: E402
from tarsdb.errors import Error  # noqa: E402
from tarsdb.storage import Snapshot, read_parts, tables_of  # noqa: E402

MODULE = "benchmarks.workloads.churn"
PACKAGES = ("numpy", "numba", "lmdb")
PROCESSES = 3
STEPS = ("insert", "update", "delete", "search")
BATCH, SEARCHES = 100, 50
K, TARGET = 10, 0.985
LAST = 3
"""Commits of each kind after the work behind the others is done: 600 fresh rows, no new graph."""
SETTLING = 3600.0
"""Seconds the work behind the last writes may take."""
INSERT = "INSERT INTO docs (id, sel, label, emb) VALUES (?, ?, 0, ?)"
UPDATE = "UPDATE docs SET emb = ? WHERE id = ?"


def run(given: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    queries = inputs.vectors(1).queries
    known = inputs.vectors(min(given.rows, inputs.LIMIT))
    np.save(folder / "near.npy", inputs.Expansion(known.base).near)
    record: dict[str, Any] = {"fresh": _fresh(given.rows, folder, queries)}
    print(f"  fresh: {record['fresh']}", flush=True)
    record["churn"] = _churn(given, folder, record["fresh"]["ef"])
    print(f"  churn: {record['churn']}", flush=True)
    given.worker, given.folder, given.ef = 0, folder, record["fresh"]["ef"]
    last = Worker(given)
    last.change(LAST)
    last.close()
    record |= _after(folder, queries, record["fresh"]["ef"])
    record["live_rows_wrong"] = _wrong_rows(folder, record.pop("ids"))
    record["recall_lost"] = record["fresh"]["recall"] - record["churned"]["recall"]
    record["p50_over_optimised"] = record["churned"]["p50_us"] / record["optimised"]["p50_us"]
    record["p50_over_fresh"] = record["churned"]["p50_us"] / record["fresh"]["p50_us"]
    record["data"] = {
        "rows": given.rows, "dim": inputs.DIM, "k": K, "minutes": given.minutes,
        "source": f"{known.source} ({len(known.base):,} expanded)", "target_recall": TARGET,
    }  # fmt: skip
    return record


# --- before and after ---


def _fresh(count: int, folder: pathlib.Path, queries: np.ndarray) -> dict[str, Any]:
    """Load the table, choose the list size, and measure."""
    data = rows(count)
    right = exact.nearest(data.vectors, queries, K)
    store = ours.Store(folder, inputs.DIM)
    store.load(data)
    found = 0.0
    for ef in store.sizes:
        store.tune(ef)
        found = exact.recall(_found(store, queries), right)
        if found >= TARGET:
            break
    timed = _in_turns({"fresh": store}, queries)["fresh"]
    state = {"ef": ef, "recall": found, **timed, **_shape(store, folder)}
    store.close()
    return state


def _after(folder: pathlib.Path, queries: np.ndarray, ef: int) -> dict[str, Any]:
    """Measure the file as it was left beside an optimised copy."""
    copy = folder / "optimised"
    copy.mkdir()
    shutil.copyfile(folder / ours.FILE, copy / ours.FILE)
    stores = {"churned": ours.Store(folder, inputs.DIM), "optimised": ours.Store(copy, inputs.DIM)}
    start = time.perf_counter()
    stores["optimised"].db.execute("OPTIMIZE docs")
    seconds = time.perf_counter() - start
    held = stores["churned"].db.execute("SELECT id, emb FROM docs").numpy()
    ids, vectors = held["id"], np.asarray(held["emb"])
    right = ids[exact.nearest(vectors, queries, K)]
    del held, vectors
    for store in stores.values():
        store.tune(ef)
    states: dict[str, Any] = {
        name: {"recall": exact.recall(_found(store, queries), right)}
        for name, store in stores.items()
    }
    timed = _in_turns(stores, queries)
    for (name, store), at in zip(stores.items(), (folder, copy), strict=True):
        states[name] |= {**timed[name], **_shape(store, at)}
        store.close()
    return {**states, "optimize_seconds": seconds, "ids": ids}


def _found(store: ours.Store, queries: np.ndarray) -> list[list[int]]:
    return [store.search(query, K, "unfiltered") for query in queries]


def _in_turns(
    stores: dict[str, ours.Store], queries: np.ndarray, repeats: int = 5
) -> dict[str, dict[str, float]]:
    """Return quantiles of wall microseconds of a query, and the median of CPU microseconds."""
    wall: dict[str, list[float]] = {name: [] for name in stores}
    cpu: dict[str, list[float]] = {name: [] for name in stores}
    for _ in range(repeats):
        for name, store in stores.items():
            began = time.thread_time()
            for query in queries:
                start = time.perf_counter()
                store.search(query, K, "unfiltered")
                wall[name].append(time.perf_counter() - start)
            cpu[name].append((time.thread_time() - began) / len(queries))
    return {
        name: {**_quantiles(wall[name], "us", 1e6), "cpu_us": 1e6 * statistics.median(cpu[name])}
        for name in stores
    }


def _quantiles(seconds: list[float], unit: str, scale: float) -> dict[str, float]:
    p50, p99 = np.quantile(seconds, (0.5, 0.99)) * scale
    return {f"p50_{unit}": float(p50), f"p99_{unit}": float(p99)}


def _shape(store: ours.Store, folder: pathlib.Path) -> dict[str, Any]:
    """Return the nodes of each graph of the index, and the bytes of the file."""
    env = store.db._require_session().env
    with Snapshot(env) as snapshot:
        index = next(i for i in tables_of(env)[0].indexes if i.method == "hnsw")
        parts = [part.rows for part in read_parts(snapshot.txn, index.id)]
    size = (folder / ours.FILE).stat().st_size
    return {"parts": len(parts), "nodes": parts, "file_bytes": size}


def _wrong_rows(folder: pathlib.Path, ids: np.ndarray) -> int:
    """Return how many ids are there and should not be, or the other way round."""
    live = np.concatenate([np.load(folder / f"live{n}.npy") for n in range(PROCESSES)])
    return len(np.setxor1d(live, ids)) + len(ids) - len(np.unique(ids))


# --- between ---


def _churn(given: argparse.Namespace, folder: pathlib.Path, ef: int) -> dict[str, Any]:
    """Let the processes work, look at the index meanwhile, and return what they counted."""
    command = [sys.executable, "-m", MODULE, "--rows", str(given.rows), "--folder", str(folder),
               "--minutes", str(given.minutes), "--ef", str(ef), "--worker"]  # fmt: skip
    children = [
        subprocess.Popen(
            [*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=inputs.ROOT, env=processes.plain_environment(),
        )
        for number in range(PROCESSES)
    ]  # fmt: skip
    try:
        for child in children:  # each is ready to work when it says so
            assert child.stdout is not None
            child.stdout.readline()
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        watched = _watched(children, folder)
        answers = [json.loads(child.communicate()[0]) for child in children]
    finally:
        for child in children:
            child.kill()
    return {**watched, **_counted(answers)}


def _counted(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the work of all processes; of their quantiles the largest."""
    counts = {step: sum(answer["counts"][step] for answer in answers) for step in STEPS}
    return {
        "commits_and_searches": counts, "retries": sum(a["retries"] for a in answers),
        "rows_per_second": sum(a["rows_per_second"] for a in answers),
        "milliseconds": {
            step: {
                name: max(answer["milliseconds"][step][name] for answer in answers)
                for name in ("p50_ms", "p99_ms")
            }
            for step in STEPS
        },
        "settled_after_seconds": max(a["settling"] for a in answers),
    }  # fmt: skip


def _watched(children: list[subprocess.Popen[str]], folder: pathlib.Path) -> dict[str, Any]:
    """Look at the number of graphs and the file until all children have ended."""
    store = ours.Store(folder, inputs.DIM)
    parts: list[int] = []
    sizes: list[int] = []
    while any(child.poll() is None for child in children):
        if any(child.returncode for child in children):
            break
        shape = _shape(store, folder)
        parts.append(shape["parts"])
        sizes.append(shape["file_bytes"])
        time.sleep(0.5)
    store.close()
    if any(child.returncode for child in children):
        raise processes.ChildError(f"a process of {MODULE} failed; its error is above")
    return {"most_parts": max(parts), "most_file_bytes": max(sizes)}


class Worker:
    """One process: its connection, the ids that are its own, and what it has done."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.number: int = given.worker
        self.store = ours.Store(given.folder, inputs.DIM)
        self.store.tune(given.ef)
        self.retries = 0
        self.took: dict[str, list[float]] = {step: [] for step in STEPS}
        data = inputs.vectors(min(given.rows, inputs.LIMIT))
        self._queries = data.queries
        near = np.load(given.folder / "near.npy")
        self._expansion = inputs.Expansion(data.base, 100 + self.number, near)
        self._rng = np.random.default_rng(200 + self.number)
        self._file = given.folder / f"live{self.number}.npy"
        own = np.arange(self.number, given.rows + PROCESSES, PROCESSES)
        self._live: list[int] = (np.load(self._file) if self._file.exists() else own[:-1]).tolist()
        self._next = max([own[-1].item(), *(i + PROCESSES for i in self._live)])

    def work(self, seconds: float) -> None:
        """Change and search for so long, and then until each step was done equally often."""
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            for step in self._rng.permutation(STEPS).tolist():
                action = getattr(self, f"_{step}")()
                start = time.perf_counter()
                self._committed(action)
                self.took[step].append(time.perf_counter() - start)

    def change(self, times: int) -> None:
        """Make so many commits of each kind."""
        for action in times * [self._insert, self._update, self._delete]:
            self._committed(action())

    def close(self) -> None:
        """Close, and leave the ids that must be there in a file."""
        np.save(self._file, np.array(self._live, np.int64))
        self.store.close()

    def answer(self, settling: float) -> dict[str, Any]:
        """Return what is told to the parent."""
        spent = sum(map(sum, self.took.values()))
        changed = BATCH * sum(len(self.took[step]) for step in STEPS if step != "search")
        return {
            "counts": {step: len(found) for step, found in self.took.items()},
            "milliseconds": {
                step: _quantiles(found, "ms", 1e3 / (SEARCHES if step == "search" else 1))
                for step, found in self.took.items()
            },
            "rows_per_second": changed / spent, "retries": self.retries, "settling": settling,
        }  # fmt: skip

    def _committed(self, action: Callable[[], Any]) -> None:
        while True:
            try:
                action()
            except Error as error:
                if not error.retryable:
                    raise
                self.retries += 1
            else:
                return

    def _insert(self) -> Callable[[], Any]:
        ids = list(range(self._next, self._next + PROCESSES * BATCH, PROCESSES))
        self._next = ids[-1] + PROCESSES
        self._live += ids
        drawn = self._expansion.draw(BATCH)
        given = [(i, i % 1000, vector) for i, vector in zip(ids, drawn, strict=True)]
        return lambda: self.store.db.executemany(INSERT, given)

    def _update(self) -> Callable[[], Any]:
        at = self._rng.choice(len(self._live), min(BATCH, len(self._live)), replace=False)
        drawn = self._expansion.draw(len(at))
        given = [(v, self._live[i]) for v, i in zip(drawn, at.tolist(), strict=True)]
        return lambda: self.store.db.executemany(UPDATE, given)

    def _delete(self) -> Callable[[], Any]:
        gone = []
        for _ in range(min(BATCH, len(self._live))):
            at = int(self._rng.integers(len(self._live)))
            self._live[at], self._live[-1] = self._live[-1], self._live[at]
            gone.append(self._live.pop())
        sql = f"DELETE FROM docs WHERE id IN ({', '.join(map(str, gone))})"
        return lambda: self.store.db.execute(sql)

    def _search(self) -> Callable[[], Any]:
        chosen = self._queries[self._rng.integers(0, len(self._queries), SEARCHES)]
        return lambda: _found(self.store, chosen)


def _work(given: argparse.Namespace) -> None:
    """Be one of the processes."""
    worker = Worker(given)
    print("ready", flush=True)
    sys.stdin.readline()
    worker.work(60 * given.minutes)
    start = time.perf_counter()
    worker.store.settle(SETTLING)
    answer = worker.answer(time.perf_counter() - start)
    worker.close()
    print(json.dumps(answer))


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--store", default="churn", help="name of the result, '' for none")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--ef", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        _work(given)
        return
    with inputs.scratch() as folder:
        record = run(given, folder)
    for key in sorted(record.keys() - {"fresh", "churn"}):
        print(f"  {key}: {record[key]}")
    if given.store:
        harness.write(given.store, {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
