"""Golden files: a statement, ``----``, and its plan or its error, against the catalog here.

``TARSDB_UPDATE_GOLDEN=1`` rewrites the files; read the difference before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from catalog_fixture import FakeCatalog

from tarsdb.errors import Error
from tarsdb.sql import bind, explain, parse

GOLDEN = Path(__file__).parents[2] / "golden" / "sql"
FILES = sorted(GOLDEN.glob("*.txt"))


def answer(statement: str, catalog: FakeCatalog) -> str:
    try:
        return "\n".join(explain(bind(parse(statement), catalog)))
    except Error as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path: Path, catalog: FakeCatalog) -> None:
    blocks = [block for block in path.read_text().split("\n\n") if block.strip()]
    statements = [block.split("\n----", 1)[0].strip() for block in blocks]
    made = [f"{s}\n----\n{answer(s, catalog)}" for s in statements]
    if os.environ.get("TARSDB_UPDATE_GOLDEN"):
        path.write_text("\n\n".join(made) + "\n")
    assert len(blocks) > 5
    for before, after in zip(blocks, made, strict=True):
        assert after == before.strip()
