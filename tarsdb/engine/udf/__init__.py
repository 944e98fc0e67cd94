"""Sandboxed functions: created, called, their results kept, what they may ask for."""
