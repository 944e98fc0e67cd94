"""The child of the key-value crash test: commits until it is killed, acknowledging each commit.

Arguments: file, acknowledgement file, durability, threads. With CHEAT in place of a durability each
commit is acknowledged before it is made: the negative control.
"""

from __future__ import annotations

import os
import sys
import threading

from tarsdb.options import Durability, OpenOptions
from tarsdb.storage.environment import Environment
from tarsdb.storage.transaction import WriteTxn
from tarsdb.storage.values import ValueType, pack

SIZES = (20, 700, 5000, 60000)


class Step:
    """Two keys that must appear together, and a third that is overwritten each time."""

    def __init__(self, token: bytes) -> None:
        self.token = token

    def validate(self, txn: WriteTxn) -> None:
        pass

    def apply(self, txn: WriteTxn) -> None:
        number = txn.commit_number
        key = number.to_bytes(8, "big")
        body = self.token.ljust(SIZES[number % 4], b".")
        txn.put("delta", key, pack(ValueType.DELTA, key, body, 1, number))
        txn.put("tombs", self.token, key)
        txn.put("meta", b"last", key)
        if number > 40:
            txn.delete("blocks", (number - 40).to_bytes(8, "big"))
        txn.put("blocks", key, pack(ValueType.BLOCK, key, body, 1, number))

    def log(self) -> list[dict[str, object]]:
        return [{"token": self.token.decode()}]


def main(path: str, acknowledged: str, durability: str, threads: int) -> None:
    """Commit for ever from several threads."""
    env = Environment.open(path, OpenOptions(lock_timeout_s=30))
    out = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def work(thread: int) -> None:
        step = 0
        while True:
            step += 1
            token = b"%d-%d-%d" % (os.getpid(), thread, step)
            if durability == "CHEAT":
                with env.read() as txn:
                    os.write(out, b"%d %s\n" % (txn.commit_number + 1, token))
                env.commit(Step(token))
            else:
                info = env.commit(Step(token), Durability(durability))
                os.write(out, b"%d %s\n" % (info.number, token))

    for thread in range(1, threads):
        threading.Thread(target=work, args=(thread,), daemon=True).start()
    work(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
