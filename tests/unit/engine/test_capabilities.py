"""What a module may import once granted: log, lookup, embed, their limits and their abuse."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb import errors
from tarsdb.metrics import METRICS
from tarsdb.udf_sandbox import capabilities
from tests.golden.models.tiny_models import CONFIGS
from tests.sandbox.backends import each_backend  # noqa: F401 - a fixture
from tests.sandbox.kinds_text import at, loop
from tests.sandbox.wasm_text import PRELUDE
from tests.unit.engine.test_model_functions import write_model

LOG = '(import "tars" "log" (func $log (param i32 i32)))'
LOOKUP = '(import "tars" "lookup" (func $lookup (param i32 i32 i32 i32) (result i32)))'
START = f"(i32.load {at('(i32.load offset=20 (local.get $d))', 2)})"
KEY = f"(i32.add (i32.load offset=8 (local.get $d)) {START})"
SIZE = f"(i32.sub (i32.load offset=4 {at('(i32.load offset=20 (local.get $d))', 2)}) {START})"


def module(imports: str, name: str, value: str) -> str:
    """Return a module whose export ``name(t TEXT) RETURNS INT`` gives ``value`` for row $i."""
    return f"""(module {imports} {PRELUDE}
      (func (export "{name}") (param $d i32) (param $n i32) (result i32) (local $i i32)
        {loop(f"(i32.store {at('(i32.load offset=40 (local.get $d))', 2)} {value})")}
        (i32.const 0)))"""


def says(where: str = KEY, size: str = SIZE) -> str:
    return module(LOG, "says", f"(call $log {where} {size}) (i32.const 1)")


def asks(key: str = KEY, size: str = SIZE, room: str = "(i32.const 8)", fits: int = 8) -> str:
    """Return a module that gives 1000 times the length of the value and its first byte."""
    found = f"(call $lookup {key} {size} {room} (i32.const {fits}))"
    return module(
        LOOKUP, "asks",
        f"(i32.add (i32.mul {found} (i32.const 1000)) (i32.load8_u (i32.const 8)))",
    )  # fmt: skip


def create(name: str, text: str, options: str, volatility: str = "STABLE") -> str:
    return (
        f"CREATE OR REPLACE FUNCTION {name}(t TEXT) RETURNS INT LANGUAGE wasm {volatility} "
        f"AS '{text}' WITH ({options})"
    )


LOGS = "allow = 'log'"
LOOKS = "allow = 'lookup', lookup = 'words(word, sense)'"


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "a.tars") as opened:
        opened.execute("CREATE TABLE words (word TEXT PRIMARY KEY, sense TEXT, n INT)")
        opened.execute("INSERT INTO words VALUES ('a', 'alpha', 1), ('é', 'z', 2), ('n', NULL, 3)")
        opened.execute("CREATE TABLE t (id INT, t TEXT)")
        opened.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'é'), (4, NULL), (5, 'n')")
        yield opened


def rows(db: tarsdb.Connection, sql: str) -> list[tuple[Any, ...]]:
    return db.execute(sql).fetchall()


@pytest.mark.usefixtures("each_backend")
def test_log(db: tarsdb.Connection, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tarsdb.udf")
    db.execute(create("says", says(), LOGS))
    assert rows(db, "SELECT sum(says(t)) FROM t") == [(4,)]
    assert [r.getMessage() for r in caplog.records] == [
        f"function says: {word}" for word in ("a", "b", "é", "n")
    ]
    caplog.clear()
    rows(db, "SELECT says(E'line\\nfake: line\\x1b[31m')")
    rows(db, f"SELECT says('{'x' * 5000}')")
    first, second = (r.getMessage() for r in caplog.records)
    assert "\n" not in first and "\x1b" not in first and "fake" in first
    assert len(second) < capabilities.LOG_BYTES + 50


@pytest.mark.usefixtures("each_backend")
def test_lookup(db: tarsdb.Connection) -> None:
    db.execute(create("asks", asks(), LOOKS))
    sql = "SELECT id, asks(t) FROM t ORDER BY id"
    found = dict(rows(db, sql))
    assert found == {1: 5000 + ord("a"), 2: -1000 + ord("a"), 3: 1000 + ord("z"), 4: None,
                     5: -1000 + ord("z")}  # fmt: skip
    db.execute("BEGIN")
    db.execute("INSERT INTO words VALUES ('b', 'be', 4)")  # its own writes are seen
    assert dict(rows(db, sql))[2] == 2000 + ord("b")
    db.execute("ROLLBACK")
    assert dict(rows(db, sql)) == found
    db.execute("UPDATE words SET sense = 'longer than it fits' WHERE word = 'a'")
    assert dict(rows(db, sql))[1] == 19_000 + ord("z")  # the length, and nothing written


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (says(), "fuel = 1000000", "imports tars.log, which the function is not granted"),
        (says(), LOOKS, "imports tars.log, which the function is not granted"),
        (asks(), LOGS, "imports tars.lookup, which the function is not granted"),
        (says().replace('"tars" "log"', '"env" "log"'), LOGS, "module imports env.log; functions"),
        (says().replace('"tars" "log"', '"tars" "exec"'), LOGS, "module imports tars.exec"),
        (says().replace('"tars" "log"', '"" "log"'), LOGS, "module imports .log"),
        (says().replace(LOG, LOG.replace("i32 i32", "i32 i64"))
         .replace(f"{SIZE})", f"(i64.extend_i32_u {SIZE}))"), LOGS,
         "imports tars.log as (i32, i64)"),
        (f'(module (import "tars" "log" (global i32)) {PRELUDE} (func (export "f")))', LOGS,
         "imports tars.log as no function"),
        (says(), "allow = 'clock'", "capability 'clock' is not known"),
        (says(), "allow = 'log', backend = 'hyperlight'",
         "needs backend = 'wasmtime' or 'worker', not 'hyperlight'"),
        ('(module (import "tars" "log" (func (param i32 i32))) (func (export "says") (param i32)'
         " (result i32) (local.get 0)))", LOGS, "imports tars.log, but exports no memory"),
        (asks(), "allow = 'lookup'", "go together"),
        (says(), "allow = 'log', lookup = 'words(word, sense)'", "go together"),
        (asks(), "allow = 'lookup', lookup = 'words'", "is not understood"),
        (asks(), "allow = 'lookup', lookup = 'nobody(a, b)'", "table 'nobody' does not exist"),
        (asks(), "allow = 'lookup', lookup = 'words(word, n)'", "n must be TEXT, it is INT"),
        (asks(), "allow = 'lookup', lookup = 'words(sense, word)'", "sense is not unique"),
    ],
)  # fmt: skip
def test_what_is_not_granted_is_refused_by_name(
    db: tarsdb.Connection, text: str, options: str, message: str
) -> None:
    with pytest.raises(errors.DatabaseError) as caught:
        db.execute(create("says" if "says" in text else "asks", text, options))
    assert message in str(caught.value)
    assert rows(db, "SELECT count(*) FROM tars_functions") == [(0,)]


def test_a_lookup_is_not_immutable(db: tarsdb.Connection) -> None:
    for volatility in ("IMMUTABLE", ""):
        with pytest.raises(errors.BindError, match="looks up a table and is IMMUTABLE"):
            db.execute(create("asks", asks(), LOOKS, volatility))
    db.execute(create("asks", asks(), LOOKS))
    with pytest.raises(errors.CatalogError, match="not IMMUTABLE"):
        db.execute("CREATE TABLE u (t TEXT CHECK (asks(t) > 0))")


def test_a_module_may_import_what_a_function_is_granted(
    db: tarsdb.Connection, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "m.wat").write_text(says())
    db.execute(f"CREATE MODULE m FROM '{tmp_path}/m.wat'")
    sql = "CREATE FUNCTION says(t TEXT) RETURNS INT LANGUAGE wasm FROM m::says"
    with pytest.raises(errors.UdfValidationError, match=r"tars.log, which the function"):
        db.execute(sql)
    db.execute(f"{sql} WITH (allow = 'log')")
    assert rows(db, "SELECT says('x')") == [(1,)]
    (tmp_path / "m.wat").write_text(says().replace('"tars"', '"wasi"'))
    with pytest.raises(errors.UdfValidationError, match=r"wasi.log"):
        db.execute(f"CREATE MODULE k FROM '{tmp_path}/m.wat'")


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        (says(where="(i32.const -4)"), LOGS, errors.UdfError, "outside its memory"),
        (says(size="(i32.const -1)"), LOGS, errors.UdfError, "outside its memory"),
        (says(where="(i32.const 2147483647)", size="(i32.const 2147483647)"), LOGS,
         errors.UdfError, "outside its memory"),
        (asks(size="(i32.const 2000)"), LOOKS, errors.UdfError, "a text of 2000 bytes"),
        (asks(size="(i32.const -1)"), LOOKS, errors.UdfError, "a text of -1 bytes"),
        (asks(key="(i32.const 60)", size="(i32.const 2)").replace(
            PRELUDE, f'{PRELUDE} (data (i32.const 60) "\\ff\\fe")'),
         LOOKS, errors.UdfError, "is not UTF-8"),
        (asks(room="(i32.const -4)"), LOOKS, errors.UdfError, "outside its memory"),
        (module(LOG, "says", "(loop $l (call $log (i32.const 0) (i32.const 1)) (br $l))"
                " (i32.const 0)"), LOGS, errors.UdfLimitError, "called tars.log more than 1000"),
        (says().replace('(memory (export "memory") 1)', '(memory (export "other") 1)'), LOGS,
         errors.DatabaseError, ""),
    ],
)  # fmt: skip
def test_abuse_ends_the_statement_and_nothing_else(
    db: tarsdb.Connection, text: str, options: str, error: type[Exception], message: str
) -> None:
    name = "says" if '"says"' in text else "asks"
    db.execute("BEGIN")
    db.execute("INSERT INTO t VALUES (6, 'a')")
    for _ in range(2):
        with pytest.raises(error) as caught:
            db.execute(create(name, text, options))
            db.execute(f"UPDATE t SET id = {name}(t)")
        assert message in str(caught.value)
    good = create(name, says() if name == "says" else asks(), options)
    db.execute(good)
    assert rows(db, f"SELECT count({name}(t)) FROM t") == [(5,)]
    db.execute("COMMIT")
    assert rows(db, "SELECT sum(id) FROM t") == [(21,)]


@pytest.mark.usefixtures("each_backend")
def test_fuel_taken_from_a_guest_is_not_used(db: tarsdb.Connection) -> None:
    before = METRICS.snapshot().get("udf.fuel", 0)
    db.execute(create("says", says(size="(i32.const -1)"), f"{LOGS}, fuel = {2**60}"))
    with pytest.raises(errors.UdfError, match="outside its memory"):
        rows(db, "SELECT says(t) FROM t")
    assert 0 < METRICS.snapshot()["udf.fuel"] - before < 100_000


def test_the_table_of_a_lookup_may_go(db: tarsdb.Connection) -> None:
    db.execute(create("asks", asks(), LOOKS))
    db.execute("DROP TABLE words")
    with pytest.raises(errors.CatalogError, match=r"asks: lookup in words.*'words' does not exist"):
        db.execute("SELECT asks(t) FROM t")
    db.execute("CREATE TABLE words (word TEXT UNIQUE, sense TEXT)")
    assert rows(db, "SELECT asks('a')") == [(-1000,)]


EMBED = '(import "tars" "embed" (func $embed (param i32 i32 i32 i32) (result i32)))'


def embeds(size: int = 4096) -> str:
    """Return a module that gives the bytes of a text's vector, plus a million times its first."""
    found = f"(call $embed {KEY} {SIZE} (i32.const 1024) (i32.const {size}))"
    first = "(i32.trunc_sat_f32_s (f32.mul (f32.const 1e6) (f32.load (i32.const 1024))))"
    return module(EMBED, "embeds", f"(i32.add {found} {first})")


ASKS_MODEL = "allow = 'embed', embed = 'm'"


@pytest.fixture
def model(db: tarsdb.Connection, tmp_path: pathlib.Path) -> str:
    folder = write_model(tmp_path / "vectors", CONFIGS["bert"])
    db.execute(f"CREATE MODEL m FROM '{folder}'")
    return folder


@pytest.mark.usefixtures("each_backend")
def test_embed(db: tarsdb.Connection, model: str) -> None:
    db.execute(create("embeds", embeds(), ASKS_MODEL))
    for text in ("w5 w6", "w8", ""):
        (vector,) = rows(db, f"SELECT embed('m', '{text}')")[0]
        expected = 4 * len(vector) + int(np.float32(1e6) * vector[0])
        assert rows(db, f"SELECT embeds('{text}')") == [(expected,)]
        assert rows(db, f"SELECT sum(embeds(x)) FROM (SELECT '{text}' AS x)") == [(expected,)]
    db.execute("CREATE TABLE kept (n INT)")
    db.execute("INSERT INTO kept SELECT embeds(t) FROM t WHERE t IS NOT NULL")
    db.execute("INSERT INTO kept VALUES (embeds('w8'))")
    assert rows(db, "SELECT count(n) FROM kept") == [(5,)]
    db.execute(create("embeds", embeds(size=8), ASKS_MODEL))  # the length, and nothing written
    assert rows(db, "SELECT embeds('w8')") == [(4 * len(vector),)]


def test_embed_is_granted_by_name(db: tarsdb.Connection, model: str) -> None:
    for options, volatility, message in (
        ("allow = 'embed'", "STABLE", "go together"),
        ("allow = 'embed', embed = 'nobody'", "STABLE", "model 'nobody' does not exist"),
        (ASKS_MODEL, "IMMUTABLE", "asks a model and is IMMUTABLE"),
        (LOGS, "STABLE", "imports tars.embed, which the function is not granted"),
    ):
        with pytest.raises(errors.DatabaseError, match=message):
            db.execute(create("embeds", embeds(), options, volatility))
    db.execute(create("embeds", embeds(), ASKS_MODEL))
    db.execute("DROP MODEL m")
    with pytest.raises(errors.CatalogError, match="embeds: model 'm' does not exist"):
        db.execute("SELECT embeds('w5')")


def test_embed_is_limited(db: tarsdb.Connection, model: str) -> None:
    often = module(EMBED, "embeds", "(loop $l (drop (call $embed (i32.const 0) (i32.const 1) "
                   "(i32.const 0) (i32.const 0))) (br $l)) (i32.const 0)")  # fmt: skip
    db.execute(create("embeds", often, f"{ASKS_MODEL}, timeout_ms = 60000"))
    with pytest.raises(errors.UdfLimitError, match=r"called tars.embed more than 1000"):
        db.execute("SELECT embeds('w5')")
    db.execute(create("embeds", often, f"{ASKS_MODEL}, timeout_ms = 1"))
    with pytest.raises(errors.UdfLimitError):
        db.execute("SELECT embeds('w5')")
