"""What sqlglot says of DuckDB's dialect, without what writes DuckDB's text.

``sqlglot.dialects.duckdb`` imports the generator of texts, which parses templates while it is
imported, which a new process waits for, and a native statement needs none of it.
The settings stand here a second time instead; ``tests/unit/sql/test_dialect.py`` compares each with
the library's.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

from sqlglot import exp, tokens
from sqlglot.dialects.dialect import Dialect, NormalizationStrategy, UsingColumnOrder
from sqlglot.parsers.duckdb import DuckDBParser
from sqlglot.tokenizer_core import TokenType
from sqlglot.typing import duckdb as typing_of_duckdb

from tarsdb.loading import collector_paused


class DuckDBSettings(Dialect):
    """DuckDB's dialect; :meth:`generator` loads the writer of texts when it is first asked for."""

    Parser = DuckDBParser
    EXPRESSION_METADATA = typing_of_duckdb.EXPRESSION_METADATA  # type: ignore[attr-defined]

    # names
    NORMALIZATION_STRATEGY = NormalizationStrategy.CASE_INSENSITIVE
    ASCII_ONLY_NORMALIZATION = True
    PREFER_COLUMNS_TO_ALIASES_IN_HAVING_AND_QUALIFY = True
    HAVING_ALIASES_SHADOW_UNGROUPED_COLUMNS = True
    TABLES_REFERENCEABLE_AS_COLUMNS = True
    USING_COLUMN_ORDER = UsingColumnOrder.IN_PLACE
    # clauses
    NULL_ORDERING = "nulls_are_last"
    SUPPORTS_ORDER_BY_ALL = True
    SUPPORTS_LIMIT_ALL = True
    # values and functions
    INDEX_OFFSET = 1
    NUMBERS_CAN_BE_UNDERSCORE_SEPARATED = True
    SUPPORTS_FIXED_SIZE_ARRAYS = True
    QUERY_RESULTS_ARE_STRUCTS = True
    UUID_IS_STRING_TYPE = False
    STRICT_JSON_PATH_SYNTAX = False
    CONCAT_COALESCE = True
    CONCAT_WS_COALESCE = True
    REGEXP_EXTRACT_NO_MATCH_RETURNS_NULL = False
    REGEXP_EXTRACT_MISSING_GROUP_RETURNS_EMPTY = True
    UNESCAPED_SEQUENCES: dict[str, str] = {"\\a": "a", "\\v": "v"}  # noqa: RUF012
    DATE_PART_MAPPING: dict[str, str] = {
        part: meaning for part, meaning in Dialect.DATE_PART_MAPPING.items() if part != "WEEKDAY"
    } | {"DAYOFWEEKISO": "ISODOW"}
    INVERSE_TIME_MAPPING: dict[str, str] = {
        "%e": "%-d", "%:z": "%z", "%-z": "%z", "%f_three": "%g",
    } | {f"%f_{digits}": "%n" for digits in ("zero", "one", "two", "four", "five", "seven", "eight",
                                             "nine")}  # fmt: skip

    class Tokenizer(tokens.Tokenizer):
        """DuckDB's tokens."""

        NUMERIC_ESCAPES: ClassVar[Any] = {"x": (16, 1, 2, 0xFF), "0": (8, 1, 3, 0o777)}
        NUMERIC_ESCAPES_ARE_BYTES = True
        DROP_UNKNOWN_ESCAPES = True
        BYTE_STRINGS: ClassVar[Any] = [("e'", "'"), ("E'", "'")]
        BYTE_STRING_ESCAPES: ClassVar[Any] = ["'", "\\"]
        HEREDOC_STRINGS: ClassVar[Any] = ["$"]
        HEREDOC_TAG_IS_IDENTIFIER = True
        HEREDOC_STRING_ALTERNATIVE = TokenType.PARAMETER
        SINGLE_TOKENS: ClassVar[dict[str, TokenType]] = {
            **tokens.Tokenizer.SINGLE_TOKENS, "$": TokenType.PARAMETER,
        }  # fmt: skip
        VAR_SINGLE_TOKENS: ClassVar[set[str]] = {"$"}
        COMMANDS: ClassVar[set[TokenType]] = tokens.Tokenizer.COMMANDS - {TokenType.SHOW}
        KEYWORDS: ClassVar[dict[str, TokenType]] = {
            **{
                text: kind for text, kind in tokens.Tokenizer.KEYWORDS.items()
                if text not in ("/*+", "SORT BY")
            },
            # operators
            "//": TokenType.DIV, "**": TokenType.DSTAR, "^@": TokenType.CARET_AT,
            "@>": TokenType.AT_GT, "<@": TokenType.LT_AT,
            # statements and clauses
            "ATTACH": TokenType.ATTACH, "CONNECT": TokenType.CONNECT, "DETACH": TokenType.DETACH,
            "DISCONNECT": TokenType.DISCONNECT, "FORCE": TokenType.FORCE,
            "INSTALL": TokenType.INSTALL, "MACRO": TokenType.FUNCTION, "ONLY": TokenType.ONLY,
            "PIVOT_WIDER": TokenType.PIVOT, "POSITIONAL": TokenType.POSITIONAL,
            "RESET": TokenType.COMMAND, "ROW": TokenType.STRUCT,
            "SUMMARIZE": TokenType.SUMMARIZE,
            # types
            "BINARY": TokenType.VARBINARY, "BITSTRING": TokenType.BIT, "BPCHAR": TokenType.TEXT,
            "CHAR": TokenType.TEXT, "DATETIME": TokenType.TIMESTAMPNTZ, "INT8": TokenType.BIGINT,
            "LOGICAL": TokenType.BOOLEAN, "SIGNED": TokenType.INT, "STRING": TokenType.TEXT,
            "TIMESTAMP": TokenType.TIMESTAMPNTZ, "TIMESTAMP_S": TokenType.TIMESTAMP_S,
            "TIMESTAMP_MS": TokenType.TIMESTAMP_MS, "TIMESTAMP_NS": TokenType.TIMESTAMP_NS,
            "TIMESTAMP_US": TokenType.TIMESTAMP, "UBIGINT": TokenType.UBIGINT,
            "UINTEGER": TokenType.UINT, "USMALLINT": TokenType.USMALLINT,
            "UTINYINT": TokenType.UTINYINT, "VARCHAR": TokenType.TEXT,
        }  # fmt: skip

    def to_json_path(self, path: exp.Expr | None) -> exp.Expr | None:
        """Leave JSON pointers (``/a/0``) and places from the end (``$.a[#-1]``) to DuckDB."""
        if isinstance(path, exp.Literal) and (path.name.startswith("/") or "[#" in path.name):
            return path
        return super().to_json_path(path)

    def generator(self, **options: Any) -> Any:
        """Return a writer of DuckDB's text."""
        return _writer()(dialect=self, **options)


@functools.cache
def _writer() -> Any:
    with collector_paused():
        from sqlglot.dialects.duckdb import DuckDB

    return DuckDB.Generator
