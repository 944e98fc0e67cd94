"""The cache directory is used only when it is the user's own and nobody else can write to it."""

from __future__ import annotations

import os
import pathlib

import pytest

from tarsdb import user_cache
from tarsdb.kernels.cpu import disk_cache


@pytest.fixture
def root(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(user_cache.FOLDER_VARIABLE, str(folder))
    return folder


def test_a_folder_is_made_private(root: pathlib.Path) -> None:
    assert user_cache.private_folder("a", "b") == root.resolve() / "a" / "b"
    assert (root / "a" / "b").stat().st_mode & 0o777 == 0o700
    (root / "a" / "b").chmod(0o755)  # readable by others: made private again
    assert user_cache.private_folder("a", "b") is not None
    assert (root / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("at", ["", "a", "a/b"])
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_write_to_is_not_used(root: pathlib.Path, at: str, mode: int) -> None:
    assert user_cache.private_folder("a", "b") is not None
    (root / at).chmod(mode)
    assert user_cache.private_folder("a", "b") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("at", ["", "a", "a/b"])
def test_a_folder_of_another_user_is_not_used(root: pathlib.Path, at: str) -> None:
    assert user_cache.private_folder("a", "b") is not None
    os.chown(root / at, 12345, -1)
    assert user_cache.private_folder("a", "b") is None


def test_links_and_files_on_the_way_are_not_used(root: pathlib.Path) -> None:
    assert user_cache.private_folder("a") is not None
    (root / "link").symlink_to(root / "a")
    assert user_cache.private_folder("link") is None
    (root / "file").touch()
    assert user_cache.private_folder("file") is None


def test_kernels_follow_the_same_rule(root: pathlib.Path) -> None:
    folder = disk_cache.kernel_folder()
    assert folder is not None and folder.parent == root.resolve() / "kernels"
    folder.chmod(0o777)
    assert disk_cache.kernel_folder() is None
