"""The shell's session: runs statements and dot commands and prints what they return.

Knows where text goes, not where it comes from: :mod:`tarsdb.cli.prompt` reads a person,
:func:`Shell.run` takes any lines.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from typing import TextIO

from tarsdb.cli import dot_commands, render
from tarsdb.cli.lines import statements
from tarsdb.cli.progress import watched
from tarsdb.cli.running import interruptibly
from tarsdb.database import Connection, Cursor
from tarsdb.errors import Error, SQLSyntaxError
from tarsdb.sql import split

ROW_LIMIT = 1_000


class Shell:
    """One connection and how its answers are printed.

    Parameters
    ----------
    db : Connection
    out, err : TextIO
    interactive : bool
        A person reads along: timing is on, wide tables are cut to the terminal, errors go on.
    """

    def __init__(
        self, db: Connection, out: TextIO, err: TextIO, *, interactive: bool = False
    ) -> None:
        self.db = db
        self.out = out
        self.err = err
        self.interactive = interactive
        self.timer = interactive
        self.mode = "table"
        self.failures = 0

    def run(self, lines: Iterable[str]) -> bool:
        """Run a script's statements; stop at the first error unless interactive.

        Returns
        -------
        bool
            False when a statement failed or ``.quit`` ended the script.
        """
        for text in statements(lines):
            before = self.failures
            if not self.run_one(text):
                return False
            if self.failures > before and not self.interactive:
                return False
        return True

    def run_one(self, text: str) -> bool:
        """Run a dot command, or statements; return False when the session shall end."""
        try:
            if text.startswith("."):
                return dot_commands.run(self, text)
            for statement in split(text):
                self.execute(statement)
        except Error as error:
            self.failures += 1
            self.out.flush()
            print_error(error, self.err)
        return True

    def execute(self, sql: str) -> None:
        """Execute a statement and print its rows, or what it changed, and the time it took."""
        start = time.perf_counter()
        with watched(self.db, self.err):
            cursor = interruptibly(self.db, lambda: self.db.execute(sql))
        took_s = time.perf_counter() - start
        if cursor.description:
            count = self.print_rows(cursor)
            note = f"{count:,} row{'' if count == 1 else 's'}"
        elif cursor.rowcount >= 0:
            note = f"{cursor.rowcount:,} row{'' if cursor.rowcount == 1 else 's'} changed"
        else:
            note = "ok"
        if self.timer:
            self.out.write(f"({note}, {duration(took_s)})\n")
        elif self.interactive and not cursor.description:
            self.out.write(f"({note})\n")
        self.out.flush()

    def print_rows(self, cursor: Cursor) -> int:
        """Print a cursor's rows in the current mode and return how many there were."""
        header = [column[0] for column in cursor.description or ()]
        if self.mode == "table" and self.interactive:
            width = shutil.get_terminal_size().columns
            return render.table(header, cursor, self.out, width=width, limit=ROW_LIMIT)
        return render.WRITERS[self.mode](header, cursor, self.out)


def duration(seconds: float) -> str:
    """Return a time in the unit a reader expects."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def print_error(error: Error, err: TextIO) -> None:
    """Print an error's kind, message, excerpt and hint."""
    name = type(error).__name__
    if isinstance(error, SQLSyntaxError):
        where = f"line {error.line}, column {error.column}"
        err.write(f"{name}: {error.message} ({where})\n")
        if error.excerpt:
            err.write("".join(f"  {line}\n" for line in error.excerpt.splitlines()))
    else:
        err.write(f"{name}: {error.message}\n")
    if error.hint:
        err.write(f"hint: {error.hint}\n")
    err.flush()
