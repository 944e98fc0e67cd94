"""The numbers a model computes with are chosen once, at CREATE MODEL, and belong to the model."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.inference import model_import
from tarsdb.errors import CatalogError, DataError
from tarsdb.kernels import forms
from tarsdb.schema import ModelDef
from tests.unit.model_ops.conftest import model_dir as model_dir

SOURCE = "CREATE MODEL m FROM '{}'"


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "t.tars"


def on(monkeypatch: pytest.MonkeyPatch, multiplies: bool) -> None:
    """Go on as on a processor that multiplies bfloat16, or on one that does not."""
    monkeypatch.setattr(forms, "multiplies_bfloat16", lambda: multiplies)


def shown(db: tarsdb.Connection, model: str = "m") -> tuple[str, str]:
    """Return the mode that tars_models shows, and the option that DESCRIBE shows."""
    query = "SELECT numeric_mode FROM tars_models WHERE name = ?"
    ((mode,),) = db.execute(query, (model,)).fetchall()
    described = dict(db.execute(f"DESCRIBE MODEL {model}").fetchall())
    assert described["numeric mode"] == mode
    return mode, described["option quantize"]


def embed(db: tarsdb.Connection, model: str = "m") -> np.ndarray:
    ((vector,),) = db.execute(f"SELECT embed('{model}', 'the time')").fetchall()
    return np.asarray(vector)


@pytest.mark.parametrize(
    ("multiplies", "mode", "option"), [(True, "bf16", "bf16"), (False, "fp32", "none")]
)
def test_the_processor_chooses_once(
    path: pathlib.Path, model_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
    multiplies: bool, mode: str, option: str,
) -> None:  # fmt: skip
    on(monkeypatch, multiplies)
    with tarsdb.connect(path) as db:
        db.execute("SET inference_cache = off")
        db.execute(SOURCE.format(model_dir))
        assert shown(db) == (mode, option)
        vector = embed(db)
    on(monkeypatch, not multiplies)
    with tarsdb.connect(path) as db:
        db.execute("SET inference_cache = off")
        assert shown(db) == (mode, option)
        assert np.array_equal(embed(db), vector)
        db.execute(f"CREATE MODEL other FROM '{model_dir}'")
        assert shown(db, "other")[0] != mode
        assert not np.array_equal(embed(db, "other"), vector)


def test_what_is_said_goes_before_the_processor(
    path: pathlib.Path, model_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, True)
    with tarsdb.connect(path) as db:
        db.execute("SET default_quantize = 'int8'")
        db.execute(SOURCE.format(model_dir))
        db.execute(f"CREATE MODEL plain FROM '{model_dir}' WITH (quantize = 'none')")
        db.execute("RESET default_quantize")
        assert (shown(db)[0], shown(db, "plain")[0]) == ("int8", "fp32")
        with pytest.raises(DataError, match="'fp8' is none of auto"):
            db.execute("SET default_quantize = 'fp8'")


def test_results_are_kept_by_the_mode(
    path: pathlib.Path, model_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarsdb.connect(path) as db:
        for name, multiplies in (("plain", False), ("half", True)):
            on(monkeypatch, multiplies)
            db.execute(f"CREATE MODEL {name} FROM '{model_dir}'")
        first = embed(db, "plain"), embed(db, "half")
        assert not np.array_equal(*first)
        assert all(map(np.array_equal, first, (embed(db, "plain"), embed(db, "half"))))


def test_a_vector_column_keeps_its_mode(
    path: pathlib.Path, model_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = SOURCE.format(model_dir).replace("CREATE", "CREATE OR REPLACE")
    with tarsdb.connect(path) as db:
        on(monkeypatch, False)
        db.execute(SOURCE.format(model_dir))
        db.execute(
            "CREATE TABLE t (body TEXT, e VECTOR(24) GENERATED ALWAYS AS (embed('m', body)) STORED)"
        )
        db.execute(replace)  # the same model
        on(monkeypatch, True)
        with pytest.raises(CatalogError, match="cannot replace model m: table t uses it"):
            db.execute(replace)
        assert shown(db) == ("fp32", "none")
        db.execute(f"{replace} WITH (quantize = 'none')")
        db.execute("DROP TABLE t")
        db.execute(replace)
        assert shown(db) == ("bf16", "bf16")


def test_a_model_of_an_older_file_is_float32(
    path: pathlib.Path, model_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a file has no ``quantize`` where the statement named none."""
    with tarsdb.connect(path) as db:
        with monkeypatch.context() as older:
            older.setattr(model_import, "ModelDef", _without_quantize)
            db.execute(SOURCE.format(model_dir))
        described = dict(db.execute("DESCRIBE MODEL m").fetchall())
        assert "option quantize" not in described
    on(monkeypatch, True)
    with tarsdb.connect(path) as db:
        described = dict(db.execute("DESCRIBE MODEL m").fetchall())
        assert described["numeric mode"] == "fp32"
        db.execute(
            "CREATE TABLE t (b TEXT, e VECTOR(24) GENERATED ALWAYS AS (embed('m', b)) STORED)"
        )
        same = "CREATE OR REPLACE " + SOURCE.format(model_dir).removeprefix("CREATE ")
        db.execute(f"{same} WITH (quantize = 'none')")


def _without_quantize(*fields: Any) -> ModelDef:
    *others, options = fields
    return ModelDef(*others, {key: options[key] for key in options if key != "quantize"})
