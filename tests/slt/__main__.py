"""Print how the named sqllogictest files go: ``python -m tests.slt [--sample N] FILE...``."""

from __future__ import annotations

import argparse
import pathlib

from tests.slt.runner import run_file


def main() -> None:
    """Run the files named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="queries of each file, all unless given")
    parser.add_argument("--show", type=int, default=5, help="disagreements to print for each file")
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    given = parser.parse_args()
    passed = total = 0
    for path in given.files:
        outcome = run_file(path, given.sample)
        print(outcome, flush=True)
        for failure in outcome.failures[: given.show]:
            print(f"  {failure}")
        passed += outcome.passed
        total += outcome.total
    print(f"all: {passed}/{total} = {passed / max(total, 1):.4%}")


main()
