"""What tests of ``generate`` share: a file with two small models and prompts, and their texts."""

from __future__ import annotations

import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.model_ops import Decoder
from tests.golden.models.tiny_decoders import tiny_prompts, tiny_text, write_tiny_decoder

GOLDEN = pathlib.Path(__file__).parents[3] / "golden" / "models"
LETTERS = [tiny_text(prompt) for prompt in tiny_prompts()]
CHAT = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}<s>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Models, and a database that holds them: made once, each test has a copy."""
    folder = tmp_path_factory.mktemp("made")
    write_tiny_decoder(folder / "tiny", "qwen3")
    write_tiny_decoder(folder / "chatty", "llama", CHAT)
    with tarsdb.connect(folder / "db.tars") as connection:
        connection.execute("SET default_quantize = 'none'")
        for name in ("tiny", "chatty"):
            connection.execute(f"CREATE MODEL {name} FROM '{folder / name}'")
        connection.execute("CREATE TABLE prompts (id INT PRIMARY KEY, body TEXT)")
        rows = list(enumerate(LETTERS))
        connection.executemany("INSERT INTO prompts VALUES (?, ?)", rows)
    return folder


@pytest.fixture
def path(made: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(made, tmp_path / "models")) / "db.tars"


@pytest.fixture
def db(path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(path) as connection:
        connection.execute("SET default_quantize = 'none'")
        connection.execute("SET inference_cache = off")
        yield connection


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps take a while, and are counted."""
    steps: list[int] = []
    step = Decoder.step

    def stepped(self: Decoder, batch: Any, cache: Any) -> Any:
        time.sleep(0.005)
        steps.append(len(batch.positions))
        return step(self, batch, cache)

    monkeypatch.setattr(Decoder, "step", stepped)
    return steps


def golden() -> list[str]:
    stored = np.load(GOLDEN / "tiny_texts.npz")
    return [tiny_text(stored[str(number)].tolist()) for number in range(len(LETTERS))]
