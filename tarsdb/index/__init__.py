"""Nearest neighbours on arrays. Knows no storage and no SQL text."""
