"""A person at the shell: a pseudo-terminal, with history, errors and interrupts."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r|\x1b\][^\x07]*\x07")


class Terminal:
    """A shell on a pseudo-terminal."""

    def __init__(self, path: Path, state: Path) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "XDG_STATE_HOME": str(state), "TERM": "xterm", "COLUMNS": "80"}
        environment["PROMPT_TOOLKIT_NO_CPR"] = "1"
        script = "import sys; from tarsdb.cli import main; sys.exit(main())"
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(slave)
        self.unread = ""

    def expect(self, text: str, timeout_s: float = 30) -> str:
        """Read until a text appears; return what came up to its end."""
        deadline = time.monotonic() + timeout_s
        while text not in ESCAPES.sub("", self.unread):
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise AssertionError(f"{text!r} did not come; saw {ESCAPES.sub('', self.unread)!r}")
            self.unread += os.read(self.master, 65536).decode("utf-8", "replace")
        came, found, self.unread = ESCAPES.sub("", self.unread).partition(text)
        return came + found

    def send(self, text: str) -> None:
        """Type."""
        os.write(self.master, text.encode())

    def answer(self, text: str) -> str:
        """Read until a text and the next prompt have come: keys typed earlier may be lost."""
        return self.expect(text) + self.expect("tarsdb>")

    def close(self) -> None:
        """End the session."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    session = Terminal(tmp_path / "notes.tars", tmp_path / "state")
    try:
        session.expect("tarsdb>")
        yield session
    finally:
        session.close()


def test_a_session(terminal: Terminal, tmp_path: Path) -> None:
    terminal.send("CREATE TABLE t (id INT);\r")
    terminal.answer("ok")
    terminal.send("INSERT INTO t\r")
    terminal.expect("...>")
    terminal.send("VALUES (41), (42);\r")
    terminal.answer("2 rows changed")
    terminal.send("SELECT id + 1 AS next FROM t;\r")
    assert "43" in terminal.answer("2 rows,")
    terminal.send("SELECT wrong FROM t;\r")
    assert "wrong" in terminal.answer("BindError")
    terminal.send(".quit\r")
    terminal.process.wait(20)
    assert terminal.process.returncode == 0
    assert "INSERT INTO t" in (tmp_path / "state" / "tarsdb" / "history").read_text()


def test_interrupt_keeps_the_session(terminal: Terminal) -> None:
    terminal.send(
        "SELECT count(*) FROM range(100000000000) a, range(1000) b WHERE a.range % 7 = b.range;\r"
    )
    time.sleep(3)
    terminal.send("\x03")
    terminal.answer("InterruptError")
    terminal.send("SELECT 6 * 7 AS answer;\r")
    assert "42" in terminal.answer("1 row,")
    terminal.send("\x04")
    terminal.process.wait(20)
    assert terminal.process.returncode == 0
