"""Commands of the shell itself: a dot, a word, arguments.

Each is a function of the shell and its arguments; the table below is what ``.help`` prints.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

from tarsdb.cli import catalog_text, render
from tarsdb.errors import InterfaceError, OperationalError

if TYPE_CHECKING:
    from tarsdb.cli.shell import Shell

Command = Callable[["Shell", list[str]], bool]


def run(shell: Shell, line: str) -> bool:
    """Run a dot command; return False when the session shall end.

    Raises
    ------
    InterfaceError
        No such command, or arguments it does not take.
    """
    try:
        name, *arguments = shlex.split(line[1:].rstrip(";"))
    except ValueError as error:
        name, arguments = line[1:], []
        if name:
            raise InterfaceError(f"{line}: {error}") from error
    known = [command for command in COMMANDS if command.startswith(name)] if name else []
    exact = name if name in COMMANDS else known[0] if len(known) == 1 else None
    if exact is None:
        hint = f"did you mean .{' or .'.join(known)}?" if known else ".help lists the commands"
        raise InterfaceError(f"command .{name} is not known", hint=hint)
    usage, _, action = COMMANDS[exact]
    least, most = usage.count("<"), usage.count("<") + usage.count("[")
    if not least <= len(arguments) <= most:
        raise InterfaceError(f".{exact} takes other arguments", hint=f"write .{exact} {usage}")
    return action(shell, arguments)


def _query(sql: str) -> Command:
    def show(shell: Shell, arguments: list[str]) -> bool:
        shell.print_rows(shell.db.execute(sql))
        return True

    return show


def _schema(shell: Shell, arguments: list[str]) -> bool:
    for statement in catalog_text.schema(shell.db, arguments[0] if arguments else None):
        shell.out.write(statement + "\n")
    return True


def _timer(shell: Shell, arguments: list[str]) -> bool:
    shell.timer = _choice("timer", arguments[0], ("on", "off")) == "on"
    return True


def _mode(shell: Shell, arguments: list[str]) -> bool:
    shell.mode = _choice("mode", arguments[0], render.MODES)
    return True


def _choice(command: str, given: str, allowed: tuple[str, ...]) -> str:
    if given.lower() not in allowed:
        raise InterfaceError(f".{command} {given}: not one of {', '.join(allowed)}")
    return given.lower()


def _read(shell: Shell, arguments: list[str]) -> bool:
    try:
        with open(arguments[0], encoding="utf-8") as script:
            lines = script.readlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OperationalError(f"cannot read {arguments[0]!r}: {error}") from error
    failed = shell.failures
    ended = not shell.run(lines)
    return not (ended and shell.failures == failed)


def _help(shell: Shell, arguments: list[str]) -> bool:
    for name, (usage, about, _) in COMMANDS.items():
        shell.out.write(f"{f'.{name} {usage}'.rstrip():<34}{about}\n")
    shell.out.write("Statements end with a semicolon. Ctrl-C stops one, Ctrl-D leaves.\n")
    return True


def _quit(shell: Shell, arguments: list[str]) -> bool:
    return False


COMMANDS: dict[str, tuple[str, str, Command]] = {
    "tables": ("", "tables and their rows", _query("SHOW TABLES")),
    "schema": ("[TABLE]", "CREATE statements of one table or of all", _schema),
    "indexes": ("", "indexes", _query("SHOW INDEXES")),
    "models": ("", "models", _query("SHOW MODELS")),
    "functions": ("", "functions", _query("SHOW FUNCTIONS")),
    "timer": ("<on|off>", "print the time of each statement", _timer),
    "mode": (f"<{'|'.join(render.MODES)}>", "how rows are printed", _mode),
    "read": ("<FILE>", "run the statements of a file", _read),
    "help": ("", "this list", _help),
    "quit": ("", "leave (Ctrl-D too)", _quit),
}
