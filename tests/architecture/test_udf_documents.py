"""The documents, the header and the preludes of sandboxed functions agree with the code."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest

import tarsdb
from tarsdb.columns import Column, from_list
from tarsdb.types import INT, TEXT, Physical, parse_type
from tarsdb.udf_sandbox import abi
from tarsdb.udf_sandbox.functions import aggregates, function
from tarsdb.udf_sandbox.modules import driver
from tests.architecture.test_documents import fences
from tests.conftest import ROOT

ABI = (ROOT / "docs" / "udf-abi.md").read_text("utf-8")
AUTHORING = ROOT / "tarsdb" / "udf_sandbox" / "authoring"


def table_below(text: str, header: str) -> list[list[str]]:
    """Return the cells of the first table whose header line begins so."""
    start = text.index(f"\n{header}") + 1
    lines = []
    for line in text[start:].splitlines()[2:]:
        if not line.startswith("|"):
            break
        lines.append([cell.strip() for cell in line.strip("|").split("|")])
    return lines


def fields() -> list[tuple[int, int]]:
    """Return offset and bytes of each field of a descriptor, from the code."""
    known = abi.DESCRIPTOR.fields
    assert known is not None
    names = abi.DESCRIPTOR.names or ()
    return [(int(known[name][1]), known[name][0].itemsize) for name in names]


def test_the_descriptor_of_the_document() -> None:
    rows = table_below(ABI, "| offset | bytes | field |")
    assert [(int(row[0]), int(row[1])) for row in rows] == fields()
    named = [row[2].replace(" ", "_") for row in rows]
    assert named == list(abi.DESCRIPTOR.names or ())
    assert f"one {abi.DESCRIPTOR_BYTES}-byte record" in ABI
    assert f"values {abi.ALIGNMENT}-byte aligned" in ABI
    assert (abi.NULLABLE, abi.CONSTANT) == (1, 2)
    assert "bit 0: some rows are NULL; bit 1: one value, which stands for all rows" in ABI


def test_the_type_numbers_of_the_document() -> None:
    numbers = [
        int(number)
        for row in table_below(ABI, "| number | values |")
        for number in row[0].split(",")
    ]
    assert numbers == [int(kind) for kind in Physical]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (function.MAX_BATCH_ROWS, "at most {} rows"), (driver.CHUNK_ROWS, "call per {}\nrows"),
        (aggregates.MAX_STATE_BYTES, "1 to {}"),
    ],
)  # fmt: skip
def test_the_limits_of_the_document(number: int, words: str) -> None:
    assert words.format(f"{number:,}") in ABI


def test_the_exports_of_the_document() -> None:
    for export in ("memory", "tars_abi_v1", "tars_alloc", "tars_reset"):
        assert f"| `{export}` |" in ABI
    for part in aggregates.PARTS:
        assert f"| `f_{part}` |" in ABI


def test_the_example_of_the_document() -> None:
    """Every byte of the example is what the code writes."""
    vector = parse_type("VECTOR(2)")
    values = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    columns = [from_list(TEXT, ["ab", None, "é"]), Column(vector, values)]
    memory = np.full(8192, 0xEE, dtype=np.uint8)
    layout = abi.BatchLayout(columns, (INT,), 3)
    assert layout.write(memory, 4096) == 4096
    shown = table_below(ABI, "| address | bytes | what |")
    assert len(shown) == 9
    for address, cell, _ in shown:
        at = int(address)
        if cell.startswith("`"):
            wanted = bytes.fromhex(cell.strip("`").replace(" ", ""))
        else:
            wanted = {"six float32": values.tobytes(), "zeros": bytes(12)}[cell]
        assert memory[at : at + len(wanted)].tobytes() == wanted, address


def test_the_check_of_examples_can_fail() -> None:
    changed = ABI.replace("`61 62 c3 a9`", "`61 62 c3 aa`")
    cells = [row[1] for row in table_below(changed, "| address | bytes | what |")]
    assert "`61 62 c3 a9`" not in cells and len(cells) == 9


def header_numbers(text: str) -> dict[str, int]:
    """Return the type numbers a header or prelude defines, by their names without prefix."""
    found = re.findall(r"TARS_([A-Z0-9_]+)(?:: [iu]\w+)? ?= ?(\d+)", text)
    return {name: int(number) for name, number in found}


@pytest.mark.parametrize("path", sorted(AUTHORING.glob("tars_udf.*")), ids=lambda path: path.name)
def test_preludes_have_the_type_numbers(path: pathlib.Path) -> None:
    numbers = header_numbers(path.read_text("utf-8"))
    for kind in Physical:
        assert numbers.pop(kind.name) == int(kind)
    assert numbers == {}


def test_the_statements_of_the_guide_run(tmp_path: pathlib.Path) -> None:
    text = (ROOT / "docs" / "udf-guide.md").read_text("utf-8")
    blocks = fences(ROOT / "docs" / "udf-guide.md", "sql")
    assert len(blocks) == 1 and "celsius" in text
    with tarsdb.connect(tmp_path / "guide.tars") as db:
        assert db.execute(blocks[0]).fetchall() == [(100.0,)]


def test_every_example_of_the_guide_is_there() -> None:
    text = (ROOT / "docs" / "udf-guide.md").read_text("utf-8")
    named = {row[0].strip("`") for row in table_below(text, "| example | language |")}
    assert named == {path.stem for path in (ROOT / "examples" / "functions").glob("*.wasm")}
