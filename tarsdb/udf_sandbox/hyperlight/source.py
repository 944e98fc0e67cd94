"""Functions in Python and JavaScript source, run by Hyperlight's guests of these languages.

The source defines a function of the SQL function's name (or export). It is run once, the sandbox
is snapshotted, and every batch goes to the restored sandbox: rows as JSON in, results as JSON
out; what the function prints is dropped. Results are data of an untrusted program and converted
like anything a user binds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from tarsdb.columns import Column, concat, from_list
from tarsdb.errors import DatabaseError, UdfBackendError, UdfError
from tarsdb.options import SandboxLimits
from tarsdb.records import dataclass
from tarsdb.types import Kind, to_storage
from tarsdb.udf_sandbox import outputs
from tarsdb.udf_sandbox.backends import Program
from tarsdb.udf_sandbox.hyperlight import processes
from tarsdb.udf_sandbox.hyperlight.failures import guest_error
from tarsdb.udf_sandbox.hyperlight.guest import SandboxGuest
from tarsdb.udf_sandbox.hyperlight.processes import GuestFailure, SandboxProcess, SandboxSpec
from tarsdb.udf_sandbox.limits import Call

MAX_TEXT = 256 << 10  # characters of one batch's rows
PIECE = 15_000  # characters of one reply; Hyperlight's output buffer holds 16 KiB
MARK = "\x1e"  # before what we print, after what the user's function printed
MAX_SAFE_INTEGER = 2**53 - 1


@dataclass(frozen=True)
class Language:
    """A guest that runs source text: its package, its memory, and the code around a function."""

    package: str
    artefact: str
    heap: int  # MiB the interpreter needs for itself
    nothing: str  # a program that does nothing
    driver: str  # after the source; {name} is the function, {mark} and {piece} as above
    batch: str  # a call of the driver with {rows}
    more: str  # reads on from {start}


_PYTHON = """
def _tars_batch(_rows):
    global _tars_text
    import io, json, sys
    results, failure, printed = [], None, sys.stdout
    sys.stdout = io.StringIO()
    for number, row in enumerate(json.loads(_rows)):
        try:
            results.append({name}(*row))
        except Exception as error:
            failure = [number, f"{{type(error).__name__}}: {{error}}"[:500]]
            break
    sys.stdout = printed
    try:
        _tars_text = json.dumps({{"results": results, "failure": failure}})
    except (TypeError, ValueError) as error:
        _tars_text = json.dumps({{"results": [], "failure": [-1, str(error)[:500]]}})
    _tars_more(0)

def _tars_more(start):
    print({mark!r} + str(len(_tars_text)) + ":" + _tars_text[start : start + {piece}], end="")

{name}
"""
_JAVASCRIPT = """
globalThis.__tarsFunction = {name};
globalThis.__tarsPrint = console.log.bind(console);
console.log = () => {{}};
globalThis.__tarsBatch = (rows) => {{
  const results = [];
  let failure = null;
  const plain = (_key, value) =>
    (typeof value === "number" && !Number.isFinite(value)) || typeof value === "bigint"
      ? {{ $number: String(value) }} : value === undefined ? null : value;
  for (const [number, row] of rows.entries()) {{
    try {{ results.push(globalThis.__tarsFunction(...row)); }}
    catch (error) {{ failure = [number, String(error).slice(0, 500)]; break; }}
  }}
  let text = JSON.stringify({{ results, failure }}, plain);
  text = text.replace(/[\\u007f-\\uffff]/g,
    (c) => "\\\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
  globalThis.__tarsText = text;
  globalThis.__tarsMore(0);
}};
globalThis.__tarsMore = (start) => {{
  const text = globalThis.__tarsText;
  globalThis.__tarsPrint({mark_json} + text.length + ":" + text.slice(start, start + {piece}));
}};
"""
LANGUAGES = {
    "python": Language(
        "python_guest", "python-sandbox.aot", 24, "pass", _PYTHON,
        "_tars_batch({text!r})", "_tars_more({start})",
    ),
    "javascript": Language(
        "javascript_guest", "js-sandbox.aot", 64, ";", _JAVASCRIPT,
        "globalThis.__tarsBatch({text})", "globalThis.__tarsMore({start})",
    ),
}  # fmt: skip


def sandbox_spec(language: str, code: bytes, limits: SandboxLimits, name: str = "") -> SandboxSpec:
    """Return the sandbox of a source function; without ``name`` of the language alone.

    Raises
    ------
    UdfBackendError
        The language's guest is not installed.
    """
    guest = LANGUAGES[language]
    found = importlib.util.find_spec(guest.package)
    if found is None or found.origin is None:
        raise UdfBackendError(
            f"LANGUAGE {language} needs Hyperlight's guest {guest.package}, which is not installed",
            hint="pip install 'tarsdb[hyperlight]'",
        )
    artefact = pathlib.Path(found.origin).parent / "resources" / guest.artefact
    memory = -(-limits.max_memory_bytes // (1 << 20))
    heap = memory + guest.heap
    definition = None
    if name:
        driver = guest.driver.format(name=name, mark=MARK, mark_json=json.dumps(MARK), piece=PIECE)
        definition = code.decode() + "\n" + driver
    digest = hashlib.sha256((definition or "").encode()).hexdigest()
    return SandboxSpec(
        key=f"{language}:{digest}:{heap}", artefact=b"", path=str(artefact),
        heap=heap, stack=heap + memory + 10, first=guest.nothing, definition=definition,
    )  # fmt: skip


class SourceProgram:
    """A function in source text; its sandbox is made by the first batch that needs it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.spec = sandbox_spec(program.language, program.code, program.limits, program.export)

    def guest(self, call: Call, watched: bool) -> SourceGuest:
        """Make a guest."""
        return SourceGuest(self)

    def close(self) -> None:
        """Do nothing: sandboxes are dropped when others need their place."""


class SourceGuest(SandboxGuest):
    """Batches of a source function, each in a sandbox as its definition left it."""

    def __init__(self, compiled: SourceProgram) -> None:
        super().__init__(compiled.program, compiled.spec)
        self.language = LANGUAGES[compiled.program.language]

    def batch(self, columns: Sequence[Column], rows: int, call: Call) -> Column:
        """Return the results of ``rows`` rows."""
        shown = [json.dumps(row) for row in zip(*map(self._values, columns), strict=True)]
        shown = shown or ["[]"] * rows  # without arguments
        with processes.POOL.lease(self.spec.key, call) as process:
            try:
                number = process.ready(self.spec, call)
                parts = [self._part(process, number, texts, call) for texts in _pieces(shown)]
            except GuestFailure as error:
                raise guest_error(error, call, self.program.limits) from error
        return outputs.checked(concat(self.program.returns, parts), call.function)

    def _values(self, column: Column) -> list[Any]:
        items = column.to_list()
        if column.type.is_vector:
            return [None if item is None else item.tolist() for item in items]
        if column.type.kind in (Kind.JSON, Kind.ARRAY):
            return [None if item is None else json.loads(item) for item in items]
        if column.type.kind is Kind.BIGINT and self.program.language == "javascript":
            for row, item in enumerate(items):
                if item is not None and abs(item) > MAX_SAFE_INTEGER:
                    raise UdfError(
                        f"function {self.program.export}: row {row} is {item}, JavaScript's "
                        f"numbers are whole up to {MAX_SAFE_INTEGER}",
                        hint="pass it as TEXT",
                    )
        return items

    def _part(self, process: SandboxProcess, number: int, texts: list[str], call: Call) -> Column:
        said = process.run(number, self.language.batch.format(text=f"[{','.join(texts)}]"), call)
        size, text = _printed(said)
        while len(text) < min(size, self.program.limits.max_memory_bytes):
            said = process.run(number, self.language.more.format(start=len(text)), call)
            more = _printed(said)[1]
            if not more:
                break
            text += more
        return self._column(text, len(texts), call)

    def _column(self, text: str, rows: int, call: Call) -> Column:
        name, returns = call.function, self.program.returns
        try:
            found = json.loads(text, object_hook=_number)
            results, failure = found["results"], found["failure"]
            if failure is not None:
                row, message = failure
                raise UdfError(f"function {name}: row {row}: {str(message)[:500]}")
            if len(results) != rows:
                raise UdfError(f"function {name} returned {len(results)} values for {rows} rows")
            return from_list(returns, [to_storage(item, returns, name) for item in results])
        except DatabaseError as error:
            if isinstance(error, UdfError):
                raise
            raise UdfError(f"function {name}: {error}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UdfError(f"function {name}: its sandbox's reply is no result: {error}") from error


def _pieces(texts: list[str]) -> list[list[str]]:
    """Cut rows into runs of up to MAX_TEXT characters, at least one row each."""
    pieces: list[list[str]] = []
    size = MAX_TEXT
    for text in texts:
        if size + len(text) > MAX_TEXT:
            pieces.append([])
            size = 0
        pieces[-1].append(text)
        size += len(text) + 1
    return pieces


def _printed(said: str) -> tuple[int, str]:
    """Return (length of the whole text, this piece of it)."""
    size, _, text = said.rpartition(MARK)[2].partition(":")
    try:
        return int(size), text.removesuffix("\n")
    except ValueError as error:
        raise GuestFailure("the guest printed no result") from error


def _number(found: dict[str, Any]) -> Any:
    """Undo what stands for numbers that JSON lacks."""
    if list(found) != ["$number"]:
        return found
    text = str(found["$number"])
    return int(text) if text.lstrip("-").isdigit() else float(text)
