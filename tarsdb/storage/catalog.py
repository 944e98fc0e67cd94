"""The catalog of one snapshot: names to definitions, cached per catalog version.

Definitions are JSON behind a checked header under ``kind/lowername``. Knows no SQL.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from tarsdb.errors import CorruptionError
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
from tarsdb.storage.state import forget_tables
from tarsdb.storage.transaction import ReadTxn, WriteTxn
from tarsdb.storage.values import ValueType, pack, unpack

_KEPT = 4
_Definition = TypeVar("_Definition", TableDef, ViewDef, ModelDef, ModuleDef, FunctionDef)


class CatalogView:
    """All objects of one snapshot; satisfies the binder's Catalog protocol.

    Parameters
    ----------
    objects : mapping
        (kind, lower-case name) -> definition.
    """

    def __init__(self, objects: Mapping[tuple[str, str], CatalogObject]) -> None:
        self._objects = objects
        self._by_id: dict[int, TableDef] = {
            d.id: d for d in objects.values() if isinstance(d, TableDef)
        }

    def get(self, kind: str, name: str) -> CatalogObject | None:
        """Return the object of a kind and name (any case), or None."""
        return self._objects.get((kind, name.lower()))

    def table(self, name: str) -> TableDef | None:
        """Return the table of that name, or None."""
        return self._objects.get(("table", name.lower()))  # type: ignore[return-value]

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
        return self._objects.get(("view", name.lower()))  # type: ignore[return-value]

    def has_views(self) -> bool:
        """Return whether there is any view."""
        return any(kind == "view" for kind, _ in self._objects)

    def model(self, name: str) -> ModelDef | None:
        """Return the model of that name, or None."""
        return self._objects.get(("model", name.lower()))  # type: ignore[return-value]

    def function(self, name: str) -> FunctionDef | None:
        """Return the sandboxed function of that name, or None."""
        return self._objects.get(("function", name.lower()))  # type: ignore[return-value]

    def module(self, name: str) -> ModuleDef | None:
        """Return the WebAssembly module of that name, or None."""
        return self._objects.get(("module", name.lower()))  # type: ignore[return-value]

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

    def overlaid(self, changes: Mapping[tuple[str, str], CatalogObject | None]) -> CatalogView:
        """Return a view with changes applied; None removes a name."""
        merged = {**self._objects, **changes}
        return CatalogView({k: d for k, d in merged.items() if d is not None})


def object_key(kind: str, name: str) -> bytes:
    """Return the key of a catalog object."""
    return f"{kind}/{name.lower()}".encode()


def read_catalog(txn: ReadTxn, caches: dict[str, Any]) -> CatalogView:
    """Return the catalog of a snapshot, cached by catalog version."""
    known: dict[int, CatalogView] = caches.setdefault("catalog", {})
    view = known.get(txn.catalog_version)
    if view is None:
        view = CatalogView(load_objects(txn))
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


def load_objects(
    txn: ReadTxn, damaged: dict[tuple[str, str], str] | None = None
) -> dict[tuple[str, str], CatalogObject]:
    """Read every catalog object of a transaction; with ``damaged`` put there what is wrong.

    Raises
    ------
    CorruptionError
        A definition is damaged, and nobody asked which are.
    """
    objects = {}
    for key, value in txn.range("catalog", b"", None):
        kind, _, name = key.decode(errors="backslashreplace").partition("/")
        try:
            objects[kind, name] = _decode(kind, name, key, value)
        except CorruptionError as error:
            if damaged is None:
                raise
            damaged[kind, name] = error.message
    return objects


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
    txn.put("catalog", key, pack(ValueType.CATALOG, key, payload, 1, txn.commit_number))


def remove_object(txn: WriteTxn, kind: str, name: str) -> None:
    """Remove a definition."""
    txn.delete("catalog", object_key(kind, name))
