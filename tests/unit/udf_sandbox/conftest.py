"""Fixtures of this folder's tests."""

from __future__ import annotations

from tests.sandbox.backends import each_backend

__all__ = ["each_backend"]
