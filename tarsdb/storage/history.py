"""The commit log: what each commit changed, kept from the first commit on."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from typing import Any

from tarsdb.errors import CorruptionError
from tarsdb.records import dataclass
from tarsdb.schema import CatalogObject
from tarsdb.storage.transaction import ReadTxn
from tarsdb.storage.values import ValueType, unpack


@dataclass(frozen=True)
class LogEntry:
    """One commit: its number, its time, and what changed, one dict per table or object."""

    number: int
    timestamp_us: int
    changes: list[dict[str, Any]]


def commit_log(txn: ReadTxn) -> Iterator[LogEntry]:
    """Yield the commits a read transaction sees, oldest first.

    Raises
    ------
    CorruptionError
        An entry's checksum does not match.
    """
    for key, value in txn.range("commits", b"", None):
        number = int.from_bytes(key, "big")
        where = f"log entry of commit {number}"
        payload, _, _ = unpack(ValueType.COMMIT, bytes(key), value, where)
        try:
            entry = json.loads(bytes(payload))
            yield LogEntry(number, entry["time"], entry["changes"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptionError(f"{where}: it does not read: {error}") from error


def check(
    txn: ReadTxn,
    objects: Mapping[tuple[str, str], CatalogObject],
    full: bool,
    unread: Container[tuple[str, str]] = (),
) -> Iterator[str]:
    """Yield what is wrong with the commit log, and where catalog and log disagree.

    Parameters
    ----------
    txn : ReadTxn
    objects : mapping
        The catalog: (kind, lower-case name) -> definition.
    full : bool
        Read the entries; else only count them.
    unread : container, optional
        Objects whose definitions are damaged, which is told elsewhere.
    """
    count = txn.count("commits")
    if count != txn.commit_number:
        yield f"commit log: {txn.commit_number} entries should be there, found {count}"
    if not full:
        return
    made: dict[tuple[str, str], int] = {}
    try:
        for expected, entry in enumerate(commit_log(txn), start=1):
            if entry.number != expected:
                yield f"commit log: the entry of commit {expected} is missing"
                return
            _follow(made, entry)
    except CorruptionError as error:
        yield f"commit log: {error.message}"
        return
    for name, difference in _differences(made, objects):
        if name not in unread:
            yield difference


def differences(
    txn: ReadTxn, objects: Mapping[tuple[str, str], CatalogObject]
) -> dict[tuple[str, str], str]:
    """Return what is not in the catalog as the commit log says, and what is wrong with it.

    Raises
    ------
    CorruptionError
        The log is damaged itself.
    """
    made: dict[tuple[str, str], int] = {}
    for entry in commit_log(txn):
        _follow(made, entry)
    return dict(_differences(made, objects))


def _differences(
    made: Mapping[tuple[str, str], int], objects: Mapping[tuple[str, str], CatalogObject]
) -> Iterator[tuple[tuple[str, str], str]]:
    for kind, name in sorted({*made, *objects}):
        definition = objects.get((kind, name))
        logged, found = made.get((kind, name), 0), 0 if definition is None else definition.version
        if found != logged:
            yield (
                (kind, name),
                f"{kind} {name}: commit {logged} made it by the commit log, {found} by the catalog",
            )


def _follow(made: dict[tuple[str, str], int], entry: LogEntry) -> None:
    """Note which objects a commit made or removed."""
    for change in entry.changes:
        for what, version in (("put", entry.number), ("delete", 0)):
            if what in change:
                kind, _, name = str(change[what]).partition("/")
                made[kind, name.lower()] = version
