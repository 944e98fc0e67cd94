"""The ``tarsdb`` command: a shell over one database file, and one-shot commands for scripts.

Knows the Python interface of :mod:`tarsdb.database` and how to print; it opens no file itself.
"""

from __future__ import annotations

from tarsdb.cli.main import main

__all__ = ["main"]
