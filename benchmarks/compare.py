"""Two folders of results side by side: ``python -m benchmarks.compare OLD NEW``.

Prints every number both have and how much it changed; ``--changes P`` leaves out what moved by less
than P percent. Absolute times compare only between runs on one machine: the machines are printed.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.claim import Record, Records
from benchmarks.claims import load

SKIPPED = ("machine", "versions", "date", "data")


def numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield (dotted name, number) of a record."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if not prefix and key in SKIPPED:
            continue
        if isinstance(value, Mapping):
            yield from numbers(value, name + ".")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)


def flat(records: Records) -> dict[str, Record]:
    """Return records by workload and level."""
    return {
        f"{workload}, {level}": record
        for workload, found in records.items()
        for level, record in found.items()
    }


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("old", type=pathlib.Path)
    parser.add_argument("new", type=pathlib.Path)
    parser.add_argument("--changes", type=float, default=0.0, metavar="PERCENT")
    given = parser.parse_args()
    old, new = flat(load(given.old)), flat(load(given.new))
    for workload in sorted(old.keys() & new.keys()):
        cpus = [side[workload].get("machine", {}).get("cpu") for side in (old, new)]
        print(f"\n{workload} ({' -> '.join(map(str, dict.fromkeys(cpus)))})")
        after = dict(numbers(new[workload]))
        for name, before in numbers(old[workload]):
            if name not in after:
                continue
            change = (after[name] / before - 1) * 100 if before else float("nan")
            if before == after[name] or abs(change) < given.changes:
                continue
            print(f"  {name:<60} {before:14.6g} {after[name]:14.6g} {change:+8.1f} %")
    for missing in sorted(old.keys() ^ new.keys()):
        print(f"\n{missing}: only in {'the first' if missing in old else 'the second'}")


if __name__ == "__main__":
    main()
