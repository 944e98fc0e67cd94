"""Model functions in SQL: classify, score, rerank, predict, tokenize, chunk, embed's options."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import tarsdb
from tarsdb.engine.inference import model_functions
from tarsdb.engine.inference.models import FUNCTIONS
from tarsdb.errors import (
    BindError,
    CatalogError,
    DataError,
    InterruptError,
    ModelError,
    ModelFormatError,
    NotSupportedError,
)
from tarsdb.model_ops import Classifier, read_model_directory
from tarsdb.model_ops.tokenizer import TextTokenizer
from tarsdb.storage import Environment
from tests.golden.models.tiny_heads import HEADS, head_tensors, words_tokenizer
from tests.golden.models.tiny_models import CONFIGS, tiny_tensors

BODIES = ["w5 w6 w7", "w8", None, "", "w60 w61 w5", "w4 w5"]
QUERY = "w5 w60"


def write_model(folder: pathlib.Path, config: dict[str, Any], **files: Any) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(words_tokenizer(config))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    tensors = head_tensors(config) if "architectures" in config else tiny_tensors(config)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Models, and a database that holds them: made once, each test has a copy."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "classes", HEADS["bert"])
    write_model(folder / "multi", HEADS["bert_multi"])
    write_model(folder / "cross", HEADS["bert_reranker"])
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": ""}
        for kind in ("Transformer", "Normalize")
    ]
    prompts = {"prompts": {"query": "w9 w10 ", "document": "w11 ", "odd": "w12 "}}
    write_model(
        folder / "vectors", CONFIGS["bert"], modules=modules,
        config_sentence_transformers=prompts,
    )  # fmt: skip
    with tarsdb.connect(folder / "t.tars") as db:
        db.execute("SET default_quantize = 'none'")
        for name in ("classes", "multi", "cross", "vectors"):
            db.execute(f"CREATE MODEL {name} FROM '{folder / name}'")
        db.execute("CREATE TABLE docs (id INT PRIMARY KEY, body TEXT)")
        db.executemany("INSERT INTO docs VALUES (?, ?)", list(enumerate(BODIES)))
    return folder


@pytest.fixture
def folder(made: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(made, tmp_path / "models"))


@pytest.fixture
def db(folder: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(folder / "t.tars") as db:
        db.execute("SET default_quantize = 'none'")
        yield db


def column(db: tarsdb.Connection, sql: str, *parameters: Any) -> list[Any]:
    return [row[0] for row in db.execute(sql, parameters).fetchall()]


def loaded(folder: pathlib.Path, name: str) -> Classifier:
    model = read_model_directory(str(folder / name))
    return Classifier.from_files(model.files, model.tensors)


def test_tasks_are_told_by_the_models(db: tarsdb.Connection) -> None:
    rows = db.execute("SELECT name, task, dim FROM tars_models ORDER BY name").fetchall()
    assert rows == [
        ("classes", "classify", 0), ("cross", "rerank", 0), ("multi", "classify", 0),
        ("vectors", "embed", 24),
    ]  # fmt: skip


def test_classify_score_and_predict(db: tarsdb.Connection, folder: pathlib.Path) -> None:
    known = [body for body in BODIES if body is not None]
    model = loaded(folder, "classes")
    expected = model.probabilities(known)
    names = [model.labels[place] for place in expected.argmax(axis=1)]
    assert len(set(names)) > 1
    where = "FROM docs WHERE body IS NOT NULL ORDER BY id"
    assert column(db, f"SELECT classify('classes', body) {where}") == names
    best = column(db, f"SELECT score('classes', body) {where}")
    assert np.allclose(best, expected.max(axis=1), atol=1e-6)
    one = column(db, f"SELECT score('classes', body, label => ?) {where}", "label 1")
    assert np.allclose(one, expected[:, 1], atol=1e-6)
    every = column(db, f"SELECT predict('classes', body) {where}")
    assert all(list(row) == list(model.labels) for row in every)
    assert np.allclose([list(row.values()) for row in every], expected, atol=1e-6)
    multi = column(db, f"SELECT predict('multi', body) {where}")
    assert max(sum(row.values()) for row in multi) > 1.1


def test_null_and_empty_texts(db: tarsdb.Connection) -> None:
    for call in ("classify('classes', body)", "score('classes', body)", "tokenize('cross', body)",
                 "predict('classes', body)", "rerank('cross', body, 'w5')", "chunk(body, 3)",
                 "rerank('cross', 'w5', body)", "embed('vectors', body, dimensions => 3)",
                 "classify('classes', body, body)"):  # fmt: skip
        found = column(db, f"SELECT {call} FROM docs ORDER BY id")
        assert [value is None for value in found] == [body is None for body in BODIES], call
        assert column(db, f"SELECT {call} FROM docs WHERE false") == []
        assert column(db, f"SELECT {call.replace('body', 'NULL')}") == [None]


def test_pairs_are_not_joined_texts(db: tarsdb.Connection, folder: pathlib.Path) -> None:
    model = loaded(folder, "classes")
    expected = model.probabilities([("w5 w6", "w7")])[0]
    pair = column(db, "SELECT predict('classes', 'w5 w6', 'w7')")[0]
    assert np.allclose(list(pair.values()), expected, atol=1e-6)
    joined = column(db, "SELECT predict('classes', 'w5 w6 w7')")[0]
    assert abs(joined["label 0"] - pair["label 0"]) > 1e-4


def test_rerank_in_every_clause(db: tarsdb.Connection, folder: pathlib.Path) -> None:
    model = loaded(folder, "cross")
    scores = {
        number: float(model.relevance([(QUERY, body)])[0])
        for number, body in enumerate(BODIES)
        if body is not None
    }
    order = sorted(scores, key=lambda number: (-scores[number], number))
    sql = "SELECT id FROM docs WHERE body IS NOT NULL ORDER BY rerank('cross', :q, body) DESC, id"
    assert [row[0] for row in db.execute(sql, {"q": QUERY})] == order
    bar = (scores[order[1]] + scores[order[-1]]) / 2
    above = column(
        db, "SELECT id FROM docs WHERE rerank('cross', ?, body) > ? ORDER BY id", QUERY, bar
    )
    assert above == sorted(number for number in order if scores[number] > bar)
    top = db.execute("SELECT max(rerank('cross', ?, body)) FROM docs", [QUERY]).fetchone()
    assert top is not None and abs(top[0] - scores[order[0]]) < 1e-6


def test_two_stages(db: tarsdb.Connection) -> None:
    db.execute(
        "CREATE TABLE notes (id INT PRIMARY KEY, body TEXT, emb VECTOR(24) "
        "GENERATED ALWAYS AS (embed('vectors', body, kind => 'document')) STORED)"
    )
    texts = [f"w{n} w{n + 1} w{(n * 7) % 80 + 5}" for n in range(5, 45)]
    db.executemany("INSERT INTO notes (id, body) VALUES (?, ?)", list(enumerate(texts)))
    near = (
        "SELECT id, body FROM notes ORDER BY emb <=> embed('vectors', :q, kind => 'query') LIMIT 10"
    )
    candidates = {row[0] for row in db.execute(near, {"q": QUERY})}
    rows = db.execute(
        f"SELECT id, rerank('cross', :q, body) AS r FROM ({near}) ORDER BY r DESC LIMIT 3",
        {"q": QUERY},
    ).fetchall()
    every = db.execute("SELECT id, rerank('cross', :q, body) FROM notes", {"q": QUERY}).fetchall()
    best = sorted(((number, r) for number, r in every if number in candidates), key=lambda x: -x[1])
    assert [row[0] for row in rows] == [number for number, _ in best[:3]]
    assert [row[0] for row in rows] != [
        number for number, _ in sorted(every, key=lambda row: -row[1])[:3]
    ]


def test_generated_columns_and_insert_select(db: tarsdb.Connection) -> None:
    db.execute(
        "CREATE TABLE seen (id INT PRIMARY KEY, body TEXT,"
        " kind TEXT GENERATED ALWAYS AS (classify('classes', body)) STORED,"
        " all_of JSON GENERATED ALWAYS AS (predict('classes', body)) STORED,"
        " ids INT[] GENERATED ALWAYS AS (tokenize('classes', body)) STORED,"
        " parts TEXT[] GENERATED ALWAYS AS (chunk(body, 2, 1)) STORED)"
    )
    db.execute("INSERT INTO seen (id, body) SELECT id, body FROM docs")
    rows = db.execute("SELECT * FROM seen ORDER BY id").fetchall()
    assert rows[0][4:] == ([2, 5, 6, 7, 3], ["w5 w6", "w6 w7"])
    assert rows[2][2:] == (None, None, None, None)
    assert rows[0][2] == max(rows[0][3], key=rows[0][3].get)
    db.execute("UPDATE seen SET body = 'w60 w61 w5' WHERE id = 0")
    row = db.execute("SELECT kind, ids FROM seen WHERE id = 0").fetchone()
    assert row == (rows[4][2], [2, 60, 61, 5, 3])
    with pytest.raises(CatalogError, match="table seen uses it"):
        db.execute("DROP MODEL classes")
    db.execute("CREATE TABLE copied AS SELECT id, classify('classes', body) AS kind FROM docs")
    copied = column(db, "SELECT kind FROM copied ORDER BY id")
    assert copied[1:] == [row[2] for row in rows[1:]]


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO v SELECT id, embed('vectors', body) FROM docs",
        "CREATE TABLE c AS SELECT id, embed('vectors', body) AS e FROM docs",
        "CREATE OR REPLACE TABLE v AS SELECT id, embed('vectors', body) AS e FROM docs",
    ],
)
def test_models_pin_no_snapshot_while_rows_are_made(
    db: tarsdb.Connection, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    """The rows are those of the statement's beginning, whatever is committed meanwhile."""
    db.execute("CREATE TABLE v (id INT, e VECTOR(24))")
    env, embed = Environment.open(folder / "t.tars"), FUNCTIONS["embed"]
    pinned = []

    def noted(request: Any) -> Any:
        pinned.append(len(env.live_readers()))
        with tarsdb.connect(folder / "t.tars") as other:
            other.execute("INSERT INTO docs VALUES (?, 'w5')", (100 + len(pinned),))
            other.execute("OPTIMIZE docs")
        return embed(request)

    monkeypatch.setitem(FUNCTIONS, "embed", noted)
    assert db.execute(sql).rowcount == len(BODIES)
    env.release()
    assert pinned
    assert not any(pinned)
    made = "c" if " c " in sql else "v"
    expected = column(db, "SELECT embed('vectors', body) FROM docs WHERE id < 100 ORDER BY id")
    found = column(db, f"SELECT e FROM {made} ORDER BY id")
    assert all(a is b or np.allclose(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("into", ["CREATE TABLE c AS ", "INSERT INTO c "])
@pytest.mark.parametrize(
    "query",
    [
        "SELECT d.id, x FROM (SELECT id FROM docs ORDER BY emb <-> embed('vectors', 'w5') LIMIT 3) "
        "d JOIN o ON o.id = d.id",
        "SELECT docs.id, x FROM docs JOIN o ON o.id = docs.id "
        "WHERE emb <-> embed('vectors', 'w5') < 1",
        "SELECT id, x FROM o WHERE vec <-> embed('vectors', 'w5') < 1.3",
        "SELECT id, x FROM o ORDER BY vec <-> embed('vectors', 'w5') LIMIT 4",
        "SELECT id, vec <-> embed('vectors', 'w5') AS x FROM o WHERE id = 4",
    ],
)
def test_rows_that_are_written_come_of_one_commit(
    db: tarsdb.Connection, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
    query: str, into: str,
) -> None:  # fmt: skip
    """A model that runs before all tables are read keeps the statement's snapshot."""
    db.execute("SET inference_cache = 0")
    db.execute("ALTER TABLE docs ADD COLUMN emb VECTOR(24)")
    db.execute("UPDATE docs SET emb = embed('vectors', body)")
    db.execute("CREATE TABLE o (id INT PRIMARY KEY, x TEXT, vec VECTOR(24))")
    db.execute("INSERT INTO o SELECT id, body, emb FROM docs WHERE body <> ''")
    expected = sorted(db.execute(query).fetchall())
    if into.startswith("INSERT"):
        db.execute(f"CREATE TABLE c AS SELECT * FROM ({query}) LIMIT 0")
    env, embed = Environment.open(folder / "t.tars"), FUNCTIONS["embed"]
    pinned = []

    def noted(request: Any) -> Any:
        pinned.append(len(env.live_readers()))
        with tarsdb.connect(folder / "t.tars") as other:
            other.execute("UPDATE o SET x = 'new', vec = NULL")
            other.execute("VACUUM o")
        return embed(request)

    monkeypatch.setitem(FUNCTIONS, "embed", noted)
    db.execute(into + query)
    env.release()
    assert pinned == [1]
    assert sorted(db.execute("SELECT * FROM c").fetchall()) == expected != []


def test_chunks_in_from(db: tarsdb.Connection) -> None:
    sql = (
        "SELECT id, unnest(chunk('vectors', body, size => 2, overlap => 1)) FROM docs WHERE id = 0"
    )
    assert db.execute(sql).fetchall() == [(0, "w5 w6"), (0, "w6 w7")]
    sql = "SELECT unnest(chunk('One two. Three four five. Six.', ?, by => 'sentences')) AS part"
    assert column(db, sql, 4) == ["One two.", "Three four five. Six."]


def test_dimensions_cut_and_scale(db: tarsdb.Connection) -> None:
    whole, short = db.execute(
        "SELECT embed('vectors', body), embed('vectors', body, dimensions => 5) FROM docs LIMIT 1"
    ).fetchall()[0]
    assert short.shape == (5,)
    assert np.allclose(short, whole[:5] / np.linalg.norm(whole[:5]), atol=1e-6)
    distance = (
        "SELECT embed('vectors', 'w5', dimensions => 5) <=> embed('vectors', ?, dimensions => 5)"
    )
    assert column(db, distance, "w5")[0] < 1e-6
    db.execute(
        "CREATE TABLE small (body TEXT, e VECTOR(5) GENERATED ALWAYS AS "
        "(embed('vectors', body, dimensions => 5)) STORED)"
    )
    with pytest.raises(CatalogError, match=r"VECTOR\(4\), model vectors gives 5 dimensions"):
        db.execute(
            "CREATE TABLE bad (body TEXT, e VECTOR(4) GENERATED ALWAYS AS "
            "(embed('vectors', body, dimensions => 5)) STORED)"
        )


def test_kinds_are_prompts(db: tarsdb.Connection) -> None:
    def vector(text: str, kind: str | None = None) -> np.ndarray:
        option = "" if kind is None else f", kind => '{kind}'"
        found: np.ndarray = column(db, f"SELECT embed('vectors', ?{option})", text)[0]
        return found

    assert np.allclose(vector("w5", "query"), vector("w9 w10 w5"), atol=1e-6)
    assert np.allclose(vector("w5", "document"), vector("w11 w5"), atol=1e-6)
    assert np.allclose(vector("w5", "passage"), vector("w11 w5"), atol=1e-6)
    assert not np.allclose(vector("w5", "odd"), vector("w5"), atol=1e-3)
    with pytest.raises(ModelError, match="no prompt 'clustering'"):
        vector("w5", "clustering")


def test_the_search_builder_embeds_as_the_column_does(db: tarsdb.Connection) -> None:
    db.execute(
        "CREATE TABLE notes (id INT PRIMARY KEY, body TEXT, emb VECTOR(7) GENERATED ALWAYS AS "
        "(embed('vectors', body, dimensions => 7, kind => 'document')) STORED)"
    )
    db.execute("INSERT INTO notes (id, body) VALUES (1, 'w5'), (2, 'w60 w61'), (3, 'w7 w8')")
    search = db.table("notes").search("w5", k=3).select(["id"])
    assert "embed('vectors', ?, dimensions => 7, kind => 'query') AS" in search.sql()
    expected = (
        "SELECT id, emb <=> embed('vectors', 'w9 w10 w5', dimensions => 7) AS d FROM notes "
        "ORDER BY d LIMIT 3"
    )
    found, known = search.rows(), db.execute(expected).fetchall()
    assert [row[0] for row in found] == [row[0] for row in known]
    assert np.allclose([row[1] for row in found], [row[1] for row in known], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        ("classify('vectors', body)", BindError, "model vectors does embed, not classify"),
        ("classify('cross', body)", BindError, "does rerank, not classify"),
        ("rerank('classes', body, body)", BindError, "does classify, not rerank"),
        ("predict('vectors', body)", BindError, r"does embed, not predict.*embed\(model, text\)"),
        ("embed('cross', body)", BindError, "does rerank, not embed"),
        ("classify('nobody', body)", BindError, "model 'nobody' does not exist"),
        ("classify(body, body)", BindError, "the model must be a name in quotes"),
        ("classify('classes')", BindError, "a text and optionally a second"),
        ("rerank('cross', body)", BindError, "rerank takes a model, a query and a text"),
        ("rerank('cross', body, body, body)", BindError, "rerank takes"),
        ("score('classes', body, label => 'happy')", BindError, "no label 'happy'.*'label 0'"),
        ("score('classes', body, label => body)", BindError, "label must be a constant"),
        ("score('classes', body, lable => 'x')", BindError, "'lable' is not known.*mean label"),
        ("classify('classes', body, label => 'x')", BindError, "'label' is not known.*cache"),
        ("score('classes', label => 'x', body)", BindError, "positional argument follows"),
        ("embed('vectors', body, dimensions => 25)", BindError, "dimensions is 25.* 24 dimensions"),
        ("embed('vectors', body, dimensions => 0)", BindError, "dimensions is 0"),
        ("embed('vectors', body, dimensions => ?)", BindError, "dimensions is a parameter"),
        ("chunk(body)", BindError, "size is missing"),
        ("chunk(body, 2, 2)", DataError, "overlap is 2"),
        ("chunk(body, 'many')", DataError, "size must be a whole number, not 'many'"),
        ("chunk(body, 2, overlap => 1, overlap => 1)", BindError, "'overlap' is given twice"),
        ("chunk(body, 2, size => 3)", BindError, "the model must be a name in quotes"),
    ],
)  # fmt: skip
def test_wrong_calls_are_named(
    db: tarsdb.Connection, call: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        db.execute(f"SELECT {call} FROM docs", [5] * call.count("?")).fetchall()


def test_different_options_in_one_statement(db: tarsdb.Connection) -> None:
    row = db.execute(
        "SELECT score('classes', body, label => 'label 0') + score('classes', body, label => "
        "'label 1') + score('classes', body, label => 'label 2'), score('classes', body, body), "
        "chunk(body, 1), chunk(body, 2) FROM docs WHERE id = 0"
    ).fetchall()[0]
    assert abs(row[0] - 1) < 1e-9
    assert 0 < row[1] < 1
    assert row[2:] == (["w5", "w6", "w7"], ["w5 w6", "w7"])


def test_own_functions_come_first_and_new_ones_cannot_shadow(db: tarsdb.Connection) -> None:
    with pytest.raises(BindError, match="'score' is built in"):
        db.execute("CREATE FUNCTION score(a INT) RETURNS INT LANGUAGE wasm AS '(module)'")
    with pytest.raises(BindError, match="'predict' is built in"):
        db.execute("CREATE FUNCTION predict(a INT) RETURNS INT LANGUAGE wasm AS '(module)'")
    db.create_function("shout", lambda text: text.upper(), ["TEXT"], "TEXT")
    assert column(db, "SELECT shout(classify('classes', 'w5'))")[0].startswith("LABEL ")


def test_long_texts_follow_the_option(db: tarsdb.Connection, folder: pathlib.Path) -> None:
    long = "w5 " * 100
    assert column(db, "SELECT classify('classes', ?)", long)[0].startswith("label")
    db.execute(f"CREATE MODEL strict FROM '{folder / 'classes'}' WITH (overflow = 'error')")
    with pytest.raises(DataError, match="102 tokens"):
        column(db, "SELECT classify('strict', ?)", long)
    assert column(db, "SELECT classify('strict', 'w5')")  # the database goes on


def test_a_surrogate_is_no_text(db: tarsdb.Connection) -> None:
    for call in ("classify('classes', ?)", "tokenize('classes', ?)", "rerank('cross', 'w5', ?)"):
        with pytest.raises((DataError, NotSupportedError)):
            column(db, f"SELECT {call}", "w5 \ud800")
    assert column(db, "SELECT classify('classes', 'w5')")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier.bias": np.full(3, np.nan, np.float32)}, "'classifier.bias' holds NaN"),
        ({"bert.embeddings.LayerNorm.weight": np.full(24, np.inf, np.float32)}, "holds NaN or inf"),
        ({"classifier.weight": np.zeros((3, 24), np.int32)}, "classifier.weight .int32."),
    ],
)
def test_bad_weights_never_enter(
    db: tarsdb.Connection, folder: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    path = write_model(folder / "broken", HEADS["bert"])
    safetensors.numpy.save_file(
        {**head_tensors(HEADS["bert"]), **change}, f"{path}/model.safetensors"
    )
    with pytest.raises(ModelFormatError, match=message):
        db.execute(f"CREATE MODEL broken FROM '{path}'")
        column(db, "SELECT classify('broken', 'w5')")
    assert column(db, "SELECT classify('classes', 'w5')")


def test_a_tokenizer_of_another_model(db: tarsdb.Connection, folder: pathlib.Path) -> None:
    config = {**HEADS["bert"], "vocab_size": 50}
    path = write_model(folder / "other", config)
    db.execute(f"CREATE MODEL other FROM '{path}'")
    assert column(db, "SELECT classify('other', 'w5')")
    with pytest.raises(
        ModelFormatError, match=r"tokenizer\.json made token 80, the model knows 50"
    ):
        column(db, "SELECT classify('other', 'w80')")


@pytest.mark.parametrize("call", ["tokenize('vectors', body)", "chunk('vectors', body, size => 2)"])
def test_texts_taken_apart_one_by_one_can_be_stopped_between_them(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    encodings, asked = TextTokenizer._encodings, []

    def interrupting(self: TextTokenizer, texts: list[str], *more: Any, **options: Any) -> Any:
        asked.append(texts)
        db.interrupt()
        return encodings(self, texts, *more, **options)

    monkeypatch.setattr(TextTokenizer, "_encodings", interrupting)
    monkeypatch.setattr(model_functions, "_CHARACTERS", 1)
    with pytest.raises(InterruptError):
        db.execute(f"SELECT {call} FROM docs").fetchall()
    assert len(asked) == 1
