from __future__ import annotations

import json
import pathlib
import random

import numpy as np
import pytest
import safetensors.numpy

from tarsdb.errors import ModelFormatError
from tarsdb.model_ops.safetensors_file import MAX_HEADER_BYTES, read_safetensors


def write(path: pathlib.Path, header: object, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(dtype: str, shape: list, start: int, stop: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_every_dtype_comes_back_as_a_view_of_the_map(tmp_path) -> None:
    path = tmp_path / "t.safetensors"
    rng = np.random.default_rng(0)
    tensors = {
        np.dtype(kind).name: (rng.standard_normal((3, 5)) * 50).astype(kind)
        for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "bool")
    }
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    read = read_safetensors(str(path))
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        assert np.array_equal(read[name], array)
        assert read[name].dtype == array.dtype
        assert not read[name].flags.writeable
        assert read[name].base is not None


def test_bfloat16_is_widened(tmp_path) -> None:
    path = tmp_path / "t.safetensors"
    values = np.array([1.0, -2.5, 0.0, 3.140625], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    write(path, {"x": entry("BF16", [4], 0, 8)}, bits)
    read = read_safetensors(str(path))
    assert read["x"].tolist() == values.tolist()
    assert read["x"] is not read["x"]  # no copy is kept: a model may be larger than memory
    assert (read.shapes, read.floating()) == ({"x": (4,)}, ["x"])


def test_scalars_and_empty_tensors(tmp_path) -> None:
    path = tmp_path / "t.safetensors"
    tensors = {"scalar": np.float32(7.0)[()], "empty": np.zeros((0, 4), np.float32)}
    safetensors.numpy.save_file({k: np.asarray(v) for k, v in tensors.items()}, path)
    read = read_safetensors(str(path))
    assert read["scalar"] == 7.0
    assert read["empty"].shape == (0, 4)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"x": entry("F32", [4], 0, 16)}, b"\0" * 12, "valid safetensors"),
        ({"x": entry("F32", [5], 0, 16)}, b"\0" * 16, "valid safetensors"),
        ({"x": entry("F32", [4], 8, 24)}, b"\0" * 24, "valid safetensors"),
        ({"x": entry("F99", [4], 0, 16)}, b"\0" * 16, "valid safetensors"),
        ({"x": entry("F32", [-4], 0, 16)}, b"\0" * 16, "valid safetensors"),
        ({"x": entry("F32", [2**40, 2**40], 0, 16)}, b"\0" * 16, "valid safetensors"),
        ({"x": {"dtype": "F32"}}, b"\0" * 16, "valid safetensors"),
        ([1, 2], b"\0" * 16, "valid safetensors"),
        ({"x": entry("F8_E4M3", [4], 0, 4)}, b"\0" * 4, "dtype F8_E4M3"),
    ],
)
def test_headers_that_lie(tmp_path, header, data, message) -> None:
    path = tmp_path / "t.safetensors"
    write(path, header, data)
    with pytest.raises(ModelFormatError, match=message):
        read_safetensors(str(path))


def test_header_sizes_that_cannot_be(tmp_path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}" * 100)
    with pytest.raises(ModelFormatError, match=r"has 208 bytes, its header claims 92233"):
        read_safetensors(str(path))
    with path.open("wb") as file:  # sparse: a file as large as the header it claims
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(ModelFormatError, match="limit"):
        read_safetensors(str(path))


def test_a_git_lfs_pointer_is_recognised(tmp_path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 90868376\n")
    with pytest.raises(ModelFormatError) as caught:
        read_safetensors(str(path))
    assert "git lfs pull" in (caught.value.hint or "")


def test_truncated_and_flipped_files_never_crash(tmp_path) -> None:
    whole = tmp_path / "whole.safetensors"
    tensors = {f"t{n}": np.full((n + 1, 7), n, np.float32) for n in range(5)}
    safetensors.numpy.save_file(tensors, whole)
    data = whole.read_bytes()
    rng = random.Random(3)
    path = tmp_path / "t.safetensors"
    for _ in range(300):
        if rng.random() < 0.5:
            damaged = data[: rng.randrange(len(data))]
        else:
            place = rng.randrange(min(400, len(data)))
            damaged = data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        path.write_bytes(damaged)
        try:
            for array in read_safetensors(str(path)).values():
                array.sum()
        except ModelFormatError:
            continue
