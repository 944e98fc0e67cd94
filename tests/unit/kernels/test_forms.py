"""Which form of a kernel a processor gets, by the features it says it has."""

from __future__ import annotations

import pytest

from tarsdb.kernels import dispatch, forms

llvm = pytest.importorskip("llvmlite.binding")


@pytest.mark.parametrize(
    ("level", "features", "tiles", "expected"),
    [
        ("avx512", ("avx512bf16",), False, True),
        ("avx512", ("amx-bf16",), True, True),
        ("avx512", ("amx-bf16",), False, False),
        ("avx512", ("avx512vnni", "amx-int8"), True, False),
        ("avx2", ("avx512bf16",), True, False),
        ("portable", ("avx512bf16",), True, False),
    ],
)
def test_bfloat16_is_multiplied_where_an_instruction_does(
    level: str, features: tuple[str, ...], tiles: bool, expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: dict.fromkeys(features, True))
    monkeypatch.setattr(dispatch, "level", lambda: level)
    monkeypatch.setattr(dispatch, "tiles_allowed", lambda: tiles)
    assert forms.multiplies_bfloat16() is expected
