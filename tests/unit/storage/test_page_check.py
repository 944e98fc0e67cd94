"""The fast structural check against lmdb's verifier: clean where healthy, never where flagged."""

from __future__ import annotations

import os
import pathlib
import random
from collections.abc import Iterator

import numpy as np
import pytest

from tarsdb.options import Durability, OpenOptions
from tarsdb.storage import Environment, Snapshot, WriteSet, merge, page_bytes, vacuum, verify
from tarsdb.storage.page_check import Verdict, check_pages
from tests.unit.storage import damage, tables

OPTIONS = OpenOptions(
    background_merge=False, segment_rows=256, delta_limit_rows=100, durability=Durability.RELAXED
)


def flagged(path: pathlib.Path) -> bool:
    """Return whether lmdb's verifier finds damage."""
    from lmdb.verify import VerifyError

    try:
        problems, finished = verify.find_problems(str(path), None)
    except VerifyError:
        return True
    assert finished
    return bool(verify.without_false_alarms(problems))


def compare(path: pathlib.Path, seed: int, rounds: int) -> tuple[int, int]:
    """Damage a file in many ways; return how often lmdb's verifier and the fast check objected."""
    healthy = path.read_bytes()
    source = damage.Damage(healthy, seed)
    slow_found = fast_found = 0
    with path.open("r+b", buffering=0) as file:
        for number in range(rounds):
            patches = source.patch()
            for _ in range(source.rng.choice((0, 0, 0, 1))):
                patches += source.patch()
            patches = [(at, new) for at, new in patches if at + len(new) <= len(healthy)]
            for at, new in patches:
                os.pwrite(file.fileno(), new, at)
            fast = check_pages(str(path), None) is not Verdict.CLEAN
            slow = flagged(path)
            assert fast or not slow, f"missed: seed {seed}, round {number}, {patches}"
            slow_found += slow
            fast_found += fast
            for at, new in patches:
                os.pwrite(file.fileno(), healthy[at : at + len(new)], at)
    assert path.read_bytes() == healthy
    return slow_found, fast_found


@pytest.mark.parametrize("name", damage.FILES)
def test_healthy_files_are_clean(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / "t"
    damage.FILES[name](path)
    assert not flagged(path)
    assert check_pages(str(path), None) is Verdict.CLEAN


def test_the_files_have_every_kind_of_page(tmp_path: pathlib.Path) -> None:
    kinds: set[int] = set()
    for name, make in damage.FILES.items():
        make(tmp_path / name)
        kinds |= set(damage.Damage((tmp_path / name).read_bytes(), 0).kinds)
    assert {0x01, 0x02, 0x04, 0x08, 0x22} <= kinds


@pytest.mark.parametrize("name", damage.FILES)
def test_what_lmdb_flags_is_never_clean(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / "t"
    damage.FILES[name](path)
    slow, fast = compare(path, seed=1, rounds=100)
    assert slow > 25
    assert fast < 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
@pytest.mark.parametrize("name", damage.FILES)
def test_what_lmdb_flags_is_never_clean_at_length(
    tmp_path: pathlib.Path, name: str, seed: int
) -> None:
    path = tmp_path / "t"
    damage.FILES[name](path)
    compare(path, seed, rounds=1000)


@pytest.mark.parametrize("name", damage.FILES)
def test_cut_files_are_not_clean(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / "t"
    damage.FILES[name](path)
    whole = path.read_bytes()
    rng = random.Random(3)
    for size in [0, 1, 100, 4096, 8191, 8192, len(whole) - 1] + [
        rng.randrange(len(whole)) for _ in range(10)
    ]:
        path.write_bytes(whole[:size])
        fast = check_pages(str(path), None) is not Verdict.CLEAN
        assert fast or not flagged(path), size


def test_keys_compare_as_memcmp_does() -> None:
    rng = random.Random(1)
    for _ in range(300):
        pair = [bytes(rng.choices(b"\x00\x01\xff", k=rng.randrange(0, 20))) for _ in range(2)]
        if rng.random() < 0.5:
            pair[1] = pair[0] + pair[1]
        pages = page_bytes.Pages.__new__(page_bytes.Pages)
        pages.raw = np.frombuffer(b"".join(pair) + b"\xff" * 16, dtype=np.uint8)
        starts = np.array([0, len(pair[0])])
        lengths = np.array([len(key) for key in pair])
        keys = page_bytes.Keys(starts, lengths, np.zeros(2, dtype=np.int64))
        assert page_bytes.ascending(pages, keys) == (pair[0] < pair[1]), pair


def test_the_time_is_bounded(tmp_path: pathlib.Path) -> None:
    damage.wide(tmp_path / "t")
    assert check_pages(str(tmp_path / "t"), 0.0) is Verdict.UNFINISHED


def test_what_is_no_file_of_ours_is_left_to_the_verifier(tmp_path: pathlib.Path) -> None:
    assert check_pages(str(tmp_path / "absent"), None) is Verdict.SUSPICIOUS
    env = damage.open_file(tmp_path / "t")
    env.open_db(b"other", integerkey=True)
    env.close()
    assert not flagged(tmp_path / "t")
    assert check_pages(str(tmp_path / "t"), None) is Verdict.SUSPICIOUS


# --- files as tarsdb writes them ---


@pytest.fixture
def env(tmp_path: pathlib.Path) -> Iterator[Environment]:
    env = Environment.open(tmp_path / "t.tars", OPTIONS)
    yield env
    env.release()


def require_clean(env: Environment) -> None:
    assert check_pages(env.path, None) is Verdict.CLEAN
    assert not flagged(pathlib.Path(env.path))


def test_files_of_tables_are_clean_at_every_step(env: Environment, tmp_path: pathlib.Path) -> None:
    require_clean(env)
    table = tables.make_table(env, ("BIGINT", "BIGINT", "VECTOR(4)"))
    require_clean(env)
    rows = [(key, key % 3, tables.vector(key)) for key in range(3000)]
    for start in range(0, 90, 30):
        tables.insert(env, table, rows[start : start + 30])
        require_clean(env)
    env.copy(str(tmp_path / "copy"))
    assert check_pages(str(tmp_path / "copy"), None) is Verdict.CLEAN
    tables.load(env, table, rows[90:])
    require_clean(env)
    held = Snapshot(env)
    merge(env, force=True)
    require_clean(env)
    for key in range(1, 2000, 37):
        tables.update(env, table, key, (10_000 + key, 5, tables.vector(-key)))
    require_clean(env)
    held.close()
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        view = snapshot.table(table, writes)
        writes.delete(table, view, np.arange(1, 2500, 2))
        writes.put_blob(os.urandom(100_000))
        writes.commit()
    require_clean(env)
    merge(env, force=True)
    vacuum(env)
    require_clean(env)


def test_a_file_after_drop_table_is_clean(env: Environment) -> None:
    table = tables.make_table(env, ("BIGINT", "BIGINT", "VECTOR(4)"))
    tables.load(env, table, [(key, key % 3, tables.vector(key)) for key in range(3000)])
    require_clean(env)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        writes.drop_table_data(table)
        writes.delete_object("table", "t")
        writes.commit()
    vacuum(env)
    require_clean(env)


def test_damaged_tables_are_never_clean(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "t.tars"
    env = Environment.open(path, OPTIONS)
    table = tables.make_table(env, ("BIGINT", "BIGINT", "VECTOR(4)"))
    rows = [(key, key % 2, tables.vector(key)) for key in range(1500)]
    tables.load(env, table, rows[:1400])
    tables.insert(env, table, rows[1400:])
    env.release()
    slow, _ = compare(path, seed=4, rounds=100)
    assert slow > 25
