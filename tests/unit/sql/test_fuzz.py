"""Mutated statements: only typed errors escape, and nothing takes long."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from catalog_fixture import FakeCatalog

from tarsdb.errors import Error, NotSupportedError
from tarsdb.sql import bind, explain, parse, split

GOLDEN = Path(__file__).parents[2] / "golden" / "sql"
CODES = [
    0,
    9,
    10,
    34,
    35,
    36,
    39,
    40,
    41,
    58,
    59,
    63,
    64,
    91,
    92,
    93,
    123,
    125,
    233,
    0xD800,
    0x1F600,
]


def seeds() -> list[str]:
    text = "\n".join(path.read_text() for path in sorted(GOLDEN.glob("*.txt")))
    return [block.split("\n----", 1)[0].strip() for block in text.split("\n\n") if block.strip()]


def mutate(source: random.Random, pool: list[str], words: list[str]) -> str:
    text = source.choice(pool)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(text) + 1)
        kind = source.randrange(5)
        if kind == 0:
            text = text[:place] + text[place + source.randint(1, 8) :]
        elif kind == 1:
            text = text[:place] + source.choice(words) + text[place:]
        elif kind == 2:
            text = text[:place] + chr(source.choice(CODES)) + text[place:]
        elif kind == 3:
            other = source.choice(pool)
            text = text[:place] + other[source.randrange(len(other)) :]
        else:
            text = text[:place] + text[place : place + 20] * source.randint(2, 30) + text[place:]
    return text


def run(count: int, seed: int, catalog: FakeCatalog) -> int:
    source, pool = random.Random(seed), seeds()
    words = re.findall(r"\w+|[^\w\s]+|\s+", " ".join(pool))
    understood = 0
    for number in range(count):
        text = mutate(source, pool, words)
        if number % 50 == 0:
            text = source.randbytes(source.randint(1, 60)).decode("latin1")
        try:
            split(text)
            explain(bind(parse(text), catalog))
        except Error as error:
            unforeseen = isinstance(error, NotSupportedError) and "has a form" in error.message
            assert not unforeseen, f"{text!r}: {error.__cause__!r}"
        else:
            understood += 1
    return understood


def test_mutated_statements(catalog: FakeCatalog) -> None:
    assert run(1500, 20, catalog) > 50


@pytest.mark.slow
def test_many_mutated_statements(catalog: FakeCatalog) -> None:
    assert run(50_000, 21, catalog) > 500
