"""``LIKE`` over a column of texts: ``%`` stands for any characters, ``_`` for one.

Case counts, and no character escapes another, as in DuckDB and SQLite. Arrow compares; its own LIKE
has a backslash as an escape, so a pattern with one goes as a regular expression.
"""

from __future__ import annotations

import re

import numpy as np

from tarsdb.columns import Column


def matches(texts: Column, pattern: str) -> np.ndarray:
    """Return which rows of a TEXT column match, bool (rows,); False where NULL."""
    import pyarrow.compute as pc  # most processes need none of it

    from tarsdb.engine.arrow import to_arrow

    array = to_arrow(texts)
    if "\\" in pattern:
        found = pc.match_substring_regex(array, _regular(pattern))
    else:
        found = pc.match_like(array, pattern)
    return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False))


def _regular(pattern: str) -> str:
    """Return a pattern as a regular expression of the whole text."""
    plain = re.sub(r"[!-/:-@\[-^`{-~]", r"\\\g<0>", pattern.replace("%", "\0any"))
    return "(?s)\\A" + plain.replace("_", ".").replace("\0any", ".*") + "\\z"
