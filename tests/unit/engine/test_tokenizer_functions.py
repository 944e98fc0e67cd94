"""``tokenize`` and ``chunk`` by sandboxed functions of role 'tokenizer'."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

import tarsdb
from tarsdb import errors
from tests.conftest import ROOT
from tests.sandbox.wasm_text import PRELUDE, columnar

EXAMPLE = ROOT / "examples" / "functions" / "code_words.wasm"
TEXTS = [
    "parseHTTPDate", "parse_http_date(x, y2)", "", " -- ", "Größe in m", "日本 x", None, "aB",
    "HTTP", "A b C", "x" * 400, "one two  three four\nfive",
]  # fmt: skip
WORD = re.compile(r"[A-Z]+(?![a-zß-\U0010ffff])[0-9]*|[A-Z]?[a-z0-9\x80-\U0010ffff]+|[A-Z]+")
SIGNATURE = "(body TEXT) RETURNS TABLE (first INT, behind INT)"


def fixed(name: str, spans: list[tuple[int, int]]) -> str:
    """Return a tokenizer that gives the same spans for each text."""
    count, apart = len(spans), 4 * 65536  # bytes between the two columns
    stores = "".join(
        f"(i32.store offset={4 * place + apart * side} (local.get $k) (i32.const {span[side]}))"
        for place, span in enumerate(spans)
        for side in (0, 1)
    )
    return f"""(module {PRELUDE}
      (func (export "{name}") (param $d i32) (param $n i32) (result i32)
        (local $a i32) (local $i i32) (local $k i32)
        (local.set $a (call $alloc (i32.const {2 * apart})))
        (i32.store offset=72 (local.get $d) (local.get $a))
        (i32.store offset=104 (local.get $d) (i32.add (local.get $a) (i32.const {apart})))
        (local.set $k (local.get $a))
        (block $done (loop $next
          (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
          (i32.store (i32.add (i32.load offset=40 (local.get $d))
            (i32.shl (local.get $i) (i32.const 2))) (i32.const {count}))
          {stores}
          (local.set $k (i32.add (local.get $k) (i32.const {4 * count})))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br $next)))
        (i32.const 0)))"""


def create(name: str, spans: list[tuple[int, int]]) -> str:
    return (
        f"CREATE FUNCTION {name}{SIGNATURE} LANGUAGE wasm AS '{fixed(name, spans)}' "
        f"WITH (role = 'tokenizer')"
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path_factory.mktemp("tokens") / "a.tars") as db:
        db.execute(f"CREATE MODULE kit FROM '{EXAMPLE}'")
        db.execute(
            f"CREATE FUNCTION code_words{SIGNATURE[:-1]}, term TEXT) LANGUAGE wasm "
            "FROM kit::code_words WITH (role = 'tokenizer')"
        )
        db.execute(create("three", [(0, 1), (1, 2), (3, 5)]))
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, body TEXT)")
        db.executemany("INSERT INTO t VALUES (?, ?)", list(enumerate(TEXTS)))
        yield db


@pytest.fixture
def db(shared: tarsdb.Connection) -> Iterator[tarsdb.Connection]:
    shared.execute("BEGIN")
    yield shared
    shared.rollback()


def rows(db: tarsdb.Connection, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return db.execute(sql, parameters).fetchall()


def words(text: str) -> list[tuple[int, int]]:
    """Return where the words of a text lie, in characters."""
    return [match.span() for match in WORD.finditer(text)]


def test_tokens(db: tarsdb.Connection) -> None:
    wanted = [
        None if text is None else [re.sub("[A-Z]", lambda m: m[0].lower(), text[a:b])
                                   for a, b in words(text)]
        for text in TEXTS
    ]  # fmt: skip
    assert wanted[0] == ["parse", "http", "date"]
    sql = "SELECT tokenize('code_words', body) FROM t"
    assert rows(db, f"{sql} ORDER BY id") == [(tokens,) for tokens in wanted]
    assert rows(db, f"{sql} WHERE id = 1") == [(["parse", "http", "date", "x", "y2"],)]
    assert rows(db, "SELECT tokenize('code_words', 'aB')") == [(["a", "b"],)]
    assert rows(db, "SELECT tokenize('CODE_WORDS', ?)", "aB") == [(["a", "b"],)]
    assert rows(db, "SELECT tokenize('three', 'abcdef')") == [(["a", "b", "de"],)]
    grouped = "SELECT w, count(*) FROM (SELECT unnest(tokenize('code_words', body)) w FROM t)"
    assert rows(db, f"{grouped} GROUP BY w HAVING count(*) > 2 ORDER BY w") == [("http", 3)]
    constant = "tokenize('code_words', 'aB')"
    explained = rows(db, f"EXPLAIN SELECT {constant}, id FROM t")
    assert (f"  constant $__c0: {constant}",) in explained


@pytest.mark.parametrize(("size", "overlap"), [(1, 0), (2, 0), (2, 1), (3, 2), (1000, 0)])
def test_pieces(db: tarsdb.Connection, size: int, overlap: int) -> None:
    """Pieces are slices from a token's begin to a token's end, as many tokens as fit."""
    sql = "SELECT chunk('code_words', body, size => ?, overlap => ?) FROM t ORDER BY id"
    found = rows(db, sql, size, overlap)
    for text, (pieces,) in zip(TEXTS, found, strict=True):
        if text is None:
            assert pieces is None
            continue
        places = words(text)
        wanted, start = [], 0
        while start < len(places):
            part = places[start : start + size]
            wanted.append(text[part[0][0] : part[-1][1]])
            if start + size >= len(places):
                break
            start += size - overlap
        assert pieces == wanted, text


def test_a_table_function_all_the_same(db: tarsdb.Connection) -> None:
    found = rows(db, "SELECT first, behind, term FROM code_words('Größe in m')")
    assert found == [(0, 7, "größe"), (8, 10, "in"), (11, 12, "m")]
    assert all(a[1] <= b[0] for a, b in pairwise(found))
    assert rows(db, "SELECT chunk('code_words', 1)") == [(["code_words"],)]  # a text of one word


def test_generated_columns_pin_it(db: tarsdb.Connection) -> None:
    db.execute(
        "CREATE TABLE g (body TEXT, words TEXT[] "
        "GENERATED ALWAYS AS (tokenize('code_words', body)) STORED)"
    )
    db.execute("INSERT INTO g VALUES ('parseDate'), (NULL)")
    assert rows(db, "SELECT words FROM g") == [(["parse", "date"],), (None,)]
    with pytest.raises(errors.CatalogError, match="g"):
        db.execute("DROP FUNCTION code_words")
    assert rows(db, "SELECT count(*) FROM g") == [(2,)]


def test_a_trap_rolls_back(db: tarsdb.Connection) -> None:
    db.execute(
        f"CREATE FUNCTION f{SIGNATURE} LANGUAGE wasm AS '{columnar('(unreachable)')}' "
        "WITH (role = 'tokenizer')"
    )
    before = rows(db, "SELECT count(*) FROM t")
    db.execute("SAVEPOINT s")
    for sql in (
        "SELECT tokenize('f', body) FROM t",
        "INSERT INTO t SELECT id + 100, tokenize('f', body)[1] FROM t",
        "DELETE FROM t WHERE tokenize('f', body) IS NULL",
    ):
        with pytest.raises(errors.UdfTrapError, match="function f: trap UNREACHABLE"):
            db.execute(sql)
    assert rows(db, "SELECT count(*) FROM t") == before


@pytest.mark.parametrize(
    ("spans", "text", "message"),
    [
        ([(0, 4)], "abc", "token 0 of row 0 is bytes 0 to 4 of a text of 3"),
        ([(0, 1), (2, 2)], "abc", "token 1 of row 0 is bytes 2 to 2"),
        ([(1, 2), (0, 1)], "abc", "token 1 of row 0 is bytes 0 to 1"),
        ([(-1, 2)], "abc", "token 0 of row 0 is bytes -1 to 2"),
        ([(0, 1)], "é", "token 0 of row 0 is bytes 0 to 1 of a text of 2"),
        ([(1, 2)], "é", "token 0 of row 0 is bytes 1 to 2"),
        ([(-(2**31), 2**31 - 1)], "abc", "of a text of 3"),
        ([(0, 1)], "", "token 0 of row 0 is bytes 0 to 1 of a text of 0"),
    ],
)
def test_what_no_tokens_are(
    db: tarsdb.Connection, spans: list[tuple[int, int]], text: str, message: str
) -> None:
    db.execute(create("lies", spans))
    for call in ("tokenize('lies', ?)", "chunk('lies', ?, size => 2)"):
        with pytest.raises(errors.UdfError, match=re.escape(message)):
            db.execute(f"SELECT {call}", [text])
    if spans[0] == (0, 4):
        with pytest.raises(errors.UdfError, match="token 0 of row 1 is bytes 0 to 4 of a text of"):
            db.execute("SELECT tokenize('lies', b) FROM (VALUES ('abcdé'), (?)) v(b)", [text])


@pytest.mark.parametrize(
    ("sql", "error", "message"),
    [
        ("SELECT tokenize('letters', 'a')", errors.BindError, "'letters' does not exist"),
        ("SELECT tokenize('three', id) FROM t", errors.BindError, "BIGINT"),
        ("SELECT tokenize('three')", errors.BindError, "tokenize takes a model and a text"),
        ("SELECT tokenize('three', 'abcdef', size => 2)", errors.BindError, "'size' is not known"),
        ("SELECT chunk('three', 'abcdef', size => 0)", errors.DataError, "size is 0"),
        ("SELECT chunk('three', 'abcdef', size => 2, by => 'words')", errors.BindError, "'by'"),
        ("SELECT chunk('three', 'abcdef', size => 'x')", errors.DataError, "a whole number"),
    ],
)
def test_what_is_refused(
    db: tarsdb.Connection, sql: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        db.execute(sql)


@pytest.mark.parametrize(
    ("signature", "error"),
    [
        ("(body TEXT) RETURNS TEXT", errors.BindError),
        ("(body BLOB) RETURNS TABLE (first INT, behind INT)", errors.UdfValidationError),
        ("(body TEXT, n INT) RETURNS TABLE (first INT, behind INT)", errors.UdfValidationError),
        ("(body TEXT) RETURNS TABLE (first BIGINT, behind INT)", errors.UdfValidationError),
        ("(body TEXT) RETURNS TABLE (first INT)", errors.UdfValidationError),
        ("(body TEXT) RETURNS TABLE (a INT, b INT, c INT)", errors.UdfValidationError),
        ("(body TEXT) RETURNS TABLE (a INT, b INT) VOLATILE", errors.BindError),
        ("(body TEXT) RETURNS TABLE (a INT, b INT) CALLED ON NULL INPUT", errors.BindError),
    ],
)
def test_signatures(db: tarsdb.Connection, signature: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="role 'tokenizer'"):
        db.execute(
            f"CREATE FUNCTION wrong{signature} LANGUAGE wasm FROM kit::code_words "
            "WITH (role = 'tokenizer')"
        )
