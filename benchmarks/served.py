"""A database in a process of its own that searches when told to: ``Served`` and its other end.

Contenders that cannot live in one process (their packages may want different versions, they have
threads of their own) still take turns this way, sample by sample. The process answers one line of
JSON for each line it reads; what the database prints goes to standard error. CPU time is that of
the whole process, so threads count. Which Python runs it: this one if it has what is needed, else
the one ``TARSDB_BENCH_PEERS`` names.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks import harness, processes

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

from benchmarks import inputs  # noqa: E402
from benchmarks.adapters import served  # noqa: E402

MODULE = "benchmarks.served"
LABELS = 64
RARE = 0.003
"""The rare label holds at least this share of the rows."""


def rows(count: int) -> served.Rows:
    """Return what everybody loads.

    ``label`` is the nearest of 64 rows, so it is correlated with the vectors; label 0 is the one
    that holds fewest rows, but at least 0.3% of them.
    """
    data = inputs.vectors(count)
    picks = np.random.default_rng(5).choice(len(data.base), LABELS, replace=False)
    centres = data.base[picks]
    half_norms = 0.5 * np.einsum("ij,ij->i", centres, centres)
    label = np.argmax(data.base @ centres.T - half_norms, axis=1)
    sizes = np.bincount(label, minlength=LABELS)
    order = np.argsort(np.where(sizes >= RARE * len(label), sizes, len(label) + 1), kind="stable")
    number = np.empty(LABELS, np.int32)
    number[order] = np.arange(LABELS)
    ids = np.arange(len(data.base), dtype=np.int64)
    sel = inputs.scalars(len(ids))["sel"]
    return served.Rows(ids, sel, number[label], data.base)


# --- this end ---


class Served:
    """A process that serves one database in a folder; it is made there when the folder is empty.

    Raises
    ------
    processes.ChildError
        It cannot be imported, or failed; with its last words.
    """

    def __init__(
        self, name: str, folder: pathlib.Path, count: int, environment: Mapping[str, str]
    ) -> None:
        module = served.adapter(name)
        self.name, self.package = name, module.PACKAGE
        self._log = folder.with_suffix(".log")
        folder.mkdir(parents=True, exist_ok=True)
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [_python(module.IMPORTS), "-m", MODULE, name, str(folder), str(count)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                cwd=pathlib.Path(__file__).resolve().parents[1],
                env={**processes.plain_environment(), **module.ENVIRONMENT, **environment},
            )  # fmt: skip
        self.about: dict[str, Any] = self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and return its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            tail = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-2:]
            raise processes.ChildError(f"{self.name}: {' | '.join(tail)[-300:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _python(imports: tuple[str, ...]) -> str:
    if all(importlib.util.find_spec(name) is not None for name in imports):
        return sys.executable
    return processes.interpreter()


# --- the other end ---


def _load(name: str, folder: pathlib.Path, count: int) -> tuple[Any, dict[str, Any], np.ndarray]:
    module = served.adapter(name)
    given = rows(count).first(max(1, int(count * module.SHARE)))
    note = folder / "loaded.json"
    if not note.exists():
        store = module.Store(folder, given.vectors.shape[1])
        start, cpu = time.perf_counter(), time.process_time()
        store.load(given)
        took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        note.write_text(json.dumps({**took, "rows": len(given.ids)}), encoding="ascii")
    else:
        store = module.Store(folder, given.vectors.shape[1])
    about = json.loads(note.read_text(encoding="ascii"))
    about["version"] = importlib.metadata.version(module.PACKAGE)
    about["sizes"] = list(store.sizes)
    return store, about, inputs.vectors(1).queries


def _searched(store: Any, queries: np.ndarray, request: dict[str, Any]) -> dict[str, Any]:
    """Search until the queries or the seconds are used up; CPU seconds of a query, and the ids."""
    start, cpu = time.perf_counter(), time.process_time()
    found = []
    for query in queries[request["start"] : request["stop"]]:
        found.append(store.search(query, request["k"], request["kind"]))
        if time.perf_counter() - start > request["seconds"]:
            break
    spent = time.process_time() - cpu, time.perf_counter() - start
    return {
        "cpu": spent[0] / len(found), "wall": spent[1] / len(found),
        "found": found if request["ids"] else len(found),
    }  # fmt: skip


def main(name: str, folder: str, count: str) -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    store, about, queries = _load(name, pathlib.Path(folder), int(count))
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "size" in request:
            store.tune(request["size"])
            answer: dict[str, Any] = {}
        else:
            answer = _searched(store, queries, request)
        print(json.dumps(answer), file=answers, flush=True)
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
