"""Products with packed weights beside NumPy's and torch's, one thread.

Layers of three models (MiniLM, Llama shapes of 110M and 0.5B parameters), random numbers, 256 rows:
GFLOP/s of each kind of weights. Then the product of few rows with a matrix larger than the caches:
GB/s of packed weights, beside reading as many bytes by NumPy. ``error`` is the root mean square of
the difference from float64 over that of the product. Writes ``results/matmul.LEVEL.json``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

from tarsdb.kernels import gemm, packing  # noqa: E402

PACKAGES = ("numpy", "numba", "torch")
ROWS = 256
SHAPES = {
    "MiniLM qkv": (384, 1152), "MiniLM out": (384, 384), "MiniLM up": (384, 1536),
    "MiniLM down": (1536, 384), "110M qkv": (768, 2304), "110M down": (2048, 768),
    "0.5B up": (896, 4864), "0.5B down": (4864, 896),
}  # fmt: skip
FEW = (1, 2, 4, 8)
LARGE = (2048, 32768)
Calls = dict[str, Callable[[], Any]]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def packed_weights(w: np.ndarray) -> dict[str, packing.PackedMatrix]:
    """Return a matrix in every kind that has a compiled product here."""
    found = {}
    for kind in packing.KINDS:
        kernel = gemm.wait(kind)
        if kernel is not None:
            found[kind] = packing.pack(w, kind, kernel.variant.split("/")[1])
    return found


def products(a: np.ndarray, weights: dict[str, packing.PackedMatrix]) -> Calls:
    return {kind: lambda packed=packed: gemm.gemm(a, packed) for kind, packed in weights.items()}


def torch_product(a: np.ndarray, w: np.ndarray) -> Calls:
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(1)
    rows, weight = torch.from_numpy(a), torch.from_numpy(w)
    return {"torch f32": lambda: torch.nn.functional.linear(rows, weight)}


def of_layer(depth: int, columns: int) -> dict[str, Any]:
    """Return GFLOP/s of all contenders and the error of ours."""
    a, w = normal(ROWS, depth), normal(columns, depth)
    turned, weights = np.ascontiguousarray(w.T), packed_weights(w)
    contenders = {
        "NumPy f32": lambda: a @ turned, **torch_product(a, w), **products(a, weights),
    }  # fmt: skip
    times = harness.measure(contenders, repeats=21)
    exact = a.astype(np.float64) @ w.T.astype(np.float64)
    size = np.square(exact).mean()
    error = {
        kind: float(np.sqrt(np.square(gemm.gemm(a, packed) - exact).mean() / size))
        for kind, packed in weights.items()
    }
    work = 2e-9 * ROWS * depth * columns
    return {
        "gflops": {name: work / figure["median"] for name, figure in times.items()},
        "error": error,
    }


def of_few_rows(weights: dict[str, packing.PackedMatrix], rows: int) -> dict[str, float]:
    """Return GB/s of packed weights, and of reading."""
    memory = np.ones(1 << 25, np.int64)
    a = normal(rows, LARGE[0])
    contenders = {"read": memory.max, **products(a, weights)}
    times = harness.measure(contenders, repeats=9)
    sizes = {"read": memory.nbytes, **{k: p.data.nbytes for k, p in weights.items()}}
    return {name: sizes[name] / figure["median"] / 1e9 for name, figure in times.items()}


def main() -> None:
    layers = {}
    for name, shape in SHAPES.items():
        layers[name] = of_layer(*shape)
        speeds = "  ".join(f"{k} {v:.0f}" for k, v in layers[name]["gflops"].items())
        print(f"{name:12} {shape[0]:5} x {shape[1]:5}  GFLOP/s: {speeds}", flush=True)
    print("error:", "  ".join(f"{k} {v:.1e}" for k, v in layers["110M qkv"]["error"].items()))
    weights = packed_weights(normal(LARGE[1], LARGE[0]))
    few = {}
    for rows in FEW:
        few[rows] = of_few_rows(weights, rows)
        print(f"{rows} rows  GB/s: " + "  ".join(f"{k} {v:.1f}" for k, v in few[rows].items()))
    record = {"rows": ROWS, "layers": layers, "few_rows": few}
    harness.write("matmul", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
