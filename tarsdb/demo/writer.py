"""The writer that the demonstration kills: inserts rows one by one and acknowledges each.

``python -m tarsdb.demo.writer FILE`` prints the id of a row once its insert has returned.
"""

from __future__ import annotations

import os
import sys
from itertools import count

from tarsdb.database import connect


def main() -> None:
    """Insert until killed."""
    with connect(sys.argv[1]) as db:
        for number in count(1):
            db.execute(
                "INSERT INTO journal (id, note) VALUES (?, ?)", [number, f"note {number} " * 8]
            )
            os.write(1, f"{number}\n".encode())  # one write: a line is whole or absent


if __name__ == "__main__":
    main()
