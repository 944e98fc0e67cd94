"""The recorded process: steps of the scenario, acknowledged by marks, with merges and a vacuum.

Arguments: data file, marks file, durability, threads, steps of each thread.
"""

from __future__ import annotations

import os
import sys
import threading

from tarsdb.errors import ConflictError
from tarsdb.options import Durability, OpenOptions
from tarsdb.storage import Environment, merge, staging, vacuum
from tests.crash.power import scenario


def main(path: str, marks: str, durability: str, threads: int, steps: int) -> None:
    """Run until every thread took its steps."""
    staging.STAGE_BYTES = 1  # every load is staged
    options = OpenOptions(
        durability=Durability(durability),
        background_merge=False,
        segment_rows=256,
        lock_timeout_s=60.0,
    )
    env = Environment.open(path, options)
    out = os.open(marks, os.O_WRONLY | os.O_APPEND)

    def work(thread: int) -> None:
        for step in range(1, steps + 1):
            while True:
                try:
                    number = scenario.take_step(env, thread, step)
                    break
                except ConflictError:
                    continue
            os.write(out, b"%d %d %d" % (thread, step, number))
            if thread == 0 and step % 4 == 3:
                merge(env, force=True)
            if thread == 0 and step % 16 == 15:
                vacuum(env)

    others = [threading.Thread(target=work, args=(n,)) for n in range(1, threads)]
    for other in others:
        other.start()
    work(0)
    for other in others:
        other.join()
    env.release()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
