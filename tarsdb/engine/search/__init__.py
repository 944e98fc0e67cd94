"""Nearest-neighbour search: what a statement asks of vector indexes and exact scans."""
