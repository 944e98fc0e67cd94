"""``graph_index`` again with AVX2 kernels only: a child process with ``TARSDB_ISA=avx2``.

hnswlib runs as it was compiled. Writes ``results/graph_avx2.json``.
"""

from __future__ import annotations

import os
import subprocess
import sys


def main() -> int:
    """Measure and store; arguments are those of ``graph_index``."""
    command = [sys.executable, "-m", "benchmarks.workloads.graph_index", "--store", "graph_avx2",
               "--rivals", "hnswlib"]  # fmt: skip
    return subprocess.call([*command, *sys.argv[1:]], env={**os.environ, "TARSDB_ISA": "avx2"})


if __name__ == "__main__":
    sys.exit(main())
