"""The catalog of one snapshot: names to definitions, cached per catalog version.

Definitions are JSON behind a checked header under ``kind/lowername``. One that is damaged fails
what names it, no other. Definitions are counted and summed up, so that a lost one is noticed; which
one that is, the commit log tells. Knows no SQL.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from tarsdb.errors import CorruptionError, FormatVersionError
from tarsdb.schema import (
    KINDS,
    CatalogObject,
    FunctionDef,
    ModelDef,
    ModuleDef,
    TableDef,
    ViewDef,
    from_json,
    to_json,
)
from tarsdb.storage import history
from tarsdb.storage.formats import DIGEST_MASK
from tarsdb.storage.state import forget_tables
from tarsdb.storage.transaction import ReadTxn, WriteTxn
from tarsdb.storage.values import ValueType, pack, stored_checksum, unpack

_KEPT = 4
_SUM_KEY = b"objects"
_SUM = struct.Struct("<QQ")
Name = tuple[str, str]
"""Kind and lower-case name."""
_NO_NAME = "catalog", ""
_Definition = TypeVar("_Definition", TableDef, ViewDef, ModelDef, ModuleDef, FunctionDef)


class CatalogView:
    """All objects of one snapshot; satisfies the binder's Catalog protocol.

    Parameters
    ----------
    objects : mapping
        (kind, lower-case name) -> definition.
    damaged : mapping, optional
        (kind, lower-case name) -> what is wrong, of objects that are not in the first. To look one
        of them up by its name is a CorruptionError.
    """

    def __init__(
        self, objects: Mapping[Name, CatalogObject], damaged: Mapping[Name, str] | None = None
    ) -> None:
        self._objects = objects
        self.damaged = damaged or {}
        self._by_id: dict[int, TableDef] = {
            d.id: d for d in objects.values() if isinstance(d, TableDef)
        }

    def get(self, kind: str, name: str) -> CatalogObject | None:
        """Return the object of a kind and name (any case), or None."""
        found = self._objects.get((kind, name.lower()))
        if found is None and self.damaged:
            self._require_sound(kind, name.lower())
        return found

    def _require_sound(self, kind: str, name: str) -> None:
        message = self.damaged.get((kind, name))
        if message is not None:
            raise CorruptionError(
                message, hint="restore from a backup; PRAGMA integrity_check lists all damage"
            )

    def table(self, name: str) -> TableDef | None:
        """Return the table of that name, or None."""
        return self.get("table", name)  # type: ignore[return-value]

    def table_by_id(self, table_id: int) -> TableDef | None:
        """Return the table with that id, or None."""
        return self._by_id.get(table_id)

    def table_ids(self) -> Collection[int]:
        """Return the ids of all tables."""
        return self._by_id.keys()

    def table_names(self) -> list[str]:
        """Return all table names, sorted."""
        return sorted(table.name for table in self.tables())

    def view(self, name: str) -> ViewDef | None:
        """Return the view of that name, or None."""
        return self.get("view", name)  # type: ignore[return-value]

    def has_views(self) -> bool:
        """Return whether there is any view."""
        return any(kind == "view" for kind, _ in (*self._objects, *self.damaged))

    def model(self, name: str) -> ModelDef | None:
        """Return the model of that name, or None."""
        return self.get("model", name)  # type: ignore[return-value]

    def function(self, name: str) -> FunctionDef | None:
        """Return the sandboxed function of that name, or None."""
        return self.get("function", name)  # type: ignore[return-value]

    def module(self, name: str) -> ModuleDef | None:
        """Return the WebAssembly module of that name, or None."""
        return self.get("module", name)  # type: ignore[return-value]

    def has_session_function(self, name: str) -> bool:
        """Return False: session functions belong to a connection, not to the file."""
        return False

    def has_variable(self, name: str) -> bool:
        """Return False: frame variables belong to a connection, not to the file."""
        return False

    def tables(self) -> list[TableDef]:
        """Return all tables by name."""
        return self._of(TableDef)

    def views(self) -> list[ViewDef]:
        """Return all views by name."""
        return self._of(ViewDef)

    def models(self) -> list[ModelDef]:
        """Return all models by name."""
        return self._of(ModelDef)

    def functions(self) -> list[FunctionDef]:
        """Return all sandboxed functions by name."""
        return self._of(FunctionDef)

    def modules(self) -> list[ModuleDef]:
        """Return all modules by name."""
        return self._of(ModuleDef)

    def _of(self, kind: type[_Definition]) -> list[_Definition]:
        found = [d for d in self._objects.values() if isinstance(d, kind)]
        return sorted(found, key=lambda definition: definition.name.lower())

    def overlaid(self, changes: Mapping[Name, CatalogObject | None]) -> CatalogView:
        """Return a view with changes applied; None removes a name."""
        merged = {**self._objects, **changes}
        return CatalogView({k: d for k, d in merged.items() if d is not None}, self.damaged)


def object_key(kind: str, name: str) -> bytes:
    """Return the key of a catalog object."""
    return f"{kind}/{name.lower()}".encode()


def read_catalog(txn: ReadTxn, caches: dict[str, Any]) -> CatalogView:
    """Return the catalog of a snapshot, cached by catalog version."""
    known: dict[int, CatalogView] = caches.setdefault("catalog", {})
    view = known.get(txn.catalog_version)
    if view is None:
        damaged: dict[Name, str] = {}
        view = CatalogView(load_objects(txn, damaged), damaged)
        for version in sorted(known)[: max(0, len(known) - _KEPT + 1)]:
            known.pop(version, None)
        known[txn.catalog_version] = view
        forget_tables(caches, view.table_ids())
    return view


def current_table(txn: ReadTxn, caches: dict[str, Any], table_id: int) -> TableDef | None:
    """Return a table as a transaction that changed no catalog sees it, or None when it is gone.

    Whoever rewrites rows needs the definition of the snapshot the rows were read from: with an
    older one the values of columns added since would be lost.
    """
    return read_catalog(txn, caches).table_by_id(table_id)


def load_objects(txn: ReadTxn, damaged: dict[Name, str] | None = None) -> dict[Name, CatalogObject]:
    """Read every catalog object of a transaction; with ``damaged`` put there what is wrong.

    Raises
    ------
    CorruptionError
        A definition is damaged or lost, and nobody asked which are.
    """
    objects, wrong, count, digest = {}, dict[Name, str](), 0, 0
    for key, value in txn.range("catalog", b"", None):
        kind, _, name = key.decode(errors="backslashreplace").partition("/")
        count, digest = count + 1, digest + stored_checksum(value)
        try:
            objects[kind, name] = _decode(kind, name, key, value)
        except (CorruptionError, FormatVersionError) as error:
            wrong[kind, name] = error.message
    wrong = _lost(txn, objects, (count, digest & DIGEST_MASK), wrong) | wrong
    objects = {name: found for name, found in objects.items() if name not in wrong}
    if damaged is not None:
        damaged.update(wrong)
    elif wrong:
        raise CorruptionError(next(iter(wrong.values())), hint="restore from a backup")
    return objects


def _lost(
    txn: ReadTxn,
    objects: Mapping[Name, CatalogObject],
    found: tuple[int, int],
    damaged: Mapping[Name, str],
) -> dict[Name, str]:
    """Return what is wrong with objects that are missing, or not the ones stored last."""
    try:
        expected = _read_sum(txn)
        if expected is None or expected == found:
            return {}
        lost = history.differences(txn, objects)
    except CorruptionError as error:
        return {_NO_NAME: error.message}
    if lost or damaged:
        return lost
    others = " others" if found[0] == expected[0] else ""
    return {_NO_NAME: f"catalog: {expected[0]} objects should be there, found {found[0]}{others}"}


def _read_sum(txn: ReadTxn) -> tuple[int, int] | None:
    """Return how many objects there should be and the sum of their checksums, where it is noted."""
    raw = txn.get("meta", _SUM_KEY)
    if raw is None:
        return None
    payload, _, _ = unpack(ValueType.META, _SUM_KEY, raw, "catalog: count of objects")
    if len(payload) != _SUM.size:
        raise CorruptionError(f"catalog: its count is {len(payload)} bytes, not {_SUM.size}")
    count, digest = _SUM.unpack(payload)
    return count, digest


def _put(txn: WriteTxn, key: bytes, value: bytes | None) -> None:
    """Store or remove a definition, and sum it up."""
    known, before = _read_sum(txn), txn.get("catalog", key)
    replaced = 0 if before is None else stored_checksum(before)
    had = before is not None
    if value is not None:
        txn.put("catalog", key, value)
    elif had:
        txn.delete("catalog", key)
    if known is None:  # a new file, or one of before
        checksums = [stored_checksum(each) for _, each in txn.range("catalog", b"", None)]
        count, digest = len(checksums), sum(checksums)
    else:
        count = known[0] + (value is not None) - had
        digest = known[1] - replaced + (0 if value is None else stored_checksum(value))
    total = _SUM.pack(count, digest & DIGEST_MASK)
    txn.put("meta", _SUM_KEY, pack(ValueType.META, _SUM_KEY, total, 0, txn.commit_number))


def read_object(txn: ReadTxn, kind: str, name: str) -> CatalogObject | None:
    """Read one catalog object of a transaction, without the cache."""
    key = object_key(kind, name)
    value = txn.get("catalog", key)
    return None if value is None else _decode(kind, name, key, value)


def _decode(kind: str, name: str, key: bytes, value: memoryview) -> CatalogObject:
    payload, _, _ = unpack(ValueType.CATALOG, key, value, f"{kind} {name}: definition")
    if kind not in KINDS:
        raise CorruptionError(f"the catalog holds an object of unknown kind {kind!r}")
    try:
        return from_json(kind, json.loads(bytes(payload)))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"{kind} {name}: the definition does not read: {error}") from error


def write_object(txn: WriteTxn, kind: str, name: str, definition: CatalogObject) -> None:
    """Store a definition; its version becomes the commit being made."""
    definition = dataclasses.replace(definition, version=txn.commit_number)
    key = object_key(kind, name)
    payload = json.dumps(to_json(definition), ensure_ascii=False, separators=(",", ":")).encode()
    _put(txn, key, pack(ValueType.CATALOG, key, payload, 1, txn.commit_number))


def remove_object(txn: WriteTxn, kind: str, name: str) -> None:
    """Remove a definition."""
    _put(txn, object_key(kind, name), None)
