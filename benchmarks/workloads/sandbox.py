"""Sandboxed functions in process beside the same functions compiled by Numba.

Bare calls find their arguments in the guest's memory already; the others copy them in and the
results out, as every call of a statement does. Through SQL counts what ``f(x)`` adds to
``SELECT x``; the whole statements stand beside it. Contenders take turns, figures are medians of
CPU time, of single calls of wall time; every result is compared. Writes
``results/sandbox.LEVEL.json``.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks import harness

harness.one_thread()

import numba  # noqa: E402  # after the thread limit
import numpy as np  # noqa: E402

import tarsdb  # noqa: E402
from benchmarks import inputs  # noqa: E402
from tarsdb.columns import Column  # noqa: E402
from tarsdb.options import SandboxLimits  # noqa: E402
from tarsdb.types import DOUBLE, REAL, SqlType, parse_type  # noqa: E402
from tarsdb.udf_sandbox import Budget, ScalarFunction, to_wasm  # noqa: E402
from tarsdb.udf_sandbox.abi import BatchLayout  # noqa: E402
from tarsdb.udf_sandbox.limits import Call  # noqa: E402
from tarsdb.udf_sandbox.modules import driver  # noqa: E402

PACKAGES = ("numpy", "numba", "wasmtime")
GUESTS = pathlib.Path(__file__).resolve().parents[1] / "guests"
LIMITS = SandboxLimits(fuel=2**50, max_memory_bytes=256 << 20, timeout_ms=600_000)
DIM, CALLS = 384, 50
POLYNOMIAL = """(module (func (export "f") (param {t}) (result {t})
  ({t}.add ({t}.sub ({t}.mul ({t}.const 3) ({t}.mul (local.get 0) (local.get 0)))
    ({t}.mul ({t}.const 2) (local.get 0))) ({t}.const 1))))"""
SAME = '(module (func (export "f") (param f64) (result f64) (local.get 0)))'


@numba.njit
def polynomial(x: np.ndarray, out: np.ndarray) -> None:
    """Compute 3 x^2 - 2 x + 1 in the type of x."""
    three, two, one = x.dtype.type(3), x.dtype.type(2), x.dtype.type(1)
    for i in range(len(x)):
        out[i] = three * (x[i] * x[i]) - two * x[i] + one


@numba.njit(fastmath=True)
def dots(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Compute the dot product of each pair of rows; fastmath lets the sum be by vectors."""
    for row in range(len(a)):
        total = np.float32(0)
        for i in range(a.shape[1]):
            total += a[row, i] * b[row, i]
        out[row] = total


@numba.njit(fastmath=True)
def squares(rows: np.ndarray, query: np.ndarray, out: np.ndarray) -> None:
    """Compute the squared Euclidean distance of each row."""
    for row in range(len(rows)):
        total = np.float32(0)
        for i in range(rows.shape[1]):
            difference = rows[row, i] - query[i]
            total += difference * difference
        out[row] = total


@contextmanager
def bare(function: ScalarFunction, columns: list[Column], rows: int) -> Iterator[Any]:
    """Give a function that calls the guest on arguments that lie in its memory."""
    call = Call(function.name, LIMITS, Budget(), 2**60, time.monotonic() + 3600)
    guest: Any = function._compiled.guest(call, False)
    if function._program.driver is not None:
        most = guest._most
        for view, column in zip(guest._inputs, columns, strict=True):
            view[:most] = column.values[:most]

        def run() -> np.ndarray:
            for start in range(0, rows, most):
                guest._rows[0] = min(most, rows - start)
                guest.instance.invoke("run", call)
            return np.array(guest._output[: rows - start])
    else:
        layout = BatchLayout(columns, (function.returns,), rows)
        region = guest.instance.invoke("tars_alloc", call, layout.size)
        base = layout.write(guest.instance.memory(), region)

        def run() -> np.ndarray:
            guest.instance.invoke(function._program.export, call, base, rows)
            return layout.read(guest.instance.memory(), base, function.name).values

    try:
        yield run
    finally:
        guest.close()


def versus_numba(run: Callable[[], Any], own: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Measure a guest and Numba in turn."""
    found = harness.measure({"wasm": run, "numba": own}, repeats=repeats)
    return {"seconds": found, "times_of_numba": harness.ratios(found, "numba")["wasm"]}


def polynomials(sql_type: SqlType, rows: int, repeats: int) -> dict[str, Any]:
    """Measure the polynomial: bare, and as a call with its copies."""
    wasm = "f32" if sql_type == REAL else "f64"
    code = to_wasm(POLYNOMIAL.format(t=wasm))
    function = ScalarFunction(code, "f", [sql_type], sql_type, limits=LIMITS)
    x = np.random.default_rng(1).random(rows).astype(sql_type.dtype)
    out = np.empty_like(x)
    column = Column(sql_type, x)
    polynomial(x, out)
    assert np.array_equal(function.call([column], rows).values, out)
    # Numba too works on as many rows at a time as fit the cache: they lie there already.
    chunks = [slice(i, min(i + driver.CHUNK_ROWS, rows)) for i in range(0, rows, driver.CHUNK_ROWS)]

    def chunked() -> None:
        for chunk in chunks:
            polynomial(x[: chunk.stop - chunk.start], out[: chunk.stop - chunk.start])

    with bare(function, [column], rows) as run:
        assert np.array_equal(run(), out[: len(run())])
        figures = {
            "bare": versus_numba(run, lambda: polynomial(x, out), repeats),
            "bare_in_cache": versus_numba(run, chunked, repeats),
        }
    call = versus_numba(lambda: function.call([column], rows), lambda: polynomial(x, out), repeats)
    return {**figures, "call": call}


def products(rows: int, repeats: int) -> dict[str, Any]:
    """Measure dot products of float32 vectors, with SIMD in the guest."""
    vector = parse_type(f"VECTOR({DIM})")
    code = (GUESTS / "vectors.wasm").read_bytes()
    function = ScalarFunction(code, "dot", [vector, vector], REAL, limits=LIMITS)
    source = np.random.default_rng(2)
    a, b = (source.random((rows, DIM), dtype=np.float32) for _ in range(2))
    columns, out = [Column(vector, a), Column(vector, b)], np.empty(rows, np.float32)
    dots(a, b, out)
    with bare(function, columns, rows) as run:
        assert np.allclose(run(), out, rtol=1e-5)
        found = versus_numba(run, lambda: dots(a, b, out), repeats)
    call = versus_numba(lambda: function.call(columns, rows), lambda: dots(a, b, out), repeats)
    return {"bare": found, "call": call}


def calls(repeats: int) -> dict[str, Any]:
    """Measure what a call costs: per row at several sizes, row by row, and a new instance."""
    function = ScalarFunction(to_wasm(SAME), "f", [DOUBLE], DOUBLE)
    sizes = (1, 1_000, 10_000, 60_000)
    columns = {n: Column(DOUBLE, np.random.default_rng(3).random(n)) for n in sizes}
    found = harness.measure(
        {str(n): partial(_many, function, columns[n], n) for n in sizes},
        repeats=repeats, clock=time.perf_counter,
    )  # fmt: skip
    seconds = {name: figure["median"] / CALLS for name, figure in found.items()}
    added = (seconds["60000"] - seconds["1000"]) / 59_000
    vector = parse_type(f"VECTOR({DIM})")
    code = (GUESTS / "vectors.wasm").read_bytes()
    columnar = ScalarFunction(code, "dot", [vector, vector], REAL)
    instances = harness.measure(
        {"plain": partial(_instances, function), "columnar": partial(_instances, columnar)},
        repeats=repeats,
    )
    return {
        "call_us": {name: value * 1e6 for name, value in seconds.items()},
        "row_adds_ns": added * 1e9,
        "per_row_over_batched": seconds["1"] / (seconds["60000"] / 60_000),
        "new_instance_us": {
            name: figure["median"] / CALLS * 1e6 for name, figure in instances.items()
        },
    }


def _instances(function: ScalarFunction) -> None:
    """Make guests under limits and free them."""
    for _ in range(CALLS):
        call = Call("f", LIMITS, Budget(), 2**40, time.monotonic() + 60)
        function._compiled.guest(call, False).close()


def _many(function: ScalarFunction, column: Column, rows: int) -> None:
    for _ in range(CALLS):
        function.call([column], rows)


def statements(folder: pathlib.Path, rows: int, repeats: int) -> dict[str, Any]:
    """Measure statements that call a function, and the same about its argument, beside Numba.

    ``SELECT f(x)`` and ``SELECT x`` end in a NumPy array; the conditions keep the same rows.
    """
    x = np.random.default_rng(4).random(rows)
    out = np.empty_like(x)
    polynomial(x, out)
    with tarsdb.connect(folder / "sandbox.tars") as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, x DOUBLE)")
        batch = {"id": np.arange(rows), "x": x}
        db.execute("INSERT INTO t SELECT id, x FROM batch")
        assert len(batch) == 2
        db.execute("OPTIMIZE t")
        text = POLYNOMIAL.format(t="f64")
        db.execute(f"CREATE FUNCTION f(x DOUBLE) RETURNS DOUBLE LANGUAGE wasm AS '{text}'")
        assert np.array_equal(np.sort(_answer(db, "SELECT f(x) AS y FROM t")), np.sort(out))
        pairs = {
            "select": ("SELECT f(x) AS y FROM t", "SELECT x AS y FROM t"),
            "where": (
                "SELECT count(*) AS y FROM t WHERE f(x) > 1.5",
                f"SELECT count(*) AS y FROM t WHERE x > {(1 + 2.5**0.5) / 3!r}",
            ),
            "sum": ("SELECT sum(f(x)) AS y FROM t", "SELECT sum(x) AS y FROM t"),
        }
        kept = [_answer(db, sql) for sql in pairs["where"]]
        assert kept == [(out > 1.5).sum()] * 2
        assert np.allclose(_answer(db, pairs["sum"][0]), out.sum())
        contenders: dict[str, Callable[[], Any]] = {"numba": lambda: polynomial(x, out)}
        for name, sides in pairs.items():
            for side, sql in zip(("function", "column"), sides, strict=True):
                contenders[f"{name}_{side}"] = partial(_answer, db, sql)
        found = harness.measure(contenders, repeats=repeats)
    figures = {name: _added(found, name, rows) for name in pairs}
    return {"seconds": found, **figures.pop("select"), **figures}


def _added(found: dict[str, Any], name: str, rows: int) -> dict[str, float]:
    """Return what a function adds to a statement.

    Of the least times: what disturbs a busy machine disturbs the longer statements more.
    """
    whole, plain = found[f"{name}_function"], found[f"{name}_column"]
    added = whole["min"] - plain["min"]
    return {
        "statement_times_of_numba": whole["median"] / found["numba"]["median"],
        "column_times_of_numba": plain["median"] / found["numba"]["median"],
        "added_times_of_numba": added / found["numba"]["min"],
        "added_ns_a_row": added / rows * 1e9,
    }


def metric(folder: pathlib.Path, rows: int, repeats: int) -> dict[str, Any]:
    """Measure ``ORDER BY metric(v, q) LIMIT 10`` over a table, beside Numba on the same vectors."""
    source = np.random.default_rng(5)
    vectors, query = source.random((rows, DIM), dtype=np.float32), source.random(DIM, np.float32)
    out = np.empty(rows, np.float32)

    def own() -> list[int]:
        squares(vectors, query, out)
        near = np.argpartition(out, 10)[:10]
        return list(near[np.lexsort((near, out[near]))].tolist())

    with tarsdb.connect(folder / "metric.tars") as db:
        db.execute(f"CREATE TABLE t (id BIGINT PRIMARY KEY, v VECTOR({DIM}))")
        db.table("t").insert({"id": np.arange(rows), "v": vectors})
        db.execute("OPTIMIZE t")
        db.execute(f"CREATE MODULE m FROM '{GUESTS / 'metric.wasm'}'")
        db.execute(
            f"CREATE FUNCTION squared(a VECTOR({DIM}), b VECTOR({DIM})) RETURNS REAL LANGUAGE wasm "
            "FROM m::squared WITH (role = 'metric')"
        )

        def search() -> list[int]:
            sql = "SELECT id FROM t ORDER BY squared(v, ?) LIMIT 10"
            return [row for (row,) in db.execute(sql, (query,)).fetchall()]

        assert search() == own()
        return {"rows": rows, "order": versus_numba(search, own, repeats)}


def _answer(db: tarsdb.Connection, sql: str) -> np.ndarray:
    return np.asarray(db.execute(sql).numpy()["y"])


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    with inputs.scratch() as folder:
        record = {
            "data": {"rows": given.rows, "dim": DIM},
            "polynomial_f64": polynomials(DOUBLE, given.rows, given.repeats),
            "polynomial_f32": polynomials(REAL, given.rows, given.repeats),
            "dot": products(given.rows // 100, given.repeats),
            "calls": calls(given.repeats),
            "sql": statements(folder, given.rows, given.repeats),
            "metric": metric(folder, given.rows // 10, given.repeats),
        }
    print(f"  {record}")
    harness.write("sandbox", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
