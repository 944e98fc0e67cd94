"""``generate`` in SQL and from Python: the reference's texts, whole columns, errors, leases."""

from __future__ import annotations

import pathlib
import threading
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.context import Context
from tarsdb.engine.inference import inference_cache
from tarsdb.engine.reading import scans
from tarsdb.errors import (
    BindError,
    CatalogError,
    CorruptionError,
    DataError,
    InterfaceError,
    InterruptError,
    ModelError,
    NotSupportedError,
    ProgrammingError,
    StatementTimeoutError,
)
from tarsdb.metrics import METRICS
from tarsdb.model_ops import Decoder
from tarsdb.model_ops.generation.generation_options import OPTIONS
from tarsdb.sql.model_calls import FUNCTIONS
from tests.golden.models.tiny_decoders import (
    tiny_prompts,
    write_tiny_decoder,
)
from tests.unit.engine.generation.conftest import GOLDEN, LETTERS, golden


def test_a_column_of_texts_is_what_transformers_writes(db: tarsdb.Connection) -> None:
    rows = db.execute(
        "SELECT id, generate('tiny', body, max_tokens => 25) FROM prompts ORDER BY id"
    ).fetchall()
    assert [text for _, text in rows] == golden()
    assert len(set(golden())) == len(LETTERS)


def test_one_constant_and_bound_values(db: tarsdb.Connection) -> None:
    text = "SELECT generate('tiny', ?, max_tokens => ?)"
    for prompt, wanted in zip(LETTERS, golden(), strict=True):
        assert db.execute(text, (prompt, 25)).fetchone() == (wanted,)
    (stopped,) = db.execute(
        "SELECT generate('tiny', :p, max_tokens => 25, stop => :stop)",
        {"p": LETTERS[1], "stop": [golden()[1][3]]},
    ).fetchone()
    assert stopped == golden()[1][:3]


def test_null_gives_null_and_a_default_length_is_set(db: tarsdb.Connection) -> None:
    db.execute("INSERT INTO prompts VALUES (100, NULL)")
    rows = db.execute("SELECT generate('tiny', body) FROM prompts WHERE id IN (0, 100)").fetchall()
    assert rows[1] == (None,)
    assert len(rows[0][0]) > 40  # 128 tokens, or the 70 positions of this model


def test_texts_are_stored_and_filtered(db: tarsdb.Connection) -> None:
    db.execute("CREATE TABLE answers (id INT PRIMARY KEY, text TEXT)")
    db.execute(
        "INSERT INTO answers SELECT id, generate('tiny', body, max_tokens => 25) FROM prompts"
    )
    assert [t for _, t in db.execute("SELECT * FROM answers ORDER BY id").fetchall()] == golden()
    found = db.execute(
        "SELECT id FROM prompts WHERE generate('tiny', body, max_tokens => 25) = ?", (golden()[2],)
    ).fetchall()
    assert found == [(2,)]
    db.execute("UPDATE answers SET text = generate('tiny', text, max_tokens => 3) WHERE id = 1")
    assert db.execute("SELECT length(text) FROM answers WHERE id = 1").fetchone() == (3,)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT id, generate('tiny', body, max_tokens => 1) FROM prompts",
        "INSERT INTO answers SELECT id, generate('tiny', body, max_tokens => 1) FROM prompts",
    ],
)
def test_a_large_table_is_read_before_its_snapshot_goes(
    db: tarsdb.Connection, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "SMALL_ROWS", 100)
    db.execute("CREATE TABLE answers (id INT PRIMARY KEY, text TEXT)")
    db.executemany("INSERT INTO prompts VALUES (?, ?)", [(i, LETTERS[0]) for i in range(10, 2500)])
    cursor = db.execute(statement)
    if cursor.description is None:
        cursor = db.execute("SELECT * FROM answers")
    rows = cursor.fetchall()
    assert len(rows) == 2490 + len(LETTERS)
    assert len({text for number, text in rows if number >= 10}) == 1


def test_options_of_sql_and_of_the_model_are_the_same() -> None:
    assert set(FUNCTIONS["generate"].options) == {*OPTIONS, "cache"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ("generate('tiny')", BindError, "generate takes a model and a prompt"),
        ("generate('tiny', 'a', beams => 2)", BindError, "option 'beams' is not known"),
        ("generate('nobody', 'a')", BindError, "model 'nobody' does not exist"),
        ("generate('tiny', body, max_tokens => id)", BindError, "max_tokens must be a constant"),
        ("generate('tiny', 'a', max_tokens => 0)", ModelError, "max_tokens 0"),
        ("generate('tiny', 'a', temperature => 'x')", ModelError, "temperature 'x'"),
        ("generate('tiny', 'a', system => 'x')", ModelError, "the model has none"),
        ("generate('tiny', 'a', regex => 'a', choice => ['a'])", ModelError, "not both"),
        ("generate('tiny', '')", None, ""),
        ("generate('tiny', repeat(body, 100))", DataError, "tokens, the model reads at most 70"),
        ("embed('tiny', 'a')", BindError, "model tiny does generate, not embed"),
    ],
)
def test_wrong_calls_are_typed_errors(
    db: tarsdb.Connection, call: str, error: type[Exception] | None, message: str
) -> None:
    query = f"SELECT {call} FROM prompts"
    if error is None:
        assert len(db.execute(query).fetchall()) == len(LETTERS)
        return
    with pytest.raises(error, match=message):
        db.execute(query)
    assert db.execute("SELECT count(*) FROM prompts").fetchone() == (len(LETTERS),)


def test_memory_of_the_cache_is_a_limit(db: tarsdb.Connection) -> None:
    db.execute("SET kv_cache_memory = '1KB'")
    with pytest.raises(DataError, match="less than one block"):
        db.execute("SELECT generate('tiny', 'a')")
    db.execute("SET kv_cache_memory = '30KB'")
    with pytest.raises(DataError, match=r"prompt 5 and its answer may take 49 .*kv_cache_memory"):
        db.execute("SELECT generate('tiny', body, max_tokens => 8) FROM prompts")
    with pytest.raises(DataError, match="is not a size"):
        db.execute("SET kv_cache_memory = 'much'")
    db.execute("RESET kv_cache_memory")
    assert db.execute("SHOW kv_cache_memory").fetchone()[-1] is not None
    db.execute("SELECT generate('tiny', body) FROM prompts")


def test_explain_names_the_model(db: tarsdb.Connection) -> None:
    plan = db.execute(
        "EXPLAIN SELECT generate('tiny', body, max_tokens => 2) FROM prompts"
    ).fetchall()
    assert any("generate('tiny', body, max_tokens => 2)" in line for (line,) in plan)


def test_metrics_count_tokens_steps_and_shared_prefixes(db: tarsdb.Connection) -> None:
    def metrics() -> dict[str, float]:
        return dict(db.execute("SELECT name, value FROM tars_metrics").fetchall())

    db.execute("SELECT generate('tiny', body, max_tokens => 4) FROM prompts")
    before = metrics()
    db.execute("SELECT generate('tiny', body, max_tokens => 4) FROM prompts")
    after = metrics()
    gained = {name: after[name] - before.get(name, 0) for name in after}
    assert gained["generate_texts"] == len(LETTERS)
    assert gained["generate.prompt_tokens"] == sum(map(len, LETTERS))
    assert gained["generate.cached_tokens"] == 16 + 32
    assert gained["generate.tokens"] == 4 * len(LETTERS)
    assert 4 <= gained["generate.steps"] <= 8
    assert gained["generate.step_seconds"] > 0


def test_a_generated_text_column_follows_its_source(db: tarsdb.Connection) -> None:
    with pytest.raises(CatalogError, match="gives"):
        db.execute(
            "CREATE TABLE wrong (body TEXT, n VECTOR(3) GENERATED ALWAYS AS "
            "(generate('tiny', body, max_tokens => 3)) STORED)"
        )


def test_kept_texts_are_the_same_and_drawn_ones_are_not_kept(db: tarsdb.Connection) -> None:
    db.execute("SET inference_cache = on")
    query = "SELECT generate('tiny', body, max_tokens => 25) FROM prompts ORDER BY id"
    for _ in range(2):
        assert [text for (text,) in db.execute(query).fetchall()] == golden()
    hits = METRICS.snapshot()["inference_cache.hits"]
    without = query.replace("max_tokens", "cache => false, max_tokens")
    assert [text for (text,) in db.execute(without).fetchall()] == golden()
    assert METRICS.snapshot()["inference_cache.hits"] == hits
    asked = "SELECT generate('chatty', body, system => 'a secret', max_tokens => 3) FROM prompts"
    db.execute(asked).fetchall()
    inference_cache.queue_of(db._require_session().env).wait()
    assert db.execute("PRAGMA forget_inference('a secret')").fetchall() == [(len(LETTERS),)]
    drawn = "SELECT generate('tiny', ?, temperature => 1, seed => NULL)"
    assert len({db.execute(drawn, (LETTERS[1],)).fetchone() for _ in range(3)}) == 3


def test_progress_is_told(db: tarsdb.Connection) -> None:
    told: list[tuple[int, int]] = []
    begun: list[str] = []
    db.on_progress(lambda done, total: told.append((done, total)), lambda w: begun.append(w.what))
    db.execute("SELECT generate('tiny', body, max_tokens => 3) FROM prompts")
    assert begun == ["model tiny"]
    assert told[-1] == (len(LETTERS), len(LETTERS))


def test_a_statement_can_be_interrupted_and_timed_out(
    db: tarsdb.Connection, slow: list[int]
) -> None:
    query = "SELECT generate('tiny', body, max_tokens => 60) FROM prompts"
    db.execute("SET statement_timeout = 40")
    with pytest.raises(StatementTimeoutError):
        db.execute(query)
    db.execute("SET statement_timeout = 0")
    threading.Timer(0.05, db.interrupt).start()
    with pytest.raises(InterruptError):
        db.execute(query)
    assert len(slow) < 60
    assert len(db.execute(query).fetchall()) == len(LETTERS)


def test_a_dropped_model_ends_what_it_writes(db: tarsdb.Connection, path: Any, slow: Any) -> None:
    def drop() -> None:
        with tarsdb.connect(path) as other:
            other.execute("DROP MODEL tiny")

    thread = threading.Timer(0.05, drop)
    thread.start()
    with pytest.raises(ModelError, match="model tiny was dropped or replaced"):
        db.execute("SELECT generate('tiny', body, max_tokens => 60) FROM prompts")
    thread.join()
    with pytest.raises(BindError, match="does not exist"):
        db.execute("SELECT generate('tiny', 'a')")


def test_other_changes_of_the_catalog_do_not_matter(
    db: tarsdb.Connection, path: Any, slow: list[int]
) -> None:
    def change() -> None:
        with tarsdb.connect(path) as other:
            other.execute("CREATE TABLE another (id INT)")
            other.execute("DELETE FROM prompts")

    thread = threading.Timer(0.03, change)
    thread.start()
    rows = db.execute(
        "SELECT id, generate('tiny', body, max_tokens => 25) FROM prompts ORDER BY id"
    ).fetchall()
    thread.join()
    assert [text for _, text in rows] == golden()
    assert db.execute("SELECT count(*) FROM prompts").fetchone() == (0,)


def test_no_snapshot_is_held_while_texts_are_written(
    db: tarsdb.Connection, slow: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_during: list[bool] = []
    contexts: list[Context] = []
    plain = Context.__init__

    def kept(self: Context, *arguments: Any) -> None:
        plain(self, *arguments)
        contexts.append(self)

    def is_open(context: Context) -> bool:
        try:
            context.snapshot.read_blob("0" * 64)
        except InterfaceError:
            return False
        except CorruptionError:
            return True
        raise AssertionError("there is such a blob")

    step = Decoder.step

    def watched(self: Decoder, batch: Any, cache: Any) -> Any:
        open_during.append(is_open(contexts[-1]))
        return step(self, batch, cache)

    monkeypatch.setattr(Context, "__init__", kept)
    monkeypatch.setattr(Decoder, "step", watched)
    for query in (
        "SELECT generate('tiny', body, max_tokens => 3) FROM prompts",
        "SELECT generate('tiny', 'x', max_tokens => 3)",
    ):
        open_during.clear()
        db.execute(query)
        assert open_during
        assert not any(open_during), query
    with db.transaction():
        open_during.clear()
        db.execute("SELECT generate('tiny', body, max_tokens => 3) FROM prompts")
    assert all(open_during)


def test_python_gets_one_text_several_or_pieces(db: tarsdb.Connection) -> None:
    assert db.generate("tiny", LETTERS[1], max_tokens=25) == golden()[1]
    assert db.generate("tiny", LETTERS, max_tokens=25) == golden()
    assert db.generate("tiny", []) == []
    stream = db.generate("tiny", LETTERS[3], stream=True, max_tokens=25)
    pieces = list(stream)
    assert "".join(pieces) == golden()[3]
    assert len(pieces) > 5


def test_python_takes_messages_and_a_system_text(db: tarsdb.Connection) -> None:
    messages = [{"role": "user", "content": LETTERS[1]}]
    plain = db.generate("chatty", LETTERS[1], max_tokens=9)
    assert db.generate("chatty", messages, max_tokens=9) == plain
    assert db.generate("chatty", LETTERS[1], max_tokens=9, chat=False) != plain
    assert db.generate("chatty", LETTERS[1], max_tokens=9, system=LETTERS[2]) != plain
    (in_sql,) = db.execute(
        "SELECT generate('chatty', ?, max_tokens => 9, system => ?)", (LETTERS[1], LETTERS[2])
    ).fetchone()
    assert in_sql == db.generate("chatty", LETTERS[1], max_tokens=9, system=LETTERS[2])


def test_python_refuses_what_does_not_fit(db: tarsdb.Connection) -> None:
    with pytest.raises(CatalogError, match="nobody"):
        db.generate("nobody", "a")
    with pytest.raises(ModelError, match="option 'beams'"):
        db.generate("tiny", "a", beams=1)
    with pytest.raises(ProgrammingError, match="one prompt, a list was given"):
        db.generate("tiny", ["a", "b"], stream=True)
    with pytest.raises(ModelError, match="message"):
        db.generate("chatty", [{"role": "user"}])
    for model in ("chatty", "tiny"):
        with pytest.raises(ModelError, match=r"a prompt is a text, or messages .* not int"):
            db.generate(model, 7)
        with pytest.raises(ModelError, match=r"a prompt is a text, or messages .* not int"):
            db.execute(f"SELECT generate('{model}', 1)")
        with pytest.raises(BindError, match=rf"types 'generate\('{model}', INTEGER\)'"):
            db.execute(f"SELECT generate('{model}', id) FROM prompts")
    with pytest.raises(ProgrammingError, match="the name of a model, not NoneType"):
        db.generate(None, "a")  # type: ignore[arg-type]


def test_a_stream_ends_with_its_connection_its_model_or_interrupt(
    db: tarsdb.Connection, path: Any
) -> None:
    stream = db.generate("tiny", LETTERS[3], stream=True, max_tokens=40, speculate=False)
    next(stream)
    db.execute("SELECT count(*) FROM prompts")  # a statement does not disturb it
    next(stream)
    db.interrupt()
    with pytest.raises(InterruptError):
        list(stream)
    other = tarsdb.connect(path)
    closing = other.generate("chatty", LETTERS[3], stream=True, max_tokens=40, speculate=False)
    next(closing)
    other.close()
    with pytest.raises(InterruptError):
        list(closing)
    dropped = db.generate("chatty", LETTERS[3], stream=True, max_tokens=40, speculate=False)
    next(dropped)
    db.execute("DROP MODEL chatty")
    with pytest.raises(ModelError, match="model chatty was dropped"):
        list(dropped)


def test_connections_and_threads_share_a_batch(
    db: tarsdb.Connection, path: Any, slow: list[int]
) -> None:
    found: dict[int, str] = {}

    def call(number: int) -> None:
        with tarsdb.connect(path) as own:
            connection = db if number % 2 else own
            found[number] = connection.generate("tiny", LETTERS[number], max_tokens=25)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(LETTERS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(len(LETTERS))] == golden()
    assert max(slow) >= 3


def test_the_real_model_writes_what_transformers_writes(
    shared_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    stored = np.load(GOLDEN / "stories260k.npz")["tokens"].tolist()
    with tarsdb.connect(tmp_path / "db.tars") as connection:
        folder = shared_data / "models" / "stories260K"
        connection.execute(f"CREATE MODEL story FROM '{folder}' WITH (quantize = 'none')")
        (text,) = connection.execute("SELECT generate('story', '', max_tokens => 300)").fetchone()
        assert text.startswith("Once upon a time, there was a little girl named Lily.")
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert text == tokenizer.decode(stored[:301])
        begun = "Once upon a time, there was a little girl"
        rest = connection.generate("story", begun, max_tokens=30)
        assert text.startswith(begun + rest)
        assert "".join(connection.generate("story", begun, max_tokens=30, stream=True)) == rest


def test_a_rule_holds_in_sql(db: tarsdb.Connection) -> None:
    try:
        rows = db.execute(
            "SELECT generate('tiny', body, regex => '[abc]{4}') FROM prompts"
        ).fetchall()
    except NotSupportedError:
        pytest.skip("llguidance is not installed")
    assert all(len(text) == 4 and set(text) <= set("abc") for (text,) in rows)


def test_texts_are_split_by_a_model_that_generates(db: tarsdb.Connection) -> None:
    text = "SELECT tokenize('tiny', ?), chunk('tiny', ?, size => 3, overlap => 1)"
    ids, pieces = db.execute(text, (LETTERS[1], LETTERS[1])).fetchone()
    assert ids == tiny_prompts()[1]
    assert len(pieces) >= 1
    assert "".join(pieces).startswith(LETTERS[1][:2])


def test_model_threads_bounds_decoders_and_encoders(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int | None] = []
    monkeypatch.setattr(Decoder, "limit_threads", lambda self, most: limits.append(most))
    db.execute("SELECT generate('tiny', 'abc', max_tokens => 2)").fetchall()
    db.execute("SET model_threads = 1")
    db.execute("SELECT generate('tiny', 'abc', max_tokens => 2)").fetchall()
    db.generate("tiny", "abc", max_tokens=2)
    assert limits == [None, 1, 1]
    with pytest.raises(DataError, match="model_threads: 0 is outside"):
        db.execute("SET model_threads = 0")


def test_a_draft_model_changes_no_text(db: tarsdb.Connection, path: pathlib.Path) -> None:
    write_tiny_decoder(path.parent / "draft", "qwen2")
    db.execute(f"CREATE MODEL draft FROM '{path.parent / 'draft'}'")
    sql = "SELECT generate('tiny', body, draft => {}, max_tokens => 25) FROM prompts ORDER BY id"
    for draft in ("'draft'", "'tiny'"):
        assert [text for (text,) in db.execute(sql.format(draft)).fetchall()] == golden()
    assert db.generate("tiny", LETTERS[1], draft="tiny", max_tokens=25) == golden()[1]
    with pytest.raises(CatalogError, match="'none' does not exist"):
        db.execute(sql.format("'none'")).fetchall()


def test_a_draft_model_with_other_tokens_is_refused(
    db: tarsdb.Connection, path: pathlib.Path
) -> None:
    folder = path.parent / "other"
    write_tiny_decoder(folder, "llama")
    tokenizer = (folder / "tokenizer.json").read_text()
    assert '"<s>"' in tokenizer
    (folder / "tokenizer.json").write_text(tokenizer.replace('"<s>"', '"<t>"'))
    db.execute(f"CREATE MODEL other FROM '{folder}'")
    with pytest.raises(ModelError, match=r"other tokens: '<[st]>'"):
        db.execute("SELECT generate('tiny', 'abc', draft => 'other')").fetchall()
