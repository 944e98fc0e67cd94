"""SQLite's logic tests through tarsdb: the share of records that agree, file by file.

Needs ``../shared/data/sqllogictest`` beside the checkout. Failures on records that the files mark
as refused by PostgreSQL are counted as failures and shown apart.
"""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks import harness
from tests.slt.runner import run_file
from tests.slt.test_sqllogictest import FOLDER


def main() -> int:
    """Run every file, or a sample of its queries, and store the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="queries of each file, all unless given")
    sample = parser.parse_args().sample
    files = sorted(FOLDER.rglob("*.test"))
    if not files:
        print("no sqllogictest files beside the checkout", file=sys.stderr)
        return 1
    start = time.perf_counter()
    figures = {}
    for path in files:
        outcome = run_file(path, sample)
        print(outcome, flush=True)
        figures[path.name] = {
            "records": outcome.total,
            "passed": outcome.passed,
            "refused_as_postgresql": outcome.refused,
            "for_other_engines": outcome.skipped,
        }
    passed = sum(figure["passed"] for figure in figures.values())
    total = sum(figure["records"] for figure in figures.values())
    print(f"all: {passed}/{total} = {passed / total:.4%}")
    if sample is None:
        record = {
            "files": figures,
            "records": total,
            "passed": passed,
            "seconds": round(time.perf_counter() - start, 1),
        }
        harness.write("sqllogictest", {**record, **harness.environment(("duckdb", "sqlglot"))})
    return 0


if __name__ == "__main__":
    sys.exit(main())
