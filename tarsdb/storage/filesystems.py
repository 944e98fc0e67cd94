"""What the system says about a file's filesystem: kind, room, and syncing to it.

Remote filesystems are refused, because LMDB's locks need one kernel. Knows nothing about databases.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys

from tarsdb.errors import NotSupportedError

_REMOTE = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "afs",
        "coda",
        "ncpfs",
        "9p",
        "ceph",
        "glusterfs",
        "lustre",
        "gpfs",
        "ocfs2",
        "gfs2",
        "orangefs",
        "beegfs",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.gcsfuse",
        "fuse.goofys",
        "fuse.rclone",
        "fuse.davfs",
        "davfs",
    }
)
_MOUNTS = "/proc/self/mountinfo"


def _unescape(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def filesystem_type(path: str) -> str:
    """Return the filesystem type of a path as in ``mountinfo``, or '' when it cannot be told."""
    if not sys.platform.startswith("linux"):
        return ""
    directory = os.path.realpath(path if os.path.isdir(path) else os.path.dirname(path) or ".")
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
            return type_from_mounts(directory, mounts.read().splitlines())
    except OSError:
        return ""


def type_from_mounts(directory: str, lines: list[str]) -> str:
    """Return the type of the longest mount point that contains `directory`; the last one wins."""
    best, kind = "", ""
    for line in lines:
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = _unescape(fields[4])
        inside = directory == point or directory.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split(" ", 1)[0]
    return kind


def sync_data(fd: int) -> None:
    """Make what was written to a file durable, as far as the platform can promise it."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync there leaves data in the drive's cache
    else:
        os.fdatasync(fd)


def open_again(fd: int, path: str) -> int:
    """Return another descriptor of an open file, with the same rights and locks of its own.

    Raises
    ------
    OSError
        The file is no longer at its path.
    """
    rights = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    found = os.open(path, rights | os.O_CLOEXEC)
    if not os.path.sameopenfile(fd, found):
        os.close(found)
        raise FileNotFoundError(errno.ENOENT, "the file was replaced while it was open", path)
    return found


def room(fd: int) -> tuple[int, int]:
    """Return by how many bytes a file can grow, and the size of what limits it."""
    space = os.fstatvfs(fd)
    left, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    try:
        import resource
    except ImportError:
        return left, total
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return left, total
    return min(left, limit - os.fstat(fd).st_size), min(total, limit)


def require_local(path: str) -> None:
    """Raise NotSupportedError when `path` is on a remote filesystem."""
    kind = filesystem_type(path)
    if kind in _REMOTE:
        raise NotSupportedError(
            f"{path}: on a {kind} filesystem; memory-mapped locks do not work over a network",
            hint="keep the file on a local disk",
        )
