"""SQLite's sqllogictest files through tarsdb's connection and storage: the share that agrees.

Files come from ``../shared/data/sqllogictest``. Speed is printed, not claimed. ``--sample N`` takes
N queries of each file by a fixed seed; without it all run, some minutes.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from typing import Any

from benchmarks import harness, inputs
from tests.slt.runner import run_file

PACKAGES = ("duckdb", "sqlglot")


def run(sample: int) -> dict[str, Any]:
    """Run all files and return the record that is stored."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(inputs.LOGIC.rglob("*.test")):
        start = time.perf_counter()
        outcome = run_file(path, sample or None)
        name = path.relative_to(inputs.LOGIC).as_posix()
        files[name] = {
            "passed": outcome.passed, "total": outcome.total, "rate": outcome.rate,
            "refused_as_postgresql": outcome.refused, "seconds": time.perf_counter() - start,
        }  # fmt: skip
        print(f"  {name}: {outcome.passed}/{outcome.total}", flush=True)
    groups = {
        "select": [f for name, f in files.items() if "/" not in name],
        "random": [f for name, f in files.items() if "/" in name],
    }
    rates = {name: _rate(found) for name, found in groups.items()}
    return {"files": files, "rate": rates, "sample": sample or "all"}


def _rate(files: list[dict[str, Any]]) -> float | None:
    total = sum(file["total"] for file in files)
    return sum(file["passed"] for file in files) / total if total else None


def main() -> None:
    """Run and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=0)
    given = parser.parse_args()
    if not pathlib.Path(inputs.LOGIC).is_dir():
        print("  skipped: ../shared/data/sqllogictest is absent")
        return
    record = run(given.sample)
    print(f"  {record['rate']}")
    harness.write("sql_logic", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
