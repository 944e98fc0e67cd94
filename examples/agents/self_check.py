"""A database that checks itself: bad rows are repaired where that is possible, else quarantined.

The rules are sandboxed functions in the file, so every copy of it carries its own checks. One run
is one transaction: a reader sees all rows as they were or all of them checked, and none is lost.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tarsdb

# verdict: 0 is good, 1 can be repaired, 2 cannot. A sensor reports degrees Celsius between -60 and
# 60; one kind of it reports Fahrenheit by mistake, recognised by values Celsius cannot have.
RULES = """(module
  (func $celsius (param f64) (result f64)
    (f64.div (f64.sub (local.get 0) (f64.const 32)) (f64.const 1.8)))
  (func $plausible (param f64) (result i32)
    (i32.and (f64.ge (local.get 0) (f64.const -60)) (f64.le (local.get 0) (f64.const 60))))
  (func (export "verdict") (param f64) (result i32)
    (if (call $plausible (local.get 0)) (then (return (i32.const 0))))
    (select (i32.const 1) (i32.const 2) (call $plausible (call $celsius (local.get 0)))))
  (func (export "repaired") (param f64) (result f64) (call $celsius (local.get 0))))"""
SCHEMA = """
CREATE TABLE readings (id BIGINT PRIMARY KEY, sensor TEXT NOT NULL, celsius DOUBLE NOT NULL,
                       repaired BOOLEAN NOT NULL DEFAULT false);
CREATE TABLE quarantine (id BIGINT PRIMARY KEY, sensor TEXT NOT NULL, celsius DOUBLE NOT NULL,
                         reason TEXT NOT NULL)
"""


@dataclass(frozen=True)
class Report:
    """How many rows a check looked at, repaired and moved away."""

    checked: int
    repaired: int
    quarantined: int


def prepare(db: tarsdb.Connection, rules: str = RULES) -> None:
    """Make the tables and store the rules; the module is kept with the data."""
    db.execute(SCHEMA)
    for head in ("verdict(x DOUBLE) RETURNS INT", "repaired(x DOUBLE) RETURNS DOUBLE"):
        db.execute(f"CREATE FUNCTION {head} LANGUAGE wasm IMMUTABLE AS '{rules}'")


def check(db: tarsdb.Connection) -> Report:
    """Check all readings; repair or quarantine what is wrong, all or nothing."""
    with db.transaction():
        checked = db.execute("SELECT count(*) FROM readings").fetchall()[0][0]
        repaired = db.execute(
            "UPDATE readings SET celsius = repaired(celsius), repaired = true "
            "WHERE verdict(celsius) = 1"
        ).rowcount
        quarantined = db.execute(
            "INSERT INTO quarantine SELECT id, sensor, celsius, 'no temperature of this planet' "
            "FROM readings WHERE verdict(celsius) = 2"
        ).rowcount
        db.execute("DELETE FROM readings WHERE verdict(celsius) <> 0")
    return Report(checked, repaired, quarantined)


def main(path: str) -> None:
    """Check four readings."""
    with tarsdb.connect(path) as db:
        prepare(db)
        values = [(1, "roof", 21.5), (2, "door", 98.6), (3, "cellar", 9999.0), (4, "roof", -12.0)]
        db.executemany("INSERT INTO readings (id, sensor, celsius) VALUES (?, ?, ?)", values)
        print(check(db))


if __name__ == "__main__":
    main(sys.argv[1])
