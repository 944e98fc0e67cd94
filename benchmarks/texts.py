"""Texts to embed: the standard library's docstrings, as they are and cut to given lengths."""

from __future__ import annotations

import ast
import pathlib
import sysconfig

import numpy as np

MEDIAN_WORDS, SPREAD, LONGEST_WORDS = 34, 0.8, 200
"""Of the lengths of mixed texts, lognormal; with MiniLM's tokenizer a mean of about 76 tokens."""


def docstrings(count: int | None = None) -> list[str]:
    """Return docstrings of the standard library, spread over its modules."""
    found: dict[str, None] = {}
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node)
                if text:
                    found[text] = None
    texts = list(found)
    return texts if count is None else texts[:: max(1, len(texts) // count)][:count]


def mixed_texts(count: int, seed: int = 1) -> list[str]:
    """Return texts whose numbers of words are lognormal, cut from all docstrings in a row."""
    random = np.random.default_rng(seed)
    words = " ".join(docstrings()).split()
    wanted = random.lognormal(np.log(MEDIAN_WORDS), SPREAD, count)
    lengths = np.clip(wanted, 2, LONGEST_WORDS).astype(int)
    starts = random.integers(0, len(words) - LONGEST_WORDS, count)
    return [" ".join(words[at : at + length]) for at, length in zip(starts, lengths, strict=True)]
