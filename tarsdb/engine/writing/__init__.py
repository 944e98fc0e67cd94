"""Rows written: defaults, constraints, triggers, conflicts, files."""
