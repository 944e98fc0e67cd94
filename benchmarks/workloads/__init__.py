"""One file per workload; each has ``run()`` and writes one JSON result."""
