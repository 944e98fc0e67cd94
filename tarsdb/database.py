"""The Python interface: ``connect``, ``Connection``, ``Cursor``, after PEP 249.

Threads may share a connection: statements run one at a time. Importing this module is light; the
engine loads with the first connection.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarsdb.errors import Error, InterfaceError, NotSupportedError
from tarsdb.loading import collector_paused
from tarsdb.options import OpenOptions

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    import numpy as np
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from tarsdb.engine.progress import Work
    from tarsdb.engine.result import Result
    from tarsdb.engine.session import Session
    from tarsdb.search import Table

apilevel = "2.0"
threadsafety = 2
paramstyle = "qmark"

_PLAIN_PARAMETERS = (tuple, list, dict)
Parameters = Sequence[Any] | Mapping[str, Any]
Description = tuple[str, Any, None, None, None, None, None]


def connect(
    path: str | os.PathLike[str] = ":memory:",
    *,
    read_only: bool = False,
    durability: str | None = None,
    file_access: bool = False,
    check: bool = False,
    options: OpenOptions | None = None,
) -> Connection:
    """Open a database file, creating it when it does not exist.

    Parameters
    ----------
    path : str or path
        ``":memory:"`` is a private temporary file removed at close: nothing in it is durable.
    read_only : bool
    durability : {'full', 'group', 'relaxed'}, optional
        What an acknowledged commit survives; see docs/durability.md. By default that of
        ``options``, which is full unless they say otherwise.
    file_access : bool
        Let SELECT read files (``FROM 'x.parquet'``, ``read_csv``). COPY and CREATE MODEL name
        their files themselves and need no permission.
    check : bool
        Verify the whole file before use.
    options : OpenOptions, optional
        Everything else; ``read_only`` and ``check`` above are added to it.

    Returns
    -------
    Connection
        Usable as a context manager, which closes it.

    Raises
    ------
    OperationalError
        The file cannot be opened: permissions, a remote filesystem, locked by another writer.
    CorruptionError
        The file is damaged.
    """
    from dataclasses import replace

    with collector_paused():
        from tarsdb.engine.session import Session
        from tarsdb.engine.settings import Settings
        from tarsdb.storage import Environment

    _close_abandoned()
    chosen = OpenOptions() if options is None else options
    if not isinstance(chosen, OpenOptions):
        raise InterfaceError(f"options are OpenOptions, not {type(chosen).__name__}")
    settings = Settings(
        durability=chosen.durability.value if durability is None else durability,
        file_access=file_access,
        lock_timeout=min(chosen.lock_timeout_s, _LONGEST_S) * 1000,
    )
    chosen = replace(chosen, read_only=read_only or chosen.read_only, check=check or chosen.check)
    temporary = None
    path = _file_name(path)
    if path == ":memory:":
        if chosen.read_only:
            raise InterfaceError("a :memory: database cannot be read-only: it starts empty")
        import tempfile  # slow to import

        temporary = Path(tempfile.mkdtemp(prefix="tarsdb-"))
        path = str(temporary / "memory.tars")
    env = Environment.open(path, chosen)
    session = Session(env, settings, chosen.read_only)
    connection = Connection(session, temporary)
    if chosen.preload_functions:
        with suppress(Error):  # of a damaged catalog: statements tell
            session.inspect(session.engines.functions.preload)
    return connection


_LONGEST_S = 1e9
# Sessions of connections nobody closed, left by the garbage collector to the next connect.
_ABANDONED: deque[tuple[Session, Path | None]] = deque()


def _file_name(path: str | os.PathLike[str]) -> str:
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise InterfaceError(f"a database is named by a path, not {type(path).__name__}") from None
    if not name or "\0" in name:
        raise InterfaceError(f"{name!r} is not the name of a file")
    return name


def _close(session: Session, temporary: Path | None) -> None:
    session.close()
    if temporary is not None and not session.env.is_inherited:  # a fork's parent goes on with it
        import shutil

        shutil.rmtree(temporary, ignore_errors=True)


def _close_abandoned() -> None:
    while _ABANDONED:
        with suppress(IndexError):  # another thread took it
            session, temporary = _ABANDONED.popleft()
            with suppress(Error):
                _close(session, temporary)


atexit.register(_close_abandoned)


class Connection:
    """One session on a database file. Made by :func:`connect`.

    Close it, or use it as a context manager: one that is only dropped is closed at the next
    :func:`connect` or at exit.
    """

    def __init__(self, session: Session, temporary: Path | None = None) -> None:
        self._session: Session | None = session
        self._temporary = temporary
        self._closing = threading.Lock()

    def cursor(self) -> Cursor:
        """Return a new cursor."""
        self._require_session()
        return Cursor(self)

    def execute(self, sql: str, parameters: Parameters = ()) -> Cursor:
        """Execute a statement (or a script) and return a cursor with its result.

        Outside a transaction a write is durable when this returns.

        Parameters
        ----------
        sql : str
        parameters : sequence or mapping
            For ``?`` and ``$1`` a sequence, for ``:name`` and ``$name`` a mapping. Vectors may be
            NumPy arrays or lists; a (q, dim) matrix searches for q queries at once.
        """
        return Cursor(self)._run(sql, parameters, sys._getframe(1))

    def executemany(self, sql: str, parameters: Iterable[Parameters]) -> Cursor:
        """Execute a write once for each parameter set, all in one transaction."""
        return Cursor(self)._run(sql, (), sys._getframe(1), parameters)

    def commit(self) -> None:
        """Commit the open transaction; does nothing outside one."""
        self._require_session().commit()

    def rollback(self) -> None:
        """Undo the open transaction; does nothing outside one."""
        self._require_session().rollback()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Make several statements one commit; an exception rolls back."""
        session = self._require_session()
        was_open = session.in_transaction  # then BEGIN raises, and it is not ours to end
        try:
            session.begin()
            yield self
            session.commit()
        except BaseException:  # Ctrl-C may come between any two of them
            if not was_open:
                session.rollback()
            raise

    @property
    def in_transaction(self) -> bool:
        """True between BEGIN and COMMIT or ROLLBACK."""
        return self._require_session().in_transaction

    def interrupt(self) -> None:
        """End the statement that runs now in another thread; it raises InterruptError."""
        self._require_session().interrupt()

    def create_function(
        self,
        name: str,
        function: Callable[..., Any],
        arguments: Sequence[str],
        returns: str,
        *,
        vectorized: bool = False,
        strict: bool = True,
    ) -> None:
        """Register a trusted Python function for this connection.

        Parameters
        ----------
        name : str
        function : callable
        arguments : sequence of str
            SQL type names.
        returns : str
            SQL type name.
        vectorized : bool
            The function takes and returns whole columns as lists instead of one row's values.
        strict : bool
            A NULL argument gives NULL without a call (row functions only).
        """
        from tarsdb.engine.udf.functions import SessionFunction
        from tarsdb.types import parse_type

        if not isinstance(name, str) or not callable(function):
            raise InterfaceError(
                f"create_function takes a name and a function, not {name!r} and {function!r}"
            )
        types = tuple(parse_type(text) for text in arguments)
        self._require_session().register(
            SessionFunction(name, function, types, parse_type(returns), vectorized, strict)
        )

    def table(self, name: str) -> Table:
        """Return a handle on a table for the search builder and bulk inserts."""
        from tarsdb.search import Table

        return Table(self, name)

    def generate(self, model: str, prompt: Any, *, stream: bool = False, **options: Any) -> Any:
        """Continue a prompt with a model; threads that call this at a time share its batches.

        Parameters
        ----------
        model : str
        prompt : str, list of str, or list of dict
            A text; several texts; or a conversation, as dicts of ``role`` and ``content``.
        stream : bool
            Return an iterator over pieces of the text, as they come. Closing it ends the text.
        **options
            Those of ``generate`` in SQL: ``max_tokens``, ``temperature``, ``stop``, ``seed``,
            ``system``, ``json_schema``, ...; see docs/generation.md.

        Returns
        -------
        str, list of str for a list of texts, or iterator of str

        Raises
        ------
        CatalogError
            There is no such model.
        ModelError
            It does not generate, has no chat template for what was asked, was dropped
            meanwhile; or an option is wrong.
        DataError
            A prompt does not fit the model's context or ``kv_cache_memory``.
        QueueFullError
            Too many texts wait for the model.
        """
        return self._require_session().generate(model, prompt, options, stream)

    def on_progress(
        self,
        report: Callable[[int, int], None] | None,
        begin: Callable[[Work], None] | None = None,
    ) -> None:
        """Call back while a model embeds texts or a vector index is built; None stops that.

        Parameters
        ----------
        report : callable
            Called as ``report(done, total)``, in the thread that runs the statement; ``done``
            never falls within one piece of work. An index reaches its total when it is built and
            stored, just before it is published. What it raises ends the statement, which then
            has changed nothing.
        begin : callable, optional
            Called before each piece of work (a batch of texts, one index) with its
            :class:`Work`: ``what``, ``unit``, ``total``, and estimates ``memory_bytes`` and
            ``disk_bytes``. A statement that runs again after a conflict begins again.
        """
        from tarsdb.engine.progress import Listener

        self._require_session().engines.listen(Listener(report, begin))

    def close(self) -> None:
        """Roll back an open transaction and close; closing twice is fine."""
        with self._closing:
            session = self._session
            if session is not None:
                session.engines.functions.refuse_own()
            self._session = None
        if session is not None:
            _close(session, self._temporary)

    def _require_session(self) -> Session:
        session = self._session
        if session is None:
            raise InterfaceError("the connection is closed")
        return session

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None:  # closing takes locks, and this may run while one is held
            _ABANDONED.append((session, self._temporary))


class Cursor:
    """Holds one statement's result. Rows are plain tuples, wholly in memory."""

    arraysize = 1
    _result: Result | None = None
    _position = 0
    _closed = False

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def execute(self, sql: str, parameters: Parameters = ()) -> Cursor:
        """Execute a statement; see :meth:`Connection.execute`."""
        return self._run(sql, parameters, sys._getframe(1))

    def executemany(self, sql: str, parameters: Iterable[Parameters]) -> Cursor:
        """Execute a write once for each parameter set, all in one transaction."""
        return self._run(sql, (), sys._getframe(1), parameters)

    def _run(
        self,
        sql: str,
        parameters: Parameters,
        frame: FrameType,
        many: Iterable[Parameters] | None = None,
    ) -> Cursor:
        session = self.connection._session
        if session is None or self._closed:
            self._require_open()
            session = self.connection._require_session()
        if type(parameters) not in _PLAIN_PARAMETERS:
            from tarsdb.engine.bound import check

            check(parameters, None)
        self._result = None
        self._position = 0
        self._result = session.execute(sql, parameters, frame, many)
        return self

    @property
    def description(self) -> list[Description] | None:
        """Name and type of each result column, seven entries each (PEP 249); None without rows."""
        result = self._result
        if result is None or not result.has_rows:
            return None
        pairs = zip(result.names, result.types, strict=True)
        return [(name, str(t) if t else None, None, None, None, None, None) for name, t in pairs]

    @property
    def rowcount(self) -> int:
        """Rows a write changed, or a query returned; -1 otherwise."""
        result = self._result
        if result is None:
            return -1
        return result.changed if result.changed >= 0 else len(result) if result.has_rows else -1

    @property
    def lastrowid(self) -> int | None:
        """What the last row of an INSERT has in the column that numbers rows (PEP 249).

        None where the table has none, or the statement was none.
        """
        return None if self._result is None else self._result.last_id

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row, or None."""
        rows = self._rows()
        if self._position >= len(rows):
            return None
        self._position += 1
        return rows[self._position - 1]

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        """Return the next ``size`` rows (``arraysize`` unless given)."""
        rows = self._rows()
        start, wanted = self._position, self.arraysize if size is None else size
        if not isinstance(wanted, int) or wanted < 0:
            raise InterfaceError(f"fetchmany takes a number of rows of at least 0, not {wanted!r}")
        self._position = min(len(rows), start + wanted)
        return rows[start : self._position]

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the remaining rows."""
        rows = self._rows()
        start, self._position = self._position, len(rows)
        return rows[start:]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self

    def __next__(self) -> tuple[Any, ...]:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def arrow(self) -> pa.Table:
        """Return the whole result as a ``pyarrow.Table``."""
        return self._require_result().arrow()

    def df(self) -> pd.DataFrame:
        """Return the whole result as a pandas DataFrame."""
        return self._require_result().df()

    def pl(self) -> pl.DataFrame:
        """Return the whole result as a Polars DataFrame."""
        return self._require_result().pl()

    def numpy(self) -> dict[str, np.ndarray]:
        """Return the whole result as NumPy arrays by column name."""
        return self._require_result().numpy()

    def close(self) -> None:
        """Let go of the result."""
        self._closed = True
        self._result = None

    def setinputsizes(self, sizes: Sequence[Any]) -> None:
        """Do nothing (PEP 249 asks for it)."""

    def setoutputsize(self, size: int, column: int | None = None) -> None:
        """Do nothing (PEP 249 asks for it)."""

    def callproc(self, name: str, parameters: Parameters = ()) -> None:
        """Raise NotSupportedError: there are no stored procedures."""
        raise NotSupportedError(f"there are no stored procedures, {name!r} cannot be called")

    def _rows(self) -> list[tuple[Any, ...]]:
        result = self._result
        if result is None or self._closed:
            result = self._require_result()
        if not result.names:
            raise InterfaceError("the last statement returned no rows")
        return result.rows()

    def _require_open(self) -> None:
        if self._closed:
            raise InterfaceError("the cursor is closed")

    def _require_result(self) -> Result:
        self._require_open()
        if self._result is None:
            raise InterfaceError("nothing was executed yet")
        return self._result

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
