from __future__ import annotations

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
import safetensors.numpy

from tarsdb.errors import ModelError, ModelFormatError, NotSupportedError
from tarsdb.model_ops import Encoder, read_model_directory
from tests.unit.model_ops.conftest import write_json


def edit(folder: pathlib.Path, name: str, **changes: object) -> None:
    value = json.loads((folder / name).read_text())
    write_json(folder / name, {**value, **changes})


def rewrite(folder: pathlib.Path, change) -> None:
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def test_a_whole_directory_is_read(model_dir) -> None:
    model = read_model_directory(str(model_dir))
    assert (model.task, model.dim, model.max_length) == ("embed", 24, 20)
    assert {"config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"} <= set(
        model.files
    )
    assert len(model.tensors) == 5 + 16 * 2
    assert not model.tensors["embeddings.LayerNorm.bias"].flags.writeable


def test_max_length_falls_back_to_tokenizer_then_positions(model_dir) -> None:
    (model_dir / "sentence_bert_config.json").unlink()
    assert read_model_directory(str(model_dir)).max_length == 70
    write_json(model_dir / "tokenizer_config.json", {"model_max_length": 33})
    assert read_model_directory(str(model_dir)).max_length == 33
    write_json(model_dir / "tokenizer_config.json", {"model_max_length": 1e30})
    assert read_model_directory(str(model_dir)).max_length == 70


def test_without_modules_json_pooling_is_mean_without_normalisation(model_dir) -> None:
    with_modules = read_model_directory(str(model_dir))
    (model_dir / "modules.json").unlink()
    model = read_model_directory(str(model_dir))
    raw = Encoder.from_files(model.files, model.tensors).encode(["parse the date"])[0]
    unit = Encoder.from_files(with_modules.files, with_modules.tensors).encode(["parse the date"])
    assert np.allclose(raw / np.linalg.norm(raw), unit[0], atol=1e-6)
    assert abs(np.linalg.norm(raw) - 1.0) > 0.01


def test_a_package_is_found_without_importing_it(model_dir, tmp_path, monkeypatch) -> None:
    package = tmp_path / "site" / "my_tiny_model"
    shutil.copytree(model_dir, package / "data" / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert read_model_directory("package:my_tiny_model").dim == 24
    assert read_model_directory("package:my-tiny-model").dim == 24
    assert "my_tiny_model" not in sys.modules
    shutil.copytree(model_dir, package / "data" / "second")
    with pytest.raises(ModelFormatError, match="2 model directories"):
        read_model_directory("package:my_tiny_model")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("package:no_such_package_here", "not installed"),
        ("package:json", "holds 0 model directories"),
        ("package:os.path", "no top-level Python package"),
        ("package:", "no top-level Python package"),
        ("/no/such/directory", "no directory"),
        ("package:sys", "holds 0 model"),
    ],
)
def test_paths_that_lead_nowhere(path: str, message: str) -> None:
    with pytest.raises(ModelFormatError, match=message) as caught:
        read_model_directory(path)
    assert caught.value.hint


def test_other_addresses_are_not_fetched() -> None:
    with pytest.raises(NotSupportedError, match="s3://"):
        read_model_directory("s3://bucket/bge-small-en-v1.5")


def test_a_directory_that_is_no_model(tmp_path, model_dir) -> None:
    with pytest.raises(ModelFormatError, match=r"no config\.json") as caught:
        read_model_directory(str(tmp_path))
    assert "tokenizer.json" in (caught.value.hint or "")
    with pytest.raises(ModelFormatError, match="is a file"):
        read_model_directory(str(model_dir / "config.json"))


def test_missing_parts_are_named(model_dir) -> None:
    weights, tokenizer = model_dir / "model.safetensors", model_dir / "tokenizer.json"
    text = tokenizer.read_text()
    tokenizer.unlink()
    with pytest.raises(ModelFormatError, match=r"no tokenizer\.json"):
        read_model_directory(str(model_dir))
    tokenizer.write_text(text)
    weights.rename(model_dir / "pytorch_model.bin")
    with pytest.raises(ModelFormatError, match=r"no \*\.safetensors") as caught:
        read_model_directory(str(model_dir))
    assert "pickled" in (caught.value.hint or "")
    shutil.rmtree(model_dir / "1_Pooling")
    with pytest.raises(ModelFormatError, match=r"1_Pooling/config\.json"):
        read_model_directory(str(model_dir))


def test_missing_tensors_are_named(model_dir) -> None:
    def drop(tensors) -> None:
        del tensors["encoder.layer.0.attention.self.key.bias"]
        del tensors["encoder.layer.1.output.LayerNorm.weight"]

    rewrite(model_dir, drop)
    with pytest.raises(ModelFormatError, match="lacks 2 tensors") as caught:
        read_model_directory(str(model_dir))
    assert "encoder.layer.0.attention.self.key.bias" in caught.value.message
    assert "encoder.layer.1.output.LayerNorm.weight" in caught.value.message


@pytest.mark.parametrize("kind", ["int64", "int8", "uint8", "bool"])
def test_weights_of_no_float_type_are_named_with_it(model_dir, kind: str) -> None:
    name = "encoder.layer.0.attention.self.key.weight"
    rewrite(model_dir, lambda tensors: tensors.update({name: tensors[name].astype(kind)}))
    with pytest.raises(ModelFormatError, match=f"lacks 1 tensors: {name}") as caught:
        read_model_directory(str(model_dir))
    assert f"{name} ({kind})" in (caught.value.hint or "")


def test_weights_of_another_float_type_are_read(model_dir) -> None:
    name = "encoder.layer.0.attention.self.key.weight"
    before = read_model_directory(str(model_dir)).tensors[name]
    rewrite(model_dir, lambda tensors: tensors.update({name: tensors[name].astype(np.float64)}))
    assert np.array_equal(read_model_directory(str(model_dir)).tensors[name], before)


def test_wrong_shapes_are_named_with_both(model_dir) -> None:
    edit(model_dir, "config.json", intermediate_size=41)
    with pytest.raises(ModelFormatError, match=r"intermediate\.dense\.\w+'.*\(40.*\(41"):
        read_model_directory(str(model_dir))


def test_integer_buffers_and_heads_do_not_disturb(model_dir) -> None:
    def add(tensors) -> None:
        tensors["embeddings.position_ids"] = np.arange(70)[None]
        tensors["pooler.dense.weight"] = np.zeros((24, 24), np.float32)

    rewrite(model_dir, add)
    model = read_model_directory(str(model_dir))
    assert "embeddings.position_ids" not in model.tensors
    assert "pooler.dense.weight" in model.tensors


def test_a_sharded_model_is_one_model(model_dir) -> None:
    whole = read_model_directory(str(model_dir))
    tensors = safetensors.numpy.load_file(model_dir / "model.safetensors")
    (model_dir / "model.safetensors").unlink()
    shards: dict[str, dict[str, np.ndarray]] = {"one.safetensors": {}, "two.safetensors": {}}
    for number, (name, array) in enumerate(tensors.items()):
        shards[("one", "two")[number % 2] + ".safetensors"][name] = array
    for shard, part in shards.items():
        safetensors.numpy.save_file(part, model_dir / shard)
    index = model_dir / "model.safetensors.index.json"
    with pytest.raises(ModelFormatError, match="2 safetensors files"):
        read_model_directory(str(model_dir))
    write_json(index, {"weight_map": {n: s for s, part in shards.items() for n in part}})
    model = read_model_directory(str(model_dir))
    assert model.tensors.keys() == whole.tensors.keys()
    write_json(index, {"weight_map": {"x": "../../etc/passwd", "y": "one.safetensors"}})
    with pytest.raises(ModelFormatError, match="passwd"):
        read_model_directory(str(model_dir))
    write_json(index, {"weight_map": []})
    with pytest.raises(ModelFormatError, match="weight_map"):
        read_model_directory(str(model_dir))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "[" * 100_000),
        ("config.json", "{}"),
        ("config.json", '{"model_type": 7}'),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "\udcff"),
        ("modules.json", "{}"),
        ("modules.json", '[{"type": 1}]'),
        ("modules.json", '[{"type": "x.Pooling", "path": "../secret"}]'),
        ("modules.json", '[{"type": "x.Pooling", "path": "/etc"}]'),
        ("sentence_bert_config.json", "7"),
        ("1_Pooling/config.json", "null x"),
        ("model.safetensors", ""),
        ("model.safetensors", "x"),
    ],
)
def test_broken_files_are_typed_errors(model_dir, name: str, content: str) -> None:
    (model_dir / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelFormatError):
        read_model_directory(str(model_dir))


def test_an_oversized_small_file_is_refused(model_dir) -> None:
    (model_dir / "config.json").write_bytes(b" " * (4 << 20) + b"{}")
    with pytest.raises(ModelFormatError, match="more than"):
        read_model_directory(str(model_dir))


@pytest.mark.parametrize(
    "modules",
    [
        [{"type": "sentence_transformers.models.Dense", "path": "3_Dense"}],
        [{"type": "evil.Custom", "path": ""}],
    ],
)
def test_other_modules_are_not_supported(model_dir, modules: list) -> None:
    write_json(model_dir / "modules.json", modules)
    with pytest.raises(NotSupportedError, match=r"Dense|Custom"):
        read_model_directory(str(model_dir))


def test_options_are_checked_before_anything_is_stored(model_dir) -> None:
    with pytest.raises(ModelError, match="middle"):
        read_model_directory(str(model_dir), {"pooling": "middle"})
    assert read_model_directory(str(model_dir), {"max_length": 9}).max_length == 9
