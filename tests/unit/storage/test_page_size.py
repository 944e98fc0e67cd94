"""Files with the 16 KiB pages of Apple processors, made by a library that lies about the system."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tarsdb.errors import CorruptionError
from tarsdb.memory_region import Region
from tarsdb.options import OpenOptions
from tarsdb.storage import Environment, check, packed
from tests.unit.storage import tables
from tests.unit.storage.test_inference import make_model

ROOT = pathlib.Path(__file__).resolve().parents[3]
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
long sysconf(int name) {
    static long (*real)(int);
    if (!real) real = (long (*)(int)) dlsym(RTLD_NEXT, "sysconf");
    return name == _SC_PAGESIZE ? 16384 : real(name);
}
"""
MAKE = """
import sys
from tarsdb.options import OpenOptions
from tarsdb.storage import Environment, check, merge, vacuum
from tests.unit.storage import tables
env = Environment.open(sys.argv[1], OpenOptions(check=True, background_merge=False))
table = tables.make_table(env)
for start in range(0, 600, 30):
    tables.load(env, table, tables.rows(*range(start, start + 15)))
    tables.insert(env, table, tables.rows(*range(start + 15, start + 30)))
    tables.contents(env, table)
    merge(env, force=True)
tables.delete(env, table, list(range(1, 101)))
vacuum(env)
print(len(tables.contents(env, table)), check(env, full=True), env.page_size)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pages")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    (folder / "pages.c").write_text(SOURCE)
    library = folder / "pages.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", library, folder / "pages.c", "-ldl"]
    subprocess.run(command, check=True)
    file = folder / "t.tars"
    done = subprocess.run(
        [sys.executable, "-c", MAKE, file],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("500 [] 16384\n", "")
    return file


def test_a_file_of_large_pages_is_read_and_written_here(path: pathlib.Path) -> None:
    env = Environment.open(path, OpenOptions(check=True))
    table = tables.current(env)
    assert len(tables.contents(env, table)) == 500
    tables.insert(env, table, tables.rows(9000))
    assert check(env, full=True) == []
    env.release()


def test_packed_weights_stay_out_of_it(path: pathlib.Path) -> None:
    env = Environment.open(path)
    weights = make_model(env)
    name = packed.image_name(weights, "layout")
    assert not packed.publish(env, name, weights, Region(100), lambda left: True)
    assert packed.find(env, name, 100) is None
    with env.read() as txn:
        assert txn.count(packed.DATABASE) == 0
    env.release()


def test_damage_in_its_second_meta_page_is_found(
    path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    content = bytearray(path.read_bytes())
    for place in (16384 + 16, 40, 16384 + 40):  # magic, page size, page size of the second
        damaged = content.copy()
        damaged[place] ^= 0x40
        file = tmp_path / f"{place}.tars"
        file.write_bytes(damaged)
        with pytest.raises(CorruptionError):
            Environment.open(file)


def test_truncation_is_found(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    content = path.read_bytes()
    for pages in (1, 3, len(content) // 32768):
        file = tmp_path / f"{pages}.tars"
        file.write_bytes(content[: pages * 16384])
        with pytest.raises(CorruptionError):
            Environment.open(file)
