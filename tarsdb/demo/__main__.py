"""``python -m tarsdb.demo``: arguments, and errors as one message with its hint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tarsdb.cli.shell import print_error
from tarsdb.demo.story import tell
from tarsdb.errors import Error, OperationalError

DEFAULT_FILE = "stdlib.tars"


def main() -> int:
    """Run the demonstration and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tarsdb.demo", description=__doc__)
    parser.add_argument(
        "--file", help=f"database to create (default {DEFAULT_FILE}, replaced when present)"
    )
    parser.add_argument("--limit", type=int, help="take only so many docstrings, evenly chosen")
    given = parser.parse_args()
    try:
        tell(_fresh(given.file), given.limit)
    except Error as error:
        print_error(error, sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what was committed is in the file", file=sys.stderr)
        return 130
    return 0


def _fresh(chosen: str | None) -> Path:
    path = Path(chosen or DEFAULT_FILE)
    if path.exists():
        if chosen is not None:
            raise OperationalError(f"{chosen!r} exists", hint="name a file that does not")
        path.unlink()
        path.with_name(path.name + "-lock").unlink(missing_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
