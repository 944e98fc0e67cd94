"""Kernels compiled by Numba; the only place that imports it. Imported by ``dispatch`` alone."""
