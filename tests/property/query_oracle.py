"""Random queries with two readings: SQL text for the database, Python for the oracle.

The oracle holds rows as dicts and computes distances in float64 over small whole numbers, so that
L2, L1 and inner product are exact and ties are real ties. It shares no code with the engine.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DIM = 4
LANGS = ["en", "de", "fr", "ünï", ""]
TAGS = ["red", "green", "blue"]
Row = dict[str, Any]
Test = Callable[[Row], bool | None]


@dataclass
class Query:
    """One query: its SQL, its parameters, what it must return, and whether order counts."""

    sql: str
    parameters: list[Any]
    expected: list[tuple[Any, ...]]
    ordered: bool
    shape: str


def random_vector(rng: random.Random) -> list[float]:
    """Return a vector of small whole numbers."""
    return [float(rng.randint(-3, 3)) for _ in range(DIM)]


def random_row(rng: random.Random, row: int) -> Row:
    """Return a random row of table docs."""
    return {
        "id": row,
        "views": rng.choice([None, rng.randint(-5, 20), rng.randint(0, 1000)]),
        "lang": rng.choice([*LANGS, None]),
        "score": rng.choice([None, rng.randint(-4, 4) / 2, rng.random()]),
        "emb": rng.choice([None, *[random_vector(rng) for _ in range(9)]]),
    }


def distance(op: str, left: list[float], right: list[float]) -> float:
    """Return the distance of two vectors under a pgvector operator."""
    if op == "<->":
        return math.sqrt(sum((a - b) ** 2 for a, b in zip(left, right, strict=True)))
    if op == "<+>":
        return sum(abs(a - b) for a, b in zip(left, right, strict=True))
    return -sum(a * b for a, b in zip(left, right, strict=True))


def random_predicate(rng: random.Random, prefix: str = "", depth: int = 2) -> tuple[str, Test]:
    """Return a predicate as SQL and as a three-valued Python function."""
    if depth and rng.random() < 0.45:
        first, test_first = random_predicate(rng, prefix, depth - 1)
        second, test_second = random_predicate(rng, prefix, depth - 1)
        kind = rng.choice(["AND", "OR", "NOT"])
        if kind == "NOT":
            return f"NOT ({first})", lambda row: _not(test_first(row))
        combine = _and if kind == "AND" else _or
        return f"({first} {kind} {second})", lambda row: combine(test_first(row), test_second(row))
    return _leaf(rng, prefix)


def _leaf(rng: random.Random, prefix: str) -> tuple[str, Test]:
    column = rng.choice(["id", "views", "views", "lang", "lang", "score"])
    name = prefix + column
    if rng.random() < 0.15:
        negated = rng.random() < 0.5
        sql = f"{name} IS {'NOT ' if negated else ''}NULL"
        return sql, lambda row: (row[column] is None) != negated
    if column == "lang":
        return _text_leaf(rng, name)
    if rng.random() < 0.2:
        items = [rng.randint(-5, 60) for _ in range(rng.randint(1, 4))]
        sql = f"{name} IN ({', '.join(map(str, items))})"
        return sql, lambda row: None if row[column] is None else row[column] in items
    if rng.random() < 0.2:
        low = rng.randint(-5, 60)
        high = low + rng.randint(0, 100)
        return (
            f"{name} BETWEEN {low} AND {high}",
            lambda row: None if row[column] is None else low <= row[column] <= high,
        )
    op = rng.choice(["=", "<>", "<", "<=", ">", ">="])
    bound = rng.choice([rng.randint(-5, 150), rng.randint(-5, 40) + 0.5])
    return f"{name} {op} {bound}", lambda row: _compare(op, row[column], bound)


def _text_leaf(rng: random.Random, name: str) -> tuple[str, Test]:
    word = rng.choice([*LANGS, "zz"])
    if rng.random() < 0.3:
        return f"{name} LIKE '%e%'", lambda row: None if row["lang"] is None else "e" in row["lang"]
    op = rng.choice(["=", "<>", "<", ">="])
    return f"{name} {op} '{word}'", lambda row: _compare(op, row["lang"], word)


def _compare(op: str, left: Any, right: Any) -> bool | None:
    if left is None:
        return None
    if isinstance(left, str):
        left, right = left.encode(), right.encode()
    return {
        "=": left == right, "<>": left != right, "<": left < right,
        "<=": left <= right, ">": left > right, ">=": left >= right,
    }[op]  # fmt: skip


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _and(left: bool | None, right: bool | None) -> bool | None:
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def _or(left: bool | None, right: bool | None) -> bool | None:
    return _not(_and(_not(left), _not(right)))


class Oracle:
    """The rows, and random queries over them with their answers."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.docs: dict[int, Row] = {}
        self.tags: list[tuple[int, str]] = []
        self.inserted: list[int] = []  # ids in row id order: ties break by row id

    def query(self) -> Query:
        """Return a random query."""
        shapes = [self.knn, self.knn, self.knn, self.within, self.joined, self.above_join,
                  self.grouped, self.aggregate, self.sorted_scan, self.batch,
                  self.nested]  # fmt: skip
        return self.rng.choice(shapes)()

    def _where(self, prefix: str = "") -> tuple[str, Test]:
        if self.rng.random() < 0.3:
            return "", lambda row: True
        sql, test = random_predicate(self.rng, prefix)
        return f" WHERE {sql}", test

    def _rows(self, test: Test) -> list[Row]:
        return [self.docs[i] for i in self.inserted if test(self.docs[i]) is True]

    def _near(
        self, test: Test, op: str, query: list[float], descending: bool = False
    ) -> list[tuple[float, Row]]:
        found = [(distance(op, r["emb"], query), r) for r in self._rows(test) if r["emb"]]
        return sorted(found, key=lambda pair: -pair[0] if descending else pair[0])

    def _bind(self, vector: list[float]) -> tuple[str, list[Any]]:
        if self.rng.random() < 0.5:
            return "?", [vector]
        return "'[" + ", ".join(map(str, vector)) + "]'", []

    def knn(self) -> Query:
        """Nearest neighbours with WHERE, LIMIT, OFFSET, DESC."""
        rng, query = self.rng, random_vector(self.rng)
        where, test = self._where()
        op = rng.choice(["<->", "<#>", "<+>"])
        target, parameters = self._bind(query)
        descending, k = rng.random() < 0.2, rng.choice([0, 1, 3, 10, 1000])
        offset = rng.choice([0, 0, 1, 5])
        order = "d" if rng.random() < 0.5 else f"emb {op} {target}"
        extra = parameters if order != "d" else []
        sql = (
            f"SELECT id, emb {op} {target} AS d FROM docs{where} "
            f"ORDER BY {order}{' DESC' if descending else ''} LIMIT {k}"
            + (f" OFFSET {offset}" if offset else "")
        )
        near = self._near(test, op, query, descending)[offset : offset + k]
        expected = [(row["id"], d) for d, row in near]
        return Query(sql, [*parameters, *extra], expected, True, "knn")

    def within(self) -> Query:
        """Range search."""
        rng, query = self.rng, random_vector(self.rng)
        op = rng.choice(["<->", "<+>"])
        target, parameters = self._bind(query)
        where, test = self._where()
        radius, strict = rng.choice([0.5, 2.5, 4.25, 100.5]), rng.random() < 0.5
        joiner = f"{where} AND" if where else " WHERE"
        sql = f"SELECT id FROM docs{joiner} emb {op} {target} {'<' if strict else '<='} {radius}"
        expected = [(r["id"],) for d, r in self._near(test, op, query) if d < radius]
        return Query(sql, parameters, expected, False, "within")

    def joined(self) -> Query:
        """Nearest neighbours inside a derived table, joined afterwards."""
        rng, query = self.rng, random_vector(self.rng)
        where, test = self._where()
        k, tag = rng.choice([1, 5, 20]), rng.choice(TAGS)
        sql = (
            f"SELECT n.id, t.tag FROM (SELECT id, emb <-> ? AS d FROM docs{where} "
            f"ORDER BY d LIMIT {k}) n JOIN tags t ON t.doc_id = n.id WHERE t.tag = '{tag}'"
        )
        ids = [r["id"] for _, r in self._near(test, "<->", query)[:k]]
        expected = [(doc, t) for i in ids for doc, t in self.tags if doc == i and t == tag]
        return Query(sql, [query], expected, False, "joined")

    def above_join(self) -> Query:
        """LIMIT above a join: the join must come first."""
        rng, query = self.rng, random_vector(self.rng)
        k, tag = rng.choice([1, 5, 20]), rng.choice(TAGS)
        sql = (
            f"SELECT d.id, d.emb <+> ? AS dist FROM docs d JOIN tags t ON t.doc_id = d.id "
            f"WHERE t.tag = '{tag}' AND d.emb IS NOT NULL ORDER BY dist, d.id LIMIT {k}"
        )
        pairs = [
            (d, r["id"])
            for d, r in self._near(lambda row: True, "<+>", query)
            for doc, t in self.tags
            if doc == r["id"] and t == tag
        ]
        expected = [(i, d) for d, i in sorted(pairs)[:k]]
        return Query(sql, [query], expected, True, "above_join")

    def grouped(self) -> Query:
        """A CTE of nearest neighbours, aggregated."""
        query = random_vector(self.rng)
        where, test = self._where()
        k = self.rng.choice([3, 17])
        sql = (
            f"WITH near AS (SELECT id, lang FROM docs{where} ORDER BY emb <-> ? LIMIT {k}) "
            "SELECT lang, count(*) FROM near GROUP BY lang"
        )
        counts = Counter(r["lang"] for _, r in self._near(test, "<->", query)[:k])
        return Query(sql, [query], list(counts.items()), False, "grouped")

    def aggregate(self) -> Query:
        """Ungrouped aggregates."""
        where, test = self._where()
        rows = self._rows(test)
        views = [r["views"] for r in rows if r["views"] is not None]
        langs = [r["lang"].encode() for r in rows if r["lang"] is not None]
        expected = (
            len(rows), len(views), sum(views) if views else None,
            min(views, default=None), max(views, default=None),
            min(langs, default=b"").decode() if langs else None,
        )  # fmt: skip
        sql = (
            "SELECT count(*), count(views), sum(views), min(views), max(views), min(lang) "
            f"FROM docs{where}"
        )
        return Query(sql, [], [expected], True, "aggregate")

    def sorted_scan(self) -> Query:
        """ORDER BY scalar columns with NULLs last."""
        where, test = self._where()
        k = self.rng.choice([1, 7, 500])
        rows = sorted(
            self._rows(test),
            key=lambda r: (r["views"] is None, -(r["views"] or 0), r["id"]),
        )[:k]
        sql = f"SELECT id, lang FROM docs{where} ORDER BY views DESC, id LIMIT {k}"
        return Query(sql, [], [(r["id"], r["lang"]) for r in rows], True, "sorted_scan")

    def batch(self) -> Query:
        """Several queries bound as one matrix: LIMIT is per query."""
        queries = [random_vector(self.rng) for _ in range(3)]
        where, test = self._where()
        sql = f"SELECT id FROM docs{where} ORDER BY emb <-> ? LIMIT 4"
        expected = [
            (number, r["id"])
            for number, query in enumerate(queries)
            for _, r in self._near(test, "<->", query)[:4]
        ]
        return Query(sql, [queries], expected, True, "batch")

    def nested(self) -> Query:
        """A filter that is a subquery."""
        rng, query = self.rng, random_vector(self.rng)
        tag, k = rng.choice(TAGS), rng.choice([2, 9])
        sql = (
            f"SELECT id FROM docs WHERE id IN (SELECT doc_id FROM tags WHERE tag = '{tag}') "
            f"ORDER BY emb <-> ? LIMIT {k}"
        )
        wanted = {doc for doc, t in self.tags if t == tag}
        near = self._near(lambda row: row["id"] in wanted, "<->", query)[:k]
        return Query(sql, [query], [(r["id"],) for _, r in near], True, "nested")
