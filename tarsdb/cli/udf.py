"""``tarsdb udf``: look at a WebAssembly module, and begin a project for one."""

from __future__ import annotations

import argparse
import importlib.resources
import pathlib
import re
import sys

from tarsdb.cli import render
from tarsdb.errors import DataError, OperationalError

_FOLDER = importlib.resources.files("tarsdb.udf_sandbox") / "authoring"
_C = """\
# Any clang that knows wasm32 will do: CC="clang --target=wasm32" sh build.sh
${CC:-python -m ziglang cc -target wasm32-freestanding} -O2 -nostdlib -Wl,--no-entry \\
  -Wl,--export=tars_abi_v1 -Wl,-z,stack-size=65536 -g0 -o NAME.wasm NAME.c
"""
_ZIG = """\
python -m ziglang build-exe NAME.zig -target wasm32-freestanding -O ReleaseSmall -fno-entry \\
  -rdynamic --stack 65536 -femit-bin=NAME.wasm
"""
_AS = """\
npx --yes --package assemblyscript asc NAME.ts -o NAME.wasm --runtime stub --noAssert -O3
"""
_RUST = """\
rustc --target wasm32-unknown-unknown --crate-type cdylib --edition 2021 -O -C panic=abort \\
  -C link-arg=-zstack-size=65536 -o NAME.wasm NAME.rs
"""
LANGUAGES = {"c": ("c", "h", _C), "zig": ("zig", "zig", _ZIG), "as": ("ts", "ts", _AS),
             "rust": ("rs", "rs", _RUST)}  # fmt: skip
"""Suffix of the source, suffix of the prelude, and the commands of ``build.sh``."""
_SQL = """\
CREATE OR REPLACE MODULE NAME FROM 'NAME.wasm';
CREATE OR REPLACE FUNCTION NAME(t TEXT) RETURNS INT LANGUAGE wasm FROM NAME::NAME;
SELECT NAME('one two  three');
"""


def inspect(arguments: argparse.Namespace) -> int:
    """Print what a module is; 0 when CREATE FUNCTION would take it, else 1."""
    from tarsdb.udf_sandbox import to_wasm
    from tarsdb.udf_sandbox.modules.inspection import describe

    path = pathlib.Path(arguments.module)
    try:
        code = path.read_bytes()
    except OSError as error:
        raise OperationalError(f"cannot read {path}: {error.strerror}") from error
    found = describe(to_wasm(code))
    memory = found.memory_bytes
    rows = [
        ("size", f"{found.size:,} bytes"),
        ("sha256", found.sha256),
        ("abi", found.abi or "-"),
        ("imports", "-" if found.imports is None else ", ".join(found.imports) or "none"),
        ("memory at start", "-" if memory is None else f"{memory:,} bytes: the least max_memory"),
        ("largest function", f"{found.largest_function:,} bytes"),
        ("sections", ", ".join(f"{name} {size}" for name, size in found.sections) or "none"),
        ("verdict", f"refused: {found.refused}" if found.refused else "accepted"),
    ]
    write = render.WRITERS[arguments.format]
    write(("property", "value"), rows, sys.stdout)
    if found.functions:
        exports = [(one.name, one.type, one.serves) for one in found.functions]
        write(("export", "type", "could serve"), exports, sys.stdout)
    return 1 if found.refused else 0


def new(arguments: argparse.Namespace) -> int:
    """Write a project: source, prelude, build command and the SQL that loads it."""
    name = arguments.name
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise DataError(
            f"{name!r} is no name for a function",
            hint="a small letter, then small letters, digits and _",
        )
    source, prelude, build = LANGUAGES[arguments.lang]
    folder = pathlib.Path(arguments.folder or name)
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is there already and not empty", hint="choose another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        f"{name}.{source}": _text(f"project.{source}"),
        f"tars_udf.{prelude}": _text(f"tars_udf.{prelude}"),
        "build.sh": f"set -e\n{build}",
        f"{name}.sql": _SQL,
    }
    for file, text in files.items():
        own = text if file.startswith("tars_udf") else text.replace("NAME", name)
        (folder / file).write_text(own, encoding="utf-8")
        print(folder / file)
    print(f"next: cd {folder} && sh build.sh && tarsdb shell my.tars < {name}.sql", file=sys.stderr)
    return 0


def _text(file: str) -> str:
    return (_FOLDER / file).read_text("utf-8")


def fill(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of both."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    about = "say what a module exports, needs and could serve"
    command = commands.add_parser("inspect", help=about, description=f"{about}.")
    command.add_argument("module", metavar="FILE", help="a .wasm file, or .wat text")
    command.add_argument("--format", choices=render.MODES, default="table")
    command.set_defaults(run=inspect)
    about = "write a project of one function that works"
    command = commands.add_parser("new", help=about, description=f"{about}.")
    command.add_argument("name", metavar="NAME", help="of the function")
    command.add_argument("--lang", choices=LANGUAGES, required=True)
    command.add_argument("--folder", metavar="DIR", help="where; NAME when absent")
    command.set_defaults(run=new)
