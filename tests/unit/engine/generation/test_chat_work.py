"""A model whose chat template would not end: the statement does, and says which model it was."""

from __future__ import annotations

import pathlib
import threading
import time
from collections.abc import Iterator

import pytest

import tarsdb
from tarsdb.errors import InterruptError, ModelError, StatementTimeoutError
from tarsdb.model_ops import Decoder
from tarsdb.model_ops.generation import template_work
from tests.golden.models.tiny_decoders import write_tiny_decoder

ENDLESS = "{% for _ in range(100000) %}{% for _ in range(100000) %}{% endfor %}{% endfor %}"
SQL = "SELECT generate('endless', 'Hi', max_tokens => 1)"


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    write_tiny_decoder(tmp_path / "endless", "llama", ENDLESS)
    with tarsdb.connect(tmp_path / "db.tars") as connection:
        connection.execute("SET default_quantize = 'none'")
        connection.execute(f"CREATE MODEL endless FROM '{tmp_path / 'endless'}'")
        yield connection


def test_too_much_work_is_an_error_that_names_the_model(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_work, "WORK", template_work.WORK // 100)
    for call in (
        lambda: db.execute(SQL).fetchall(),
        lambda: db.generate("endless", "Hi"),
        lambda: db.generate("endless", "Hi", stream=True),
    ):
        with pytest.raises(ModelError, match=r"^model endless: the chat template refuses"):
            call()
    text = db.generate("endless", "Hi", chat=False, max_tokens=1)
    assert db.execute(SQL.replace("max", "chat => false, max")).fetchone() == (text,)


def test_statement_timeout_and_interrupt_are_asked_in_a_template(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # half a minute's: on a busy machine what asks to stop may come later than the usual end
    monkeypatch.setattr(template_work, "WORK", template_work.WORK * 30)
    db.execute("SET statement_timeout = 50")
    with pytest.raises(StatementTimeoutError):
        db.execute(SQL).fetchall()
    db.execute("SET statement_timeout = 0")
    for call in (lambda: db.execute(SQL).fetchall(), lambda: db.generate("endless", "Hi")):
        ended = threading.Event()

        def interrupt(ended: threading.Event = ended) -> None:
            while not ended.wait(0.05):  # the first may come before the call has begun
                db.interrupt()

        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            with pytest.raises(InterruptError):
                call()
        finally:
            ended.set()
            thread.join()


def test_a_timeout_of_the_call_is_asked_in_a_template(db: tarsdb.Connection) -> None:
    for call in (
        lambda: db.generate("endless", "Hi", timeout=0.05),
        lambda: db.generate("endless", "Hi", timeout=0.05, stream=True),
        lambda: db.execute(SQL.replace("max", "timeout => 0.05, max")).fetchall(),
    ):
        began = time.monotonic()
        with pytest.raises(StatementTimeoutError, match=r"not finished after 0\.\d s, its timeout"):
            call()
        assert time.monotonic() - began < 5


def test_a_stream_that_fails_names_the_model(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*of_step: object) -> None:
        raise ValueError("broken")

    stream = db.generate("endless", "Hi", chat=False, stream=True, speculate=False)
    next(stream)
    monkeypatch.setattr(Decoder, "step", fail)
    with pytest.raises(ModelError, match=r"^model endless: generate: a step failed: ValueError"):
        list(stream)
    assert stream.completion is None
    stream.close()
