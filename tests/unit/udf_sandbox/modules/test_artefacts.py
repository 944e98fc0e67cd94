"""Kept native code: only what we wrote ourselves is ever read back, and not too much of it."""

from __future__ import annotations

import os
import pathlib
import threading

import pytest
import wasmtime

from tarsdb.columns import from_list
from tarsdb.metrics import METRICS
from tarsdb.types import BIGINT
from tarsdb.udf_sandbox import ScalarFunction, to_wasm
from tarsdb.udf_sandbox.in_process import wasmtime_backend
from tarsdb.udf_sandbox.modules import artefacts, compilation
from tarsdb.udf_sandbox.modules.artefacts import ArtefactCache
from tarsdb.user_cache import FOLDER_VARIABLE

NUMBERS = iter(range(10**6))


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Return the folder of a cache that is new, and that this process uses."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    fresh_process(monkeypatch)
    assert artefacts.artefacts().get("x") is None
    return tmp_path / "functions"


def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget compiled modules, as another process would know none."""
    monkeypatch.setattr(wasmtime_backend, "_runtime", None)
    monkeypatch.setattr(artefacts, "_cache", None)


def compilations() -> float:
    return METRICS.snapshot().get("udf.compilations", 0)


def entries(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.iterdir() if path.name != "key"]


def module() -> bytes:
    """Return a module no cache knows; its function has state, so that it is not fused."""
    return to_wasm(f"""(module (global $g (mut i64) (i64.const {next(NUMBERS)}))
      (func (export "f") (param i64) (result i64) (i64.add (local.get 0) (i64.const 1))))""")


def call(code: bytes) -> object:
    return ScalarFunction(code, "f", [BIGINT], BIGINT).call([from_list(BIGINT, [1])], 1).get(0)


def test_a_second_process_compiles_nothing(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, before = module(), compilations()
    assert call(code) == 2
    assert compilations() > before
    fresh_process(monkeypatch)
    before = compilations()
    assert call(code) == 2
    assert compilations() == before


@pytest.mark.parametrize("at", [0, 31, 32, 500, -1])
def test_a_changed_file_is_never_loaded(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    code = module()
    assert call(code) == 2
    written = {path: path.read_bytes() for path in entries(folder)}
    for path, raw in written.items():
        changed = bytearray(raw)
        changed[at] ^= 1
        path.write_bytes(changed)
    loaded = []
    load = wasmtime.Module.deserialize

    def deserialize(engine: wasmtime.Engine, native: bytes) -> wasmtime.Module:
        loaded.append(bytes(native))
        return load(engine, native)

    monkeypatch.setattr(wasmtime.Module, "deserialize", deserialize)
    fresh_process(monkeypatch)
    before = compilations()
    assert call(code) == 2
    assert compilations() == before + len(written)
    assert set(loaded) == {raw[32:] for raw in written.values()}
    assert {path: path.read_bytes() for path in entries(folder)} == written  # compiled anew


def test_a_file_made_under_another_key_is_not_loaded(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """An attacker who can write a file, but does not know the key."""
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    ArtefactCache(other).put("name", b"evil")
    ours = ArtefactCache(folder)
    ours.put("name", b"good")
    assert ours.get("name") == b"good"
    (folder / "name").write_bytes((other / "name").read_bytes())
    assert ours.get("name") is None
    assert not (folder / "name").exists()


def test_a_file_under_another_name_is_not_loaded(folder: pathlib.Path) -> None:
    cache = ArtefactCache(folder)
    cache.put("one", b"code of one")
    (folder / "one").rename(folder / "two")
    assert cache.get("two") is None


def test_without_the_key_everything_is_compiled_anew(folder: pathlib.Path) -> None:
    ArtefactCache(folder).put("name", b"good")
    assert ArtefactCache(folder).get("name") == b"good"
    (folder / "key").unlink()
    assert ArtefactCache(folder).get("name") is None


def test_a_key_that_others_can_read_is_not_used(folder: pathlib.Path) -> None:
    ArtefactCache(folder).put("name", b"good")
    assert (folder / "key").stat().st_mode & 0o777 == 0o600
    (folder / "key").chmod(0o644)
    cache = ArtefactCache(folder)
    assert cache.get("name") is None
    cache.put("other", b"x")
    assert not (folder / "other").exists()
    (folder / "key").chmod(0o600)
    assert ArtefactCache(folder).get("name") == b"good"


def test_a_folder_that_is_not_private_keeps_nothing(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.chmod(0o777)
    fresh_process(monkeypatch)
    assert call(module()) == 2
    assert entries(folder) == []


def test_many_threads_make_one_key(folder: pathlib.Path) -> None:
    (folder / "key").unlink()
    caches: list[ArtefactCache] = []
    threads = [threading.Thread(target=lambda: caches.append(ArtefactCache(folder)))
               for _ in range(8)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({cache._key for cache in caches}) == 1
    assert entries(folder) == []


def test_what_was_not_used_longest_goes_first(folder: pathlib.Path) -> None:
    cache = ArtefactCache(folder, max_bytes=10_000)
    for number in range(12):
        cache.put(str(number), bytes(1_000))
        os.utime(folder / str(number), (number, number))
        if number >= 3:
            assert cache.get("3") is not None
    kept = {path.name for path in entries(folder)}
    assert sum(path.stat().st_size for path in entries(folder)) <= 11_500
    assert "3" in kept and "0" not in kept and "11" in kept


def test_a_full_disk_or_read_only_folder_is_no_error(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(artefacts, "_write", fail)
    assert call(module()) == 2
    assert entries(folder) == []


def test_settings_and_versions_are_in_the_name() -> None:
    assert len({compilation._fingerprint(name) for name in ("wasmtime", "any-nan", "worker")}) == 3
