"""docs/format.md reads a real file: this parser knows LMDB, xxhash and the document, not our code.

Offsets, key layouts, value types and counters are taken from the text; a wrong word in it fails.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
import struct
from collections.abc import Iterator

import lmdb
import numpy as np
import pytest
import xxhash

from tarsdb.memory_region import Region
from tarsdb.options import OpenOptions
from tarsdb.schema import ModelDef, ModelVersion, ModuleDef
from tarsdb.storage import Environment, Snapshot, WriteSet, inference, merge, packed, staging
from tarsdb.storage.values import ValueType, pack
from tarsdb.types import Physical
from tests.unit.storage import tables

DOCUMENT = pathlib.Path(__file__).resolve().parents[3] / "docs" / "format.md"
CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q"}
SIZES = {1: "B", 2: "H", 4: "I", 8: "Q"}
Rows = list[tuple[str, str, str]]


class Wrong(Exception):
    """The document and the file disagree."""


def expect(condition: object, message: str) -> None:
    if not condition:
        raise Wrong(message)


# --- reading the document ---


class Document:
    """What the text says, in the form a parser needs."""

    def __init__(self, text: str) -> None:
        self.text = text
        version = re.search(r"^# File format, version (\d+)$", text, re.M)
        expect(version, "no version in the title")
        self.version = int(version[1])  # type: ignore[index]
        self.header = [
            (int(offset), int(size), field.strip())
            for offset, size, field in re.findall(r"^\| (\d+) \| (\d+) \| (.+) \|$", text, re.M)
        ]
        kinds = re.search(r"Value types: (.*?)\. Numbers", text, re.S)
        expect(kinds, "no value types")
        pairs = re.findall(r"(\d+) ([a-z ]+)", re.sub(r"\s+", " ", kinds[1]))  # type: ignore[index]
        self.types = {int(number): name for number, name in pairs}
        self.counters = re.findall(r"^\d+\. ([a-z ]+?)(?::.*)?$", text, re.M)
        self.entries = self._entries()

    def _entries(self) -> dict[str, Rows]:
        """Return the (key, value) descriptions of each database."""
        found: dict[str, Rows] = {}
        name = ""
        for row in re.findall(r"^\|(.*?)\|(.*?)\|(.*)\|$", self.text, re.M):
            first, key, value = (cell.strip() for cell in row)
            name = first.strip("`") or name
            if re.fullmatch(r"[a-z]+", name):
                found.setdefault(name, []).append((name, key, value))
        return found

    def key(self, db: str, start: str = "") -> tuple[struct.Struct, list[str]]:
        """Return the layout and the field names of a key."""
        for _, key, _ in self.entries[db]:
            if key.startswith(start):
                parts = re.findall(r"([a-z][a-z ]*?) (u\d+)", key)
                codes = "".join(CODES[code] for _, code in parts)
                return struct.Struct(">" + codes), [name for name, _ in parts]
        raise Wrong(f"{db}: no key {start}")

    def value_type(self, db: str, number: int = 0) -> int:
        """Return the header type of the values of a database; ``number`` counts its rows."""
        typed = [m for _, _, v in self.entries[db] if (m := re.search(r"header type (\d+)", v))]
        expect(len(typed) > number, f"{db}: no header type")
        return int(typed[number][1])

    def counter_layout(self) -> struct.Struct:
        return struct.Struct(f"<{len(self.counters)}Q")


# --- reading the file ---


class File:
    """A database file as LMDB shows it."""

    def __init__(self, path: pathlib.Path) -> None:
        env = lmdb.open(str(path), subdir=False, readonly=True, lock=False, max_dbs=16)
        self.content: dict[str, list[tuple[bytes, bytes]]] = {}
        with env.begin() as txn:
            for name, _ in txn.cursor():
                db = env.open_db(name, txn=txn, create=False)
                self.content[name.decode()] = list(txn.cursor(db))
        env.close()

    def starting(self, db: str, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return ((key, value) for key, value in self.content[db] if key.startswith(prefix))


def payload(document: Document, key: bytes, value: bytes, kind: int) -> tuple[bytes, int]:
    """Check a value by the byte table of the header; return payload and rows."""
    fields = {}
    for offset, size, name in document.header:
        fields[name] = int.from_bytes(value[offset : offset + size], "little")
    length = sum(size for _, size, _ in document.header)
    expect(length == 48, f"the header table has {length} bytes")
    by = {word: v for name, v in fields.items() for word in (name.split(" ")[0], name)}
    expect(by["magic"] == int.from_bytes(b"TARS", "little"), "magic")
    expect(by["format"] == document.version, "format version")
    expect(by["value type"] == kind, f"value type {by['value type']} instead of {kind}")
    expect(by["payload"] == len(value) - 48, "payload length")
    expect(by["reserved,"] == 0, "reserved")
    whole = key + value[:32] + value[40:48] + value[48:]
    expect(by["xxh3_64"] == xxhash.xxh3_64_intdigest(whole), "checksum")
    return value[48:], by["rows"]


def read_file(text: str, path: pathlib.Path) -> dict[str, int]:
    """Parse every value of a file by the document; return counts of what was parsed."""
    document, file = Document(text), File(path)
    expect(set(file.content) <= {n.strip("` ") for n in _named(text)}, "an unnamed database")
    expect(len(document.types) == 10, "value types")
    counts = dict.fromkeys(file.content, 0)
    _read_meta(document, file)
    for db in ("catalog", "commits", "blobs"):
        for key, value in file.content[db]:
            row = 0 if db != "blobs" or key.endswith(bytes(4)) else 1
            body, _ = payload(document, key, value, document.value_type(db, row))
            if row or db != "blobs":
                json.loads(body)
            counts[db] += 1
    for db in ("delta", "segments", "blocks", "tombs"):
        layout, names = document.key(db)
        for key, value in file.content[db]:
            expect(len(key) == layout.size, f"{db}: key of {len(key)} bytes")
            place = dict(zip(names, layout.unpack(key), strict=True))
            _read_entry(document, file, db, place, key, value)
            counts[db] += 1
    layout, _ = document.key("index")
    for key, value in file.content["index"]:
        expect(len(value) == 8 and key[layout.size] in (1, 2), "index entry")
        counts["index"] += 1
    for key, value in file.content["inference"]:
        layout, _ = document.key("inference")
        expect(layout.size == 4 and int.from_bytes(key[:4], "big") == 0, "generation")
        body, _ = payload(document, key, value, document.value_type("inference"))
        sizes = re.findall(r"(\d+) bytes of SHA-256", document.entries["inference"][0][1])
        parts = [b"text", b"weights", b"way"]
        digests = [hashlib.sha256(part).digest() for part in parts]
        found = b"".join(d[: int(n)] for d, n in zip(digests, sizes, strict=True))
        expect(key[4:] == found and body == b"result", "a result")
        counts["inference"] += 1
    counts["packed"] = _read_images(document, file)
    return counts


def _read_images(document: Document, file: File) -> int:
    """Read the images of packed weights; return how many bytes they have."""
    (_, key_text, chunk), _ = document.entries["packed"]
    size = int(re.findall(r"(\d+) bytes of SHA-256", key_text)[0])
    filler, most = (
        int(text.replace(",", "")) for text in re.findall(r"([\d,]+) (?:zero )?bytes", chunk)
    )
    kinds = [document.value_type("packed", number) for number in (0, 1)]
    images: dict[bytes, bytes] = {}
    total = 0
    for key, value in file.content["packed"]:
        name, number = key[:size], int.from_bytes(key[size:], "big")
        expect(len(key) == size + 4, "key of packed weights")
        if number == 0xFFFFFFFF:
            record = json.loads(payload(document, key, value, kinds[1])[0])
            digest = bytes.fromhex(record["weights"])
            expect(name == hashlib.sha256(digest + b"layout").digest()[:size], "name of an image")
            expect(record["bytes"] == len(images[name]), "bytes of an image")
            total += len(images[name])
            continue
        body, _ = payload(document, key, value, kinds[0])
        expect(not any(body[:filler]) and 16 + 48 + filler == 4096, "zeros of a chunk")
        expect(len(images.get(name, b"")) == number * most, "chunks in a row")
        images[name] = images.get(name, b"") + body[filler:]
    return total


def _named(text: str) -> list[str]:
    return re.findall(r"`[a-z]+`", text)


def _read_meta(document: Document, file: File) -> None:
    meta = dict(file.content["meta"])
    expect(meta[b"format"][:8] == b"tarsdb" + struct.pack("<H", document.version), "format")
    expect(len(meta[b"format"]) == 24, "file id")
    head = next(value for _, key, value in document.entries["meta"] if key == "`head`")
    fields = re.findall(r"\b([ui]64) ", head)
    numbers = struct.unpack("<" + "".join(CODES[code] for code in fields), meta[b"head"])
    expect(numbers[0] == len(file.content["commits"]), "commit number")
    expect(numbers[3] == xxhash.xxh3_64_intdigest(b"head" + meta[b"head"][:24]), "head checksum")
    expect(int.from_bytes(meta[b"ids"], "little") > 1, "ids")
    stored = next(v for _, k, v in document.entries["meta"] if k == "`objects`")
    kind = int(stored.split()[2][:-1])
    summed = struct.unpack("<QQ", payload(document, b"objects", meta[b"objects"], kind)[0])
    sums = [int.from_bytes(v[32:40], "little") for _, v in file.content["catalog"]]
    expect(re.findall(r"u64 (\w+)", stored) == ["number", "sum"], "objects")
    expect(summed == (len(sums), sum(sums) % 2**64), "number and sum of objects")
    ((key, value),) = file.starting("meta", b"table/")
    kind = int(next(v for _, k, v in document.entries["meta"] if "table/" in k).split()[2][:-1])
    body, _ = payload(document, key, value, kind)
    layout = document.counter_layout()
    expect(layout.size == len(body), f"{len(document.counters)} counters")
    expect(len(set(document.counters)) == len(document.counters), "a counter is named twice")
    counters = dict(zip(document.counters, layout.unpack(body), strict=True))
    digest = sum(int.from_bytes(v[32:40], "little") for _, v in file.content["segments"])
    wanted = {
        "live rows": 306, "delta rows": 8, "segments": len(file.content["segments"]),
        "tombstones": len(file.content["tombs"]), "delta records": len(file.content["delta"]),
        "segment digest": digest % 2**64, "next rowid": 309, "last commit": numbers[0] - 1,
        "layout": 1, "next segment": 3, "purged": 0, "tombstone generation": 0,
        "delta bytes": sum(len(v) for _, v in file.content["delta"]),
        "tombstone digest": sum(
            xxhash.xxh3_64_intdigest(key) for key, _ in file.content["tombs"]
        ) % 2**64,
    }  # fmt: skip
    for name, number in wanted.items():
        expect(counters.get(name) == number, f"{name}: {counters.get(name)} instead of {number}")


def _read_entry(
    document: Document, file: File, db: str, place: dict[str, int], key: bytes, value: bytes
) -> None:
    last = len(file.content["commits"])
    if db == "tombs":
        expect(value == b"", "a tombstone has a value")
        expect(place["created commit"] <= place["deleting commit"] <= last, "tombstone commits")
        expect(1 <= place["rowid"] < 309, "tombstone rowid")
        return
    body, rows = payload(document, key, value, document.value_type(db))
    if db == "delta":
        expect(place["created commit"] <= last and 1 <= place["rowid"] < 309, "delta key")
        if place["group"] == 0:
            expect(_record(body)[1][0] + 1 == place["rowid"], f"record of row {place['rowid']}")
        else:
            expect(np.frombuffer(body, np.float32)[1] - 1 == place["rowid"] - 1, "delta vector")
    elif db == "segments":
        meta = json.loads(body)
        expect(meta["rows"] == rows, "segment rows")
        for column, (physical, _, checksum) in meta["columns"].items():
            expect(physical in {int(p) for p in Physical}, "physical type")
            names = ("table", "group", "segment")
            block = document.key("blocks")[0].pack(*(place[n] for n in names), int(column))
            expect(dict(file.content["blocks"])[block][32:40].hex() == checksum, "block checksum")
    elif place["column"] == 1:
        expect(np.frombuffer(body, "<i8")[:2].tolist() == [0, 1], "integer block")
    elif place["column"] == 2:  # text of 300 rows: i32 offsets, padded to 64 bytes, then bytes
        offsets = np.frombuffer(body, "<i4", rows + 1)
        start = -(-offsets.nbytes // 64) * 64
        expect(body[start : start + offsets[1]] == b"text 0", "text block")
    elif place["group"] == 3:
        expect(np.frombuffer(body, "<f4")[:4].tolist() == [0, 1, 2, 3], "vector block")


def _record(body: bytes) -> tuple[list[int], list[object]]:
    """Read a record of one i64 and one text column as "Delta records" says."""
    (count,) = struct.unpack_from("<H", body)
    columns = [struct.unpack_from("<IB", body, 2 + 5 * i) for i in range(count)]
    start = 2 + 5 * count + (count + 7) // 8
    expect([physical for _, physical in columns] == [4, 8], "record shape")
    number, size = struct.unpack_from("<qI", body, start)
    text = body[start + 12 : start + 12 + size].decode()
    return [column for column, _ in columns], [number, text]


# --- the tests ---


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return a file that holds everything: segments, delta, tombstones, index, blob, lease."""
    path = tmp_path_factory.mktemp("format") / "t.tars"
    env = Environment.open(path, OpenOptions(background_merge=False))
    table = tables.make_table(env)
    tables.load(env, table, tables.rows(*range(300)))
    merge(env, force=True)
    rowids = tables.insert(env, table, tables.rows(*range(300, 308)))
    tables.delete(env, table, [rowids[0], 5])
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        digest = writes.put_blob(b"wasm" * 1000)
        writes.put_object("module", "m", ModuleDef(writes.new_id(), "m", digest, digest, 4000))
        version = ModelVersion("v1", 0, {"config.json": writes.put_blob(b"{}")}, {})
        model = ModelDef(writes.new_id(), "model", "embed", 2, "v1", (version,))
        writes.put_object("model", "model", model)
        writes.commit()
    key = bytes(4) + b"".join(inference.digest(part) for part in (b"text", b"weights", b"way"))
    value = pack(ValueType.INFERENCE, key, b"result")
    env.stage(lambda txn: txn.put(inference.DATABASE, key, value))
    name = packed.image_name(version.weights_digest, "layout")
    region = Region(packed.CHUNK_BYTES + 99)
    region.array[:] = 7
    packed.publish(env, name, version.weights_digest, region, lambda left: True)
    env.lease()
    env.stage(lambda txn: env.lease().hold(txn, staging.HOLD + b"something"))
    env.release()
    return path


def test_the_document_reads_a_file(path: pathlib.Path) -> None:
    counts = read_file(DOCUMENT.read_text(), path)
    assert counts["delta"] == 16
    assert counts["tombs"] == 4
    assert counts["index"] == 612
    assert counts["segments"] == 2
    assert counts["blocks"] == 3
    assert counts["inference"] == 1
    assert counts["packed"] == packed.CHUNK_BYTES + 99
    assert counts["catalog"] == 3
    assert counts["blobs"] == 4


WRONG_WORDS = [
    ("| 8 | 8 | payload length", "| 16 | 8 | payload length"),
    ("| 32 | 8 | xxh3_64 over key", "| 24 | 8 | xxh3_64 over key"),
    ("| 4 | 2 | format version, 1", "| 4 | 4 | format version, 1"),
    ("# File format, version 1", "# File format, version 2"),
    (
        "created commit u64, rowid u64 | header type 3",
        "rowid u64, created commit u64 | header type 3",
    ),
    (
        "created commit u64, rowid u64 | header type 3",
        "created commit u64, rowid u32 | header type 3",
    ),
    ("segment u64, column u32", "segment u32, column u64"),
    ("deleting commit u64, rowid u64, created", "rowid u64, deleting commit u64, created"),
    ("header type 5, column payload", "header type 4, column payload"),
    ("`head` | u64 commit number, i64 time", "`head` | u64 commit number, u32 time"),
    ("header type 8: u64 number", "header type 1: u64 number"),
    ("u64 sum of the checksums in their", "u32 sum of the checksums in their"),
    ("8. live rows", "8. tombstones"),
    ("4. layout: rises", "4. delta rows: rises"),
    ("2. next segment", "2. layout"),
    ("14. delta bytes: stored bytes of the delta", ""),
    ("15. tombstone digest: sum", "15. delta digest: sum"),
    ("header type 8, the counters", "header type 2, the counters"),
    ("header type 9, the result", "header type 6, the result"),
    ("generation u32, 16 bytes", "generation u64, 16 bytes"),
    ("16 bytes of SHA-256 of the input", "32 bytes of SHA-256 of the input"),
    ("16 bytes of SHA-256 of weights and layout", "32 bytes of SHA-256 of weights and layout"),
    ("4,032 zero bytes", "4,080 zero bytes"),
    ("at most 8,384,512 bytes", "at most 8,388,608 bytes"),
    ("header type 10, JSON", "header type 9, JSON"),
]


@pytest.mark.parametrize(("right", "wrong"), WRONG_WORDS)
def test_a_wrong_word_in_the_document_is_noticed(
    path: pathlib.Path, right: str, wrong: str
) -> None:
    text = DOCUMENT.read_text()
    assert text.count(right) == 1
    with pytest.raises((Wrong, KeyError, struct.error, ValueError)):
        read_file(text.replace(right, wrong), path)


def test_a_changed_file_is_noticed(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The same parser refuses a file with one byte of a value changed."""
    content = bytearray(path.read_bytes())
    at = content.index(b"text 299")
    content[at] ^= 1
    damaged = tmp_path / "t.tars"
    damaged.write_bytes(content)
    with pytest.raises(Wrong, match="checksum"):
        read_file(DOCUMENT.read_text(), damaged)


def test_physical_types_are_those_of_the_document() -> None:
    found = re.search(r"Physical\s+types: (.*?)\n\n", DOCUMENT.read_text(), re.S)
    assert found is not None
    numbers = [int(n) for n in re.findall(r"(?:^|, )(\d+) ", re.sub(r"\s+", " ", found[1]))]
    assert numbers == [int(physical) for physical in Physical]
