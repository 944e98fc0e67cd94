"""Arguments of the ``tarsdb`` command, and what every command does on errors and closed pipes.

``tarsdb FILE`` is the shell; a first word from the command table is a command (write ``./query``
for a file of such a name).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tarsdb.cli import commands, render
from tarsdb.cli.shell import print_error
from tarsdb.errors import Error, NotSupportedError

_ABOUT = """\
tarsdb: an embedded AI database. One file holds rows, vectors, models and sandboxed functions.

  tarsdb FILE                        open a shell on a database file
  tarsdb COMMAND ...                 one of the commands below; tarsdb COMMAND --help says more
"""
_LATER = ("backup", "restore")
INTERRUPTED = 130
PIPE_CLOSED = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    0: done. 1: the database refused, the message is on stderr. 2: wrong arguments.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    if not given:
        parser.print_help()
        return 0
    if not _names_command(given):
        given.insert(0, "shell")
    try:
        if given[1:2] and given[1] in _LATER and len(given) > 2:
            raise NotSupportedError(
                f"tarsdb {given[1]} is not built yet",
                hint="a copy of the file is a backup, made while no process has it open",
            )
        parsed = parser.parse_args(given)
        code: int = parsed.run(parsed)
        sys.stdout.flush()
    except Error as error:
        print_error(error, sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader went away (`| head`); keep the interpreter's exit from complaining too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _names_command(given: Sequence[str]) -> bool:
    first = next((word for word in given if not word.startswith("-")), None)
    return first in _COMMANDS or (first is None and given[0] in ("-h", "--help", "--version"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tarsdb", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"tarsdb {commands.version()}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (about, fill) in _COMMANDS.items():
        command = subparsers.add_parser(name, help=about, description=f"{about}.")
        fill(command)
    return parser


def _file(parser: argparse.ArgumentParser, *, read_only: bool = True, is_made: bool = True) -> None:
    note = "created when absent" if is_made else "it is only read"
    parser.add_argument("file", metavar="FILE", help=f"the database file; {note}")
    if read_only:
        parser.add_argument("--read-only", action="store_true", help="refuse every write")


def _shell(parser: argparse.ArgumentParser) -> None:
    _file(parser)
    parser.add_argument("--check", action="store_true", help="verify the whole file first")
    parser.set_defaults(run=commands.shell)


def _query(parser: argparse.ArgumentParser) -> None:
    _file(parser)
    parser.add_argument("sql", metavar="SQL", help="statements; - reads them from stdin")
    parser.add_argument("--format", choices=render.MODES, default="table")
    parser.add_argument(
        "--param", action="append", default=[], metavar="VALUE|NAME=VALUE",
        help="value of the next ?, or of :NAME; numbers, true, null, JSON lists are read as such",
    )  # fmt: skip
    parser.set_defaults(run=commands.query)


def _import(parser: argparse.ArgumentParser) -> None:
    _file(parser, read_only=False)
    parser.add_argument("table", metavar="TABLE", help="created from the data when absent")
    parser.add_argument("data", metavar="DATA", help="a .csv, .json, .ndjson or .parquet file")
    parser.add_argument(
        "--by-position", action="store_true", help="ignore column names in the data file"
    )
    parser.set_defaults(run=commands.import_data)


def _export(parser: argparse.ArgumentParser) -> None:
    _file(parser, read_only=False, is_made=False)
    parser.add_argument("what", metavar="TABLE|QUERY", help="a table, or a SELECT in quotes")
    parser.add_argument("data", metavar="DATA", help="a .csv, .json or .parquet file to write")
    parser.set_defaults(run=commands.export_data)


def _check(parser: argparse.ArgumentParser) -> None:
    _file(parser, read_only=False, is_made=False)
    parser.add_argument("--quick", action="store_true", help="structure and headers only")
    parser.set_defaults(run=commands.check)


def _warmup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="compile what the models of this file need as well, and pack their weights into it",
    )
    parser.set_defaults(run=commands.warmup)


def _bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the database file; it is only read")
    parser.add_argument("table", metavar="TABLE", help="rows of it are the queries")
    parser.add_argument("--column", metavar="C", help="the vector column, where there are several")
    parser.add_argument("--k", type=int, default=10, help="neighbours of each query (10)")
    parser.add_argument(
        "--queries", type=int, default=200, metavar="N", help="rows drawn as queries (200)"
    )
    parser.add_argument("--format", choices=render.MODES, default="table")
    parser.set_defaults(run=_run_bench)


def _run_bench(arguments: argparse.Namespace) -> int:
    from tarsdb.cli.bench import bench  # imports the kernels, which no other command needs at once

    return bench(arguments)


def _profile_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the database file; it is only read")
    parser.add_argument("model", metavar="MODEL", help="its name")
    parser.add_argument(
        "--text", action="append", metavar="T", help="an input; may be repeated (three samples)"
    )
    parser.add_argument(
        "--repeat", type=int, default=9, metavar="N",
        help="runs (9): of stages the median one is shown, of operations the sum",
    )  # fmt: skip
    parser.add_argument(
        "--operations", action="store_true",
        help="show functions instead of stages; with TARSDB_ISA=portable each of NumPy's",
    )  # fmt: skip
    parser.add_argument(
        "--layers", action="store_true",
        help="show what each layer's operations take inside the compiled calls, in ms of a run",
    )  # fmt: skip
    parser.add_argument(
        "--max-tokens", type=int, default=32, metavar="N", help="of a generated text (32)"
    )
    parser.add_argument("--format", choices=render.MODES, default="table")
    parser.set_defaults(run=_run_profile_model)


def _run_profile_model(arguments: argparse.Namespace) -> int:
    from tarsdb.cli.profile_model import profile_model

    return profile_model(arguments)


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see python -m tarsdb.demo -h")
    parser.set_defaults(run=commands.demo)


def _verify_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="DIR", help="a model directory, or package:NAME")
    parser.add_argument(
        "--text", action="append", metavar="T", help="a sample; may be repeated (five samples)"
    )
    parser.add_argument("--format", choices=render.MODES, default="table")
    parser.set_defaults(run=_run_verify_model)


def _run_verify_model(arguments: argparse.Namespace) -> int:
    from tarsdb.cli.verify_model import verify_model

    return verify_model(arguments)


def _udf(parser: argparse.ArgumentParser) -> None:
    from tarsdb.cli import udf

    udf.fill(parser)


_COMMANDS = {
    "shell": ("open a shell on a database file", _shell),
    "query": ("run statements and print their rows", _query),
    "import": ("append a data file to a table", _import),
    "export": ("write a table or a query to a data file", _export),
    "check": ("verify a database file: structure, checksums, indexes", _check),
    "warmup": ("compile the kernels once for this machine", _warmup),
    "bench": ("measure recall and speed of a table's vector indexes on its own rows", _bench),
    "profile-model": (
        "show where the time of a model goes, by stage, operation or layer",
        _profile_model,
    ),
    "verify-model": ("compare a model directory with transformers", _verify_model),
    "udf": ("look at a WebAssembly module, or begin one", _udf),
    "demo": ("run the demonstration on this interpreter's documentation", _demo),
}
