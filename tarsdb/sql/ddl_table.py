"""CREATE TABLE and ALTER TABLE: their text to ColumnSpec, CreateTable and AlterTable."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from tarsdb.errors import NotSupportedError
from tarsdb.records import dataclass
from tarsdb.sql.plan import AlterTable, ColumnSpec, CreateTable
from tarsdb.sql.stream import TokenStream

_CONSTRAINT_WORDS = (
    "NOT", "NULL", "DEFAULT", "PRIMARY KEY", "PRIMARY", "UNIQUE", "CHECK", "GENERATED", "AS",
    "CONSTRAINT", "REFERENCES", "COLLATE", "AUTOINCREMENT",
)  # fmt: skip
_FLAGS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("NOT", "NULL"), "not_null"),
    (("PRIMARY KEY",), "primary_key"),
    (("PRIMARY", "KEY"), "primary_key"),
    (("UNIQUE",), "unique"),
)
_SERIALS = {"SERIAL": "INT", "SERIAL4": "INT", "BIGSERIAL": "BIGINT", "SERIAL8": "BIGINT"}
BY_DEFAULT, ALWAYS = "BY DEFAULT", "ALWAYS"
_LONG_TYPES = ("DOUBLE PRECISION", "CHAR VARYING", "CHARACTER VARYING")  # one token each
_TABLE_WORDS = ("PRIMARY KEY", "PRIMARY", "UNIQUE", "CHECK", "CONSTRAINT", "FOREIGN KEY", "FOREIGN")


@dataclass
class _Table:
    columns: list[ColumnSpec] = field(default_factory=list)
    primary_key: tuple[str, ...] = ()
    uniques: list[tuple[str | None, tuple[str, ...]]] = field(default_factory=list)
    checks: list[tuple[str | None, str]] = field(default_factory=list)


def if_not_exists(stream: TokenStream) -> bool:
    """Take IF NOT EXISTS when it is there."""
    return stream.accept("IF", "NOT", "EXISTS")


def create_table(stream: TokenStream, or_replace: bool) -> tuple[CreateTable, bool]:
    """Parse what follows CREATE [OR REPLACE] TABLE; True when AS and a query come next."""
    exists_ok = if_not_exists(stream)
    name = stream.table_name()
    parts = _Table()
    if stream.peek() == "(":
        _definitions(stream, parts)
    is_query = stream.accept("AS")
    if not is_query:
        if not parts.columns:
            stream.fail("expected the column definitions in brackets, or AS and a query")
        stream.finish()
    plan = CreateTable(
        name, tuple(parts.columns), parts.primary_key, tuple(parts.uniques), tuple(parts.checks),
        exists_ok, or_replace,
    )  # fmt: skip
    return plan, is_query


def _definitions(stream: TokenStream, parts: _Table) -> None:
    stream.expect("(")
    while True:
        if stream.peek() in _TABLE_WORDS and not _is_column(stream):
            _table_constraint(stream, parts)
        else:
            parts.columns.append(column_spec(stream))
        if not stream.accept(","):
            break
    stream.expect(")")


def _is_column(stream: TokenStream) -> bool:
    """Return True for a column called like a constraint word: a type name follows it."""
    following = stream.peek(1)
    return stream.peek() == "CHECK" and following not in ("(", "")


def _table_constraint(stream: TokenStream, parts: _Table) -> None:
    name = stream.name("a constraint name") if stream.accept("CONSTRAINT") else None
    if stream.accept("PRIMARY KEY") or stream.accept("PRIMARY", "KEY"):
        if parts.primary_key:
            stream.fail("the table has a PRIMARY KEY already")
        parts.primary_key = stream.names()
    elif stream.accept("UNIQUE"):
        parts.uniques.append((name, stream.names()))
    elif stream.accept("CHECK"):
        parts.checks.append((name, stream.bracketed()))
    elif stream.peek() in ("FOREIGN KEY", "FOREIGN"):
        raise NotSupportedError("FOREIGN KEY is not supported", hint="check it in the application")
    else:
        stream.fail("expected PRIMARY KEY, UNIQUE or CHECK")


def type_text(stream: TokenStream) -> str:
    """Take a type such as ``VECTOR(384)`` or ``INT[]`` and return its text."""
    start = stream.offset
    if not stream.accept_any(*_LONG_TYPES):
        stream.name("a type")
    if stream.peek() == "(":
        stream.bracketed()
    if stream.accept("WITH", "TIME", "ZONE") or stream.accept("WITHOUT", "TIME", "ZONE"):
        pass
    while stream.accept("["):
        if stream.peek() != "]":
            stream.value()
        stream.expect("]")
    end = stream.tokens[stream.index - 1].end + 1
    return stream.text[start:end]


def column_spec(stream: TokenStream) -> ColumnSpec:
    """Parse ``name type [constraints]``."""
    name = stream.name("a column name")
    if stream.at_end or stream.peek() in (",", ")", *_CONSTRAINT_WORDS):
        stream.fail(f"column {name} needs a type")
    fields: dict[str, Any] = {"name": name, "type": type_text(stream), "checks": ()}
    serial = _SERIALS.get(fields["type"].upper())
    if serial is not None:
        fields |= {"type": serial, "identity": BY_DEFAULT}
    while _constraint(stream, fields):
        pass
    given = [word for word in ("default", "generated", "identity") if word in fields]
    if len(given) > 1:
        stream.fail(f"column {name} has {given[0].upper()} and {given[1].upper()}")
    return ColumnSpec(**fields)


def _constraint(stream: TokenStream, fields: dict[str, Any]) -> bool:
    """Take one constraint of a column into ``fields``; False when none comes next."""
    if stream.accept("CONSTRAINT"):
        stream.name("a constraint name")
    for words, field_name in _FLAGS:
        if stream.accept(*words):
            fields[field_name] = True
            return True
    if stream.accept("CHECK"):
        fields["checks"] += (stream.bracketed(),)
    elif stream.accept("DEFAULT"):
        fields["default"] = stream.until(*_CONSTRAINT_WORDS)
    elif stream.peek() in ("GENERATED", "AS"):
        _generated(stream, fields)
    elif stream.accept("AUTOINCREMENT"):
        fields["identity"] = BY_DEFAULT
    elif stream.peek() in ("REFERENCES", "COLLATE"):
        raise NotSupportedError(f"column {fields['name']}: {stream.peek()} is not supported")
    else:
        return stream.accept("NULL")
    return True


def _generated(stream: TokenStream, fields: dict[str, Any]) -> None:
    identity = ALWAYS
    if stream.accept("GENERATED"):
        if stream.accept("BY"):
            stream.expect("DEFAULT")
            identity = BY_DEFAULT
        else:
            stream.expect("ALWAYS")
    stream.expect("AS")
    if identity == BY_DEFAULT or stream.peek() == "IDENTITY":
        stream.expect("IDENTITY")
        if stream.peek() == "(":
            raise NotSupportedError(
                f"column {fields['name']}: options of IDENTITY are not supported",
                hint="numbers begin at 1, or above those that are there",
            )
        fields["identity"] = identity
        return
    fields["generated"] = stream.bracketed()
    if stream.peek() == "VIRTUAL":
        raise NotSupportedError("VIRTUAL generated columns are not supported", hint="say STORED")
    stream.accept("STORED")


def alter_table(stream: TokenStream) -> AlterTable:
    """Parse what follows ALTER TABLE."""
    table_if_exists = stream.accept("IF", "EXISTS")
    table = stream.table_name()
    if table_if_exists:
        raise NotSupportedError("ALTER TABLE IF EXISTS is not supported")
    if stream.accept("ADD"):
        return _add(stream, table)
    if stream.accept("DROP"):
        if stream.peek() == "CONSTRAINT":
            raise NotSupportedError("ALTER TABLE ... DROP CONSTRAINT is not supported")
        stream.accept("COLUMN")
        missing_ok = stream.accept("IF", "EXISTS")
        column = stream.name("a column name")
        plan = AlterTable(table, "drop_column", column=column, if_exists=missing_ok)
    elif stream.accept("RENAME"):
        plan = _rename(stream, table)
    elif stream.accept("ALTER"):
        plan = _alter_column(stream, table)
    else:
        stream.fail("expected ADD, ALTER, DROP or RENAME")
    stream.finish()
    return plan


def _add(stream: TokenStream, table: str) -> AlterTable:
    if stream.peek() in _TABLE_WORDS and not _is_column(stream):
        raise NotSupportedError("ALTER TABLE ... ADD CONSTRAINT is not supported")
    stream.accept("COLUMN")
    exists_ok = if_not_exists(stream)
    spec = column_spec(stream)
    stream.finish()
    return AlterTable(table, "add_column", column=spec.name, spec=spec, if_exists=exists_ok)


def _alter_column(stream: TokenStream, table: str) -> AlterTable:
    """Parse ``[COLUMN] name`` and SET or DROP of DEFAULT or NOT NULL, or its new type."""
    stream.accept("COLUMN")
    column = stream.name("a column name")
    verb = stream.accept_any("SET", "DROP")
    if verb == "SET" and stream.peek() == "MODEL":
        raise NotSupportedError("ALTER TABLE ... ALTER COLUMN ... SET MODEL is not supported")
    if verb and stream.accept("NOT", "NULL"):
        return AlterTable(table, f"{verb.lower()}_not_null", column=column)
    if verb and stream.accept("DEFAULT"):
        text = stream.until() if verb == "SET" else None
        return AlterTable(table, f"{verb.lower()}_default", column=column, expression=text)
    if verb == "SET":
        stream.expect("DATA")
    elif verb:
        stream.fail("expected DEFAULT or NOT NULL")
    stream.expect("TYPE")
    spec = ColumnSpec(column, type_text(stream))
    using = stream.until() if stream.accept("USING") else None
    return AlterTable(table, "set_type", column=column, spec=spec, expression=using)


def _rename(stream: TokenStream, table: str) -> AlterTable:
    if stream.accept("TO"):
        return AlterTable(table, "rename", new_name=stream.name("the new name"))
    stream.accept("COLUMN")
    missing_ok = stream.accept("IF", "EXISTS")
    column = stream.name("a column name")
    stream.expect("TO")
    new_name = stream.name("the new name")
    return AlterTable(
        table, "rename_column", column=column, new_name=new_name, if_exists=missing_ok
    )
