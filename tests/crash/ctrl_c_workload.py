"""The child of the Ctrl-C test: three connections insert; the main thread is interrupted again and
again and goes on with the same connection.

Arguments: file, acknowledgement file, durability. Ends when the file ``<acknowledgements>.stop`` is
there.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from typing import Any

import numpy as np

import tarsdb
from tarsdb.errors import OperationalError

ROWS = 5
BULK = 300
LINE = b"%s\n"


def insert(connection: Any, token: str) -> None:
    """Make one transaction: a line in a table without any key, and rows that belong to it."""
    with connection.transaction():
        connection.execute("INSERT INTO log VALUES (?)", (token,))
        count = BULK if token.endswith("0") else ROWS
        rows = [(f"{token}/{i}", token, np.full(16, i, np.float32)) for i in range(count)]
        connection.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)


def main(path: str, acknowledged: str, durability: str) -> None:
    """Insert until told to stop."""
    faulthandler.register(signal.SIGUSR1)
    out = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    steps = {"main": 0, "one": 0, "two": 0}

    def work(name: str, connection: Any) -> None:
        while not os.path.exists(acknowledged + ".stop"):
            steps[name] += 1
            token = f"{name}-{steps[name]}"
            insert(connection, token)
            os.write(out, LINE % token.encode())

    def follow(name: str) -> None:
        with tarsdb.connect(path, durability=durability) as connection:
            work(name, connection)

    connection = tarsdb.connect(path, durability=durability)
    threads = [threading.Thread(target=follow, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    while not os.path.exists(acknowledged + ".stop"):
        try:
            work("main", connection)
        except KeyboardInterrupt:
            continue
        except OperationalError as error:  # InterruptError, where the engine turned it into one
            print(f"{type(error).__name__}: {error}", flush=True)
    for thread in threads:
        thread.join()
    connection.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3])
