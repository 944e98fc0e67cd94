"""Run benchmarks: ``python -m benchmarks [WORKLOAD...]``, all of them unless named.

Each workload is a process of its own, so that none inherits another's caches or threads.
"""

from __future__ import annotations

import argparse
import pkgutil
import subprocess
import sys

from benchmarks import workloads


def main() -> int:
    """Run the workloads and return how many failed."""
    known = sorted(module.name for module in pkgutil.iter_modules(workloads.__path__))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(known))
    chosen = parser.parse_args().workloads or known
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"no such workload: {', '.join(unknown)}; there are {', '.join(known)}")
    failed = 0
    for name in chosen:
        print(f"== {name}", flush=True)
        failed += bool(subprocess.call([sys.executable, "-m", f"benchmarks.workloads.{name}"]))
    return failed


if __name__ == "__main__":
    sys.exit(main())
