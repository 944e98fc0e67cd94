"""The process that holds Hyperlight sandboxes: one request at a time, killed when it is late.

``run`` of a sandbox holds the interpreter's lock and knows no time limit, so sandboxes live in a
process of their own. Usage: ``python -I -S worker.py SEARCH_PATH...``, requests on standard
input, replies on standard output. Imports nothing of tarsdb and trusts what its parent sends; a
guest reaches it through Hyperlight only.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from typing import Any, BinaryIO

REQUEST = struct.Struct("<cIdI")  # kind, sandbox, seconds it may take, bytes that follow
REPLY = struct.Struct("<cI")  # outcome, bytes that follow
LOAD, RUN, SNAPSHOT, RESTORE, DROP = b"L", b"R", b"S", b"T", b"D"
DONE, FAILED = b"d", b"f"


class Sandboxes:
    """Sandboxes by number, each with the snapshot it returns to."""

    def __init__(self) -> None:
        from hyperlight_sandbox_backend_wasm import WasmSandbox

        self._make = WasmSandbox
        self._held: dict[int, Any] = {}
        self._snapshots: dict[int, Any] = {}

    def answer(self, kind: bytes, number: int, payload: bytes) -> str:
        """Carry out one request."""
        if kind == RUN:
            return _run(self._held[number], payload.decode())
        if kind == RESTORE:
            self._held[number].restore(self._snapshots[number])
        elif kind == SNAPSHOT:
            self._snapshots[number] = self._held[number].snapshot()
        elif kind == DROP:
            self._held.pop(number, None)
            self._snapshots.pop(number, None)
        else:
            return self._load(number, payload)
        return ""

    def _load(self, number: int, payload: bytes) -> str:
        """Make a sandbox of a line of JSON and, where that names no path, an artefact."""
        head, _, artefact = payload.partition(b"\n")
        wanted = json.loads(head)
        place = -1
        if not wanted["path"]:
            place = os.memfd_create("artefact")
            with os.fdopen(os.dup(place), "wb") as file:
                file.write(artefact)
        try:
            sandbox = self._make(
                module_path=wanted["path"] or f"/proc/self/fd/{place}",
                heap_size=f"{wanted['heap']}Mi", stack_size=f"{wanted['stack']}Mi",
            )  # fmt: skip
            said = _run(sandbox, wanted["first"])
        finally:
            if place >= 0:
                os.close(place)
        self._held[number] = sandbox
        return said


def _run(sandbox: Any, text: str) -> str:
    result = sandbox.run(text)
    if result.exit_code:
        raise RuntimeError(f"exit {result.exit_code}: {result.stderr}")
    return str(result.stdout)


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until the parent closes its end.

    The alarm's default action ends this process even while the interpreter's lock is held, should
    the parent be gone when a guest loops.
    """
    sandboxes = Sandboxes()
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        kind, number, seconds, size = REQUEST.unpack(head)
        payload = requests.read(size)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            outcome, said = DONE, sandboxes.answer(kind, number, payload)
        except Exception as error:
            outcome, said = FAILED, f"{type(error).__name__}: {error}"
        signal.setitimer(signal.ITIMER_REAL, 0)
        data = said.encode(errors="replace")
        replies.write(REPLY.pack(outcome, len(data)) + data)
        replies.flush()


def main(search_path: list[str]) -> None:
    """Serve on the standard streams; what libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path[:] = search_path
    serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main(sys.argv[1:])
