"""Functions in Python or JavaScript source text: what is checked before anything runs them.

Their values are JSON, so the types are those with an obvious form there. Only the Hyperlight
backend has guests for these languages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tarsdb.errors import UdfValidationError
from tarsdb.options import SandboxLimits
from tarsdb.records import dataclass
from tarsdb.types import Kind, SqlType
from tarsdb.udf_sandbox.backends import Program
from tarsdb.udf_sandbox.functions.function import SandboxedFunction, ScalarFunction
from tarsdb.udf_sandbox.modules.module import MAX_ARGUMENTS

LANGUAGES = ("python", "javascript")
MAX_SOURCE_BYTES = 1 << 20
_KINDS = frozenset(
    {Kind.BOOLEAN, Kind.SMALLINT, Kind.INT, Kind.BIGINT, Kind.REAL, Kind.DOUBLE, Kind.TEXT,
     Kind.JSON, Kind.ARRAY, Kind.VECTOR, Kind.HALFVEC, Kind.INT8VEC}
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A program's text and its language, one of ``LANGUAGES``."""

    language: str
    text: str


class SourceFunction(ScalarFunction):
    """A scalar function that a source text defines under the name ``export``.

    Parameters and errors are those of :class:`ScalarFunction`, with a :class:`Source` for the
    code. The text is run once for each sandbox; every batch sees what that left.
    """

    def __init__(
        self, code: Source, export: str, arguments: Sequence[SqlType], returns: SqlType, *,
        strict: bool = True, limits: SandboxLimits | None = None,
    ) -> None:  # fmt: skip
        check_source(code, export, arguments, returns)
        self.returns = returns
        self.strict = strict
        raw = code.text.encode()
        SandboxedFunction.__init__(
            self,
            Program(
                code=raw, sha256=hashlib.sha256(raw).hexdigest(), driver=None, export=export,
                arguments=tuple(arguments), returns=returns,
                limits=limits or SandboxLimits(backend="hyperlight"), reusable=False,
                resettable=False, language=code.language,
            ),
        )  # fmt: skip


def check_source(code: Source, export: str, arguments: Sequence[SqlType], returns: SqlType) -> None:
    """Check that a source text of this signature can be run; runs nothing.

    Raises
    ------
    UdfValidationError
        The language is none of ours, the name no identifier, the text too long, or a type has no
        form in JSON.
    """
    if code.language not in LANGUAGES:
        raise UdfValidationError(
            f"function {export}: LANGUAGE {code.language} has no guest",
            hint=f"languages: wasm, {', '.join(LANGUAGES)}",
        )
    size = len(code.text.encode())
    if size > MAX_SOURCE_BYTES:
        raise UdfValidationError(
            f"function {export}: its source has {size} bytes, at most {MAX_SOURCE_BYTES} allowed"
        )
    if len(arguments) > MAX_ARGUMENTS:
        raise UdfValidationError(
            f"function {export} takes {len(arguments)} arguments, at most {MAX_ARGUMENTS} allowed"
        )
    if not (export.isidentifier() and export.isascii()):
        raise UdfValidationError(
            f"function {export}: {export!r} is no name of a function in {code.language}",
            hint="use letters, digits and _",
        )
    for sql_type in (*arguments, returns):
        inner = sql_type.element or sql_type
        if sql_type.kind not in _KINDS or inner.kind not in _KINDS:
            raise UdfValidationError(
                f"function {export}: {sql_type} has no form in JSON, which {code.language} "
                "functions take and return",
                hint="pass it as TEXT, or write the function for LANGUAGE wasm",
            )
