"""Two agents bring tools of their own into one database; neither reaches the other's.

Each tool is a module from somebody we do not know, stored under limits of fuel, memory and time. A
tool that loops, traps or lies costs its own agent an error. What an agent may read is what its
statement passes to its tool: a tool sees those values, in a memory of its own, and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tarsdb
from tarsdb.errors import UdfError

LIMITS = "fuel = 100000, fuel_per_row = 2000, max_memory = '1MB', timeout_ms = 500"
SCHEMA = """
CREATE TABLE notes (agent TEXT, id BIGINT, amount BIGINT NOT NULL, PRIMARY KEY (agent, id));
CREATE TABLE results (agent TEXT NOT NULL, id BIGINT NOT NULL, value BIGINT NOT NULL)
"""


@dataclass(frozen=True)
class Agent:
    """An agent and its tool, a function ``tool(BIGINT) -> BIGINT``: the module's text."""

    name: str
    tool: str
    backend: str = "wasmtime"


def install(db: tarsdb.Connection, agents: Sequence[Agent]) -> None:
    """Store the agents' tools, each as a function of its own name and with its own limits."""
    db.execute(SCHEMA)
    for agent in agents:
        text = agent.tool.replace("'", "''").replace('"tool"', f'"{agent.name}_tool"')
        db.execute(
            f"CREATE FUNCTION {agent.name}_tool(amount BIGINT) RETURNS BIGINT LANGUAGE wasm "
            f"AS '{text}' WITH ({LIMITS}, backend = '{agent.backend}')"
        )


def work(db: tarsdb.Connection, agent: Agent) -> str:
    """Let an agent's tool compute over the agent's notes; all its results are stored or none."""
    sql = (
        f"INSERT INTO results SELECT agent, id, {agent.name}_tool(amount) FROM notes "
        "WHERE agent = ?"
    )
    try:
        return f"{db.execute(sql, [agent.name]).rowcount} results"
    except UdfError as error:
        return f"{type(error).__name__}: {error.message}"


DOUBLING = """(module (func (export "tool") (param i64) (result i64)
  (i64.mul (local.get 0) (i64.const 2))))"""
GREEDY = """(module (memory 1) (func (export "tool") (param i64) (result i64)
  (loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
  (loop (br 0)) (local.get 0)))"""


def main(path: str) -> None:
    """Run an honest tool and a greedy one."""
    agents = [Agent("ada", DOUBLING), Agent("bob", GREEDY)]
    with tarsdb.connect(path) as db:
        install(db, agents)
        rows = [(agent.name, i, 100 * i) for agent in agents for i in range(1, 4)]
        db.executemany("INSERT INTO notes VALUES (?, ?, ?)", rows)
        for agent in agents:
            print(f"{agent.name}: {work(db, agent)}")


if __name__ == "__main__":
    main(sys.argv[1])
