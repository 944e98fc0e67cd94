"""Hub addresses, with huggingface_hub replaced: the suite uses no network."""

from __future__ import annotations

import fnmatch
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tarsdb.errors import ModelFormatError, NotSupportedError, OperationalError
from tarsdb.model_ops import hub, read_model_directory
from tarsdb.model_ops.directory import _SMALL_FILES

GOLDEN = Path(__file__).parents[2] / "golden" / "models"


def _install(monkeypatch: pytest.MonkeyPatch, fetch: Any) -> None:
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = fetch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_the_repository_and_revision_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[Any, ...]] = []

    def fetch(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, revision))
        assert not any("bin" in pattern or "pkl" in pattern for pattern in allow_patterns)
        for name in _SMALL_FILES:
            assert any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns), name
        return str(tmp_path)

    _install(monkeypatch, fetch)
    assert hub.download("hf://BAAI/bge-small-en-v1.5") == str(tmp_path)
    assert hub.download("hf://BAAI/bge-small-en-v1.5@refs/pr/1") == str(tmp_path)
    assert asked == [("BAAI/bge-small-en-v1.5", None), ("BAAI/bge-small-en-v1.5", "refs/pr/1")]
    with pytest.raises(ModelFormatError, match="config"):
        read_model_directory("hf://BAAI/bge-small-en-v1.5")


def test_a_gguf_file_is_named_behind_its_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[Any, ...]] = []

    def fetch(repo: str, file: str, *, revision: str | None) -> str:
        asked.append((repo, file, revision))
        return str(GOLDEN / "tiny_llama.gguf")

    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = fetch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    assert read_model_directory("hf://Qwen/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf").dim == 0
    assert read_model_directory("hf://a/b@main/q4/m.gguf").max_length == 70
    assert asked == [
        ("Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf", None), ("a/b", "q4/m.gguf", "main")
    ]  # fmt: skip
    for source in ("hf://a/m.gguf", "hf://a/b/../m.gguf", "hf://a/b@/m.gguf", "hf://a/b/.gguf "):
        with pytest.raises(ModelFormatError, match=r"no hub address|is no model directory"):
            read_model_directory(source)
    assert len(asked) == 2


@pytest.mark.parametrize("source", ["hf://", "hf://one", "hf://a/b/c", "hf://a/b@", "hf://a b/c"])
def test_other_addresses_are_refused(source: str) -> None:
    with pytest.raises(ModelFormatError, match="hub address"):
        hub.download(source)


def test_failures_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route")

    _install(monkeypatch, fetch)
    with pytest.raises(OperationalError, match="no route"):
        hub.download("hf://a/b")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(NotSupportedError, match=r"tarsdb\[hub\]"):
        hub.download("hf://a/b")
