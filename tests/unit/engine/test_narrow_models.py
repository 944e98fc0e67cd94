"""Models of bfloat16 and float16 weights take their own room in the file, and answer alike."""

from __future__ import annotations

import json
import pathlib
import shutil
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import tarsdb
from tarsdb.engine.inference import models
from tarsdb.errors import ModelError, ModelFormatError
from tarsdb.kernels import decoder
from tarsdb.kernels.packing import from_bfloat16, to_bfloat16
from tarsdb.model_ops.decoder import read_spec
from tarsdb.model_ops.decoder_spec import decoder_tensors
from tarsdb.schema import BFLOAT16
from tests.golden.models.tiny_decoders import write_tiny_decoder
from tests.unit.model_ops.conftest import model_dir as model_dir

TEXTS = ["the time of a text", "a", ""]


def write_tensors(path: pathlib.Path, dtype: str, tensors: dict[str, npt.NDArray[Any]]) -> None:
    """Write a safetensors file; its library has no bfloat16 for NumPy."""
    header, data = {}, b""
    for name, array in tensors.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)


def narrowed(folder: pathlib.Path, half: bool = False) -> tuple[pathlib.Path, pathlib.Path]:
    """Return a directory whose weights take 16 bits, and one of the same numbers in float32."""
    from tarsdb.model_ops.safetensors_file import read_safetensors

    given = read_safetensors(str(folder / "model.safetensors"))
    narrow, wide = (folder.parent / f"{folder.name}-{kind}" for kind in ("narrow", "wide"))
    for each in (narrow, wide):
        shutil.copytree(folder, each)
    if half:
        bits: dict[str, npt.NDArray[Any]] = {n: a.astype(np.float16) for n, a in given.items()}
        values = {name: array.astype(np.float32) for name, array in bits.items()}
    else:
        bits = {name: to_bfloat16(array) for name, array in given.items()}
        values = {name: from_bfloat16(array) for name, array in bits.items()}
    write_tensors(narrow / "model.safetensors", "F16" if half else "BF16", bits)
    write_tensors(wide / "model.safetensors", "F32", values)
    return narrow, wide


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("quantize", ["none", "bf16", "int8"])
def test_an_encoder_takes_half_the_room_and_gives_the_same_vectors(
    model_dir: pathlib.Path, tmp_path: pathlib.Path, half: bool, quantize: str
) -> None:
    narrow, wide = narrowed(model_dir, half)
    path = tmp_path / "db.tars"
    with tarsdb.connect(path) as db:
        # what earlier releases wrote for bfloat16 weights is what this one writes for float32
        for name, folder in (("narrow", narrow), ("wide", wide)):
            db.execute(f"CREATE MODEL {name} FROM '{folder}' WITH (quantize = '{quantize}')")
    with tarsdb.connect(path) as db:
        ours, theirs = (
            [db.execute(f"SELECT embed('{name}', ?)", (t,)).fetchone()[0] for t in TEXTS]
            for name in ("narrow", "wide")
        )
        np.testing.assert_array_equal(ours, theirs)
        stored = dict(db.execute("SELECT name, bytes_stored FROM tars_models").fetchall())
        assert 2 * stored["narrow"] == stored["wide"] > 10_000
        query = "SELECT name, bytes_loaded FROM tars_models"  # by what computes, not by the file
        loaded = dict(db.execute(query).fetchall())
        assert loaded["narrow"] == loaded["wide"]
        kept = {
            name: {dtype for dtype, _, _ in model.versions[0].tensors.values()}
            for name in stored
            if (model := db._require_session().inspect(lambda c, n=name: c.catalog.model(n)))
        }
    assert kept == {"narrow": {"<f2" if half else BFLOAT16}, "wide": {"<f4"}}


def test_a_decoder_does_the_same(tmp_path: pathlib.Path) -> None:
    write_tiny_decoder(tmp_path / "tiny", "qwen3")
    narrow, wide = narrowed(tmp_path / "tiny")
    with tarsdb.connect(tmp_path / "db.tars") as db:
        for name, folder in (("narrow", narrow), ("wide", wide)):
            db.execute(f"CREATE MODEL {name} FROM '{folder}' WITH (quantize = 'none')")
        texts = [db.generate(name, "abcab", max_tokens=20) for name in ("narrow", "wide")]
        assert texts[0] == texts[1]
        stored = dict(db.execute("SELECT name, bytes_stored FROM tars_models").fetchall())
        assert 2 * stored["narrow"] == stored["wide"]
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_vacuum_and_drop_know_narrow_weights(
    model_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    narrow, _ = narrowed(model_dir)
    with tarsdb.connect(tmp_path / "db.tars") as db:
        db.execute(f"CREATE MODEL m FROM '{narrow}'")
        db.execute("VACUUM")
        assert len(db.execute("SELECT embed('m', 'a')").fetchone()[0]) > 0
        db.execute("DROP MODEL m")
        db.execute("VACUUM")
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_narrow_weights_that_are_no_numbers_are_an_error_that_names_model_and_tensor(
    model_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    narrow, _ = narrowed(model_dir)
    raw = bytearray((narrow / "model.safetensors").read_bytes())
    raw[-2:] = b"\xc0\x7f"  # NaN
    (narrow / "model.safetensors").write_bytes(raw)
    with tarsdb.connect(tmp_path / "db.tars") as db:
        db.execute(f"CREATE MODEL m FROM '{narrow}'")
        with pytest.raises(ModelFormatError, match=r"^model m: tensor '.*' holds NaN"):
            db.execute("SELECT embed('m', 'a')")
        with pytest.raises(ModelError, match=r"^model m: the model has no prompt 'x'"):
            db.execute(f"CREATE OR REPLACE MODEL m FROM '{model_dir}'")
            db.execute("SELECT embed('m', 'a', kind => 'x')")


def wide_decoder(folder: pathlib.Path) -> None:
    """Write a decoder whose layers are most of it: 8 of 6.6 MB in float32."""
    write_tiny_decoder(folder, "llama")
    config = json.loads((folder / "config.json").read_text())
    config.update(hidden_size=512, intermediate_size=1024, num_hidden_layers=8)
    (folder / "config.json").write_text(json.dumps(config))
    spec = read_spec({"config.json": json.dumps(config).encode()})
    random = np.random.default_rng(0)
    tensors = {
        name: random.standard_normal(shape).astype(np.float32) * np.float32(0.02)
        for name, shape in decoder_tensors(spec).items()
    }
    write_tensors(folder / "model.safetensors", "F32", tensors)


@pytest.mark.skipif(decoder.wait("f32") is None, reason="no compiled kernels here")
@pytest.mark.parametrize("held", [False, True])
def test_loading_holds_a_layer_beside_the_packed_weights(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    write_tiny_decoder(tmp_path / "warm", "llama")
    wide_decoder(tmp_path / "m")
    narrow, _ = narrowed(tmp_path / "m")
    with tarsdb.connect(tmp_path / "db.tars") as db:
        db.execute(f"CREATE MODEL m FROM '{narrow}' WITH (quantize = 'none')")
        db.execute(f"CREATE MODEL warm FROM '{tmp_path / 'warm'}' WITH (quantize = 'none')")
        db.generate("warm", "abc", max_tokens=1)
    if held:  # what the bar is to see: all tensors in memory at a time
        kept: list[Any] = []
        read = models._Tensors.__getitem__
        monkeypatch.setattr(
            models._Tensors, "__getitem__", lambda t, name: kept.append(read(t, name)) or kept[-1]
        )
    with tarsdb.connect(tmp_path / "db.tars") as db:
        db.execute("SET kv_cache_memory = '1MB'")
        db.execute("SELECT 1").fetchall()
        tracemalloc.start()
        try:
            db.generate("m", "abc", max_tokens=1)
            _, peak = tracemalloc.get_traced_memory()  # of NumPy and Python; packed ones are mapped
        finally:
            tracemalloc.stop()
        ((stored, loaded),) = db.execute(
            "SELECT bytes_stored, bytes_loaded FROM tars_models WHERE name = 'm'"
        ).fetchall()
    assert 2 * stored <= loaded < 2.1 * stored  # float32, and no more
    assert (peak < loaded / 2) is not held
