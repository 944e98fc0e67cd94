"""Benchmarks: workloads, adapters of rivals, a harness. `python -m benchmarks` runs them."""
