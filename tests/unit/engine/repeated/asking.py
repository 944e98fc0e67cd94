"""A table that is searched again and again, and how its searches went."""

from __future__ import annotations

import numpy as np

import tarsdb
from tarsdb.engine.search.repeated_search import RepeatedSearch
from tarsdb.sql.plan import Knn

DIM, ROWS = 40, 3000
SQL = "SELECT id, a, b, c, d, day, emb <-> ? AS far FROM t ORDER BY far LIMIT 10"


def vectors(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)


QUERIES = vectors(12, 99)


class Ways(list[bool]):
    """Whether searches were one compiled call or went the usual way.

    ``looked_up``: of those in between, by what was kept but with values looked up row by row.
    """

    looked_up = 0


def insert(db: tarsdb.Connection, start: int, rows: int, seed: int) -> None:
    ids = np.arange(start, start + rows)
    db.table("t").insert({
        "id": ids, "a": (ids % 500).astype(np.int16), "b": -ids, "c": ids / 7, "d": ids / 3,
        "day": (ids % 1000).astype("datetime64[D]"), "word": [f"w{i}" for i in ids.tolist()],
        "flag": ids % 2 == 0, "rare": [None if i % 3 else i for i in ids.tolist()],
        "emb": vectors(rows, seed),
    })  # fmt: skip


def ask(db: tarsdb.Connection, sql: str = SQL) -> list[list[tuple[object, ...]]]:
    return [db.execute(sql, (query,)).fetchall() for query in QUERIES]


def repeated(db: tarsdb.Connection, sql: str) -> RepeatedSearch:
    prepared = db._require_session()._prepared[sql]
    assert not isinstance(prepared, list)
    assert isinstance(prepared.plan, Knn)
    found = prepared.plan.memo["repeated"]
    assert isinstance(found, RepeatedSearch)
    return found
