"""The structural check: its one false alarm, its time limit, and what the verifier misses."""

from __future__ import annotations

import pathlib

import lmdb
import pytest

from tarsdb.errors import CorruptionError
from tarsdb.metrics import METRICS
from tarsdb.storage import filesystems, forking, verify


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "t")


def write(path: str, *batches: list[tuple[bytes, int]]) -> None:
    env = lmdb.open(path, subdir=False, lib_version=0, map_size=1 << 26)
    for batch in batches:
        with env.begin(write=True) as txn:
            for key, size in batch:
                txn.put(key, bytes(size))
    env.close()


def test_the_false_alarm_is_benign(path: str) -> None:
    write(path, [(b"k", 20000), (b"k", 900), (b"m", 90000), (b"m", 50000)])
    problems, _ = verify.find_problems(path, None)
    assert len(problems) >= 3
    assert verify.check_structure(path, None)


def test_the_false_alarm_hides_nothing_else(path: str) -> None:
    write(path, [(b"k", 20000), (b"k", 900)])
    problems, _ = verify.find_problems(path, None)
    for other in (["page 3 is bad"], ["9 page(s) are both reachable and in the freeDB"]):
        assert verify.without_false_alarms(problems + other) == problems + other
    assert verify.without_false_alarms(problems[:2]) == problems[:2]
    more = [p.replace("4 page(s)", "5 page(s)") for p in problems]
    assert verify.without_false_alarms(more) == more


def test_a_value_cut_by_truncation_is_found(path: str) -> None:
    """lmdb's verifier reads the first page of a value only."""
    write(path, [(b"k", 50000)])
    whole = pathlib.Path(path).read_bytes()
    assert verify.check_structure(path, None)
    for cut in range(4096, 40960, 4096):
        pathlib.Path(path).write_bytes(whole[:-cut])
        with pytest.raises(CorruptionError):
            verify.check_structure(path, None)
    with pytest.raises(CorruptionError):
        verify.check_structure(path, 0.0)


def test_the_time_is_bounded_and_counted(path: str) -> None:
    write(path, [(b"%05d" % n, 100) for n in range(2000)])
    before = METRICS.snapshot().get("storage.verify_skipped", 0)
    assert verify.check_structure(path, 0.0) is False
    assert METRICS.snapshot()["storage.verify_skipped"] == before + 1


MOUNTS = [
    "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw",
    "30 22 0:30 / /mnt/my\\040share rw - nfs4 server:/x rw",
    "31 30 0:31 / /mnt/my\\040share/local rw - xfs /dev/b rw",
    "broken line",
]


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/", "ext4"),
        ("/home/a", "ext4"),
        ("/mnt/my share", "nfs4"),
        ("/mnt/my share/a", "nfs4"),
        ("/mnt/my share/local/b", "xfs"),
        ("/mnt/my shareholder", "ext4"),
    ],
)
def test_filesystem_types(directory: str, kind: str) -> None:
    assert filesystems.type_from_mounts(directory, MOUNTS) == kind


def test_mapped_ranges() -> None:
    lines = [
        "7f00-7f10 rw-s 00000000 fe:00 12 /a/b c.tars-lock",
        "8f00-8f20 rw-s 00000000 fe:00 12 /a/b c.tars",
        "9f00-9f20 rw-s 00000000 fe:00 12 /a/b c.tars-lock (deleted)",
        "af00-af20 rw-p 00000000 00:00 0",
    ]
    assert forking.ranges_of("/a/b c.tars-lock", lines) == [(0x7F00, 0x10), (0x9F00, 0x20)]
