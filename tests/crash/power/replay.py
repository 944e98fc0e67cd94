"""Opens every crash state of a recorded log and compares it with what was acknowledged.

Arguments: folder with ``base`` and ``log``, durability, threads, number of states, seed, and
``ignore-syncs`` for the negative control. Prints one line of JSON. A process of its own, because a
state LMDB should never see may end it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import sys
import time
from pathlib import Path

from tarsdb.errors import Error
from tarsdb.options import OpenOptions
from tarsdb.storage import Environment
from tests.crash.power import scenario
from tests.crash.power.crash_states import Crash, crash_states, read_log

OPTIONS = OpenOptions(check=True, create=False, background_merge=False, map_size_bytes=1 << 28)


def violations(path: Path, crash: Crash, durability: str, threads: int) -> list[str]:
    """Return what a state breaks: it must open, be sound, and hold the acknowledged commits."""
    try:
        env = Environment.open(path, OPTIONS)
    except Error as error:
        return [f"does not open: {error}"]
    try:
        wrong, done, commit = scenario.findings(env, threads)
    except (Error, AssertionError) as error:
        return [f"does not read: {error}"]
    finally:
        env.release()
    lost = [mark for mark in crash.marks if mark.step > done[mark.thread]]
    last = max((mark.commit for mark in crash.marks), default=0)
    if durability == "relaxed":
        allowed = [mark for mark in lost if mark.commit == last]
        lost = [mark for mark in lost if mark not in allowed]
        last -= 1
    if commit < last:
        wrong.append(f"lost: the last commit is {commit}, {last} was acknowledged")
    return wrong + [f"lost: {mark}" for mark in lost]


def main(folder: Path, durability: str, threads: int, limit: int, seed: int, mode: str) -> None:
    """Verify states until the limit; print the counts and the first violations."""
    rng = random.Random(seed)
    base, records = (folder / "base").read_bytes(), read_log(folder / "log")
    path = folder / "state.tars"
    seen: set[bytes] = set()
    found: list[str] = []
    states = 0
    started = time.monotonic()
    for crash in crash_states(base, records, rng, limit, mode != "ignore-syncs"):
        states += 1
        digest = hashlib.blake2b(crash.image + repr(crash.marks).encode()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        for leftover in (path, path.with_name("state.tars-lock")):
            with contextlib.suppress(FileNotFoundError):
                leftover.unlink()
        path.write_bytes(crash.image)
        wrong = violations(path, crash, durability, threads)
        found += [f"moment {crash.point} of {len(records)}, {crash.kind}: {w}" for w in wrong[:1]]
    answer = {
        "records": len(records),
        "states": states,
        "distinct": len(seen),
        "violations": len(found),
        "first": found[:5],
        "lost": sum(": lost:" in text for text in found),
        "seconds": round(time.monotonic() - started, 2),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(
        Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]),
        sys.argv[6] if len(sys.argv) > 6 else "",
    )  # fmt: skip
