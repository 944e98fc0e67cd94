"""Products with packed weights are their definition's, whatever the batch and the level."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from tarsdb.kernels import background, dispatch, gemm, gemm_reference, packing
from tarsdb.kernels import forms as kinds
from tarsdb.kernels.native import address
from tarsdb.metrics import METRICS

emulation = pytest.importorskip("tests.unit.kernels.emulation")
cpu = pytest.importorskip("tarsdb.kernels.cpu.gemm")
forms = pytest.importorskip("tarsdb.kernels.cpu.gemm_forms")
epilogue = pytest.importorskip("tarsdb.kernels.cpu.epilogue")
tile_registers = pytest.importorskip("tarsdb.kernels.cpu.tile_registers")
disk_cache = pytest.importorskip("tarsdb.kernels.cpu.disk_cache")
llvm = pytest.importorskip("llvmlite.binding")

VARIANTS = ("f32/avx2", "f32/avx512", "bf16/avx2", "bf16/avx512", "bf16/bf16", "int8/avx2",
            "int8/avx512", "int8/vnni", "int4/avx2", "int4/avx512", "int4/vnni")  # fmt: skip
NEEDED = {"bf16": "avx512bf16", "vnni": "avx512vnni"}
TILED = ("int8/amx", "bf16/amx")
SHAPES = [(0, 8, 16), (1, 1, 1), (1, 385, 129), (2, 7, 50), (3, 33, 33), (5, 16, 17), (6, 64, 48),
          (7, 5, 16), (13, 130, 40), (33, 900, 33), (97, 20, 20), (3, 0, 5)]  # fmt: skip
FEW = [(1, 20, 70), (5, 33, 17), (33, 16, 33)]
GATED = [gemm_reference.GATED | code for code in (1, 2, 4)]


class Kernel:
    """A compiled product and how to pack weights for it."""

    def __init__(self, name: str, is_emulated: bool = False) -> None:
        if dispatch._best_level() == "portable":
            pytest.skip("this processor runs NumPy alone")
        self.kind, self.variant = name.split("/")
        needed = NEEDED.get(self.variant)
        if needed and not is_emulated and not llvm.get_host_cpu_features().get(needed):
            pytest.skip(f"this processor has no {needed}; another test emulates it")
        # under the name it has outside of tests: what is proven is the machine code that is used
        variant = f"gemm {name}"
        self.call = disk_cache.compiled(cpu.make_kernels(name)["gemm"], cpu.SIGNATURE, variant)

    def pack(self, weight: np.ndarray) -> packing.PackedMatrix:
        return packing.pack(weight, self.kind, self.variant)

    def pack_gated(self, gate: np.ndarray, up: np.ndarray) -> packing.PackedMatrix:
        return packing.pack_gated(gate, up, self.kind, self.variant)


@pytest.fixture(scope="module", params=VARIANTS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Every kind; forms of AVX-512 that need no instruction of their own run on AVX2 too."""
    return Kernel(request.param)


def product(
    kernel: Kernel, a: np.ndarray, weights: packing.PackedMatrix, code: int = 0, bias: Any = None,
    residual: Any = None,
) -> np.ndarray:  # fmt: skip
    """Call a kernel; what lies beside the result must stay as it was."""
    out = np.full((len(a), weights.columns + 3), 7, np.float32)
    scratch = packing.aligned(cpu.scratch_bytes(kernel.kind, kernel.variant, weights.depth))
    scratch[:] = 255  # NaN, if it were read
    added = None if bias is None else packing.pack_bias(*np.atleast_2d(bias))
    beside = np.full_like(out, np.nan)
    if residual is not None:
        beside[:, : weights.columns] = residual
    kernel.call(
        address(a), a.strides[0], len(a), weights.address, weights.depth, weights.columns, code,
        0 if added is None else address(added), address(beside), address(out), out.strides[0],
        address(scratch),
    )  # fmt: skip
    assert (out[:, weights.columns :] == 7).all()
    return out[:, : weights.columns]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_the_definitions_to_the_last_bit(kernel: Kernel, shape: tuple[int, ...]) -> None:
    rows, depth, columns = shape
    a, weights = normal(1, rows, depth), kernel.pack(normal(2, columns, depth))
    assert np.array_equal(product(kernel, a, weights), gemm_reference.product(a, weights))


def test_sums_in_another_order_differ() -> None:
    a, w = normal(1, 33, 1000), normal(2, 33, 1000)
    exact = gemm_reference.product(a, packing.pack(w))
    turned = gemm_reference.product(a[:, ::-1], packing.pack(w[:, ::-1]))
    assert not np.array_equal(exact, turned)
    assert np.abs(exact - a.astype(np.float64) @ w.T.astype(np.float64)).max() < 1e-3


@pytest.mark.parametrize("shape", FEW)
@pytest.mark.parametrize("code", range(6))
def test_epilogues(kernel: Kernel, shape: tuple[int, ...], code: int) -> None:
    rows, depth, columns = shape
    a, weights = normal(1, rows, depth), kernel.pack(normal(2, columns, depth))
    bias, residual = normal(3, columns), normal(4, rows, columns)
    ours = product(kernel, a, weights, code, bias, residual)
    expected = gemm_reference.gemm(a, weights, code, bias, residual)
    assert np.allclose(ours, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("shape", FEW)
@pytest.mark.parametrize("code", GATED)
def test_gated_epilogues(kernel: Kernel, shape: tuple[int, ...], code: int) -> None:
    rows, depth, columns = shape
    a = normal(1, rows, depth)
    weights = kernel.pack_gated(normal(2, columns, depth), normal(5, columns, depth))
    bias = normal(3, 2, columns)
    ours = product(kernel, a, weights, code, bias)
    expected = gemm_reference.gemm(a, weights, code, bias)
    assert np.allclose(ours, expected, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_a_row_does_not_depend_on_its_batch(kernel: Kernel, gated: bool) -> None:
    a, w = normal(1, 100, 900), normal(2, 70, 900)
    weights = kernel.pack_gated(w, w[::-1]) if gated else kernel.pack(w)
    code = gemm_reference.GATED | gemm_reference.SILU if gated else gemm_reference.GELU
    whole = product(kernel, a, weights, code)
    for size in (1, 2, 3, 5, 7, 97):
        parts = [product(kernel, a[at : at + size], weights, code) for at in range(0, len(a), size)]
        assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("kind", packing.KINDS)
def test_levels_agree_to_the_last_bit(kind: str) -> None:
    features = llvm.get_host_cpu_features()
    names = [name for name in VARIANTS if name.startswith(f"{kind}/")]
    kernels = [Kernel(n) for n in names if features.get(NEEDED.get(n.split("/")[1], "avx2"))]
    a, w, bias, residual = normal(1, 41, 77), normal(2, 70, 77), normal(3, 70), normal(4, 41, 70)
    for code in range(6):
        first, *others = [product(k, a, k.pack(w), code, bias, residual) for k in kernels]
        assert len(others) > 0
        assert all(np.array_equal(first, other) for other in others)


def test_nan_and_infinity_stay_in_their_rows(kernel: Kernel) -> None:
    a, weights = normal(1, 9, 40), kernel.pack(normal(2, 37, 40))
    a[2, 5] = np.nan
    a[4, 39] = np.inf
    for code in range(6):
        found = product(kernel, a, weights, code, residual=normal(4, 9, 37))
        assert np.isnan(found[2]).all()
        assert not np.isfinite(found[4]).all()
        assert np.isfinite(np.delete(found, [2, 4], 0)).all()


@pytest.mark.parametrize("name", ["f32/avx2", "bf16/avx2"])
def test_a_weight_that_is_nan_spoils_its_column_only(name: str) -> None:
    kernel, a, w = Kernel(name), normal(1, 9, 40), normal(2, 37, 40)
    w[3, 0] = np.nan
    found = product(kernel, a, kernel.pack(w))
    assert np.isnan(found[:, 3]).all()
    assert np.isfinite(np.delete(found, 3, 1)).all()


def test_huge_tiny_and_zero_rows(kernel: Kernel) -> None:
    a, w = normal(1, 8, 30), normal(2, 20, 30)
    a[:3] *= np.float32(1e30)
    a[3:6] *= np.float32(1e-38)
    a[6] = 0
    a[7] *= np.float32(2.0**-49)  # at the border of what bfloat16 keeps
    w[10:] *= np.float32(1e3 if kernel.kind == "int4" else 1e15)  # which has scales of 16 bits
    w[4] = 0
    weights = kernel.pack(w)
    assert np.array_equal(
        product(kernel, a, weights), gemm_reference.product(a, weights), equal_nan=True
    )


def test_out_may_be_the_residual(kernel: Kernel) -> None:
    a, weights, kept = normal(1, 20, 30), kernel.pack(normal(2, 40, 30)), normal(3, 20, 40)
    expected = gemm_reference.gemm(a, weights, gemm_reference.RESIDUAL, None, kept)
    scratch = packing.aligned(cpu.scratch_bytes(kernel.kind, kernel.variant, 30))
    kernel.call(address(a), a.strides[0], 20, weights.address, 30, 40, 5, 0, address(kept),
                address(kept), kept.strides[0], address(scratch))  # fmt: skip
    assert np.array_equal(kept, expected)


def signed_codes(b: Any, sums: Any, codes: Any, query: Any) -> Any:
    """Emit the same with a mistake: rows' codes, of unsigned bytes, taken for signed ones."""
    return emulation.plain_dpbusd(b, sums, query, codes)


def even_first(b: Any, sums: Any, rows: Any, weights: Any) -> Any:
    """Emit the same with a mistake: the sums are made in another order."""
    return emulation.plain_dpbf16(b, sums, rows, weights, odd_first=False)


def emulated(name: str, instruction: Any, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Compile the kernel of another processor, its one instruction replaced; never kept on disk."""
    which = {"bf16/bf16": "DOTS", "bf16/amx": "DOTS", "int8/vnni": "QUADS", "int8/amx": "QUADS",
             "int4/vnni": "GROUP_QUADS"}[name]  # fmt: skip
    form = getattr(forms, which)
    # micro-kernels of few rows, or compiling takes minutes
    small = dataclasses.replace(form, shapes=((2, 1), (2, 1)))
    monkeypatch.setattr(forms, which, small)
    monkeypatch.setattr(cpu, "FORMS", tuple(small if f is form else f for f in forms.FORMS))
    monkeypatch.setattr(forms, "dpbf16" if which == "DOTS" else "dpbusd", instruction)
    monkeypatch.setattr(disk_cache, "kernel_folder", lambda: None)
    return Kernel(name, is_emulated=True)


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("int8/vnni", emulation.plain_dpbusd),
        ("int4/vnni", emulation.plain_dpbusd),
        ("bf16/bf16", emulation.plain_dpbf16),
    ],
)
def test_other_processors_give_the_same_sums(
    name: str, instruction: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = emulated(name, instruction, monkeypatch)
    for rows, depth, columns in [(1, 70, 70), (3, 64, 20), (14, 33, 50)]:
        a, weights = normal(1, rows, depth), kernel.pack(normal(2, columns, depth))
        assert np.array_equal(product(kernel, a, weights), gemm_reference.product(a, weights))
        assert gemm.is_proven(gemm.GemmKernel(name, kernel.call))
        a[0, 3] = np.nan
        assert np.isnan(product(kernel, a, weights)[0]).all()


@pytest.mark.parametrize(
    ("name", "instruction"), [("int8/vnni", signed_codes), ("bf16/bf16", even_first)]
)
def test_a_wrong_instruction_is_noticed(
    name: str, instruction: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = emulated(name, instruction, monkeypatch)
    assert not gemm.is_proven(gemm.GemmKernel(name, kernel.call))


class OneChain(emulation.PlainRegisters):  # type: ignore[misc, name-defined]
    """The same with a mistake: even and odd products in one chain."""

    def chains(self, row: Any, columns: int) -> Any:
        total = emulation.FLOATS(None)
        for word, column in self.pairs(row, columns):
            total = emulation.plain_dpbf16(self.b, total, word, column)
        return total


def tiled(name: str, registers: Any, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Compile a kernel whose tile registers are memory."""
    emulation.replace_registers(monkeypatch, registers)
    return emulated(
        name, emulation.plain_dpbusd if name == "int8/amx" else emulation.plain_dpbf16, monkeypatch
    )


@pytest.mark.parametrize("name", TILED)
def test_tile_registers_give_their_sums(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tiled(name, emulation.PlainRegisters, monkeypatch)
    define = gemm_reference.product if name == "int8/amx" else gemm_reference.product_by_tiles
    for rows, depth, columns in [(1, 70, 70), (3, 64, 20), (14, 33, 50), (17, 900, 16),
                                 (97, 130, 33), (96, 1700, 17)]:  # fmt: skip
        a, weights = normal(1, rows, depth), kernel.pack(normal(2, columns, depth))
        assert np.array_equal(product(kernel, a, weights), define(a, weights))
        assert np.allclose(define(a, weights), gemm_reference.product(a, weights), atol=1e-3)
    assert gemm.is_proven(gemm.GemmKernel(name, kernel.call))
    a, w = normal(1, 40, 100), normal(2, 20, 100)
    weights, code = kernel.pack_gated(w, w[::-1]), gemm_reference.GATED | gemm_reference.SILU
    whole = product(kernel, a, weights, code)
    for size in (1, 3, 17):
        parts = [product(kernel, a[at : at + size], weights, code) for at in range(0, len(a), size)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_tile_registers_that_add_in_another_order_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = tiled("bf16/amx", OneChain, monkeypatch)
    assert not gemm.is_proven(gemm.GemmKernel("bf16/amx", kernel.call))


def test_forms_of_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def forms_with(**features: bool) -> list[list[str]]:
        monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: features)
        return [kinds.forms_of(kind, "avx512") for kind in packing.KINDS]

    asked = []
    monkeypatch.setattr(tile_registers, "allowed", lambda: not asked.append(1))
    monkeypatch.delenv(dispatch.LEVEL_VARIABLE, raising=False)
    every = {"avx512vnni": True, "avx512bf16": True, "amx-int8": True, "amx-bf16": True}
    rest = ["avx512", "avx2"]
    best = [rest, ["amx", "bf16", *rest], ["amx", "vnni", *rest], ["vnni", *rest]]
    assert forms_with(**every) == named(best)
    assert len(asked) == 2
    monkeypatch.setenv(dispatch.LEVEL_VARIABLE, "amx")
    assert dispatch._forced() == "avx512"
    assert forms_with(**every) == named(best)
    monkeypatch.setenv(dispatch.LEVEL_VARIABLE, "avx512")
    assert forms_with(**every) == named([[n for n in names if n != "amx"] for names in best])
    assert len(asked) == 4  # nobody asks the system for registers that are not to be used
    assert forms_with() == named([rest] * 4)
    assert kinds.forms_of("int8", "avx2") == ["int8/avx2"]
    assert kinds.forms_of("int8", "portable") == []


def named(forms: list[list[str]]) -> list[list[str]]:
    return [
        [f"{kind}/{form}" for form in names]
        for kind, names in zip(packing.KINDS, forms, strict=True)
    ]


@pytest.mark.parametrize("kind", packing.KINDS)
def test_a_disproved_variant_makes_way_for_the_next(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dispatch._best_level() == "portable":
        pytest.skip("this processor runs NumPy alone")
    names = [f"{kind}/avx512", f"{kind}/avx2"]
    before = METRICS.snapshot().get("kernels.disproved", 0)
    tried = []

    def disprove(kernel: gemm.GemmKernel) -> bool:
        tried.append(kernel.variant)
        return kernel.variant != names[0] and gemm.is_proven(kernel)

    compiled = background.Compiled("gemm", gemm.GemmKernel, lambda level: names, disprove)
    found = compiled.wait()
    assert found is not None
    assert found.variant == names[1]
    assert tried == names
    assert METRICS.snapshot()["kernels.disproved"] == before + 1
    never = background.Compiled("gemm", gemm.GemmKernel, lambda level: names, lambda kernel: False)
    assert never.wait() is None


@functools.cache
def multiply_of(level: str) -> Any:
    multiply = cpu.make_multiply(level, asks=True)
    multiply.compile("void(" + ", ".join(["int64"] * 12) + ")")
    return multiply


@pytest.mark.parametrize("level", [cpu.AVX2, cpu.AVX512])
@pytest.mark.parametrize("rows", [1, 2, 3, 6, 31])
def test_rows_of_a_plain_matrix_serve_as_weights(level: str, rows: int) -> None:
    multiply, far = multiply_of(level), 1 << 62  # where no memory is
    a, values, sums = normal(1, rows, 21), normal(2, 21, 80), normal(3, rows, 80)
    added = sums.copy()
    args = (address(a), a.strides[0], rows, address(values), values.strides[0], 64, 5, 21)
    multiply(*args, address(sums), sums.strides[0], 1, far)
    multiply(*args, address(added), added.strides[0], 0, 0)
    expected = gemm_reference.product(a, packing.pack(np.ascontiguousarray(values.T)))
    assert np.array_equal(sums, expected)
    assert np.allclose(added, normal(3, rows, 80) + expected, atol=1e-5)


def test_wrapper_says_which_shapes_disagree() -> None:
    weights = packing.pack(normal(2, 5, 4))
    with pytest.raises(ValueError, match=r"a has shape \(3, 5\), the product needs \(3, 4\)"):
        gemm.gemm(normal(1, 3, 5), weights)
    with pytest.raises(ValueError, match="bias has shape"):
        gemm.gemm(normal(1, 3, 4), weights, bias=normal(1, 4))


@pytest.mark.parametrize("kind", packing.KINDS)
def test_wrapper_gives_the_same_before_and_after_compiling(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = gemm.wait(kind)
    form = packing.PAIRED_VARIANTS[0] if ready is None else ready.variant.split("/")[1]
    a, weights, bias = normal(1, 3, 40), packing.pack(normal(2, 5, 40), kind, form), normal(3, 5)
    compiled = gemm.gemm(a, weights, gemm_reference.LINEAR, bias)
    monkeypatch.setattr(gemm, "current", lambda kind: None)
    plain = gemm.gemm(a, weights, gemm_reference.LINEAR, bias)
    if ready is not None and ready.variant == "bf16/amx":  # which adds in another order
        assert np.allclose(plain, compiled, atol=1e-5)
    else:
        assert np.array_equal(plain, compiled)
    assert (ready is None) == (dispatch.level() == "portable")


def test_numbers_of_the_house_agree() -> None:
    assert cpu.SCRATCH == gemm.SCRATCH
    names = ("LINEAR", "GELU", "GELU_TANH", "RELU", "SILU", "RESIDUAL", "GATED")
    assert all(getattr(epilogue, name) == getattr(gemm_reference, name) for name in names)
    for name in VARIANTS:
        form, layout = (
            forms.form_of(*name.split("/")),
            packing.LAYOUTS[packing.layout_of(*name.split("/"))],
        )
        lines = layout.padded(100) // form.per_line
        packed = lines * form.line_bytes + form.tail_bytes
        assert packed == layout.tile_bytes(100)
        assert form.padding == layout.padding


@pytest.mark.parametrize(
    ("kind", "most"), [("f32", 1e-6), ("bf16", 3e-3), ("int8", 1.1e-2), ("int4", 0.1)]
)
def test_error_of_a_kind(kind: str, most: float) -> None:
    """Root mean square of the error relative to that of the product, normal numbers, K = 768."""
    a, w = normal(1, 64, 768), normal(2, 64, 768)
    exact = a.astype(np.float64) @ w.T.astype(np.float64)
    found = gemm_reference.product(a, packing.pack(w, kind))
    error = np.sqrt(np.square(found - exact).mean() / np.square(exact).mean())
    assert most / 10 < error < most or kind == "f32"
