"""The stored modules of the examples and of new projects do what their sources say."""

from __future__ import annotations

import importlib.util
import json
import math
import pathlib
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

import tarsdb
from tarsdb.cli import main
from tarsdb.columns import Column, from_list
from tarsdb.errors import UdfError
from tarsdb.types import BOOLEAN, DOUBLE, INT, REAL, TEXT, Kind, SqlType, parse_type
from tarsdb.udf_sandbox import AggregateFunction, ScalarFunction, TableFunction
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples" / "functions"
WORDS = ROOT / "tests" / "fixtures" / "wasm"
JSON = SqlType(Kind.JSON)
TEXTS = ["", "a", "kitten", "sitting", "Größe", "größer", "日本語", "日本", "🦀x", "x" * 300]


def code_of(name: str) -> bytes:
    return (EXAMPLES / f"{name}.wasm").read_bytes()


def levenshtein(a: str, b: str) -> int:
    line = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, line[0] = line[0], i
        for j, y in enumerate(b, 1):
            diagonal, line[j] = line[j], min(line[j] + 1, line[j - 1] + 1, diagonal + (x != y))
    return line[-1]


def test_text_distance() -> None:
    function = ScalarFunction(code_of("text_distance"), "text_distance", [TEXT, TEXT], INT)
    a, b = zip(*[(x, y) for x in TEXTS for y in TEXTS], strict=True)
    found = function.call([from_list(TEXT, a), from_list(TEXT, b)], len(a))
    assert found.to_list() == [levenshtein(x, y) for x, y in zip(a, b, strict=True)]


def kilometres(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    lat1, lon1, lat2, lon2 = map(math.radians, (lat1, lon1, lat2, lon2))
    h = math.sin((lat2 - lat1) / 2) ** 2
    h += math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * 6371.0088 * math.asin(math.sqrt(min(h, 1)))


def test_geo_filter() -> None:
    function = ScalarFunction(code_of("geo_filter"), "within_km", [DOUBLE] * 5, BOOLEAN)
    source = np.random.default_rng(1)
    points = [source.uniform((-90, -180) * 2, (90, 180) * 2) for _ in range(500)]
    points += [np.array(p) for p in ((52.52, 13.405, 48.137, 11.575), (0, 0, 0, 180), (1, 2, 1, 2))]
    true = [kilometres(*p) for p in points]
    limits = [km * source.choice((0.99, 1.01)) for km in true]
    columns = [Column(DOUBLE, np.ascontiguousarray(c)) for c in np.array(points).T]
    columns.append(Column(DOUBLE, np.array(limits)))
    found = function.call(columns, len(points)).to_list()
    assert found == [a <= b for a, b in zip(true, limits, strict=True)]
    assert kilometres(52.52, 13.405, 48.137, 11.575) == pytest.approx(504, abs=2)


def test_weighted_metric() -> None:
    vector = parse_type("VECTOR(16)")
    function = ScalarFunction(code_of("weighted_metric"), "weighted_l1", [vector, vector], REAL)
    source = np.random.default_rng(2)
    a, b = (source.normal(size=(100, 16)).astype(np.float32) for _ in range(2))
    found = function.call([Column(vector, a), Column(vector, b)], 100).values
    wanted = (np.abs(a - b) * np.repeat((2, 1), 8)).sum(axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_reranker() -> None:
    function = ScalarFunction(code_of("reranker"), "overlap_score", [TEXT, TEXT], DOUBLE)
    pairs = [
        ("How do I open a file?", "open() gives a file", 3 / 6), ("", "text", 0.0), ("a", "", 0.0),
        ("Straße", "in der Straße", 1.0), ("one two", "TWO, one!", 1.0), ("x", "xy", 0.0),
    ]  # fmt: skip
    asked, bodies, wanted = (list(part) for part in zip(*pairs, strict=True))
    columns = [from_list(TEXT, asked), from_list(TEXT, bodies)]
    assert function.call(columns, len(pairs)).to_list() == pytest.approx(wanted)


def test_code_words() -> None:
    function = TableFunction(code_of("code_words"), "code_words", [TEXT], [INT, INT, TEXT])
    texts = [*TEXTS, "parseHTTPDate(x)", "parse_http_date", "utf8ToHTML2", " -- ", "ABC", "w " * 9]
    (first, behind, terms), bounds = function.call([from_list(TEXT, texts)], len(texts))
    words = [terms.to_list()[a:b] for a, b in pairwise(bounds.tolist())]
    assert words[len(TEXTS) :] == [
        ["parse", "http", "date", "x"], ["parse", "http", "date"], ["utf8", "to", "html2"], [],
        ["abc"], ["w"] * 9,
    ]  # fmt: skip
    assert words[: len(TEXTS)] == [[text.lower()] if text else [] for text in TEXTS]
    rows = np.repeat(np.arange(len(texts)), np.diff(bounds))
    for row, start, stop, term in zip(
        rows, first.values, behind.values, terms.to_list(), strict=True
    ):
        assert texts[row].encode()[start:stop].decode().lower() == term


def test_geometric_mean() -> None:
    function = AggregateFunction(code_of("geometric_mean"), "geometric_mean", [DOUBLE], DOUBLE)
    x = np.random.default_rng(3).uniform(0.1, 1000, 1000)
    offsets = np.array([0, 1, 1, 400, 1000])
    found = function.call([Column(DOUBLE, x)], offsets).to_list()
    assert found[1] is None
    for group in (0, 2, 3):
        part = x[offsets[group] : offsets[group + 1]]
        assert found[group] == pytest.approx(math.exp(np.log(part).mean()))
    with pytest.raises(UdfError, match="status 2"):
        function.call([Column(DOUBLE, np.array([1.0, -1.0]))], np.array([0, 2]))


def field(text: str, name: str) -> str | None:
    found = json.loads(text, parse_float=lambda t: t, parse_int=lambda t: t)
    value = found.get(name) if isinstance(found, dict) else None
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)


def test_json_field() -> None:
    function = ScalarFunction(code_of("json_field"), "json_field", [JSON, TEXT], TEXT)
    objects = [
        '{"a": "x"}', '{ "b" : 1 , "a" : "y" }', '{"a": null}', "{}", "[1]", '"a"', "3",
        r'{"a": "q\"\\\/\n\tq"}', r'{"a": "\u00e9\u65e5\ud83e\udd80"}', r'{"\u0061": "escaped"}',
        '{"a": -1.5e3}', '{"a": "first", "a": "last"}', '{"x": {"a": 1}, "a": "outer"}',
        '{"x": "}{\\"a", "a": "behind"}', '{"a": "größe 日本"}', '{"x": [1, {"a": 2}], "a": "z"}',
        '{"a": ""}', ' {"a":"spaced"} ',
    ]  # fmt: skip
    columns = [from_list(JSON, objects), from_list(TEXT, ["a"] * len(objects))]
    found = function.call(columns, len(objects)).to_list()
    assert found == [field(text, "a") for text in objects]
    nested = ['{"a": {"b": [1, 2]}}', '{"a": [true]}', '{"a": true}', r'{"a": "\ud83e"}']
    columns = [from_list(JSON, nested), from_list(TEXT, ["a"] * len(nested))]
    found = function.call(columns, len(nested)).to_list()
    assert found == ['{"b": [1, 2]}', "[true]", "true", "\ufffd"]


@pytest.mark.parametrize("language", ["c", "zig", "as", "rust"])
def test_new_projects(language: str) -> None:
    """What ``tarsdb udf new words`` writes, built for each language, counts words."""
    code = (WORDS / f"words_{language}.wasm").read_bytes()
    function = ScalarFunction(code, "words", [TEXT], INT)
    texts = ["", " ", "one", "one two  three", "\n a\tb ", "日本 語", *TEXTS, "w " * 20_000]
    wanted = [len(text.split()) for text in texts]
    for _ in range(2):
        assert function.call([from_list(TEXT, texts)], len(texts)).to_list() == wanted


@pytest.mark.parametrize("language", ["c", "zig"])
def test_a_new_project_builds(
    language: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed")
    monkeypatch.chdir(tmp_path)
    assert main(["udf", "new", "words", "--lang", language]) == 0
    monkeypatch.setenv("PATH", f"{pathlib.Path(sys.executable).parent}:/usr/bin:/bin")
    subprocess.run(["sh", "build.sh"], cwd="words", check=True, timeout=300)
    monkeypatch.chdir(tmp_path / "words")
    with tarsdb.connect("my.tars", file_access=True) as db:
        db.execute(pathlib.Path("words.sql").read_text("utf-8"))
        assert db.execute("SELECT words('one two')").fetchall() == [(2,)]


@pytest.mark.parametrize(
    "path", sorted([*EXAMPLES.glob("*.wasm"), *WORDS.glob("*.wasm")]), ids=lambda path: path.name
)
def test_stored_modules_hold_no_places_of_a_machine(path: pathlib.Path) -> None:
    code = path.read_bytes()
    assert b".debug_" not in code
    assert re.search(rb"(?:/[\w.-]+){3}", code) is None  # a path of three folders or more
