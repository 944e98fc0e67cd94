"""``predict`` over features with an ONNX model run by onnxruntime, where it is installed."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.inference.inference_cache import _digest
from tarsdb.errors import BindError, DataError, ModelError, ModelFormatError, NotSupportedError

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "models"
SOURCE = GOLDEN / "tiny_classifier.onnx"
WEIGHT = np.array([[1.0, -2.0], [0.5, 0.25], [-1.0, 3.0]])
needs_runtime = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="pip install 'tarsdb[onnx]'"
)


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "db.tars") as connection:
        yield connection


def test_arrays_are_known_by_all_their_bytes() -> None:
    first = np.arange(5000, dtype=np.float32)
    second = first.copy()
    second[2500] += 0.001
    assert str(first) == str(second)
    assert _digest(first) != _digest(second)
    assert _digest(first) == _digest(first.copy()) != _digest(first.astype(np.float64))


def test_without_the_package_the_error_says_what_to_install(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(NotSupportedError, match=r"onnxruntime.*tarsdb\[onnx\]"):
        db.execute(f"CREATE MODEL m FROM '{SOURCE}'")
    with pytest.raises(ModelError, match="cannot embed"):
        db.execute(f"CREATE MODEL m FROM '{SOURCE}' WITH (task = 'embed')")


@needs_runtime
def test_rows_get_what_the_model_says(db: tarsdb.Connection) -> None:
    db.execute(f"CREATE MODEL m FROM '{SOURCE}'")
    rows = np.random.default_rng(0).standard_normal((3000, 3)).astype(np.float32)
    db.execute("CREATE TABLE t (id INT PRIMARY KEY, f VECTOR(3), parts REAL[])")
    db.executemany(
        "INSERT INTO t VALUES (?, ?, ?)", [(n, row, row.tolist()) for n, row in enumerate(rows)]
    )
    db.execute("INSERT INTO t VALUES (9999, NULL, NULL)")
    scores = rows.astype(np.float64) @ WEIGHT
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected = powers / powers.sum(axis=1, keepdims=True)
    for column in ("f", "parts"):
        found = db.execute(f"SELECT predict('m', {column}) FROM t ORDER BY id").fetchall()
        assert found.pop() == (None,)
        values = [value if isinstance(value, dict) else json.loads(value) for (value,) in found]
        assert [value["label"] for value in values] == scores.argmax(axis=1).tolist()
        probabilities = np.array([value["probabilities"] for value in values])
        assert np.abs(probabilities - expected).max() < 1e-5
    one = [rows[0].tolist()]
    for text, given in (("?", one), ("?", [rows[0]]), (f"[{', '.join(map(str, one[0]))}]", [])):
        (answer,) = db.execute(f"SELECT predict('m', {text})", given).fetchone()
        assert np.abs(np.array(answer["probabilities"]) - expected[0]).max() < 1e-5
    assert db.execute("SELECT task, dim FROM tars_models").fetchone() == ("predict", 0)


@needs_runtime
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ("predict('m', [1.0, 2.0]::REAL[])", DataError, "row 1 has 2 features, the model takes 3"),
        ("predict('m', [1.0, 2.0])", DataError, "row 1 has 2 features, the model takes 3"),
        ("predict('m', 'text')", DataError, "'text'"),
        ("predict('m', [1.0], [2.0])", BindError, r"each of its 1 inputs \(features\), 2 are"),
        ("embed('m', 'text')", BindError, "does predict, not embed"),
    ],
)
def test_what_is_no_row_of_features_is_refused(
    db: tarsdb.Connection, call: str, error: type[Exception], message: str
) -> None:
    db.execute(f"CREATE MODEL m FROM '{SOURCE}'")
    with pytest.raises(error, match=message):
        db.execute(f"SELECT {call}").fetchall()


@needs_runtime
def test_other_models_are_refused(db: tarsdb.Connection, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(SOURCE.read_bytes()[:-20])
    with pytest.raises(ModelFormatError, match="onnxruntime refuses"):
        db.execute(f"CREATE MODEL m FROM '{path}'")
    path.write_bytes(SOURCE.read_bytes() + b"\x0a\x08location")
    with pytest.raises(ModelFormatError, match="in other files"):
        db.execute(f"CREATE MODEL m FROM '{path}'")
    with pytest.raises(NotSupportedError, match=r"takes image: tensor\(float\) \['n', 2, 2\]"):
        db.execute(f"CREATE MODEL m FROM '{GOLDEN / 'tiny_image.onnx'}'")
    with pytest.raises(ModelError, match="no option 'quantize'"):
        db.execute(f"CREATE MODEL m FROM '{SOURCE}' WITH (quantize = 'int8')")
    with pytest.raises(ModelFormatError, match=r"cannot read .*none\.onnx"):
        db.execute(f"CREATE MODEL m FROM '{tmp_path / 'none.onnx'}'")


@needs_runtime
def test_a_model_of_several_inputs_takes_a_list_for_each(db: tarsdb.Connection) -> None:
    db.execute(f"CREATE MODEL price FROM '{GOLDEN / 'tiny_inputs.onnx'}'")
    db.execute("CREATE TABLE t (id INT PRIMARY KEY, f VECTOR(2), kind INT)")
    rows = [(n, [n + 0.5, 2.0 * n], n % 3) for n in range(2500)]
    db.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
    found = db.execute("SELECT predict('price', f, [kind]) FROM t ORDER BY id").fetchall()
    expected = [(a + b) * 10**kind for _, (a, b), kind in rows]
    assert [float(value) for (value,) in found] == pytest.approx(expected)
    assert db.execute(
        "SELECT predict('price', f, NULL::REAL[]) FROM t WHERE id = 1"
    ).fetchone() == (None,)
    for call, error, message in (
        ("predict('price', f)", BindError, r"its 2 inputs \(features, kind\), 1 are given"),
        ("predict('price', f, [kind], f)", BindError, "3 are given"),
        ("predict('price', [1.0, 2, 3]::REAL[], [kind])", DataError,
         "of input features has 3 features, the model takes 2"),
        ("predict('price', f, [1, 2]::INT[])", DataError, "of input kind has 2 features"),
        ("predict('price', f, [9])", DataError, "the ONNX model failed"),
        ("predict('price')", BindError, "takes a model and a list of features"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            db.execute(f"SELECT {call} FROM t WHERE id = 1").fetchall()
