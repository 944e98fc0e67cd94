"""Statements that look after the database or the session: BEGIN, SET, SHOW, PRAGMA, VACUUM, ..."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tarsdb.errors import NotSupportedError
from tarsdb.sql.plan import Describe, Maintain, Plan, Pragma, SetOption, Show, Transaction, Truncate
from tarsdb.sql.stream import TokenStream

_SHOWN = ("TABLES", "VIEWS", "INDEXES", "TRIGGERS", "MODELS", "FUNCTIONS", "MODULES", "ALL")


def begin(stream: TokenStream) -> Plan:
    """BEGIN [TRANSACTION], START TRANSACTION."""
    if stream.accept("START"):
        stream.expect("TRANSACTION")
    else:
        stream.expect("BEGIN")
        stream.accept_any("DEFERRED", "IMMEDIATE", "EXCLUSIVE")
        stream.accept_any("TRANSACTION", "WORK")
    return Transaction("begin")


def commit(stream: TokenStream) -> Plan:
    """COMMIT or END [TRANSACTION]."""
    stream.index += 1
    stream.accept_any("TRANSACTION", "WORK")
    return Transaction("commit")


def rollback(stream: TokenStream) -> Plan:
    """ROLLBACK or ABORT [TRANSACTION], ROLLBACK TO [SAVEPOINT] name."""
    stream.index += 1
    stream.accept_any("TRANSACTION", "WORK")
    if stream.accept("TO"):
        stream.accept("SAVEPOINT")
        return Transaction("rollback_to", stream.name("a savepoint"))
    return Transaction("rollback")


def savepoint(stream: TokenStream) -> Plan:
    """SAVEPOINT name."""
    stream.expect("SAVEPOINT")
    return Transaction("savepoint", stream.name("a savepoint"))


def release(stream: TokenStream) -> Plan:
    """RELEASE [SAVEPOINT] name."""
    stream.expect("RELEASE")
    stream.accept("SAVEPOINT")
    return Transaction("release", stream.name("a savepoint"))


def set_option(stream: TokenStream) -> Plan:
    """SET name = value | SET name TO value."""
    stream.expect("SET")
    stream.accept("SESSION")
    scope = stream.peek()
    if scope in ("GLOBAL", "LOCAL") and stream.peek(1) not in ("=", "TO"):
        raise NotSupportedError(f"SET {scope} is not supported", hint="settings are per connection")
    name = _setting(stream)
    if not stream.accept("="):
        stream.expect("TO")
    value = stream.value()
    return SetOption(name, None if value == "default" else value)


def reset(stream: TokenStream) -> Plan:
    """RESET name."""
    stream.expect("RESET")
    return SetOption(_setting(stream), None)


def _setting(stream: TokenStream) -> str:
    return stream.name("a setting").lower()


def show(stream: TokenStream) -> Plan:
    """SHOW TABLES | VIEWS | INDEXES | TRIGGERS | MODELS | FUNCTIONS | MODULES | ALL | setting."""
    stream.expect("SHOW")
    word = stream.accept_any(*_SHOWN)
    return Show(word.lower() if word else stream.name("TABLES, ALL or a setting").lower())


def truncate(stream: TokenStream) -> Plan:
    """TRUNCATE [TABLE] name."""
    stream.expect("TRUNCATE")
    stream.accept("TABLE")
    name = stream.table_name()
    if stream.peek() == "CASCADE":
        raise NotSupportedError("TRUNCATE ... CASCADE is not supported")
    return Truncate(name)


def describe(stream: TokenStream) -> Plan:
    """DESCRIBE table, DESCRIBE MODEL name."""
    stream.index += 1
    kind = "table"
    if stream.peek(1):
        kind = (stream.accept_any("MODEL", "TABLE", "FUNCTION", "MODULE") or "table").lower()
    if stream.peek() in ("SELECT", "WITH"):
        raise NotSupportedError("DESCRIBE of a query is not supported")
    return Describe(kind, stream.table_name("a name"))


def pragma(stream: TokenStream) -> Plan:
    """PRAGMA name [= value | (value)]."""
    stream.expect("PRAGMA")
    name = stream.name("a pragma").lower()
    value: Any = None
    if stream.accept("="):
        value = stream.value()
    elif stream.accept("("):
        value = stream.value()
        stream.expect(")")
    return Pragma(name, value)


def vacuum(stream: TokenStream) -> Plan:
    """VACUUM [table]."""
    stream.index += 1
    return Maintain("vacuum", None if stream.at_end else stream.table_name())


def optimize(stream: TokenStream) -> Plan:
    """OPTIMIZE [table]."""
    stream.expect("OPTIMIZE")
    if stream.peek() == "MODEL" and stream.peek(1):
        raise NotSupportedError("OPTIMIZE MODEL is not supported")
    return Maintain("optimize", None if stream.at_end else stream.table_name())


def reindex(stream: TokenStream) -> Plan:
    """REINDEX [INDEX | TABLE] [name]."""
    stream.expect("REINDEX")
    if stream.peek(1):
        stream.accept_any("INDEX", "TABLE")
    return Maintain("reindex", None if stream.at_end else stream.table_name("a name"))


def checkpoint(stream: TokenStream) -> Plan:
    """CHECKPOINT."""
    stream.expect("CHECKPOINT")
    return Maintain("checkpoint")


UTILITIES: dict[str, Callable[[TokenStream], Plan]] = {
    "BEGIN": begin, "START": begin, "COMMIT": commit, "END": commit, "ROLLBACK": rollback,
    "ABORT": rollback, "SAVEPOINT": savepoint, "RELEASE": release, "SET": set_option,
    "RESET": reset, "SHOW": show, "DESCRIBE": describe, "DESC": describe, "PRAGMA": pragma,
    "TRUNCATE": truncate,
    "VACUUM": vacuum, "OPTIMIZE": optimize, "REINDEX": reindex, "CHECKPOINT": checkpoint,
}  # fmt: skip

UNSUPPORTED = {
    "BACKUP": "BACKUP DATABASE", "RESTORE": "RESTORE DATABASE", "FINETUNE": "FINETUNE MODEL",
    "GRANT": "GRANT", "REVOKE": "REVOKE", "ATTACH": "ATTACH", "DETACH": "DETACH",
    "MERGE": "MERGE INTO", "CALL": "CALL", "PREPARE": "PREPARE", "EXECUTE": "EXECUTE",
    "DEALLOCATE": "DEALLOCATE", "INSTALL": "INSTALL", "LOAD": "LOAD", "USE": "USE", "LOCK": "LOCK",
    "ANALYZE": "ANALYZE", "COMMENT": "COMMENT ON", "IMPORT": "IMPORT DATABASE",
    "EXPORT": "EXPORT DATABASE", "SUMMARIZE": "SUMMARIZE", "PIVOT": "PIVOT", "UNPIVOT": "UNPIVOT",
    "LISTEN": "LISTEN", "NOTIFY": "NOTIFY", "DECLARE": "DECLARE",
    "FETCH": "FETCH", "KILL": "KILL", "REFRESH": "REFRESH", "CLUSTER": "CLUSTER", "DO": "DO",
}  # fmt: skip
