"""``tarsdb verify-model``: a model directory's outputs beside those of transformers."""

from __future__ import annotations

import argparse
import sys

from tarsdb.cli import render

HEADER = ("text", "output", "difference", "cosine", "verdict")
_SHOWN = 40  # characters of a text


def verify_model(arguments: argparse.Namespace) -> int:
    """Print every comparison and a verdict; 0 when all outputs agree, else 1."""
    from tarsdb.model_ops.verification import SAMPLES, TOLERANCE, verify_model

    found = list(verify_model(arguments.model, arguments.text or SAMPLES))
    rows = [
        (one.text if len(one.text) <= _SHOWN else one.text[: _SHOWN - 3] + "...", one.output,
         one.difference, one.cosine, "equal" if one.equal else "DIFFERENT")
        for one in found
    ]  # fmt: skip
    render.WRITERS[arguments.format](HEADER, rows, sys.stdout)
    wrong = sum(not one.equal for one in found)
    verdict = f"{wrong} of {len(found)} outputs differ" if wrong else f"{len(found)} outputs agree"
    print(f"{arguments.model}: {verdict} (tolerance {TOLERANCE:g})", file=sys.stderr)
    return 1 if wrong else 0
