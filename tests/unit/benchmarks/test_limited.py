"""The groups that hold a benchmark under a limit of memory; folders stand for the system's."""

from __future__ import annotations

import os
import pathlib

import pytest

from benchmarks.limited import limited

V1 = "9:name=systemd:/\n4:memory:/jobs/one\n1:cpu:/\n0::/\n"
V2 = "0::/jobs/one\n"


@pytest.fixture
def emptied(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Files of groups are removed with them, as the system does; what they held is kept here."""
    held: list[dict[str, str]] = []

    def removed(group: pathlib.Path) -> None:
        held.append({file.name: file.read_text() for file in group.iterdir()})
        for file in group.iterdir():
            file.unlink()
        os.rmdir(group)

    monkeypatch.setattr(pathlib.Path, "rmdir", removed)
    return held


@pytest.mark.parametrize(
    ("own", "home", "within", "file"),
    [
        (V1, "memory/jobs/one", "memory/jobs/one", "memory.limit_in_bytes"),
        (V2, "jobs/one", ".", "memory.max"),
    ],
)
def test_the_process_is_under_the_limit_and_comes_back(
    tmp_path: pathlib.Path, emptied: list[dict[str, str]],
    own: str, home: str, within: str, file: str,
) -> None:  # fmt: skip
    (tmp_path / home).mkdir(parents=True)
    (tmp_path / "own").write_text(own)
    if own == V2:
        (tmp_path / "cgroup.controllers").write_text("memory")
    me = str(os.getpid())
    group = tmp_path / within / f"tarsdb-bench-{me}"
    with limited(12345, tmp_path, tmp_path / "own") as state:
        assert state == "applied"
        assert (group / file).read_text() == "12345"
        assert (group / "cgroup.procs").read_text() == me
        assert not (tmp_path / home / "cgroup.procs").exists()
    assert emptied == [{file: "12345", "cgroup.procs": me}]
    assert (tmp_path / home / "cgroup.procs").read_text() == me
    assert not group.exists()


@pytest.mark.parametrize(
    ("own", "why"), [("0::/\n", "no controller of memory"), (V1, "No such file or directory")]
)
def test_why_there_is_no_limit(tmp_path: pathlib.Path, own: str, why: str) -> None:
    (tmp_path / "own").write_text(own)
    with limited(12345, tmp_path, tmp_path / "own") as state:
        assert state == f"not applied: {why}"
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
