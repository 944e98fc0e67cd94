"""Comparing with transformers: with a stand-in for it, and with the library where it is."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tarsdb.cli import main
from tarsdb.errors import NotSupportedError
from tarsdb.model_ops import Classifier, read_model_directory, verification
from tarsdb.model_ops.tokenizer import TextTokenizer
from tests.golden.models.tiny_heads import HEADS, write_head_model

TEXTS = ["w5 w6 w7", "w8 " * 100]


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return write_head_model(tmp_path / "model", HEADS["bert"])


class Reference:
    """Answers as transformers would, by our own means, with an error added to the outputs."""

    def __init__(self, path: str, error: float) -> None:
        files = read_model_directory(path)
        self._model = Classifier.from_files(files.files, files.tensors)
        self._tokenizer = TextTokenizer(files.files["tokenizer.json"], files.max_length)
        self._error = error

    def encode(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": self._tokenizer.encode([text]).ids.tolist()}

    def __call__(self, ids: Sequence[int], types: Sequence[int] | None = None) -> Any:
        texts = {tuple(self.encode(text)["input_ids"]): text for text in TEXTS}
        found: Any = texts.get(tuple(ids)) if types is None else None
        if found is None:
            tokens = {tuple(self._model.tokenizer.encode_pairs([(TEXTS[0], text)]).ids): text
                      for text in TEXTS}  # fmt: skip
            found = (TEXTS[0], tokens[tuple(ids)])
        logits = self._model.logits([found])
        return SimpleNamespace(
            logits=SimpleNamespace(numpy=lambda: logits + np.float32(self._error))
        )


@pytest.mark.parametrize(("error", "code"), [(0.0, 0), (0.1, 1), (float("nan"), 1)])
def test_the_verdict_follows_the_outputs(
    path: str, error: float, code: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    reference = Reference(path, error)
    library = SimpleNamespace(AutoTokenizer=None, AutoModelForSequenceClassification=None)
    monkeypatch.setattr(verification, "_library", lambda: library)
    monkeypatch.setattr(verification, "_load", lambda *a, **k: reference.encode)
    monkeypatch.setattr(verification, "_reference", lambda *a: reference)
    asked = [f"--text={text}" for text in TEXTS]
    assert main(["verify-model", path, *asked, "--format", "csv"]) == code
    printed = capsys.readouterr()
    assert ("4 of 6 outputs differ" if code else "6 outputs agree") in printed.err
    assert printed.out.count("DIFFERENT") == 4 * code
    assert printed.out.count("tokens") == 2


def test_other_tokens_and_other_shapes_are_different() -> None:
    one, two = np.ones((1, 3), np.float32), np.ones((1, 4), np.float32)
    assert not verification._compare("a", "logits", one, two).equal
    assert verification._compare("a", "logits", one, one).equal
    assert not verification.Comparison("a", "tokens", 1.0, 0.0).equal


def test_without_the_library(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NotSupportedError, match=r"pip install 'tarsdb\[verify\]'"):
        list(verification.verify_model(path))
    assert main(["verify-model", path]) == 1
    assert "needs the package torch" in capsys.readouterr().err


@pytest.mark.parametrize("name", HEADS)
def test_tiny_models_agree_with_transformers(name: str, tmp_path: pathlib.Path) -> None:
    if (
        importlib.util.find_spec("transformers") is None
        or importlib.util.find_spec("torch") is None
    ):
        pytest.skip("pip install 'tarsdb[verify]'")
    path = write_head_model(tmp_path / "model", HEADS[name])
    settings = '{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}'
    pathlib.Path(path, "tokenizer_config.json").write_text(settings)
    assert all(one.equal for one in verification.verify_model(path, TEXTS))
